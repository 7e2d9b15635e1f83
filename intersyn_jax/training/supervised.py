"""The supervised loss of the unified model: negative log-likelihood of text and codes, weight 1:1 (Unified GRPO, section 1)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from intersyn_jax.interleave.layout import CODES, TokenBatch
from intersyn_jax.models import unified
from intersyn_jax.models.definition import Definition, Params


def next_token_loss(definition: Definition, *, chunk: int = 0) -> Callable[[Params, TokenBatch, jax.Array], dict]:
  """Loss (params, batch [B,T], key) -> {name: (sum, denominator)}.

  `loss` is the mean over all positions with weight, of either modality; `text` and `image` are its parts, for the curves
  (nats a text token, nats an image position).
  """

  def loss(params: Params, batch: TokenBatch, key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    del key
    model = definition.bind(params)
    text, codes, _ = unified.position_log_probs(model, model(batch), batch, chunk=chunk)
    cost = -(text + jnp.sum(codes, axis=-1)) * batch.loss
    picture = batch.modality == CODES
    part = lambda where: (jnp.sum(jnp.where(where, cost, 0.0)), jnp.sum(jnp.where(where, batch.loss, 0.0)))
    return {'loss': part(True), 'text': part(~picture), 'image': part(picture)}

  return loss
