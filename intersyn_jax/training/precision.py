"""Training in bfloat16 alone (`optimizer.precision` `lean`), for a model whose float32 copies would not fit.

bfloat16 tells 128 steps apart between two powers of 2, so that an update of less than a 512th of a parameter, which is
nearly every one of them, is lost when it is rounded to the nearest. Rounded up or down at random, in proportion to how near
each is, it is kept on average (Gupta et al. 2015; Zamirai et al. 2020): parameters and both moments are held in bfloat16,
computed with in float32, and rounded so. Gradients come in bfloat16 from bfloat16 parameters, and are added up in it.

What is drawn depends on the key of the update, the path of what is rounded, and the place in it. The numbers come from a
mixing function that XLA puts into the same loop as the update itself, so that an accelerator holds neither them nor float32
copies in memory (docs/training.md).
"""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp

from intersyn_jax.training.trees import flat, unflat

FULL, LEAN = 'full', 'lean'

HELD = {FULL: 'float32', LEAN: 'bfloat16'}
"""The type that parameters have while they train."""


def widened(tree: Any) -> Any:
  """Numbers of any type as float32; counters stay."""
  return jax.tree.map(lambda a: a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def narrowed(tree: Any, like: Any, key: jax.Array) -> Any:
  """A tree in the types of another one: float32 becomes bfloat16 by stochastic rounding."""
  seed, held = jax.random.bits(key, (2,), jnp.uint32), flat(like)
  lower = lambda a, b, path: stochastic_round(a, _of(seed, path)) if b.dtype == jnp.bfloat16 else a.astype(b.dtype)
  return unflat(tree, {path: lower(a, held[path], path) for path, a in flat(tree).items()})


def stochastic_round(x: jax.Array, seed: jax.Array) -> jax.Array:
  """float32 to bfloat16, up or down at random such that the mean is x. What is no number stays so.

  Args:
    x: any shape.
    seed: uint32[2]; each place of x has a draw of its own.
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  # 16 random bits are added to the 16 that are cut off; where they carry over, the magnitude is the next larger one.
  rounded = ((bits + (_draws(seed, x.shape) >> 16)) >> 16).astype(jnp.uint16)
  return jnp.where(jnp.isfinite(x), jax.lax.bitcast_convert_type(rounded, jnp.bfloat16), x.astype(jnp.bfloat16))


def _of(seed: jax.Array, path: str) -> jax.Array:
  """A seed of its own for each path."""
  return _mix(seed ^ jnp.uint32(zlib.crc32(path.encode())))


def _draws(seed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """uint32 for each place of an array, the same however it is spread over devices."""
  place = jnp.zeros(shape, jnp.uint32)
  for axis, size in enumerate(shape):
    place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
  return _mix(_mix(place ^ seed[0]) + seed[1])


def _mix(x: jax.Array) -> jax.Array:
  """Changes about half of the bits of a uint32 where one bit of it changes (`lowbias32` of C. Wellons' hash prospector)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7feb352d)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846ca68b)
  return x ^ (x >> 16)
