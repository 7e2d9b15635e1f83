"""Group-relative advantages, outcome and process (Unified GRPO, sections 2 and 3; DeepSeekMath, 4.1.3).

Letters: R rollouts, G of a group (R is a multiple), S steps at most, T positions.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from intersyn_jax.grpo.rewards import Rewards
from intersyn_jax.interleave.grammar import Parse

EPSILON = 1e-4


def normalise(values: jax.Array, weight: jax.Array, group: int, scale: str, axes: tuple[int, ...]) -> jax.Array:
  """Subtracts the mean of the group and divides by a standard deviation.

  Args:
    values: [R] or [R,S].
    weight: which of them count, same shape.
    group: G.
    scale: `group`, `batch` or `none`: whose standard deviation.
    axes: of the grouped array [R/G, G(, S)] that one mean is taken over.
  """
  v, w = (a.reshape(-1, group, *a.shape[1:]) for a in (values, weight.astype(values.dtype)))
  mean = lambda a, over: jnp.sum(a * w, axis=over, keepdims=True) / jnp.maximum(jnp.sum(w, axis=over, keepdims=True), 1.0)
  centred = (v - mean(v, axes)) * w
  if scale != 'none':
    over = axes if scale == 'group' else tuple(range(v.ndim))
    centred = centred / (jnp.sqrt(mean(centred ** 2, over)) + EPSILON)
  return centred.reshape(values.shape)


def mean_of_steps(values: jax.Array, counts: jax.Array) -> jax.Array:
  """Mean [R] of values [R,S] over the steps that count."""
  return jnp.sum(values * counts, axis=1) / jnp.maximum(jnp.sum(counts, axis=1), 1)


def outcome(rewards: Rewards, weights: Mapping[str, float], group: int, scale: str) -> jax.Array:
  """One advantage [R] for all positions: the normalised sum of the rewards of the whole answer."""
  total = (weights['textual'] * rewards.whole[:, 0] + weights['visual'] * rewards.whole[:, 1]
           + weights['format'] * rewards.structure)
  for value in rewards.own.values():
    total = total + weights['own'] * mean_of_steps(value, rewards.counts)
  return normalise(total, rewards.valid, group, scale, (1,))


def process(rewards: Rewards, parse: Parse, last: jax.Array, length: int, weights: Mapping[str, float], group: int,
            scale: str, per_step: bool) -> jax.Array:
  """Return-to-go [R,T] of normalised step rewards.

  Each reward is normalised on its own and then weighted. r_t of a step is paid at its `</think>`, r_v at its `</vis>`, a
  reward of one's own where the step ends; what was never written is worth 0 and paid at the end, so that stopping early
  never pays; r_f is paid at the end.

  Args:
    parse: of the answers; its positions count as those of the advantages do.
    last: int32[R], the last position of each answer.
    length: T.
    per_step: normalise over the same step of the group, not over all its steps.
  """
  counts = rewards.counts & rewards.valid[:, None]
  axes = (1,) if per_step else (1, 2)
  at = lambda where: jnp.where(where >= 0, where, last[:, None])
  position = jnp.arange(length)
  to_go = lambda value, where: jnp.sum(value[..., None] * (position <= where[..., None]), axis=1)
  advantage = (
      to_go(weights['textual'] * normalise(rewards.textual, counts, group, scale, axes), at(parse.think_end))
      + to_go(weights['visual'] * normalise(rewards.visual, counts, group, scale, axes), at(parse.vis_end))
      + to_go(weights['format'] * normalise(rewards.structure, rewards.valid, group, scale, (1,))[:, None], last[:, None]))
  for value in rewards.own.values():
    ends = at(jnp.maximum(parse.think_end, parse.vis_end))
    advantage = advantage + to_go(weights['own'] * normalise(value, counts, group, scale, axes), ends)
  return advantage
