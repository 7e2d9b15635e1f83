"""Group-relative advantages, outcome and process (Unified GRPO, sections 2 and 3; DeepSeekMath, 4.1.3).

Letters: R rollouts, G of a group (R is a multiple), S steps at most, K kinds of rewards, T positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from intersyn_jax.errors import UserError
from intersyn_jax.grpo.rewards import Rewards
from intersyn_jax.interleave.grammar import Parse

EPSILON = 1e-4

_CHOICES = {
    'process_normalise': ('group', 'step', 'none'),
    'reward_normalise': ('each', 'together'),
    'advantage_scale': ('group', 'batch', 'none'),
}


@dataclasses.dataclass(frozen=True)
class AdvantageConfig:
  """Fields of `config.grpo` that turn rewards into advantages.

  Attributes:
    group_size: G.
    weights: of the rewards `textual`, `visual`, `format`, and of each reward of one's own, `own`.
    process: rewards step by step; off: one advantage for the whole answer.
    process_normalise: a step's reward is compared with all steps of the group (`group`), with the same step of the group's other
      answers (`step`), or with nothing (`none`: raw rewards).
    reward_normalise: `each` kind of reward is normalised on its own before they are added up (GDPO), or all `together`: their
      sum in an outcome (the paper), step rewards of both kinds as one set in a process.
    advantage_scale: divide by the standard deviation of the `group`, of the `batch`, or by nothing (`none`).
  """

  group_size: int
  weights: Mapping[str, float]
  process: bool = True
  process_normalise: str = 'group'
  reward_normalise: str = 'each'
  advantage_scale: str = 'group'

  def __post_init__(self):
    if self.group_size < 2:
      raise UserError(f'grpo.group_size is {self.group_size}; an advantage needs at least 2 answers to compare')
    for field, choices in _CHOICES.items():
      if getattr(self, field) not in choices:
        raise UserError(f'grpo.{field} is {getattr(self, field)!r}; use one of {", ".join(choices)}')

  @property
  def together(self) -> bool:
    return self.reward_normalise == 'together'


def normalise(values: jax.Array, weight: jax.Array, group: int, scale: str, axes: tuple[int, ...]) -> jax.Array:
  """Subtracts the mean of the group and divides by a standard deviation.

  Args:
    values: [R], [R,S] or [R,S,K].
    weight: which of them count, same shape.
    group: G.
    scale: `group`, `batch` or `none`: whose standard deviation.
    axes: of the grouped array [R/G, G(, S(, K))] that one mean is taken over.
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


def parts(rewards: Rewards, config: AdvantageConfig) -> list[tuple[float, jax.Array]]:
  """(weight, value [R]) of each reward of an answer: in a process the means over its steps, else the judge's of the whole."""
  textual, visual = rewards.whole[:, 0], rewards.whole[:, 1]
  if config.process:
    textual, visual = (mean_of_steps(value, rewards.counts) for value in (rewards.textual, rewards.visual))
  weights = config.weights
  return [(weights['textual'], textual), (weights['visual'], visual), (weights['format'], rewards.structure),
          *((weights['own'], mean_of_steps(value, rewards.counts)) for value in rewards.own.values())]


def total(rewards: Rewards, config: AdvantageConfig) -> jax.Array:
  """The weighted sum [R] of an answer's rewards."""
  return sum(weight * value for weight, value in parts(rewards, config))


def spread(rewards: Rewards, config: AdvantageConfig) -> jax.Array:
  """Standard deviation [R/G] of the total reward within each group, over its answers that could be scored."""
  value, valid = (a.reshape(-1, config.group_size) for a in (total(rewards, config), rewards.valid.astype(jnp.float32)))
  mean = lambda a: jnp.sum(a * valid, axis=1, keepdims=True) / jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1.0)
  return jnp.sqrt(mean((value - mean(value)) ** 2))[:, 0]


def outcome(rewards: Rewards, config: AdvantageConfig) -> jax.Array:
  """One advantage [R] for all positions of an answer."""
  compare = lambda value: normalise(value, rewards.valid, config.group_size, config.advantage_scale, (1,))
  if config.together:
    return compare(total(rewards, config))
  return sum(weight * compare(value) for weight, value in parts(rewards, config))


def process(rewards: Rewards, parse: Parse, last: jax.Array, length: int, config: AdvantageConfig) -> jax.Array:
  """Return-to-go [R,T] of normalised step rewards.

  r_t of a step is paid at its `</think>`, r_v at its `</vis>`, a reward of one's own where the step ends; what was never written
  is worth 0 and paid at the end, so that stopping early never pays; r_f belongs to no step, is compared with the group's other
  answers and paid at the end.

  Args:
    parse: of the answers; its positions count as those of the advantages do.
    last: int32[R], the last position of each answer.
    length: T.
  """
  weights = config.weights
  at = lambda where: jnp.where(where >= 0, where, last[:, None])
  ends = at(jnp.maximum(parse.think_end, parse.vis_end))
  kinds = [(weights['textual'], rewards.textual, at(parse.think_end)), (weights['visual'], rewards.visual, at(parse.vis_end)),
           *((weights['own'], value, ends) for value in rewards.own.values())]
  values = _compared(jnp.stack([value for _, value, _ in kinds], axis=-1), rewards, config)
  position = jnp.arange(length)
  to_go = lambda value, where: jnp.sum(value[..., None] * (position <= where[..., None]), axis=1)
  structure = rewards.structure * rewards.valid
  if config.process_normalise != 'none':
    structure = normalise(rewards.structure, rewards.valid, config.group_size, config.advantage_scale, (1,))
  advantage = to_go(weights['format'] * structure[:, None], last[:, None])
  for number, (weight, _, where) in enumerate(kinds):
    advantage = advantage + to_go(weight * values[..., number], where)
  return advantage


def _compared(values: jax.Array, rewards: Rewards, config: AdvantageConfig) -> jax.Array:
  """Step rewards [R,S,K] as what they are above or below those that they are compared with; 0 where a step does not count."""
  counts = jnp.broadcast_to((rewards.counts & rewards.valid[:, None])[..., None], values.shape)
  if config.process_normalise == 'none':
    return values * counts
  axes = (1, 2) if config.process_normalise == 'group' else (1,)
  compare = lambda value, count, axes: normalise(value, count, config.group_size, config.advantage_scale, axes)
  if config.together:
    return compare(values, counts, (*axes, 3))
  return jnp.stack([compare(values[..., k], counts[..., k], axes) for k in range(values.shape[-1])], axis=-1)
