"""The clipped objective over both modalities, with a penalty for leaving the reference (Unified GRPO, section 2).

A unit is what has a ratio of its own: a position (`code_ratio` `position`: the sum over its codes) or a code (`code`).

Letters: R rollouts, T positions, D codes per image position, U units of a position (1 or D).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from intersyn_jax.errors import UserError
from intersyn_jax.grpo.scoring import LogProbs
from intersyn_jax.interleave.layout import CODES, TokenBatch
from intersyn_jax.models.definition import Params

_CHOICES = {
    'kl_estimator': ('k1', 'k2', 'k3', 'none'),
    'kl_place': ('loss', 'reward'),
    'aggregation': ('sequence', 'token', 'modality', 'constant'),
    'code_ratio': ('position', 'code'),
}

MODALITIES = ('text', 'image')


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Fields of `config.grpo` that shape the loss.

  Attributes:
    clip_low, clip_high: the ratio is clipped to 1 - clip_low .. 1 + clip_high.
    dual_clip: where the advantage is negative, the objective is at least this many times it (Ye et al. 2020); 0 sets no bound.
    kl: weight of the divergence from the reference.
    kl_estimator: `k1` log p/q, `k2` half its square, `k3` q/p - 1 - log q/p (never negative, low variance), `none` for no
      reference at all.
    kl_place: `loss` adds it to the loss; `reward` takes it from the reward of its position, so that a position's advantage is
      lowered by what it and all later ones cost (with `k1` the gradient is that of the divergence of whole answers).
    aggregation: `sequence` (mean over each answer, then over answers: the paper), `token` (over all units),
      `modality` (mean of the text mean and the image mean), `constant` (sum over answers x T).
    code_ratio: what a unit is.
    sequence_ratio: every unit of an answer has the same ratio, exp of the mean log-ratio of the answer (GSPO); each unit still
      has its own gradient and advantage.
  """

  clip_low: float = 0.2
  clip_high: float = 0.2
  dual_clip: float = 0.0
  kl: float = 0.02
  kl_estimator: str = 'k3'
  kl_place: str = 'loss'
  aggregation: str = 'sequence'
  code_ratio: str = 'position'
  sequence_ratio: bool = False

  def __post_init__(self):
    for field, choices in _CHOICES.items():
      if getattr(self, field) not in choices:
        raise UserError(f'grpo.{field} is {getattr(self, field)!r}; use one of {", ".join(choices)}')
    if not 0 <= self.clip_low < 1 or self.clip_high < 0 or self.kl < 0:
      raise UserError('grpo.clip_low must lie in 0..1, grpo.clip_high and grpo.kl must not be negative')
    if self.dual_clip and self.dual_clip <= 1 + self.clip_high:
      raise UserError(f'grpo.dual_clip is {self.dual_clip}; use more than 1 + grpo.clip_high, or 0 for none')

  @property
  def has_reference(self) -> bool:
    return self.kl_estimator != 'none'


def units(text: jax.Array, codes: jax.Array, code_ratio: str) -> jax.Array:
  """Log-probs of the units, [R,T,U], from those of text [R,T] and codes [R,T,D]."""
  if code_ratio == 'position':
    return (text + jnp.sum(codes, axis=-1))[..., None]
  return codes.at[..., 0].add(text)


def unit_mask(tokens: TokenBatch, code_ratio: str) -> jax.Array:
  """float32[R,T,U]: 1 where the policy had a choice."""
  weight = tokens.loss[..., None]
  if code_ratio == 'position':
    return weight
  depth = jnp.arange(tokens.codes.shape[-1])
  return weight * ((tokens.modality[..., None] == CODES) | (depth == 0))


def divergence(current: jax.Array, reference: jax.Array, estimator: str) -> jax.Array:
  """Estimate of KL(current | reference) from one sample's log-probs, elementwise."""
  difference = reference - current
  if estimator == 'k1':
    return -difference
  if estimator == 'k2':
    return 0.5 * difference ** 2
  return jnp.exp(difference) - difference - 1.0


def penalty_to_go(old: jax.Array, reference: jax.Array, mask: jax.Array, estimator: str) -> jax.Array:
  """float32[R,T]: what each position and all after it cost in divergence, for `kl_place` `reward`; units [R,T,U] all."""
  cost = jnp.sum(jnp.where(mask > 0, divergence(old, reference, estimator), 0.0), axis=-1)
  return jnp.flip(jnp.cumsum(jnp.flip(cost, axis=1), axis=1), axis=1)


def _log_ratio(current: jax.Array, old: jax.Array, mask: jax.Array, whole: bool) -> jax.Array:
  """Log of the importance ratio of each unit [R,T,U]."""
  own = jnp.where(mask > 0, current - old, 0.0)
  if not whole:
    return own
  mean = jnp.sum(own, axis=(1, 2), keepdims=True) / jnp.maximum(jnp.sum(mask, axis=(1, 2), keepdims=True), 1.0)
  # The value is the answer's, the gradient the unit's own (GSPO-token), which a return-to-go per position needs.
  return jax.lax.stop_gradient(mean) + jnp.where(mask > 0, current - jax.lax.stop_gradient(current), 0.0)


def objective(ratio: jax.Array, advantage: jax.Array, config: LossConfig) -> jax.Array:
  """The clipped objective of each unit, to be maximised."""
  clipped = jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high)
  gain = jnp.minimum(ratio * advantage, clipped * advantage)
  if config.dual_clip:
    gain = jnp.where(advantage < 0, jnp.maximum(gain, config.dual_clip * advantage), gain)
  return gain


def make_loss(score: LogProbs, config: LossConfig) -> tuple[Callable[[Params, Any, jax.Array], Mapping], dict[str, float]]:
  """The loss and the weights of its parts, for `training.loop.make_step`.

  The loss takes (params, batch, key); the batch is a dict of `tokens` (TokenBatch [R,T]), `old` and, unless `kl_estimator` is
  `none`, `reference` (units [R,T,U]), `advantage` [R,T], and `entropy_weight` [R,2], by how much the entropy of text and of image
  positions lowers the loss, the same in each row; rows without any weight take no part.
  """

  def loss(params: Params, batch: Any, key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    del key
    tokens: TokenBatch = batch['tokens']
    text, codes, entropy = score(params, tokens)
    current = units(text, codes, config.code_ratio)
    mask = unit_mask(tokens, config.code_ratio)
    log_ratio = _log_ratio(current, batch['old'], mask, config.sequence_ratio)
    ratio = jnp.exp(log_ratio)
    advantage = batch['advantage'][..., None]
    gain = objective(ratio, advantage, config)
    costs = {'policy': -gain}
    if config.has_reference:
      costs['kl'] = jnp.where(mask > 0, divergence(current, batch['reference'], config.kl_estimator), 0.0)

    picture = jnp.broadcast_to((tokens.modality == CODES)[..., None], mask.shape)
    over = lambda value, where: (jnp.sum(value * mask * where), jnp.sum(mask * where))
    pairs = {}
    for name, value in costs.items():
      if config.aggregation == 'sequence':
        count = jnp.sum(mask, axis=(1, 2))
        mean = jnp.sum(value * mask, axis=(1, 2)) / jnp.maximum(count, 1.0)
        pairs[name] = (jnp.sum(mean), jnp.sum(count > 0))
      elif config.aggregation == 'constant':
        rows = jnp.sum(jnp.any(mask > 0, axis=(1, 2)))
        pairs[name] = (jnp.sum(value * mask), rows * mask.shape[1])
      elif config.aggregation == 'token':
        pairs[name] = over(value, True)
      else:
        pairs[f'{name}_text'], pairs[f'{name}_image'] = over(value, ~picture), over(value, picture)
    for column, (name, where) in enumerate(zip(MODALITIES, (~picture, picture), strict=True)):
      chosen = mask[..., 0] * where[..., 0]
      spread = jnp.sum(entropy * chosen), jnp.sum(chosen)
      pairs[f'bonus.{name}'] = (-jnp.sum(batch['entropy_weight'][:, column, None] * entropy * chosen), spread[1])
      # Only watched:
      pairs[f'entropy.{name}'] = spread
      if config.has_reference:
        pairs[f'kl.{name}'] = over(costs['kl'], where)
      pairs[f'clipped.{name}'] = over((ratio * advantage > gain).astype(jnp.float32), where)
      pairs[f'ratio.{name}'] = over(ratio, where)
      pairs[f'ratio_variance.{name}'] = over((ratio - 1.0) ** 2, where)
      pairs[f'log_ratio.{name}'] = over(jnp.abs(log_ratio), where)
    return pairs

  split = config.aggregation == 'modality'
  weights = {f'bonus.{name}': 1.0 for name in MODALITIES}
  parts = {'policy': 1.0} | ({'kl': config.kl} if config.has_reference and config.kl_place == 'loss' else {})
  for part, weight in parts.items():
    weights |= {f'{part}_{name}': 0.5 * weight for name in MODALITIES} if split else {part: weight}
  return loss, weights
