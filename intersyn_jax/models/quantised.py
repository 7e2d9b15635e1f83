"""Kernels that stand still, in few bits (QLoRA, Dettmers et al. 2023): the quantised arrays are qwix's, the rest is ours.

A quantised kernel is a `qwix.QArray` in the place of the array: its values [L,in,out] in 8 or 4 bits, and one float32 scale
for each layer and output (`int8`), or for each block of at most 64 inputs of those too (`int4`, `nf4`). Only the kernels of
the trunk are quantised; embeddings, norms and heads stay as they are. A kernel is brought back to full width one layer at a
time, right where it is used: the forward and the backward pass, and each step of decoding, do it anew.

    low = define(definition, 'nf4')
    params = quantise(params, 'nf4', low.shardings(mesh))
    model = low.bind(params)

Letters: L layers.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import re
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from intersyn_jax.errors import UserError
from intersyn_jax.models.definition import Definition, Params

KINDS = ('int8', 'int4', 'nf4')

_BLOCK = 64
"""Inputs that share a scale in 4 bits, as in the paper."""

_KERNEL = re.compile(r'(^|/)trunk/layers/[a-z]+_kernel$')


def is_quantised(value: Any) -> bool:
  return hasattr(value, 'qvalue')


@jax.custom_vjp
def product(x: jax.Array, kernel: Any) -> jax.Array:
  """x [rows,in] times a quantised kernel [in,out], in the type of x. No gradient reaches the kernel."""
  return x @ _near(kernel, x)


def _forward(x: jax.Array, kernel: Any) -> tuple[jax.Array, Any]:
  # The residual is the kernel in its few bits: autodiff by itself would keep what it was brought back to, of all layers.
  return x @ _near(kernel, x), kernel


def _backward(kernel: Any, gradient: jax.Array) -> tuple[jax.Array, None]:
  return gradient @ _near(kernel, gradient).T, None


product.defvjp(_forward, _backward)


def _near(kernel: Any, x: jax.Array) -> jax.Array:
  """The kernel in the type of x, not before x is there: else XLA takes all kernels of a decode loop out of the loop."""
  return dequantise(jax.lax.optimization_barrier((kernel, x))[0], x.dtype)


def dequantise(kernel: Any, dtype: Any) -> jax.Array:
  """A quantised kernel as an array of this type."""
  return _qwix().dequantize(kernel).astype(dtype)


def quantise(params: Params, kind: str, places: Params) -> Params:
  """Parameters with the kernels of the trunk quantised, laid out as `places`, the shardings of `define`, say.

  Each kernel is used up, so that no more than one is there twice.
  """
  def one(value: Any, place: Any) -> Any:
    if isinstance(value, dict):
      return {name: one(value[name], place[name]) for name in value}
    if not is_quantised(place):
      return value
    out = jax.block_until_ready(_quantiser(kind, place)(value))
    value.delete()
    return out

  return one(params, places)


@functools.lru_cache
def _quantiser(kind: str, place: Any) -> Callable[[jax.Array], Any]:
  return jax.jit(functools.partial(_each_layer, kind=kind), out_shardings=place)


def _each_layer(kernel: jax.Array, kind: str) -> Any:
  """A kernel [L,in,out], quantised layer by layer."""
  quantize = _qwix().quantize
  tiles = {} if kind == 'int8' else {0: math.gcd(kernel.shape[1], _BLOCK)}
  return jax.lax.map(lambda one: quantize(one.astype(jnp.float32), kind, channelwise_axes=(1,), tiled_axes=tiles), kernel)


def define(definition: Definition, kind: str) -> Definition:
  """The definition of the same model with the kernels of its trunk quantised. Fresh parameters come from the plain one.

  Raises:
    UserError: there is no such kind, or qwix is not installed.
  """
  if kind not in KINDS:
    raise UserError(f'quantise is {kind!r}: choose one of {", ".join(KINDS)}, or nothing')

  def one(shape: Any, names: Any, path: str) -> tuple[Any, Any]:
    if isinstance(shape, dict):
      found = {name: one(shape[name], names[name], f'{path}{name}/') for name in shape}
      return {name: pair[0] for name, pair in found.items()}, {name: pair[1] for name, pair in found.items()}
    if not _KERNEL.search(path[:-1]):
      return shape, names
    held = jax.eval_shape(lambda kernel: _each_layer(kernel, kind), shape)
    return held, dataclasses.replace(held, qvalue=names, scale=names)

  return definition.like(*one(definition.shapes, definition.axes, ''))


def _qwix() -> types.ModuleType:
  try:
    return importlib.import_module('qwix')
  except ImportError:
    raise UserError("quantise needs the extra qlora: pip install 'intersyn_jax[qlora]'") from None
