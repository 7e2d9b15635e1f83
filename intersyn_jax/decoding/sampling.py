"""Choosing one id from logits: temperature, truncation, guidance, and draws that only their own address decides.

A draw costs one uniform number and a search in two levels of partial sums; noise over the whole vocabulary would cost
more than the head on a CPU.

Letters: R rows, n positions of any rows, M positions of a completion, D codes per image position, V ids to choose from.
"""

from __future__ import annotations

import dataclasses
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax.interleave.layout import Layout

if typing.TYPE_CHECKING:
  from intersyn_jax.decoding.config import DecodeConfig  # which holds `Sampling`s


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How ids of one modality are drawn.

  Attributes:
    temperature: divides the logits; 0 takes the largest logit (the first of equal ones).
    top_k: keeps the k largest logits, 0 keeps all. Ids that tie with the last one kept are kept too.
    top_p: then keeps the most probable ids that together reach this mass, 1 keeps all; ties as above.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0


def choosable(layout: Layout, size: int) -> np.ndarray:
  """bool[size]: the text ids a model may choose in text mode. `size` may exceed the tokenizer (a padded head)."""
  allowed = np.arange(size) < layout.tokenizer.size
  allowed[layout.structure] = False
  return allowed


def allowed(layout: Layout, config: DecodeConfig, size: int, count: jax.Array, images: jax.Array, steps: jax.Array) -> jax.Array:
  """bool[n,size]: the text ids that n positions of completions may choose from.

  The begin token only where a whole block still fits, `</s>` not before `min_steps`, `<think>` not after `max_steps`.

  Args:
    size: V.
    count, images, steps: int[n], positions written before, image blocks and steps opened before.
  """
  ids = jnp.arange(size)
  fits = (images < config.max_images) & (count + 1 + len(layout.block.template) <= config.max_positions)
  out = jnp.asarray(choosable(layout, size)) & (fits[:, None] | (ids != layout.block.begin))
  if config.min_steps:
    stop = jnp.asarray([layout.special(name) for name in config.stop])
    out &= (steps >= config.min_steps)[:, None] | ~jnp.isin(ids, stop)
  if config.max_steps:
    out &= (steps < config.max_steps)[:, None] | (ids != layout.special('<think>'))
  return out


def words(layout: Layout, size: int) -> np.ndarray:
  """bool[size]: the text ids that are words, not tags or other special tokens."""
  allowed = np.arange(size) < layout.tokenizer.size
  allowed[list(layout.tokenizer.specials)] = False
  return allowed


def repetition(logits: jax.Array, said: jax.Array, penalty: float) -> jax.Array:
  """Logits [R,V] where those of what was said, bool[R,V], are divided by the penalty if positive, else multiplied."""
  return jnp.where(said, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def guide(logits: jax.Array, scale: float, image_scale: float) -> jax.Array:
  """Classifier-free guidance: logits [R,W,C] of the branches of each row to the logits [R,C] that are drawn from.

  One branch: its own. Two, c and u: u + s (c - u). Three, c, i and u: u + s' (i - u) + s (c - i).
  """
  full, null = logits[:, 0], logits[:, -1]
  if logits.shape[1] == 1:
    return full
  if logits.shape[1] == 2:
    return null + scale * (full - null)
  images = logits[:, 1]
  return null + image_scale * (images - null) + scale * (full - images)


def truncate(logits: jax.Array, sampling: Sampling) -> jax.Array:
  """Logits [R,V] after temperature, top-k and top-p; what is cut off is -inf. The temperature must not be 0."""
  logits = logits / sampling.temperature
  if 0 < sampling.top_k < logits.shape[-1]:
    least = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  if sampling.top_p < 1.0:
    falling = -jnp.sort(-logits, axis=-1)
    mass = jax.nn.softmax(falling, axis=-1)
    kept = jnp.cumsum(mass, axis=-1) - mass < sampling.top_p
    kept = kept.at[..., 0].set(True)
    least = jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return logits


def _first_above(weights: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
  """First index of [R,n] whose running sum exceeds target [R], and the sum before it; never an index of weight 0."""
  sums = jnp.cumsum(weights, axis=-1)
  index = jnp.arange(weights.shape[-1])
  possible = weights > 0
  above = possible & (sums > target[:, None])
  last = jnp.max(jnp.where(possible, index, 0), axis=-1)  # rounding may leave the target above every sum
  chosen = jnp.where(jnp.any(above, axis=-1), jnp.argmax(above, axis=-1), last)
  before = jnp.take_along_axis(sums - weights, chosen[:, None], axis=-1)[:, 0]
  return chosen, before


def inverse_cdf(weights: jax.Array, uniform: jax.Array) -> jax.Array:
  """Index int[R] whose interval of the cumulated weights [R,V] (>= 0, not normalised) holds uniform [R] in [0, 1)."""
  rows, size = weights.shape
  width = math.ceil(math.sqrt(size))
  count = -(-size // width)
  blocks = jnp.pad(weights, ((0, 0), (0, count * width - size))).reshape(rows, count, width)
  sums = jnp.sum(blocks, axis=-1)
  target = uniform * jnp.sum(sums, axis=-1)
  block, before = _first_above(sums, target)
  inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
  return block * width + _first_above(inside, target - before)[0]


def draw(logits: jax.Array, uniform: jax.Array, sampling: Sampling) -> tuple[jax.Array, jax.Array]:
  """Draws ids int32[R] from logits [R,V] (float32, -inf forbids) with uniform [R] in [0, 1).

  Returns:
    the ids, and their log-probability under the distribution drawn from (0 for temperature 0, which has no choice).
  """
  if sampling.temperature == 0.0:
    ids = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return ids, jnp.zeros(ids.shape, jnp.float32)
  logits = truncate(logits, sampling)
  logits = logits - jnp.max(logits, axis=-1, keepdims=True)
  weights = jnp.exp(logits)
  ids = inverse_cdf(weights, uniform).astype(jnp.int32)
  return ids, pick(logits, ids) - jnp.log(jnp.sum(weights, axis=-1))


def pick(values: jax.Array, ids: jax.Array) -> jax.Array:
  """values [R,V] at ids [R]."""
  return jnp.take_along_axis(values, ids[:, None], axis=-1)[:, 0]


def log_prob(logits: jax.Array, ids: jax.Array) -> jax.Array:
  """Plain log-probability [R] of ids under logits [R,V]."""
  return pick(logits, ids) - jax.nn.logsumexp(logits, axis=-1)


def uniforms(seed: jax.Array | int, requests: jax.Array, positions: int, depth: int,
             start: jax.Array | int = 0) -> jax.Array:
  """Uniform numbers [M,R,D] in [0, 1), each decided by (seed, request id, position, code number) alone.

  So what a row draws depends neither on its neighbours nor on how many positions are written at once.

  Args:
    requests: uint32[R]. start: int32[R], the number of each row's first position.
  """
  rows = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), requests)
  first = jnp.broadcast_to(start, requests.shape) * depth
  one = lambda key, n: jax.random.uniform(jax.random.fold_in(key, n))
  numbers = jax.vmap(lambda n: jax.vmap(one)(rows, first + n))(jnp.arange(positions * depth))
  return numbers.reshape(positions, depth, -1).swapaxes(1, 2)
