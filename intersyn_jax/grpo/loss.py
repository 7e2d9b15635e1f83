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
from intersyn_jax.interleave.layout import CODES, TokenBatch
from intersyn_jax.models import unified
from intersyn_jax.models.definition import Definition, Params

_CHOICES = {
    'kl_estimator': ('k1', 'k2', 'k3'),
    'aggregation': ('sequence', 'token', 'modality', 'constant'),
    'code_ratio': ('position', 'code'),
}


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Fields of `config.grpo` that shape the loss.

  Attributes:
    clip_low, clip_high: the ratio is clipped to 1 - clip_low .. 1 + clip_high.
    kl: weight of the divergence from the reference; 0 turns it off.
    kl_estimator: `k1` log p/q, `k2` half its square, `k3` q/p - 1 - log q/p (never negative, low variance).
    aggregation: `sequence` (mean over each answer, then over answers: the paper), `token` (over all units),
      `modality` (mean of the text mean and the image mean), `constant` (sum over answers x T).
    code_ratio: what a unit is.
    log_prob_chunk: positions scored at a time; 0 all at once.
  """

  clip_low: float = 0.2
  clip_high: float = 0.2
  kl: float = 0.02
  kl_estimator: str = 'k3'
  aggregation: str = 'sequence'
  code_ratio: str = 'position'
  log_prob_chunk: int = 0

  def __post_init__(self):
    for field, choices in _CHOICES.items():
      if getattr(self, field) not in choices:
        raise UserError(f'grpo.{field} is {getattr(self, field)!r}; use one of {", ".join(choices)}')
    if not 0 <= self.clip_low < 1 or self.clip_high < 0 or self.kl < 0:
      raise UserError('grpo.clip_low must lie in 0..1, grpo.clip_high and grpo.kl must not be negative')


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


def make_loss(definition: Definition, config: LossConfig) -> tuple[Callable[[Params, Any, jax.Array], Mapping], dict[str, float]]:
  """The loss and the weights of its parts, for `training.loop.make_step`.

  The loss takes (params, batch, key); the batch is a dict of `tokens` (TokenBatch [R,T]), `old` and `reference` (units
  [R,T,U]) and `advantage` [R,T]; rows without any weight take no part.
  """

  def loss(params: Params, batch: Any, key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    del key
    tokens: TokenBatch = batch['tokens']
    model = definition.bind(params)
    text, codes, entropy = unified.position_log_probs(model, model(tokens), tokens, chunk=config.log_prob_chunk)
    current = units(text, codes, config.code_ratio)
    mask = unit_mask(tokens, config.code_ratio)
    log_ratio = jnp.where(mask > 0, current - batch['old'], 0.0)
    ratio = jnp.exp(log_ratio)
    advantage = batch['advantage'][..., None]
    clipped = jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high)
    surrogate = -jnp.minimum(ratio * advantage, clipped * advantage)
    penalty = jnp.where(mask > 0, divergence(current, batch['reference'], config.kl_estimator), 0.0)

    picture = jnp.broadcast_to((tokens.modality == CODES)[..., None], mask.shape)
    over = lambda value, where: (jnp.sum(value * mask * where), jnp.sum(mask * where))
    pairs = {}
    for name, value in (('policy', surrogate), ('kl', penalty)):
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
    # Only watched:
    for name, where in (('text', ~picture), ('image', picture)):
      pairs[f'kl.{name}'] = over(penalty, where)
      pairs[f'entropy.{name}'] = (jnp.sum(entropy * mask[..., 0] * where[..., 0]), jnp.sum(mask[..., 0] * where[..., 0]))
      pairs[f'clipped.{name}'] = over((ratio * advantage > clipped * advantage).astype(jnp.float32), where)
      pairs[f'log_ratio.{name}'] = over(jnp.abs(log_ratio), where)
    return pairs

  names = ('policy', 'kl') if config.aggregation != 'modality' else ('policy_text', 'policy_image', 'kl_text', 'kl_image')
  share = 1.0 if config.aggregation != 'modality' else 0.5
  return loss, {name: share * (1.0 if name.startswith('policy') else config.kl) for name in names}
