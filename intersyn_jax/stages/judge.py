"""Stage `judge`: trains SynJudge on labelled answers and measures it, beside baselines, on answers that it has nothing of.

The answers are Storyworld's, on topics of split 1, or the rated ones that `judge.source` names. Three sides: training; a share
held aside, to which the temperatures of the probabilities are fitted; and the test, on other topics and partly by other
generators. What is measured stands in `summary.json`; `table.json`, `calibration.json`, `scatter.json`, and for Storyworld
`adversarial.json` and `sanity.json`, hold the same at length.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax import sharding
from intersyn_jax.data.manifest import Rejected
from intersyn_jax.data.storyworld import story
from intersyn_jax.errors import UserError
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.layout import TokenBatch
from intersyn_jax.interleave.types import DIMENSIONS, Conversation
from intersyn_jax.judge import (
  adversarial,
  annotators,
  calibration,
  labelled,
  metrics,
  model,
  rated,
  sanity,
  served,
  training,
)
from intersyn_jax.judge.baselines import blinded, clip, fit_all
from intersyn_jax.judge.labelled import GENERATORS, TEST, TRAIN, Corpus, Labelled
from intersyn_jax.judge.model import SynJudge
from intersyn_jax.judge.views import ITS
from intersyn_jax.models import lora
from intersyn_jax.models.definition import Params
from intersyn_jax.stages.common import Run, leaves
from intersyn_jax.stages.parts import Parts, temperatures_file
from intersyn_jax.training import checkpoints, loop
from intersyn_jax.training.metrics import replace_text
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer

BASELINES = ('mean', 'likelihood', 'clip', 'without_images', 'without_text', 'endpoint')
"""What `judge.baselines` may name; `endpoint` is the vision model that `evaluate.endpoint` names."""

SCATTER = 400
"""Points that the report draws."""

RETOLD = 1 / 3
"""Share of the texts told anew that the whole judge learns from: enough to learn what follows from a mark, which most are for."""

FIRST_GOLD = 90_000_000
"""Number of the first story of the adversarial and the sanity tests: no shard and no labelled row has it."""


class Rows(NamedTuple):
  """Labelled answers, and why others are not among them."""

  train: Labelled
  aside: Labelled
  test: Labelled
  rejected: list[Rejected]


def run(run: Run) -> dict[str, Any]:
  parts, section = Parts(run), run.config.judge
  for name in section.baselines:
    if name not in BASELINES:
      raise UserError(f'config.judge.baselines names {name!r}; there are {", ".join(BASELINES)}')
  policy = parts.policy(section.init)
  rows = _rated(run, parts) if section.source else _written(run, parts)
  labelled.check_leaks(rows.train, rows.test)
  judge = SynJudge.of(parts.model_config, parts.layout, section)
  told = training.examples(judge, rows.train)
  mine = np.isin(told.row, labelled.taught(rows.train, RETOLD))
  lesson = _lesson(run, training.kept(told, mine), range(len(DIMENSIONS)))
  params = _train(run, parts, judge, policy, lesson, section.steps, told=told)
  cost = lesson.cost
  del told, lesson  # of the size of the data
  judge = _calibrated(run, judge, params, rows.aside)
  out = _measure(run, parts, judge, params, policy, rows, cost)
  return out if section.source else out | _challenge(run, parts, judge, params)


# Rows.


def _written(run: Run, parts: Parts) -> Rows:
  """Storyworld's answers. The student's early ones are on both sides, those of the later policy in the test alone."""
  data, section = run.config.data, run.config.judge
  samplers = {name: sampler(run, parts, parts.policy(policy))
              for name, policy in (('sampled', 'warmup'), ('later_policy', 'warmup_long'))
              if checkpoints.latest_step(parts.policy_folder(policy)) is not None}
  corpus = Corpus(
      parts.layout, parts.encode, parts.decode, samplers, pixels=data.pixels, jitter=data.jitter, objects=data.objects,
      steps=data.steps, turns=data.turns, seed=run.config.seed, max_steps=section.max_steps, held_out=section.held_out,
      annotators=section.annotators, disagreement=section.disagreement, retold=section.retold)
  run.say('judge: writing labelled answers')
  train, test = corpus.build(TRAIN, section.answers), corpus.build(TEST, section.test_answers)
  return Rows(*_aside(train, section.aside, run.config.seed), labelled.unseen(test, train), [])


def _rated(run: Run, parts: Parts) -> Rows:
  """The answers that people have scored (`judge.source`)."""
  section, rejected = run.config.judge, []
  train, test = rated.read(
      section.source, section.images, parts.layout, parts.encode, rejected.append, pixels=run.config.data.pixels,
      longest=section.row_length, max_steps=section.max_steps, held_out=section.held_out,
      held_out_generators=section.held_out_generators, seed=run.config.seed)
  if run.active:
    replace_text(run.directory('judge') / 'rejected.json', json.dumps([dataclasses.asdict(r) for r in rejected], indent=1))
  return Rows(*_aside(train, section.aside, run.config.seed), test, rejected)


def _aside(rows: Labelled, share: float, seed: int) -> tuple[Labelled, Labelled]:
  """Two parts of the training rows: all answers to one question stand in the same one."""
  place = lambda question: int.from_bytes(hashlib.blake2b(f'{seed}/{question}'.encode(), digest_size=4).digest(), 'big') / 2**32
  aside = np.array([place(question) < share for question in rows.questions])
  if not 0 < aside.sum() < len(rows):
    raise UserError(f'config.judge.aside is {share}: of {len(rows)} training answers it leaves {aside.sum()} to calibrate with; '
                    'take another share, or more answers')
  return rows.take(np.flatnonzero(~aside)), labelled.answers(rows.take(np.flatnonzero(aside)))


def sampler(run: Run, parts: Parts, params: Params, **decoding) -> labelled.Sampler:
  """Answers of a policy as `config.decode` says, all prompts in one shape so that one program does."""
  decoder = parts.decoder(**decoding)
  rows = run.config.decode.rows

  def sample(conversations: Sequence[Conversation]) -> list[TokenBatch]:
    prompts = [layout.prompt(c, parts.layout) for c in conversations]
    width = -(-max(len(p.text) for p in prompts) // 64) * 64
    out = []
    for first in range(0, len(prompts), rows):
      chunk = [prompts[min(i, len(prompts) - 1)] for i in range(first, first + rows)]
      batch = layout.stack(chunk, width, left=True)
      done = sharding.host(decoder.rollout(
          params, batch, np.arange(first, first + rows, dtype=np.uint32), run.config.seed, group=1).tokens)
      for i in range(min(rows, len(prompts) - first)):
        mine = jax.tree.map(lambda a, i=i: a[i], done)
        length = int((mine.modality > 0).sum())
        out.append(jax.tree.map(lambda a, b, n=length: np.concatenate([a, b[:n]]), prompts[first + i], mine))
    return out

  return sample


# Training.


class Lesson(NamedTuple):
  """What a judge is trained on: views, and how likely each is drawn; `cost` is how many positions an answer takes in all."""

  data: training.Examples
  chance: np.ndarray
  cost: float


def _lesson(run: Run, data: training.Examples, dimensions: Sequence[int]) -> Lesson:
  """The views of some dimensions; those longer than a row are left out."""
  section = run.config.judge
  shares = [weight if i in dimensions else 0.0 for i, weight in enumerate(section.dimension_weights)]
  fits = data.length <= section.row_length
  if not fits.all():
    run.say(f'judge: {(~fits).sum()} views longer than a row of {section.row_length} were left out')
  data = training.kept(data, fits)
  chance = training.chances(data, shares, section.balance)
  return Lesson(data, chance, sum(shares) * float(chance @ data.length))


def _train(run: Run, parts: Parts, judge: SynJudge, policy: Params, lesson: Lesson, steps: int, *,
           told: training.Examples | None = None, name: str = '', matching: Params | None = None) -> Params:
  """Trains the judge. Where views `told` have marks, they first bring words and codes together, which then stay as they are. Or
  trains the blinded judge of this name, which takes the `matching` of the judge as it is: half blind, it could not learn it."""
  section, (data, chance, _) = run.config.judge, lesson
  sharding.check_rows(parts.mesh, section.rows, 'judge.rows')
  batch = training.batches(data, chance, rows=section.rows, length=section.row_length, seed=run.config.seed)
  fresh = judge.definition.init(jax.random.key(run.config.seed), parts.mesh)
  labels = [data.labels[data.dimension == i] for i in range(len(DIMENSIONS))]
  prior = jax.jit(lambda params: model.with_prior(params, labels), out_shardings=judge.definition.shardings(parts.mesh))
  params = prior(model.init_from(policy, fresh))
  place = f'judge/{name}' if name else 'judge'
  saved = checkpoints.Checkpoints(run.directory(place) / 'checkpoints', identity=run.config_hash('judge'))
  settings = OptimizerConfig(**section.optimizer)
  settings = dataclasses.replace(settings, frozen=(*settings.frozen, *lora.frozen_patterns(section.mode)))
  if told is not None and section.align.steps and np.isfinite(told.marks[:, model.DENIED]).any():
    settings = dataclasses.replace(settings, frozen=(*settings.frozen, training.MATCHES))
    if saved.latest() is None:
      params = _aligned(run, parts, judge, params, told)
  if matching is not None:
    settings = dataclasses.replace(settings, frozen=(*settings.frozen, training.MATCHES))
    params = params | {'matching': params['matching'] | {
        name: jnp.array(value) for name, value in matching.items() if re.search(training.MATCHES, f'matching/{name}')}}
  optimizer = make_optimizer(settings, steps)
  weights = {'loss': 1.0, 'expected': section.expected_weight} | {f'marks.{name}': section.mark_weight for name in labelled.MARKS}
  step = loop.make_step(training.loss_of(judge.definition), optimizer, weights=weights)
  with run.metrics(place, saved.latest() or -1) as writer:
    state, _ = loop.fit(
        step, loop.init_state(params, optimizer), loop.Indexed(batch, parts.mesh), steps=steps, seed=run.config.seed,
        checkpoints=saved, metrics=writer, metrics_every=section.log_every,
        save_every=section.checkpoint_every, progress=run.progress('judge', steps, max(saved.done, 0), label=name or 'judge'),
        batch_sharding=sharding.rows(parts.mesh), profile=run.profile(place))
  return state['params']


def _aligned(run: Run, parts: Parts, judge: SynJudge, params: Params, told: training.Examples) -> Params:
  """The parameters after words and codes were brought together."""
  section, steps = run.config.judge, run.config.judge.align.steps
  sharding.check_rows(parts.mesh, section.align.rows, 'judge.align.rows')
  data = training.kept(told, told.length <= section.row_length)
  chance = training.chances(data, [float(i == ITS) for i in range(len(DIMENSIONS))], 0.0)
  batch = training.batches(data, chance, rows=section.align.rows, length=section.row_length, seed=run.config.seed)
  optimizer = make_optimizer(OptimizerConfig(
      learning_rate=section.align.learning_rate, schedule='linear', warmup=0.03, floor=0.05, b2=0.999,
      frozen=(training.OTHERS,)), steps)
  step = loop.make_step(training.align_loss_of(judge.definition), optimizer, weights=dict.fromkeys(training.ALIGNED, 1.0))
  state, _ = loop.fit(
      step, loop.init_state(params, optimizer),
      loop.Indexed(batch, parts.mesh), steps=steps, seed=run.config.seed, metrics_every=section.log_every,
      progress=run.progress('judge', steps, 0, label='align'), batch_sharding=sharding.rows(parts.mesh))
  return state['params']


def _calibrated(run: Run, judge: SynJudge, params: Params, aside: Labelled) -> SynJudge:
  """The judge with temperatures fitted to the answers held aside, which are kept for whoever loads it."""
  temperatures = calibration.fit(*training.readouts(training.judge_all(judge, params, aside.documents), aside))
  if run.active:
    replace_text(temperatures_file(run.workdir), json.dumps(dict(zip(DIMENSIONS, temperatures, strict=True))))
  return judge.at(temperatures)


# Measuring.


def _measure(run: Run, parts: Parts, judge: SynJudge, params: Params, policy: Params, rows: Rows,
             cost: float) -> dict[str, Any]:
  """The judge and its baselines on held-out topics answered by held-out generators; then each generator by itself."""
  section, test = run.config.judge, rows.test
  bootstrap = dict(samples=section.bootstrap, seed=run.config.seed)
  found = training.judge_all(judge, params, test.documents)
  head = _headline(run, test)
  retold = rows.train.generators.count(labelled.RETOLD)
  out: dict[str, Any] = {'rows.train': len(rows.train) - retold, 'rows.retold': retold, 'rows.aside': len(rows.aside),
                         'rows.test': len(test), 'rows.rejected': len(rows.rejected),
                         'measured_on': _measured_on(run, test, head)}
  out |= metrics.table(test.whole[head], found.whole[head], **bootstrap)
  out |= {f'{group}.{name}': value
          for group, values in metrics.by_group(test.whole, found.whole, test.generators, **bootstrap).items()
          for name, value in values.items()}
  for i, name in enumerate(DIMENSIONS):
    real = np.isfinite(test.steps[head][..., i]) & found.valid[head][:, None]
    if real.any():
      measured = metrics.measure(test.steps[head][..., i][real], found.steps[head][..., i][real])
      out |= {f'steps.{name}.{key}': value for key, value in measured.items()}
  # What the scorer gives where asked pictures are missing, which no view of single pictures can know.
  good = head & found.valid
  out['iq.rmse_with_missing'] = float(np.sqrt(np.mean((found.whole[good, 2] - test.asked_iq[good]) ** 2))) if good.any() else None
  for name, agreement in annotators.alpha(test.votes, samples=section.bootstrap, seed=run.config.seed).items():
    out |= {f'{name}.alpha': agreement.alpha, f'{name}.alpha.low': agreement.low, f'{name}.alpha.high': agreement.high}
  told = calibration.report(*training.readouts(found, test), judge.temperatures, **bootstrap)
  out |= {f'{name}.{key}': values[key] for name, values in told.items()
          for key in ('ece', 'ece_uncalibrated', 'temperature', 'spread', 'spearman')}
  baselines, counts = _baselines(run, parts, judge, params['matching'], policy, rows, cost, found.whole, head)
  out |= counts
  table = metrics.compare(test.whole[head], {'synjudge': found.whole[head]} | {
      name: scores[head] for name, scores in baselines.items()}, **bootstrap)
  out |= {f'{row["setting"]}.{name}.{key}': row[f'{name}.{key}'] for row in table[1:] for name in DIMENSIONS
          for key in ('rmse', 'a1')}
  picked = np.flatnonzero(good)[:SCATTER]
  scatter = {name: [[round(float(test.whole[i, d]), 3), round(float(found.whole[i, d]), 3)] for i in picked]
             for d, name in enumerate(DIMENSIONS)}
  if run.active:
    for name, value in (('table', table), ('calibration', told), ('scatter', scatter)):
      replace_text(run.directory('judge') / f'{name}.json', json.dumps(value))
  return out


def _headline(run: Run, test: Labelled) -> np.ndarray:
  """bool[N], the test rows that the main figures are of: answers of held-out generators, where there are such."""
  generators = np.array(test.generators)
  if run.config.judge.source:
    named = np.isin(generators, list(run.config.judge.held_out_generators))
    return named if named.any() else np.ones(len(test), bool)
  return np.array([GENERATORS[g].held_out and g != 'unseen_flaws' for g in generators])


def _measured_on(run: Run, test: Labelled, head: np.ndarray) -> str:
  by = ', '.join(sorted(set(np.array(test.generators)[head])))
  if run.config.judge.source:
    return f'answers by {by} that share no question and no picture with training'
  return f'held-out topics of split 1 answered by {by}; no question and no picture of training'


def _baselines(run: Run, parts: Parts, judge: SynJudge, matching: Params, policy: Params, rows: Rows, cost: float,
               full: np.ndarray, head: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Scores [N,4] of the test rows by each baseline that the config names, and what a server counted."""
  section, scores, counts = run.config.judge, {}, {}
  if {'mean', 'likelihood', 'clip'} & set(section.baselines):
    run.say('judge: fitting baselines')
    shards = [c for split in ('text_to_image', 'interleaved') if split in parts.splits() for c in parts.conversations(split)]
    made = fit_all(judge, parts.model_config, policy, labelled.answers(rows.train), shards, parts.mesh,
                   clip=clip.ClipConfig(**section.clip), seed=run.config.seed, names=section.baselines)
    scores |= {name: baseline.scores(rows.test) for name, baseline in made.items()}
  for name, hide in (('without_images', blinded.IMAGES), ('without_text', blinded.TEXTS)):
    if name in section.baselines:
      blind = blinded.BlindJudge.like(judge, hide)
      mine = rows.train.take(labelled.taught(rows.train, RETOLD))
      less = _lesson(run, training.examples(blind, mine), blinded.TOUCHED[hide])
      # As many answers as the judge saw, in so many fewer steps as what is left of their views is shorter.
      steps = max(1, math.ceil(section.steps * less.cost / cost))
      params = _train(run, parts, blind, policy, less, steps, name=name, matching=matching)
      scores[name] = blinded.blinded_scores(judge, params, rows.test, full, hide)
  if 'endpoint' in section.baselines:
    scores['endpoint'], counts = _served(run, parts, rows.test, head)
  return {name: scores[name] for name in BASELINES if name in scores}, counts


def _served(run: Run, parts: Parts, test: Labelled, head: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
  """What the vision model on a server says of the first `evaluate.endpoint.prompts` rows that the main figures are of, NaN of
  the others and where it failed; and its counts, failures with their reasons among them. One process asks."""
  section = run.config.evaluate.endpoint
  picked = np.flatnonzero(head)[:section.prompts]
  scores = np.full(test.whole.shape, np.nan, np.float32)
  shown = served.conversations_of(test.take(picked), parts.layout, parts.decode)
  if not run.active:
    return scores, {}
  asker = served.ServedJudge.of(section, field='config.evaluate.endpoint', seed=run.config.seed,
                                log=run.workdir / 'endpoint' / 'judgements.jsonl')
  scores[picked], _ = asker.judge(shown)
  return scores, {f'endpoint.{name}': value for name, value in leaves(asker.summary()) if not isinstance(value, dict)}


def _challenge(run: Run, parts: Parts, judge: SynJudge, params: Params) -> dict[str, Any]:
  """What a policy could exploit, and what any sound judge does, on gold answers to held-out topics."""
  data, section, seed = run.config.data, run.config.judge, run.config.seed
  topics = labelled.topics_of(TEST, section.held_out)
  gold = [story.conversation(seed, FIRST_GOLD + i, 'roles', pixels=data.pixels, jitter=data.jitter, objects=data.objects,
                             steps=data.steps, turns=1, topic=story.keyed(seed, i, 'challenge').choice(topics))
          for i in range(section.challenges)]
  score = adversarial.scorer(judge, params)
  greedy = sampler(run, parts, parts.policy('warmup'), text_temperature=0.0, image_temperature=0.0)
  common = dict(max_steps=section.max_steps, jitter=data.jitter, seed=seed)
  cases = adversarial.measure(score, gold, parts.layout, parts.encode, parts.decode, greedy=greedy, **common)
  tests = sanity.measure(score, gold, parts.layout, parts.encode, parts.decode, samples=section.bootstrap, **common)
  if run.active:
    for name, value in (('adversarial', cases), ('sanity', tests)):
      replace_text(run.directory('judge') / f'{name}.json', json.dumps(value))
  return {'exploitable': ', '.join(adversarial.exploitable(cases)) or 'none', 'sanity.tests': len(tests),
          'sanity.passed': sum(row['passes'] for row in tests), 'sanity.flaws_that_fall': sanity.share_of_flaws(tests)}
