"""LoRA (Hu et al. 2021): which parameters train, where the factors come from, and how they become part of the kernels.

With `TrunkConfig.lora_rank` R, each kernel W [in,out] of a layer has two factors A = `<name>_lora_in` [in,R] and B =
`<name>_lora_out` [R,out], and the layer computes x W + (lora_alpha / R) x A B. B starts at 0, so a model starts out exactly
as it is without factors. They are stacked over layers like the kernels, and so go through scan, remat and decoding with
them. The optimizer takes them for `vector`s: Adam without weight decay, also under Muon, whose updates have all singular
values alike, which for a factor that starts at 0 would be a large first step in every direction.

    judge = define(config with lora_rank, ...)
    params = attach(policy, judge.init(key, mesh))
    optimizer = make_optimizer(OptimizerConfig(frozen=frozen_patterns('lora')), steps)
    ...
    params = merge(params, config.trunk)  # of the model with lora_rank 0

That is how the judge does it. A policy trains its factors alone, apart from the base below them, which may be quantised: see
`training.tuning`.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from intersyn_jax.errors import UserError
from intersyn_jax.models import quantised
from intersyn_jax.models.definition import Definition, Params, picked
from intersyn_jax.models.trunk import TrunkConfig

_IN, _OUT = '_lora_in', '_lora_out'

_FROZEN = {
    'full': (),
    'lora': (rf'^backbone/(?!.*({_IN}|{_OUT})$)',),
    'frozen': (r'^backbone/',),
}
"""By mode: `OptimizerConfig.frozen`."""

MODES = tuple(_FROZEN)

ALL_BUT_FACTORS = rf'^(?!.*({_IN}|{_OUT})$)'
"""`OptimizerConfig.frozen` where nothing else trains."""


def frozen_patterns(mode: str) -> tuple[str, ...]:
  """`OptimizerConfig.frozen` of a model that has a `backbone` and parts of its own around it, as the judge has.

  Args:
    mode: `full` (everything trains), `lora` (of the backbone the factors alone) or `frozen` (nothing of the backbone).

  Raises:
    UserError: there is no such mode.
  """
  if mode not in _FROZEN:
    raise UserError(f'judge.mode is {mode!r}: choose one of {", ".join(MODES)}')
  return _FROZEN[mode]


def attach(params: Params, fresh: Params) -> Params:
  """Parameters of a model with LoRA: the base weights of `params`, a plain model's, and the factors of `fresh`.

  Also where `fresh` has no factors. Arrays are shared, not copied.

  Raises:
    UserError: the two are not the same model, factors aside.
  """
  base, wanted = params.keys(), {name for name in fresh if not is_factor(name)}
  if base != wanted:
    raise UserError(f'LoRA: the weights have {sorted(base - wanted)} that the model has not, and lack {sorted(wanted - base)}; '
                    'start from a plain model of the same kind (merge factors that it has)')
  out = dict(fresh)
  for name in wanted:
    mine, theirs = fresh[name], params[name]
    if isinstance(mine, dict) and isinstance(theirs, dict):
      out[name] = attach(theirs, mine)
    elif jnp.shape(mine) == jnp.shape(theirs):
      out[name] = theirs
    else:
      raise UserError(f'LoRA: {name} of the weights is {jnp.shape(theirs)}, of the model {jnp.shape(mine)}; '
                      'start from a plain model of the same sizes')
  return out


def fresh(definition: Definition, key: jax.Array, mesh: Mesh) -> Params:
  """Fresh factors of a model with LoRA, without its other parameters: A normal of 1 / sqrt(inputs), B 0."""
  shapes, places = (picked(tree, is_factor) for tree in (definition.shapes, definition.shardings(mesh)))
  leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
  drawn = [math.prod(s.shape) if path[-1].key.endswith(_IN) else 0 for path, s in leaves]

  def make(key: jax.Array) -> Params:
    # All at once: they are small, and compiling a generator for each takes long.
    pieces = jnp.split(jax.random.normal(key, (sum(drawn),)), list(itertools.accumulate(drawn))[:-1])
    return jax.tree.unflatten(tree, [
        (piece.reshape(s.shape) * s.shape[-2] ** -0.5).astype(s.dtype) if size else jnp.zeros(s.shape, s.dtype)
        for piece, size, (_, s) in zip(pieces, drawn, leaves, strict=True)])

  return jax.jit(make, out_shardings=places)(key)


def merge(params: Params, config: TrunkConfig) -> Params:
  """Parameters of the model with `lora_rank` 0 that computes the same: W + (lora_alpha / R) A B for every kernel.

  For export, and for decoding at the price of the plain model. Products are in float32, one layer at a time; a bfloat16
  kernel rounds the sum, a quantised one becomes float32. `config` is the one with the rank.
  """
  out = {name: merge(value, config) if isinstance(value, dict) else value
         for name, value in params.items() if not is_factor(name)}
  for name in params:
    if name.endswith(_IN):
      stem = name.removesuffix(_IN)
      parts = out[f'{stem}_kernel'], params[name], params[stem + _OUT]
      add = functools.partial(_sum, scale=config.lora_scale)
      out[f'{stem}_kernel'] = jax.lax.map(add, parts) if parts[1].ndim > 2 else add(parts)
  return out


def _sum(parts: tuple[Any, jax.Array, jax.Array], scale: float) -> jax.Array:
  """One kernel [in,out] with its update."""
  kernel, (into, out) = parts[0], (factor.astype(jnp.float32) for factor in parts[1:])
  update = scale * jnp.matmul(into, out, precision=jax.lax.Precision.HIGHEST)
  if quantised.is_quantised(kernel):
    return quantised.dequantise(kernel, jnp.float32) + update
  return (kernel.astype(jnp.float32) + update).astype(kernel.dtype)


def is_factor(path: str) -> bool:
  """Whether a parameter is a factor, by its name or path."""
  return path.endswith((_IN, _OUT))
