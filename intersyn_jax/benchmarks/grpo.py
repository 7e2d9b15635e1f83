"""Benchmark `grpo`: one iteration of GRPO (rollout, log-probs of the reference, update), against TRL and tunix in the same run.

- `text`: answers of text by a Llama-shaped model, eight to each of eight prompts, 64 + 192 tokens, float32. The peers
  (`grpo_peers`, extra `peers`) train the same weights with the same loss in processes of their own. Each, ours too, has the
  micro-batch that it is quickest with; all take turns. Ours spreads its rows over all devices: `JAX_NUM_CPU_DEVICES` says into
  how many a CPU is cut.
- `images`: the same with images in the answers, ours alone: no peer writes them.

The reward costs nothing, and there is no judge: what it takes is measured by benchmark `judge`. The floor is the matrix products
that cannot be avoided (each prompt read once, attention to what is before, heads where answers are scored; three times as many
for an update) at the rate of one large product, measured in between.

Letters: P prompts, G answers of each, R = P G, S steps at most.
"""

from __future__ import annotations

import contextlib
import importlib.util
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax import sharding
from intersyn_jax.benchmarks import decode, grpo_peers
from intersyn_jax.benchmarks.decode import Model
from intersyn_jax.benchmarks.grpo_peers import PHASES, Job
from intersyn_jax.benchmarks.rows import Options, Row, row
from intersyn_jax.benchmarks.train import products, rate
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import Decoder
from intersyn_jax.grpo.advantages import AdvantageConfig
from intersyn_jax.grpo.loss import LossConfig
from intersyn_jax.grpo.trainer import GRPOConfig, Trainer
from intersyn_jax.interleave.layout import CODES, TEXT, TokenBatch
from intersyn_jax.judge.model import JudgeScores
from intersyn_jax.models.definition import Params
from intersyn_jax.training import loop
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer

PEERS = {'trl': 'TRL', 'tunix': 'tunix'}

KL, STEPS = 0.04, 3
"""Weight of the divergence from the reference, as DeepSeekMath has it; S."""


class Work(NamedTuple):
  """What an iteration answers: P prompts of so many positions, G answers of `new` positions with at most `images` images.

  Attributes:
    micro_batches: answers whose gradient is taken at once, which are tried.
  """

  prompts: int = 8
  group: int = 8
  prompt: int = 64
  new: int = 192
  images: int = 0
  micro_batches: Sequence[int] = (8, 16, 32)


Iteration = Callable[[], dict[str, float]]
"""Makes one iteration and gives the seconds of its `PHASES`."""


def run(options: Options) -> Iterator[Row]:
  """All cases."""
  for model in (decode.SMALL, decode.MEDIUM):
    if options.wants(case := f'text {model.name}'):
      yield from _text(case, model, Work(), options.runs)
  if options.wants(case := f'images {decode.SMALL.name}'):
    yield from _images(case, decode.SMALL, Work(images=2), options.runs)


# Ours.


class Ours:
  """Iterations of our trainer.

  Args:
    micro_batch: answers whose gradient is taken at once.

  Attributes:
    modality: of the answers written last, int8[R,M].
  """

  def __init__(self, model: Model, params: Params, work: Work, micro_batch: int):
    self._draw = lambda _: (decode.prompts(work.prompts, work.prompt, model.vocabulary), np.zeros(work.prompts, np.int32))
    # Nothing but the room ends an answer: the stop token is one that no model may choose.
    decoder = Decoder(model.definition, model.layout, _mesh(), DecodeConfig(
        max_positions=work.new, max_images=work.images, stop=('<pad>',), chunk=decode.CHUNK))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-6), 10**6)
    self._trainer = Trainer(
        decoder, _no_judge, {}, optimizer, params,
        GRPOConfig(work.prompt, STEPS, micro_batches=work.prompts * work.group // micro_batch),
        AdvantageConfig(work.group, {'textual': 0.0, 'visual': 0.0, 'format': 0.0, 'own': 1.0}, process=False),
        LossConfig(kl=KL), seed=0, own={'even': self._reward})
    self._state = loop.init_state(jax.tree.map(jnp.copy, params), optimizer)
    self._begin, self.modality = work.prompt, np.zeros(0)

  def _reward(self, tokens: TokenBatch) -> jax.Array:
    """The share of even words; keeps what was written for whoever asks."""
    jax.debug.callback(self._keep, tokens.modality[:, self._begin:])
    words = (tokens.loss > 0) & (tokens.modality == TEXT)
    share = jnp.sum(words & (tokens.text % 2 == 0), axis=1) / jnp.maximum(jnp.sum(words, axis=1), 1)
    return jnp.broadcast_to(share[:, None], (len(share), STEPS))

  def _keep(self, modality: jax.Array) -> None:
    self.modality = np.asarray(modality)

  def __call__(self) -> dict[str, float]:
    began = time.perf_counter()
    self._state, _ = self._trainer.iteration(self._state, self._draw)
    jax.block_until_ready(self._state)
    whole = time.perf_counter() - began
    times = self._trainer.times.take()
    rollout, reference = times['seconds.rollout'], times['seconds.reward']
    return dict(zip(PHASES, (rollout, reference, whole - rollout - reference), strict=True))


def _mesh() -> jax.sharding.Mesh:
  return sharding.make_mesh({'fsdp': -1})


def _spread(model: Model, params: Params) -> Params:
  """Parameters as training lays them out."""
  return jax.device_put(params, model.definition.shardings(_mesh()))


def _no_judge(params: Params, tokens: TokenBatch) -> JudgeScores:
  rows = tokens.text.shape[0]
  return JudgeScores(jnp.zeros((rows, 4)), jnp.zeros((rows, STEPS, 4)), None, jnp.ones(rows, bool))


# Measuring.


def quickest(make: Callable[[int], Iteration], sizes: Sequence[int]) -> tuple[int, Iteration]:
  """The size whose second iteration takes least time, with what was made of it; the others are closed."""
  best: tuple[float, int, Iteration] | None = None
  for size in sizes:
    iteration = make(size)
    iteration()
    taken = sum(iteration().values())
    loser = iteration
    if best is None or taken < best[0]:
      loser, best = best and best[2], (taken, size, iteration)
    if isinstance(loser, grpo_peers.Peer):
      loser.close()
  return best[1:]


def in_turn(iterations: Sequence[Iteration], runs: int) -> tuple[list[dict[str, float]], float]:
  """Median seconds of each phase and of the whole (`iteration`), and the matrix products' floating-point operations a second."""
  taken: list[list[dict[str, float]]] = [[] for _ in iterations]
  rates = []
  for _ in range(runs):
    rates.append(rate())
    for found, iteration in zip(taken, iterations, strict=True):
      phases = iteration()
      found.append(phases | {'iteration': sum(phases.values())})
  medians = [{name: statistics.median(one[name] for one in found) for name in found[0]} for found in taken]
  return medians, statistics.median(rates)


def operations(model: Model, work: Work) -> dict[str, float]:
  """Floating-point operations of the matrix products of each phase that cannot be avoided, with text alone."""
  trunk, pair, head = products(model)
  prompts, answers = work.prompts * work.prompt, work.prompts * work.group * work.new
  seen = prompts * work.prompt / 2 + answers * (work.prompt + work.new / 2)
  forward = 2 * (trunk * (prompts + answers) + pair * seen + head * answers)
  found = dict(zip(PHASES, (forward, forward, 3 * forward), strict=True))
  return found | {'iteration': sum(found.values())}


# Cases.


def _text(case: str, model: Model, work: Work, runs: int) -> Iterator[Row]:
  """Seconds of an iteration and of its phases, against each peer that this machine has."""
  params = _spread(model, decode._params(model))
  size, ours = quickest(lambda size: Ours(model, params, work, size), work.micro_batches)
  label = lambda metric, size: f'{metric}, {size} answers at a time'
  with contextlib.ExitStack() as stack:
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    decode.export_llama(model, params, folder)
    prompts = decode.prompts(work.prompts, work.prompt, model.vocabulary).text.tolist()
    peers = []
    for name in PEERS if jax.default_backend() == 'cpu' else ():
      if importlib.util.find_spec(name):
        job = Job(prompts, work.group, work.new, model.vocabulary, KL)
        make = lambda size, name=name, job=job: grpo_peers.Peer(name, folder, job._replace(micro_batch=size))
        peers.append((name, *quickest(make, work.micro_batches)))
        stack.callback(peers[-1][-1].close)
    (mine, *others), peak = in_turn([ours, *(peer for *_, peer in peers)], runs)
  for metric, flops in reversed(operations(model, work).items()):
    for (name, its_size, _), theirs in zip(peers, others, strict=True):
      yield row(case, label(metric, size), mine[metric], 's', runs, peer=theirs[metric],
                peer_name=label(PEERS[name], its_size), floor=flops / peak)
    if not peers:
      yield row(case, label(metric, size), mine[metric], 's', runs, floor=flops / peak)


def _images(case: str, model: Model, work: Work, runs: int) -> Iterator[Row]:
  """Seconds of an iteration whose answers hold images, and of its phases."""
  params = _spread(model, decode._eager(decode._params(model), model.layout))
  size, ours = quickest(lambda size: Ours(model, params, work, size), work.micro_batches)
  (mine,), _ = in_turn([ours], runs)
  what = f'{size} answers at a time, {(ours.modality == CODES).mean():.0%} of images'
  for metric in ('iteration', *PHASES):
    yield row(case, f'{metric}, {what}', mine[metric], 's', runs)
