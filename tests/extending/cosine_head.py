"""An image head: a code is as likely as its embedding points the way of the hidden state."""

import jax.numpy as jnp
from flax import nnx

from intersyn_jax.models.definition import constant, param


class CosineHead(nnx.Module):

  def __init__(self, config, rngs):
    width = config.trunk.width
    self.hidden_kernel = param(rngs, (width, width), ('embed', 'width'))
    self.scale = param(rngs, (1,), ('places',), constant(10.0))

  def logits(self, hidden, codes, embedding):
    """hidden [..., d], codes int[..., 1] -> [..., 1, C] in float32, of all codes of a position."""
    table = embedding.code_embedding[...].astype(hidden.dtype)  # [C, d], shared with the image embedding
    unit = lambda a: a / jnp.sqrt(jnp.sum(a * a, axis=-1, keepdims=True) + 1e-6)
    cosine = unit(hidden @ self.hidden_kernel[...].astype(hidden.dtype)) @ unit(table).T
    return (self.scale[...] * cosine.astype(jnp.float32))[..., None, :]

  def next_logits(self, hidden, codes, depth, embedding):
    """Logits [..., C] of code number `depth`, while sampling; `codes` is right before it."""
    return self.logits(hidden, codes, embedding)[..., depth, :]
