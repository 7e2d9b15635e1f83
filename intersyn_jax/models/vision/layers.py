"""The pieces that the image codecs are made of: convolution, norms, residual and attention blocks, quantisation.

Arrays are channels last; a kernel of one pixel is a matrix. Modules and parameters are named after the checkpoints where
possible, so that the map of keys is a rule (keys.py) and not a table.

Letters: B pictures, h w rows and columns of a feature map, T frames, c channels, N heads, H head width, P places of a
picture (row by row), D codes per place, C codebook.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from intersyn_jax.models.definition import constant, normal, param
from intersyn_jax.models.image_tokenizer import quantise

Norm = Callable[[int, nnx.Rngs], nnx.Module]
"""Makes the norm of so many channels. It is called with the feature map and with whatever its block was given beside it."""

Padding = Sequence[tuple[int, int]]

GROUPS = 32
EPSILON = 1e-6
"""Of every group norm in the published codecs."""

PLACES_AT_ONCE = 256
"""Places of each picture that are compared with the codebook at once: all 8,100 of an Emu3 picture would take a gigabyte."""


class Conv(nnx.Module):
  """Convolution with a bias over two axes of space, or over time and space."""

  def __init__(self, inputs: int, outputs: int, window: Sequence[int], rngs: nnx.Rngs):
    shape = (*window, inputs, outputs)
    self.kernel = param(rngs, shape, ('width',) * len(shape), normal((inputs * math.prod(window)) ** -0.5))
    self.bias = param(rngs, (outputs,), ('width',), constant(0.0))

  def __call__(self, x: jax.Array, stride: Sequence[int] | None = None, padding: Padding | None = None) -> jax.Array:
    """x [B,h,w,c] or [B,T,h,w,c]. Without a padding the map keeps its size (odd windows)."""
    kernel = self.kernel[...]
    window = kernel.shape[:-2]
    space = 'THW'[-len(window):]
    y = jax.lax.conv_general_dilated(
        x, kernel, stride or (1,) * len(window), [(k // 2, k // 2) for k in window] if padding is None else padding,
        dimension_numbers=(f'N{space}C', f'{space}IO', f'N{space}C'))
    return y + self.bias[...]


class Linear(nnx.Module):
  """A matrix and a bias over the channels: a linear layer, or a convolution of one pixel."""

  def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
    self.kernel = param(rngs, (inputs, outputs), ('width', 'width'))
    self.bias = param(rngs, (outputs,), ('width',), constant(0.0))

  def __call__(self, x: jax.Array) -> jax.Array:
    """[...,inputs] -> [...,outputs]."""
    return x @ self.kernel[...] + self.bias[...]


class GroupNorm(nnx.Module):
  """Channels in 32 groups, each normalised over its channels and all places of its picture."""

  def __init__(self, channels: int, rngs: nnx.Rngs):
    self.scale = param(rngs, (channels,), ('width',), constant(1.0))
    self.bias = param(rngs, (channels,), ('width',), constant(0.0))

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B,h,w,c] -> the same."""
    groups = x.reshape(x.shape[0], -1, GROUPS, x.shape[-1] // GROUPS)
    centred = groups - jnp.mean(groups, axis=(1, 3), keepdims=True)
    variance = jnp.mean(centred * centred, axis=(1, 3), keepdims=True)
    return (centred * jax.lax.rsqrt(variance + EPSILON)).reshape(x.shape) * self.scale[...] + self.bias[...]


class LayerNorm(nnx.Module):
  """Each place normalised over its channels."""

  def __init__(self, channels: int, epsilon: float, rngs: nnx.Rngs):
    self.epsilon = epsilon
    self.scale = param(rngs, (channels,), ('width',), constant(1.0))
    self.bias = param(rngs, (channels,), ('width',), constant(0.0))

  def __call__(self, x: jax.Array) -> jax.Array:
    """[...,c] -> the same."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + self.epsilon) * self.scale[...] + self.bias[...]


class ResBlock(nnx.Module):
  """Norm, SiLU, convolution, twice, around a shortcut."""

  def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, norm: Norm = GroupNorm):
    self.norm1 = norm(inputs, rngs)
    self.conv1 = Conv(inputs, outputs, (3, 3), rngs)
    self.norm2 = norm(outputs, rngs)
    self.conv2 = Conv(outputs, outputs, (3, 3), rngs)
    self.nin_shortcut = Linear(inputs, outputs, rngs) if inputs != outputs else None

  def __call__(self, x: jax.Array, *given: jax.Array) -> jax.Array:
    """x [B,h,w,inputs] -> [B,h,w,outputs]; `given` is what the norms read beside x."""
    y = self.conv1(jax.nn.silu(self.norm1(x, *given)))
    y = self.conv2(jax.nn.silu(self.norm2(y, *given)))
    return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + y


class Attention(nnx.Module):
  """All places of a picture look at one another."""

  def __init__(self, channels: int, heads: int, rngs: nnx.Rngs, norm: Norm = GroupNorm):
    self.heads = heads
    self.norm = norm(channels, rngs)
    self.query, self.key, self.value, self.out = (Linear(channels, channels, rngs) for _ in range(4))

  def __call__(self, x: jax.Array, *given: jax.Array) -> jax.Array:
    """x [B,h,w,c] -> the same; `given` is what the norm reads beside x."""
    b, h, w, c = x.shape
    y = self.norm(x, *given).reshape(b, h * w, c)
    return x + self.out(attend(self.query(y), self.key(y), self.value(y), self.heads)).reshape(x.shape)


def attend(queries: jax.Array, keys: jax.Array, values: jax.Array, heads: int) -> jax.Array:
  """Attention of every place to every place: [B,P,c] each -> [B,P,c]."""
  b, p, c = queries.shape
  queries, keys, values = (a.reshape(b, p, heads, c // heads) for a in (queries, keys, values))
  weights = jax.nn.softmax(jnp.einsum('bpnh,bqnh->bnpq', queries, keys) * (c // heads) ** -0.5, axis=-1)
  return jnp.einsum('bnpq,bqnh->bpnh', weights, values).reshape(b, p, c)


def enlarge(x: jax.Array, times: int) -> jax.Array:
  """[B,h,w,c] -> [B,h*times,w*times,c], every place repeated (nearest neighbour)."""
  return jnp.repeat(jnp.repeat(x, times, axis=1), times, axis=2)


def codes_of(latents: jax.Array, codebook: jax.Array, depth: int) -> jax.Array:
  """Codes int32[B,P,D] of latents [B,h,w,c] by residual quantisation in one codebook [C,c]."""
  b, c = latents.shape[0], latents.shape[-1]
  places = latents.reshape(b, -1, c).swapaxes(0, 1)
  codes = jax.lax.map(lambda row: quantise(row, codebook, depth)[0], places, batch_size=min(PLACES_AT_ONCE, len(places)))
  return codes.swapaxes(0, 1)


def as_map(rows: jax.Array) -> jax.Array:
  """Rows [B,P,c] of a square picture -> [B,h,w,c]."""
  b, p, c = rows.shape
  side = math.isqrt(p)
  return rows.reshape(b, side, side, c)
