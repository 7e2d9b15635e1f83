"""Benchmark `judge`: what judging the rollouts of a GRPO iteration costs, against writing them.

- `tiny`: shapes of `configs/storyworld.py:tiny`, random weights; eight answers to each of eight prompts, written and then judged
  in the same run. Goal: judging takes at most 0.30 of the rollout.
- `7b`: the same at the shapes of Chameleon and Anole, computed and not run: FLOPs and bytes as XLA counts them in the lowered
  program, and what they take at least on one chip, beside what the rollout takes at least. All its metrics begin with `computed`.

Letters: B answers, T positions, L layers, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax import sharding
from intersyn_jax.benchmarks import decode
from intersyn_jax.benchmarks.decode import Ids
from intersyn_jax.benchmarks.rows import Options, Row, row, seconds
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import Completions, Decoder, join
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.layout import CODES, PADDING, Layout, TokenBatch
from intersyn_jax.judge import model, views
from intersyn_jax.judge.model import SynJudge
from intersyn_jax.judge.views import Widths
from intersyn_jax.models import unified
from intersyn_jax.models.definition import Definition, Params
from intersyn_jax.models.trunk import Layer, TrunkConfig, rotation, same_document
from intersyn_jax.models.unified import ModelConfig

GOAL = 0.30
"""Most that judging may take of the rollout."""

EVERY = 5
"""Positions of text after which the answers of `tiny` begin an image; about two in five positions are then of images."""


class Shapes(NamedTuple):
  """One size: the model, and what is written and judged.

  Attributes:
    model: of the policy; the judge is built on its first layers.
    reader: layers of the judge's own.
    prompts, group: P prompts, G answers of each.
    prompt, positions: most positions of a prompt and of an answer.
    images: most of an answer, and S.
  """

  model: ModelConfig
  reader: int
  prompts: int
  group: int
  prompt: int
  positions: int
  images: int = 3

  @property
  def layout(self) -> Layout:
    m = self.model
    return layout.plain_layout(Ids(m.vocabulary), places=m.places, depth=m.depth, codebook=m.codebook)

  def judge(self, layers: int) -> SynJudge:
    """The judge on `layers` layers with just the room that these answers may need, as GRPO narrows it."""
    definition = model.define(self.model, layers, self.reader)
    return SynJudge(definition, self.layout, Widths(2, 2, 2), self.images).within(self.prompt, self.positions)


TINY = Shapes(ModelConfig(TrunkConfig(width=96, layers=3, heads=3, kv_heads=3, head_width=32, mlp_width=384), 768, places=16,
                          depth=1, codebook=512, mix=4), reader=1, prompts=8, group=8, prompt=48, positions=112)
LARGE = Shapes(ModelConfig(TrunkConfig(width=4096, layers=32, heads=32, kv_heads=32, head_width=128, mlp_width=11_008,
                                       qk_norm=True, dtype='bfloat16'), 57_344, places=1024, depth=1, codebook=8192,
                           image_embedding='table', param_dtype='bfloat16'),
               reader=1, prompts=4, group=8, prompt=64, positions=3400)


class Chip(NamedTuple):
  """Peaks that the maker states: bfloat16 FLOP/s without sparsity, and bytes/s of its memory."""

  name: str
  flops: float
  bandwidth: float


CHIPS = (Chip('H100 SXM', 989e12, 3.35e12), Chip('TPU v5p', 459e12, 2.765e12))


def run(options: Options) -> Iterator[Row]:
  """All cases."""
  if options.wants('tiny'):
    yield from _measured('tiny', TINY, layers=1, runs=options.runs)
  for layers in (8, 32):
    if options.wants(case := f'7b judge of {layers} layers'):
      yield from _computed(case, LARGE, layers)


# Measured.


def _measured(case: str, shapes: Shapes, layers: int, runs: int) -> Iterator[Row]:
  """Seconds of judging all answers, by a judge on so many layers of the policy, and of writing them, in turn."""
  write = writer(shapes)
  done = write()
  tokens = jax.block_until_ready(join(prompts(shapes), done))
  judge = shapes.judge(layers)
  params = judge.definition.init(jax.random.key(1), _one_device())
  valid = np.asarray(judge.jitted(params, tokens).valid)
  if not valid.all():
    raise RuntimeError(f'{(~valid).sum()} of {len(valid)} answers have no room in the views')
  judging, rollout = seconds(lambda: judge.jitted(params, tokens), write, runs=runs)
  answers = shapes.prompts * shapes.group
  modality = np.asarray(done.tokens.modality)
  what = f'{(modality != PADDING).sum(axis=1).mean():.0f} positions, {(modality == CODES).mean():.0%} of images'
  yield row(case, f'judging {answers} answers of {what}', judging, 's', runs, peer=rollout, peer_name='writing them')
  yield row(case, 'answers judged', answers / judging, '1/s', runs, less_is_better=False)
  yield row(case, 'judging / rollout', judging / rollout, 'of the rollout', runs, peer=GOAL, peer_name='the goal, at most')


def _one_device() -> jax.sharding.Mesh:
  return sharding.make_mesh({}, jax.devices()[:1])


def prompts(shapes: Shapes) -> TokenBatch:
  """P prompts of random words, [P,T]."""
  return jax.device_put(decode.prompts(shapes.prompts, shapes.prompt, shapes.model.vocabulary))


def writer(shapes: Shapes) -> Callable[[], Completions]:
  """A rollout () -> Completions of answers that use all their positions and often hold images."""
  definition = unified.define(shapes.model)
  config = DecodeConfig(max_positions=shapes.positions, max_images=shapes.images, stop=('<pad>',))
  decoder = Decoder(definition, shapes.layout, _one_device(), config)
  params = decode._eager(definition.init(jax.random.key(0), _one_device()), shapes.layout, EVERY)
  # The mixer must leave alone the coordinate on which an image's beginning hangs.
  mixer = params['backbone'].get('mix_embedding')
  if mixer is not None:
    params['backbone']['mix_embedding'] = mixer.at[:, 0].set(0.0)
  requests = np.arange(shapes.prompts * shapes.group, dtype=np.uint32)
  asked = prompts(shapes)
  return lambda: decoder.rollout(params, asked, requests, 0, group=shapes.group)


# Computed.


class Cost(NamedTuple):
  """What XLA counts in a lowered program: floating-point operations, and bytes that its operations read and write, each by
  itself, before any are fused."""

  flops: float
  bytes: float

  @classmethod
  def of(cls, function: Callable, *arguments: Any) -> Cost:
    found = jax.jit(function).lower(*arguments).cost_analysis()
    return cls(found['flops'], found['bytes accessed'])

  def plus(self, other: Cost, times: int = 1) -> Cost:
    return Cost(self.flops + times * other.flops, self.bytes + times * other.bytes)


def judging_cost(shapes: Shapes, layers: int) -> Cost:
  """Of judging all answers. XLA counts the body of a scan once, so that all layers but one are added by hand."""
  judge = shapes.judge(layers)
  batch = _abstract(shapes.prompts * shapes.group, shapes.prompt + shapes.positions, shapes.model.depth)
  cost = Cost.of(judge.score, judge.definition.shapes, batch)
  seen = jax.eval_shape(lambda batch: views.build(batch, judge.layout, judge.widths, judge.max_steps), batch)
  for view in (seen.tcc, seen.icc, seen.iq, seen.its):
    one = layer_cost(shapes.model.trunk, view.tokens)
    cost = cost.plus(one, layers - 1).plus(one, shapes.reader - 1)
  return cost


def layer_cost(config: TrunkConfig, batch: TokenBatch) -> Cost:
  """Of one layer over rows [B,T]."""
  definition = Definition(lambda rngs: Layer(config, rngs), config.dtype)
  x = jax.ShapeDtypeStruct((*batch.text.shape, config.width), config.dtype)
  by = jax.eval_shape(lambda position: rotation(position, config), batch.position)
  step = lambda params, x, by, document: definition.bind(params)(x, by, same_document(document))[0]
  return Cost.of(step, definition.shapes, x, by, batch.document)


def _abstract(rows: int, length: int, depth: int) -> TokenBatch:
  like = layout.stack([layout.null_prompt(layout.plain_layout(Ids(64), places=1, depth=depth, codebook=2))], 8)
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct((rows, length, *a.shape[2:]), a.dtype), like)


def _bytes(shapes: Params) -> int:
  return sum(a.size * jnp.dtype(a.dtype).itemsize for a in jax.tree.leaves(shapes))


def _computed(case: str, shapes: Shapes, layers: int) -> Iterator[Row]:
  """FLOPs and bytes of judging, and for each chip the least seconds of judging and of the rollout, everything at its peak.

  Judging: its FLOPs, or its weights read once, whichever takes longer. The rollout: all answers go on together, and for each
  of their positions weights and cache are read once (its FLOPs take less).
  """
  answers, trunk = shapes.prompts * shapes.group, shapes.model.trunk
  cost = judging_cost(shapes, layers)
  what = f'{answers} answers of {shapes.positions} positions'
  yield row(case, f'computed FLOPs of judging {what}', cost.flops, 'FLOP', 0)
  yield row(case, f'computed bytes of judging {what}, nothing fused', cost.bytes, 'B', 0)
  judge_bytes = _bytes(shapes.judge(layers).definition.shapes)
  policy = unified.define(shapes.model).shapes
  weights = _bytes(policy['backbone']['trunk']) + _bytes({name: value for name, value in policy.items() if name != 'backbone'})
  place = 2 * trunk.layers * trunk.kv_heads * trunk.head_width * jnp.dtype(trunk.dtype).itemsize
  cache = answers * place * (shapes.prompt + shapes.positions / 2)
  for chip in CHIPS:
    judging = max(cost.flops / chip.flops, judge_bytes / chip.bandwidth)
    for name, read in (('weights alone', weights), ('weights and cache', weights + cache)):
      rollout = shapes.positions * read / chip.bandwidth
      yield row(case, f'computed floor of judging {what}, {chip.name}', judging, 's', 0, peer=rollout,
                peer_name=f'computed floor of writing them, {name}')
      yield row(case, f'computed judging / rollout, {chip.name}, {name}', judging / rollout, 'of the rollout', 0, peer=GOAL,
                peer_name='the goal, at most')
