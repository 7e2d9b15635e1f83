"""Stage `judge`: trains SynJudge on labelled answers of split 1 and measures it on held-out topics and answer generators."""

from __future__ import annotations

import json
from collections.abc import Sequence

import jax
import numpy as np

from intersyn_jax import sharding
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.layout import TokenBatch
from intersyn_jax.interleave.types import DIMENSIONS, Conversation
from intersyn_jax.judge import labelled, metrics, model, training
from intersyn_jax.judge.labelled import GENERATORS, TEST, TRAIN, Corpus, Labelled
from intersyn_jax.models.definition import Params
from intersyn_jax.stages.common import Run
from intersyn_jax.stages.parts import Parts
from intersyn_jax.training import checkpoints, loop
from intersyn_jax.training.metrics import replace_text
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer

SCATTER = 400
"""Points that the report draws."""


def run(run: Run) -> dict:
  parts, section = Parts(run), run.config.judge
  policy = parts.policy(section.init)
  train, test = _labelled(run, parts)
  judge = model.SynJudge.of(parts.model_config, parts.layout, section)
  params = _train(run, parts, judge, policy, train)
  return _measure(run, judge, params, train, test)


def _labelled(run: Run, parts: Parts) -> tuple[Labelled, Labelled]:
  """Training and test rows. The student's early answers are in both, those of the later policy in the test alone."""
  data, section = run.config.data, run.config.judge
  samplers = {name: _sampler(run, parts, parts.policy(policy))
              for name, policy in (('sampled', 'warmup'), ('later_policy', 'warmup_long'))}
  corpus = Corpus(
      parts.layout, parts.encode, parts.decode, samplers, pixels=data.pixels, jitter=data.jitter, objects=data.objects,
      steps=data.steps, turns=data.turns, seed=run.config.seed, max_steps=section.max_steps, held_out=section.held_out)
  run.say('judge: writing labelled answers')
  train, test = corpus.build(TRAIN, section.answers), corpus.build(TEST, section.test_answers)
  labelled.check_leaks(train, test)
  return train, test


def _sampler(run: Run, parts: Parts, params: Params) -> labelled.Sampler:
  """Answers of a policy at the temperatures of `config.decode`, all prompts in one shape so that one program does."""
  decoder = parts.decoder()
  rows = run.config.decode.rows

  def sample(conversations: Sequence[Conversation]) -> list[TokenBatch]:
    prompts = [layout.prompt(c, parts.layout) for c in conversations]
    width = -(-max(len(p.text) for p in prompts) // 64) * 64
    out = []
    for first in range(0, len(prompts), rows):
      chunk = [prompts[min(i, len(prompts) - 1)] for i in range(first, first + rows)]
      batch = layout.stack(chunk, width, left=True)
      done = jax.device_get(decoder.rollout(
          params, batch, np.arange(first, first + rows, dtype=np.uint32), run.config.seed, group=1).tokens)
      for i in range(min(rows, len(prompts) - first)):
        mine = jax.tree.map(lambda a, i=i: a[i], done)
        length = int((mine.modality > 0).sum())
        out.append(jax.tree.map(lambda a, b, n=length: np.concatenate([a, b[:n]]), prompts[first + i], mine))
    return out

  return sample


def _train(run: Run, parts: Parts, judge: model.SynJudge, policy: Params, train: Labelled) -> Params:
  section = run.config.judge
  sharding.check_rows(parts.mesh, section.rows, 'judge.rows')
  data = training.examples(judge, train)
  batch = training.batches(data, training.chances(data, section.dimension_weights, section.balance),
                           rows=section.rows, length=section.row_length, seed=run.config.seed)
  fresh = judge.definition.init(jax.random.key(run.config.seed), parts.mesh)
  labels = [data.labels[data.dimension == i] for i in range(len(DIMENSIONS))]
  start = model.with_prior(model.init_from(policy, fresh), labels)
  params = jax.device_put(start, judge.definition.shardings(parts.mesh))
  optimizer = make_optimizer(OptimizerConfig(**section.optimizer), section.steps)
  step = loop.make_step(training.loss_of(judge.definition), optimizer,
                        weights={'loss': 1.0, 'places': section.place_weight})
  saved = checkpoints.Checkpoints(run.directory('judge') / 'checkpoints', identity=run.config_hash('judge'))
  with run.metrics('judge', saved.latest() or -1) as writer:
    state, _ = loop.fit(
        step, loop.init_state(params, optimizer), loop.Indexed(batch), steps=section.steps, seed=run.config.seed,
        checkpoints=saved, metrics=writer, metrics_every=section.log_every,
        save_every=section.checkpoint_every, progress=run.progress('judge', section.steps, max(saved.done, 0)),
        batch_sharding=sharding.rows(parts.mesh))
  return state['params']


def _measure(run: Run, judge: model.SynJudge, params: Params, train: Labelled, test: Labelled) -> dict:
  """Metrics of the summary: held-out topics answered by held-out generators; then each generator by itself."""
  whole, steps, valid = training.judge_all(judge, params, test)
  generators = np.array(test.generators)
  head = np.array([GENERATORS[g].held_out and g != 'unseen_flaws' for g in generators])
  out = metrics.table(test.whole[head], whole[head], mean=train.whole.mean(axis=0), samples=run.config.judge.bootstrap)
  out |= {f'{group}.{name}': value for group, values in metrics.by_group(test.whole, whole, test.generators).items()
          for name, value in values.items()}
  for i, name in enumerate(DIMENSIONS):
    real = np.isfinite(test.steps[head][..., i]) & valid[head][:, None]
    if real.any():
      found = metrics.measure(test.steps[head][..., i][real], steps[head][..., i][real])
      out |= {f'steps.{name}.{key}': value for key, value in found.items()}
  good = head & valid
  # What the scorer gives where asked pictures are missing, which no view of single pictures can know.
  out['iq.rmse_with_missing'] = float(np.sqrt(np.mean((whole[good, 2] - test.asked_iq[good]) ** 2))) if good.any() else None
  picked = np.flatnonzero(good)[:SCATTER]
  scatter = {name: [[round(float(test.whole[i, d]), 3), round(float(whole[i, d]), 3)] for i in picked]
             for d, name in enumerate(DIMENSIONS)}
  if run.active:
    replace_text(run.directory('judge') / 'scatter.json', json.dumps(scatter))
  topics = 'held-out topics of split 1 answered by ' + ', '.join(sorted(set(generators[head])))
  return {'rows.train': len(train), 'rows.test': len(test), 'measured_on': topics} | out
