"""What each process of the short tests does: warm-up on its share of the data, with checkpoints, then GRPO iterations.

    python -m tests.multiprocess.worker FOLDER FSDP TENSOR SECONDS [warmup|exit|mistake]

SECONDS is how long each batch takes. `warmup` leaves GRPO out; the others are how process 1 ends instead.
"""

import json
import pathlib
import sys
import time

import jax
import numpy as np

from intersyn_jax import sharding
from intersyn_jax.data.documents import Documents
from intersyn_jax.data.pipeline import Pipeline
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import Decoder
from intersyn_jax.errors import UserError
from intersyn_jax.grpo.advantages import AdvantageConfig
from intersyn_jax.grpo.loss import LossConfig
from intersyn_jax.grpo.rewards import HostReward
from intersyn_jax.grpo.trainer import GRPOConfig, Trainer
from intersyn_jax.interleave import layout
from intersyn_jax.training import loop, stopping
from intersyn_jax.training.checkpoints import Checkpoints
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer
from intersyn_jax.training.supervised import next_token_loss
from intersyn_jax.training.trees import flat
from tests import small_model
from tests.grpo.test_trainer import LENGTH, WEIGHTS, even

ROWS, STEPS = 8, 24


class Pictures(HostReward):
  """A reward on the host, which must see all answers: how many pictures each has."""

  def score(self, conversations):
    count = [sum(type(s).__name__ == 'Image' for s in c.turns[-1].answer) for c in conversations]
    return np.repeat(np.minimum(np.array(count, np.float32)[:, None], 2) / 2, 3, axis=1)


class Metrics(list):
  def write(self, step, values):
    self.append([step, values['loss'], values['gradient_norm']])


class Slow:
  """Batches that come slowly."""

  def __init__(self, batches, seconds):
    self._batches, self._seconds = batches, seconds
    self.get_state, self.set_state = batches.get_state, batches.set_state

  def __next__(self):
    time.sleep(self._seconds)
    return next(self._batches)


def work(mesh, folder: pathlib.Path, seconds: float = 0.0, grpo: bool = True) -> dict:
  """Losses of warm-up and GRPO, trained parameters, and this process's part of the first batch."""
  place = small_model.plain()
  definition = small_model.definition(place, layers=1)
  params = small_model.eager(definition.init(jax.random.key(0), mesh), place, begin=4.0)
  optimizer = make_optimizer(OptimizerConfig(name='adamw', learning_rate=1e-2), STEPS)
  documents = Documents({'interleaved': [small_model.conversation(place, seed) for seed in range(40)]}, place, length=64)
  mine = sharding.process_rows(mesh, ROWS)
  batches = iter(Pipeline(documents, rows=ROWS, length=64, seed=1, mine=mine))
  first = next(iter(Pipeline(documents, rows=ROWS, length=64, seed=1, mine=mine)))
  metrics = Metrics()
  state, _ = loop.fit(
      loop.make_step(next_token_loss(definition), optimizer), loop.init_state(params, optimizer), Slow(batches, seconds),
      steps=STEPS, seed=0, checkpoints=Checkpoints(folder / 'checkpoints'), metrics=metrics, metrics_every=1, save_every=4,
      batch_sharding=sharding.rows(mesh))
  trained = sharding.host(flat(state['params']))
  found = iterations(mesh, place, definition, optimizer, state['params']) if grpo else []
  return {'warmup': metrics, 'grpo': found, 'rows': mine.tolist(), 'texts': first.text.tolist(),
          'params': {path: array.tolist() for path, array in trained.items()}}


def iterations(mesh, place, definition, optimizer, params) -> list:
  """Two iterations of GRPO, with groups that are chosen on the host and a reward there."""
  decoder = Decoder(definition, place, mesh, DecodeConfig(max_positions=24, bucket=8, max_images=2))
  trainer = Trainer(decoder, even, {}, optimizer, None, GRPOConfig(LENGTH, filter_groups=True, refills=1),
                    AdvantageConfig(4, WEIGHTS, process=False), LossConfig(kl_estimator='none'), 0, {'pictures': Pictures()})
  prompts = layout.stack([layout.prompt(small_model.question(t), place) for t in ('a red circle', 'move the blue')], LENGTH,
                         left=True)
  state, found = loop.init_state(params, optimizer), []
  for _ in range(2):
    state, values = trainer.iteration(state, lambda number: (prompts, np.array([2, 2], np.int32)))
    found.append([values[name] for name in ('loss', 'reward', 'reward.own.pictures', 'entropy.image', 'gradient_norm')])
  return found


def main(folder: str, fsdp: str, tensor: str, seconds: str, end: str = '') -> None:
  from intersyn_jax.stages import processes
  with processes.joined():
    stopping.install()
    if end in ('exit', 'mistake') and jax.process_index() == 1:
      if end == 'mistake':
        raise UserError('the disk is full; make room')
      raise RuntimeError('a bug')
    mesh = sharding.make_mesh({'fsdp': int(fsdp), 'tensor': int(tensor)})
    found = work(mesh, pathlib.Path(folder), float(seconds), end != 'warmup')
    (pathlib.Path(folder) / f'found.{jax.process_index()}.json').write_text(json.dumps(found))


if __name__ == '__main__':
  try:
    main(*sys.argv[1:])
  except stopping.Stopped:
    sys.exit(stopping.CODE)
