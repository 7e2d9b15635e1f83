"""Image heads: from a hidden state to the D codes of the next image position.

A head has two methods: `logits(hidden, codes)` for all depths at once with the codes known, and `next_logits` for one
depth while sampling. A user's own head needs only these (DESIGN 9).

Letters: d model width, D codes per position, C codebook, w width of the depth transformer.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from intersyn_jax.errors import UserError
from intersyn_jax.models.definition import normal, param
from intersyn_jax.models.trunk import Trunk, TrunkConfig


class FlatHead(nnx.Module):
  """One code per image position (D = 1): a linear map."""

  def __init__(self, config: TrunkConfig, depth: int, codebook: int, rngs: nnx.Rngs):
    if depth != 1:
      raise UserError(f'model.image_head `flat` writes one code per position, image.depth is {depth}; use `residual`')
    self.head = param(rngs, (config.width, codebook), ('embed', 'codes'), normal(0.02))

  def logits(self, hidden: jax.Array, codes: jax.Array) -> jax.Array:
    """hidden [...,d], codes int[...,1] -> [...,1,C] in float32."""
    del codes
    return (hidden @ self.head[...].astype(hidden.dtype)).astype(jnp.float32)[..., None, :]

  def next_logits(self, hidden: jax.Array, codes: jax.Array, depth: int) -> jax.Array:
    """Logits [...,C] of code number `depth`; `codes` is right before it."""
    return self.logits(hidden, codes)[..., depth, :]


class ResidualHead(nnx.Module):
  """D residual codes by a small depth transformer (VILA-U; papers/unified_grpo 5.2).

  Depth 0 reads the hidden state, depth i > 0 the sum of the embeddings of codes 0..i-1.
  """

  def __init__(self, config: TrunkConfig, depth: int, codebook: int, rngs: nnx.Rngs):
    w = config.width
    self.hidden_kernel = param(rngs, (config.width, w), ('embed', 'width'))
    self.code_embedding = param(rngs, (codebook, w), ('codes', 'width'), normal(w ** -0.5))
    self.depth_embedding = param(rngs, (depth, w), ('places', 'width'), normal(w ** -0.5))
    self.depth_trunk = Trunk(dataclasses.replace(config, layers=max(1, config.layers // 4), remat='none'), rngs)
    self.head = param(rngs, (w, codebook), ('embed', 'codes'), normal(0.02))

  def _states(self, hidden: jax.Array, codes: jax.Array) -> jax.Array:
    """States [rows,D',w] of the first D' depths; the last of `codes` [...,D'] is not read."""
    depth = codes.shape[-1]
    first = (hidden @ self.hidden_kernel[...].astype(hidden.dtype)).reshape(-1, 1, hidden.shape[-1])
    known = self.code_embedding[...].astype(hidden.dtype)[codes.reshape(-1, depth)[:, :-1]]
    x = jnp.concatenate([first, jnp.cumsum(known, axis=1)], axis=1)
    x = x + self.depth_embedding[...].astype(hidden.dtype)[:depth]
    rows = x.shape[0]
    position = jnp.broadcast_to(jnp.arange(depth), (rows, depth))
    visible = jnp.broadcast_to(jnp.tril(jnp.ones((depth, depth), bool)), (rows, depth, depth))
    return self.depth_trunk(x, position, visible)

  def logits(self, hidden: jax.Array, codes: jax.Array) -> jax.Array:
    """hidden [...,d], codes int[...,D] -> [...,D,C] in float32; depth i sees codes 0..i-1."""
    y = self._states(hidden, codes) @ self.head[...].astype(hidden.dtype)
    return y.astype(jnp.float32).reshape(*codes.shape, -1)

  def next_logits(self, hidden: jax.Array, codes: jax.Array, depth: int) -> jax.Array:
    """Logits [...,C] of code number `depth`; `codes` is right before it. Only the depths up to it are computed."""
    y = self._states(hidden, codes[..., :depth + 1])[:, -1] @ self.head[...].astype(hidden.dtype)
    return y.astype(jnp.float32).reshape(*codes.shape[:-1], -1)


HEADS = {'flat': FlatHead, 'residual': ResidualHead}
