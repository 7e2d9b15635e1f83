"""Stage `evaluate`: every policy answers the same held-out prompts; SynJudge and the known world score the answers.

What a policy wrote and how it scored is kept in `answers/POLICY.DECODING.npz`, one file at a time, so a killed stage goes
on with the next one and studies can pool the prompts of several runs. `scores.json`, `by_steps.json`, `skills.json` and
`gallery.jsonl` are made from these. Where `evaluate.endpoint.url` is set, a model on a server judges the first answers as
well; its replies are kept in `WORKDIR/endpoint/judgements.jsonl`, beside the stage's folder, since they were paid for.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from intersyn_jax import sharding
from intersyn_jax.data import images
from intersyn_jax.decoding.decoder import Decoder
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation import answers as answers_lib
from intersyn_jax.evaluation import skills, statistics
from intersyn_jax.evaluation.answers import Answers
from intersyn_jax.evaluation.truth import truth
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.layout import TokenBatch
from intersyn_jax.interleave.types import DIMENSIONS, Conversation, steps_of, text_of
from intersyn_jax.judge import served
from intersyn_jax.judge.model import SynJudge
from intersyn_jax.models.definition import Params
from intersyn_jax.stages.common import Run, barrier, leaves
from intersyn_jax.stages.parts import Parts, identity, policy_folder
from intersyn_jax.training import checkpoints
from intersyn_jax.training.metrics import replace_text

CHANCE = 'chance'
TRAINED = ('warmup', 'warmup_long', 'finetune', 'finetune_25', 'finetune_50', 'finetune_100', 'finetune_k0', 'finetune_gold',
           'grpo')
"""Policies in the order of tables. Those whose checkpoints are missing are left out (the last controls come from studies)."""

PAIRS = (*((CHANCE, name) for name in TRAINED), ('warmup', 'warmup_long'), ('warmup', 'finetune'),
         ('warmup_long', 'finetune'), ('warmup', 'finetune_k0'), ('finetune_k0', 'finetune'), ('finetune_gold', 'finetune'),
         ('finetune_25', 'finetune'), ('finetune_25', 'finetune_100'), ('finetune_k0', 'finetune_100'),
         ('finetune_gold', 'finetune_100'), ('finetune', 'grpo'), ('warmup', 'grpo'), ('warmup_long', 'grpo'))
"""(a, b) whose difference b - a is told."""

DECODINGS = {
    'sampled': dict(text_temperature=1.0, image_temperature=1.0, text_top_k=0, image_top_k=0, text_top_p=1.0, image_top_p=1.0),
    'greedy': dict(text_temperature=0.0, image_temperature=0.0),
}
GROUP = 4
"""Answers to one prompt when diversity is measured."""

SKILL_SEED = 7_000_000
"""Skill questions are drawn apart from all shards."""


class Prompts(NamedTuple):
  """The held-out prompts: first-turn questions, their text and tokens, and the number of steps each asks for."""

  conversations: list[Conversation]
  texts: list[str]
  tokens: list[TokenBatch]
  steps: np.ndarray


def run(run: Run) -> dict[str, Any]:
  parts, section = Parts(run), run.config.evaluate
  run.require('tokenizer', 'warmup', 'judge')
  for name in section.decodings:
    if name not in DECODINGS:
      raise UserError(f'config.evaluate.decodings names {name!r}; there are {", ".join(DECODINGS)}')
  server = _server(run)
  folder = run.directory('evaluate')
  policies = [name for name in TRAINED if trained(run, name)]
  work = Work(run, parts, folder, policies)
  scores = {policy: work.scores(policy) for policy in (CHANCE, *policies)}
  skill = {policy: work.skills(policy) for policy in policies}
  asked = _ask_server(run, work, folder, scores, server)
  if run.active:
    _write(run, work, folder, scores, skill)
  barrier('evaluate-written')
  return _metrics(json.loads((folder / 'scores.json').read_text()), work.failures, work.form, skill) | asked


def trained(run: Run, policy: str) -> bool:
  """Whether a policy is there and its stage has ended."""
  folder = policy_folder(run.workdir, policy)
  return run.complete(folder.relative_to(run.workdir).parts[0]) and checkpoints.latest_step(folder) is not None


def read_scores(workdir: epath.PathLike) -> dict[str, dict[str, dict[str, np.ndarray]]]:
  """The raw scores of a finished stage: policy -> decoding -> scorer -> float32[N,4]."""
  found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
  for policy in (CHANCE, *TRAINED):
    for decoding in DECODINGS:
      path = epath.Path(workdir) / 'evaluate' / 'answers' / f'{policy}.{decoding}.npz'
      if path.exists():
        _, rest = answers_lib.split(answers_lib.load(path))
        found.setdefault(policy, {})[decoding] = {s: rest[s] for s in ('judge', 'truth') if s in rest}
  return found


class Work:
  """Answers and scores of policies: what all of them share, and what is done already.

  Args:
    folder: answers are kept in FOLDER/answers.
    policies: all that may be asked for, beside CHANCE.
  """

  def __init__(self, run: Run, parts: Parts, folder: epath.Path, policies: Sequence[str]):
    self.run, self.parts, self.folder, self.section = run, parts, folder, run.config.evaluate
    self.prompts = _prompts(parts, self.section.prompts)
    self.known_world = run.config.data.source == 'storyworld'
    self.failures: dict[str, int] = {}
    self.form: dict[str, dict[str, float]] = {}
    self.first: dict[str, Answers] = {}  # of each policy and decoding, the answers that a server judges
    data = run.config.data
    self.probes = skills.Probes([], [])
    if self.known_world:
      self.probes = skills.probes(SKILL_SEED + run.config.seed, self.section.prompts, parts.encode, pixels=data.pixels,
                                  jitter=data.jitter)
    self.questions = [[layout.prompt(c, parts.layout) for c in part] for part in self.probes]
    bucket = parts.decoder().config.bucket
    self.length = answers_lib.room([*self.prompts.tokens, *(t for part in self.questions for t in part)], bucket)
    self.judge = parts.judge()
    self.decoders = {name: parts.decoder(**DECODINGS[name]) for name in self.section.decodings}
    judge = identity(run.workdir / 'judge' / 'checkpoints')
    self.weights = {CHANCE: judge} | {p: f'{identity(policy_folder(run.workdir, p))} {judge}' for p in policies}
    # What is there is looked up before anything is written, so that several processes agree on it.
    self.kept = {f'{policy}.{decoding}': kept for policy in self.weights for decoding in self.decoders
                 if (kept := self._kept(policy, decoding)) is not None}
    self.kept_skills = {policy: kept for policy in policies if (kept := self._kept_skills(policy)) is not None}
    barrier('evaluate-begin')
    todo = [f'{policy}.{decoding}' for policy in policies for decoding in self.decoders]
    total = len(todo) * len(self.prompts.texts)
    self.count = sum(len(self.prompts.texts) for name in todo if name in self.kept)
    self.progress = run.progress('evaluate', total, self.count, unit='answer')
    self._policy: tuple[str, Params] | None = None

  def _kept(self, policy: str, decoding: str) -> tuple[Answers, dict[str, np.ndarray]] | None:
    """Answers and scores of an earlier start, None where there are none of these very weights."""
    path = self.folder / 'answers' / f'{policy}.{decoding}.npz'
    if not path.exists():
      return None
    made, rest = answers_lib.split(answers_lib.load(path))
    return (made, rest) if str(rest.pop('weights')) == self.weights[policy] else None

  def _kept_skills(self, policy: str) -> dict[str, Any] | None:
    path = self.folder / 'answers' / f'{policy}.skills.json'
    found = json.loads(path.read_text()) if path.exists() else {}
    return found['skills'] if found.get('weights') == self.weights[policy] else None

  def params(self, policy: str) -> Params:
    """Parameters of a policy; the last one asked for is kept."""
    if self._policy is None or self._policy[0] != policy:
      self._policy = None
      self._policy = (policy, self.parts.load(self.parts.model, policy_folder(self.run.workdir, policy)))
    return self._policy[1]

  def write(self, decoder: Decoder, policy: str, tokens: Sequence[TokenBatch], requests: Sequence[int],
            tick: Callable[[int], None] | None = None) -> Answers:
    return answers_lib.write(decoder, self.params(policy), tokens, requests, length=self.length,
                             seed=self.run.config.seed, tick=tick)

  def scores(self, policy: str) -> dict[str, dict[str, np.ndarray]]:
    """decoding -> scorer -> float32[N,4] of a policy, read where it is done, else made and kept."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for decoding, decoder in self.decoders.items():
      name = f'{policy}.{decoding}'
      if name in self.kept:
        made, rest = self.kept[name]
      else:
        if policy != CHANCE or not found:  # chance does not decode: the same answers stand for every decoding
          made = self._answer(policy, decoder)
          rest = self._score(made)
        if self.run.active:
          answers_lib.save(self.folder / 'answers' / f'{name}.npz',
                           made.arrays() | rest | {'weights': np.array(self.weights[policy])})
      found[decoding] = rest
      self.first[name] = _first(made, _asked_of_server(self.run))
      for scorer, array in rest.items():
        if failed := int((~np.isfinite(array).all(axis=1)).sum()):
          self.failures[f'{name}.{scorer}'] = failed
      self.form[name] = {'well_formed': float(made.well_formed.mean()),
                         'steps_asked': float((made.well_formed & (made.steps == self.prompts.steps)).mean())}
    return found

  def _answer(self, policy: str, decoder: Decoder) -> Answers:
    if policy == CHANCE:
      return answers_lib.chance(self.parts.conversations('interleaved'), self.parts.layout, len(self.prompts.texts),
                                decoder.config.max_positions, self.run.config.seed)
    before = self.count
    made = self.write(decoder, policy, self.prompts.tokens, np.arange(len(self.prompts.tokens)),
                      tick=lambda done: self.progress.update(before + done))
    self.count += len(made)
    return made

  def _score(self, made: Answers) -> dict[str, np.ndarray]:
    batch = answers_lib.joined(self.prompts.tokens, made, self.length)
    rest = {'judge': judged(*self.judge, batch, self.run.config.decode.rows)}
    if self.known_world:
      rest['truth'] = truth(self.prompts.texts, made.segments(self.parts.layout), self.parts.decode,
                            jitter=self.run.config.data.jitter)
    return rest

  def skills(self, policy: str) -> dict[str, Any]:
    """Retained skills and diversity of a policy; read where they are done, else made and kept."""
    if policy in self.kept_skills:
      return self.kept_skills[policy]
    found: dict[str, Any] = {}
    if self.known_world:
      greedy = self.decoders.get('greedy') or self.parts.decoder(**DECODINGS['greedy'])
      said, shown = (self.write(greedy, policy, tokens, np.arange(len(tokens))).segments(self.parts.layout)
                     for tokens in self.questions)
      exact = skills.understood(self.probes.understanding, said)
      icc, objects = skills.drawn(self.probes.drawing, answers_lib.with_pictures(shown, self.parts.decode),
                                  jitter=self.run.config.data.jitter)
      found['understanding'] = {'accuracy': _mean(exact, self.section.bootstrap)}
      found['text_to_image'] = {'icc': _mean(icc, self.section.bootstrap), 'objects': _mean(objects, self.section.bootstrap)}
    if 'sampled' in self.decoders:
      chosen = max(1, len(self.prompts.tokens) // GROUP)
      tokens = [t for t in self.prompts.tokens[:chosen] for _ in range(GROUP)]
      made = self.write(self.decoders['sampled'], policy, tokens, len(self.prompts.tokens) + np.arange(len(tokens)))
      found['diversity'] = skills.diversity(made.segments(self.parts.layout), GROUP)
    if self.run.active:
      replace_text(self.folder / 'answers' / f'{policy}.skills.json',
                   json.dumps({'weights': self.weights[policy], 'skills': found}))
    return found


def _prompts(parts: Parts, count: int) -> Prompts:
  test = parts.conversations('test')
  if len(test) < count:
    raise UserError(f'config.evaluate.prompts is {count}, but the split test has {len(test)} conversations; lower it, or '
                    'raise config.data.counts.test in a new work folder')
  cut = [answers_lib.first_turn(test[i]) for i in range(count)]
  steps = np.array([len(steps_of(c.turns[0].answer)) for c in cut], np.int32)
  return Prompts(cut, [text_of(c.turns[0].question) for c in cut], [layout.prompt(c, parts.layout) for c in cut], steps)


def judged(judge: SynJudge, params: Params, batch: TokenBatch, rows: int) -> np.ndarray:
  """SynJudge's scores float32[N,4] of the whole answers in rows [N,T+M]; NaN where it fails.

  The device gets `rows` rows at a time, so that one program serves all.
  """
  parts = []
  for start in range(0, len(batch.text), rows):
    chunk = jax.tree.map(lambda a, start=start: _filled(a[start:start + rows], rows), batch)
    parts.append(sharding.host(judge.jitted(params, chunk).whole))
  return np.concatenate(parts)[:len(batch.text)].astype(np.float32)


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
  return np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])


def _first(made: Answers, count: int) -> Answers:
  return Answers(**{name: array[:count] for name, array in made.arrays().items()})


# The second judge, on a server.


def _asked_of_server(run: Run) -> int:
  """How many answers of each policy and decoding a server judges."""
  section = run.config.evaluate.get('endpoint')
  return min(section.prompts, run.config.evaluate.prompts) if section and section.url else 0


def _server(run: Run) -> served.ServedJudge | None:
  """The judge on a server; only one process asks it. Built before all other work, to find mistakes early."""
  if not _asked_of_server(run) or not run.active:
    return None
  return served.ServedJudge.of(run.config.evaluate.endpoint, field='config.evaluate.endpoint', seed=run.config.seed,
                               log=run.workdir / 'endpoint' / 'judgements.jsonl')


def _ask_server(run: Run, work: Work, folder: epath.Path, scores: statistics.Scores,
                judge: served.ServedJudge | None) -> dict[str, Any]:
  """Adds the scorer `endpoint` to the scores: NaN where it failed and where it was not asked. Gives its counts, in which
  only those that were asked can have failed, and writes `endpoint.json` with every judgement and its reason."""
  count = _asked_of_server(run)
  if not count:
    return {}
  report, found = run.reporter('evaluate', 'reply'), {}
  for name, made in work.first.items():
    # Decoding pictures is the work of all processes; they have no scores afterwards and need none.
    shown = served.pictured(made.conversations(work.prompts.conversations[:count], work.parts.layout), work.parts.decode)
    policy, decoding = name.split('.')
    scores[policy][decoding]['endpoint'] = np.full((len(work.prompts.texts), len(DIMENSIONS)), np.nan, np.float32)
    if judge is None:
      continue
    found[name] = judge.judgements(shown, lambda done, name=name: report(f'endpoint {name}', done, None))
    for row, judgement in enumerate(found[name]):
      if judgement.scores is not None:
        scores[policy][decoding]['endpoint'][row] = judgement.scores
    if failed := sum(j.scores is None for j in found[name]):
      work.failures[f'{name}.endpoint'] = failed
  if judge is None:
    return {}
  replace_text(folder / 'endpoint.json', json.dumps(
      {name: [dataclasses.asdict(j) for j in judgements] for name, judgements in found.items()}, allow_nan=False))
  return {f'endpoint.{name}': value for name, value in leaves(judge.summary()) if not isinstance(value, dict)}


def _mean(values: np.ndarray, resamples: int) -> dict[str, Any]:
  low, high = statistics.interval(values[:, None], statistics.draws(len(values), resamples, 0))
  return {'mean': float(values.mean()), 'ci95': [float(low[0]), float(high[0])], 'n': len(values)}


# Files.


def _write(run: Run, work: Work, folder: epath.Path, scores: statistics.Scores, skill: Mapping[str, Any]) -> None:
  section = run.config.evaluate
  bootstrap = dict(resamples=section.bootstrap, seed=run.config.seed)
  table = statistics.summary(scores, PAIRS, **bootstrap)
  replace_text(folder / 'scores.json', json.dumps(table, indent=1, allow_nan=False))
  steps = {policy: {decoding: {scorer: statistics.by_group(array, work.prompts.steps, **bootstrap)
                               for scorer, array in scorers.items()} for decoding, scorers in decodings.items()}
           for policy, decodings in scores.items()}
  replace_text(folder / 'by_steps.json', json.dumps(steps, indent=1, allow_nan=False))
  form = {policy: {d: work.form[f'{policy}.{d}'] for d in work.decoders} for policy in scores}
  found = {policy: dict(skill.get(policy, {})) | {'format': form[policy]} for policy in scores}
  replace_text(folder / 'skills.json', json.dumps(found, indent=1, allow_nan=False))
  rows = gallery(work.parts, work.prompts, folder, [p for p in scores if p != CHANCE], section.decodings[0],
                 min(section.gallery, len(work.prompts.texts)))
  replace_text(folder / 'gallery.jsonl', ''.join(json.dumps(row) + '\n' for row in rows))


def gallery(parts: Parts, prompts: Prompts, folder: epath.Path, policies: Sequence[str], decoding: str,
            count: int) -> list[dict[str, Any]]:
  """The first questions with the answers of all policies side by side, pictures as base64 PNG."""
  rows: list[dict[str, Any]] = [{'question': text, 'decoding': decoding, 'policies': {}} for text in prompts.texts[:count]]
  for policy in policies:
    made, rest = answers_lib.split(answers_lib.load(folder / 'answers' / f'{policy}.{decoding}.npz'))
    said = _first(made, count).segments(parts.layout)
    for i, (answer, pictures) in enumerate(zip(said, answers_lib.with_pictures(said, parts.decode))):
      queue = iter(pictures)
      steps = [{'text': text or '', 'image': '' if image is None else base64.b64encode(images.png(next(queue))).decode()}
               for text, image in steps_of(answer)]
      scores = {scorer: {d: round(float(v), 3) for d, v in zip(DIMENSIONS, rest[scorer][i])}
                for scorer in ('judge', 'truth') if scorer in rest and np.isfinite(rest[scorer][i]).all()}
      rows[i]['policies'][policy] = {'steps': steps, **scores}
  return rows


def _metrics(table: Mapping[str, Any], failures: Mapping[str, int], form: Mapping[str, Mapping[str, float]],
             skill: Mapping[str, Any]) -> dict[str, Any]:
  """Flat names such as `grpo.sampled.truth.mean`."""
  flat: dict[str, Any] = {}
  for policy, decodings in table['policies'].items():
    for decoding, scorers in decodings.items():
      for scorer, dimensions in scorers.items():
        flat |= {f'{policy}.{decoding}.{scorer}.{d}': value['mean'] for d, value in dimensions.items()}
      flat |= {f'{policy}.{decoding}.{name}': value for name, value in form[f'{policy}.{decoding}'].items()}
  for policy, found in skill.items():
    for part, values in found.items():
      flat |= {f'{policy}.{part}.{name}': v['mean'] if isinstance(v, dict) else v for name, v in values.items()}
  return flat | {f'{name}.failures': count for name, count in failures.items()}
