"""The programs that the stages run, lowered for a pod from shapes: the update of warm-up and of GRPO with its reference, the
rollout of the decoder, the judge's scores.

Each is the jitted function of the stage itself, with the arguments donated that the stage donates.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

from intersyn_jax import sharding
from intersyn_jax.decoding.decoder import join
from intersyn_jax.grpo.advantages import AdvantageConfig
from intersyn_jax.grpo.loss import LossConfig
from intersyn_jax.grpo.trainer import GRPOConfig, Trainer
from intersyn_jax.models.definition import Params, joined, picked
from intersyn_jax.stages.aot.shapes import Shapes, alone, by_rows, placed
from intersyn_jax.stages.grpo import _fields
from intersyn_jax.training import loop, precision
from intersyn_jax.training.optimizer import OptimizerConfig
from intersyn_jax.training.supervised import next_token_loss
from intersyn_jax.training.trees import flat
from intersyn_jax.training.tuning import Tuned, TuningConfig


@dataclasses.dataclass(frozen=True)
class Program:
  """One program of a stage.

  Attributes:
    name: of the stage, and of the program where the stage has several.
    trace: gives it traced, ready to lower and compile.
    forward: gives the jaxpr of an update's loss alone, which says how much of its work a gradient needs; None of others.
    beside: trees that stay in memory while it runs and that it is not given, by name.
    weights: parameters that its products read.
    positions: that one call reads or writes, on all chips.
    passes: how often a call reads all weights: in each micro-batch forward, again where activations are not kept, backward.
    rounds: of its loops that end by a condition on data, all together (decoding).
  """

  name: str
  trace: Callable[[], jax.stages.Traced]
  beside: dict[str, Any]
  weights: Params
  positions: int
  passes: int = 1
  rounds: int = 0
  forward: Callable[[], Any] | None = None


def state_of(tuned: Tuned, mesh: jax.sharding.Mesh) -> loop.State:
  """The state that `Tuned.begin` would give, as shapes."""
  whole = placed(tuned.definition.shapes, tuned.definition.shardings(mesh))
  trains = tuned.optimizer.trains
  held = precision.HELD[tuned.optimizer.precision]
  moving = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, held, sharding=a.sharding), picked(whole, trains))
  base = picked(whole, lambda path: not trains(path))
  by_path = flat(moving)

  def place(keys: tuple[Any, ...], leaf: Any) -> Any:  # as `loop.init_state` places moments
    like = by_path.get(getattr(keys[-1], 'key', None) if keys else None)
    same = like is not None and like.shape == leaf.shape
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=like.sharding if same else sharding.replicated(mesh))

  moments = jax.eval_shape(tuned.optimizer.init, joined(moving, base))
  state = {'params': moving, 'opt_state': jax.tree_util.tree_map_with_path(place, moments), 'step': alone(mesh, (), 'int32'),
           'skipped': {name: alone(mesh, (), 'int32') for name in ('row', 'all')}}
  return state | ({'base': base} if base else {})


def warmup(parts: Shapes) -> Iterator[Program]:
  """The update of `loop.fit`."""
  section, mesh = parts.config.warmup, parts.mesh
  sharding.check_rows(mesh, section.rows, 'warmup.rows')
  tuned = Tuned(parts.model_config, TuningConfig.of(section), OptimizerConfig(**section.optimizer), section.steps, mesh)
  loss = next_token_loss(tuned.definition, chunk=section.get('log_prob_chunk', 0))
  step = loop.make_step(loss, tuned.optimizer, micro_batches=section.micro_batches)
  state, batch, key = state_of(tuned, mesh), parts.tokens(section.rows, section.row_length), _key(mesh)
  update = loop.jitted(step, state)
  weights = loop.whole(state)
  yield Program('warmup', lambda: update.trace(state, batch, key), {}, weights, section.rows * section.row_length,
                _passes(parts) * section.micro_batches, forward=lambda: jax.make_jaxpr(loss)(*_bare((weights, batch, key))))


def grpo(parts: Shapes) -> Iterator[Program]:
  """The rollout, the reference's log-probs, the rewards with the judge in them, and the update; without rewards of one's own."""
  section, mesh, key = parts.config.grpo, parts.mesh, _key(parts.mesh)
  trainer, state = _trainer(parts)
  rows = section.prompts * section.group_size
  sharding.check_rows(mesh, rows, 'grpo.prompts * config.grpo.group_size')
  policy, others = loop.whole(state), {'optimizer': state['opt_state'], 'judge': trainer.judge}
  prompts, requests = parts.tokens(section.prompts, section.max_prompt), jax.ShapeDtypeStruct((rows,), 'uint32')
  roll = functools.partial(trainer.decoder.rollout.trace, policy, prompts, requests, 0, group=section.group_size)
  yield Program('grpo.rollout', roll, others | {'reference': trainer.reference}, policy, rows * section.max_positions,
                rounds=section.max_positions)

  written = by_rows(jax.eval_shape(functools.partial(trainer.decoder.rollout, group=section.group_size),
                                   policy, prompts, requests, 0), mesh)
  tokens = by_rows(jax.eval_shape(join, prompts, written), mesh)
  positions = rows * (section.max_prompt + section.max_positions)
  sets = lambda tree: by_rows(jax.eval_shape(trainer._in_sets, tree), mesh)
  reference = None
  if trainer.reference is not None:
    frozen, asked = loop.whole(state | {'params': trainer.reference}), sets(tokens)
    reference = by_rows(jax.eval_shape(trainer._reference, frozen, asked), mesh)
    yield Program('grpo.reference', lambda: trainer._reference.trace(frozen, asked), others | {'policy': state['params']}, frozen,
                  positions, section.micro_batches)

  given = (trainer.judge, tokens, written, jax.ShapeDtypeStruct((rows,), 'int32'), {}, reference)
  yield Program('grpo.reward', lambda: trainer._finish.trace(*given), {'state': state, 'reference': trainer.reference},
                trainer.judge, positions)

  batch = jax.eval_shape(trainer._finish, *given)[0] | {'entropy_weight': jax.ShapeDtypeStruct((rows, 2), 'float32')}
  cut = lambda a: jax.ShapeDtypeStruct((a.shape[0] // section.minibatches, *a.shape[1:]), a.dtype)
  piece = by_rows(jax.tree.map(cut, sets(batch)), mesh)
  yield Program(
      'grpo.update', lambda: trainer._update.trace(state, piece, key), {'reference': trainer.reference, 'judge': trainer.judge},
      policy, positions // section.minibatches, _passes(parts) * section.micro_batches,
      forward=lambda: jax.make_jaxpr(trainer._objective)(*_bare((policy, piece, key))))


def _trainer(parts: Shapes) -> tuple[Trainer, loop.State]:
  """What the stage `grpo` builds, of shapes, and the state it begins with."""
  config, grpo, mesh = parts.config, parts.config.grpo, parts.mesh
  losses = _fields(LossConfig, grpo)
  updates = grpo.steps * grpo.inner_epochs * grpo.minibatches
  tuned = Tuned(parts.model_config, TuningConfig.of(grpo), OptimizerConfig(**grpo.optimizer), updates, mesh)
  state = state_of(tuned, mesh)
  judge, judge_params = parts.judge()
  # In the types that `Tuned.reference` gives: factors as they train, all else as it is held.
  held = state['params'] if tuned.config.lora_rank else picked(tuned.plain.shapes, tuned.optimizer.trains)
  reference = jax.tree.map(lambda a, b: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=b.sharding), held, state['params'])
  trainer = Trainer(
      parts.decoder(tuned.definition, max_positions=grpo.max_positions, **grpo.sampling),
      judge.within(grpo.max_prompt, grpo.max_positions).score, judge_params, tuned.optimizer,
      reference if losses.has_reference else None, _fields(GRPOConfig, grpo, max_steps=config.judge.max_steps),
      _fields(AdvantageConfig, grpo, weights=grpo.reward.to_dict()), losses, config.seed)
  return trainer, state


def decode(parts: Shapes) -> Iterator[Program]:
  """The rollout of `config.decode`: as many completions at once as it says, of one prompt each."""
  config, mesh = parts.config.decode, parts.mesh
  sharding.check_rows(mesh, config.rows, 'decode.rows')
  decoder, params = parts.decoder(), parts.load(parts.model)
  prompts = parts.tokens(config.rows, parts.config.grpo.max_prompt)
  requests = jax.ShapeDtypeStruct((config.rows,), 'uint32')
  yield Program('decode', lambda: decoder.rollout.trace(params, prompts, requests, 0, group=1), {}, params,
                config.rows * config.max_positions, rounds=config.max_positions)


def judge(parts: Shapes) -> Iterator[Program]:
  """The judge's scores of as many answers as one batch of its training has rows."""
  section = parts.config.judge
  sharding.check_rows(parts.mesh, section.rows, 'judge.rows')
  judge, params = parts.judge()
  length = max(section.widths.values())
  rows = parts.tokens(section.rows, length)
  yield Program('judge', lambda: judge.jitted.trace(params, rows), {}, params, section.rows * length)


PROGRAMS: dict[str, Callable[[Shapes], Iterator[Program]]] = {'warmup': warmup, 'grpo': grpo, 'decode': decode, 'judge': judge}
"""By stage."""


def _key(mesh: jax.sharding.Mesh) -> jax.ShapeDtypeStruct:
  return alone(mesh, (), jax.eval_shape(lambda: jax.random.key(0)).dtype)


def _passes(parts: Shapes) -> int:
  return 2 if parts.model_config.trunk.remat == 'none' else 3


def _bare(tree: Any) -> Any:
  """Shapes without a mesh: what is counted then has no kernel of any chip in it."""
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)
