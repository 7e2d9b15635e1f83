"""The image codec of Emu3: a video VQGAN, here for single pictures.

Around the two pyramids of vqgan.py it has convolutions over time that look back only. A picture is encoded as the same frame
several times (4 in the public checkpoint), which the encoder reduces to one; here the frame passes the pyramid once and its
latents are repeated. Of the frames that a code grid is decoded to only the first is a picture's; it depends on nothing but the
first frame of every layer, so that no other is computed. The decoder's norms are scaled and shifted by the code vectors
(Zheng et al. 2022, MoVQ).

Letters: B pictures, H W pixels, T frames, h w rows and columns of the code grid, P = h w places, c code width, C codebook.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from intersyn_jax.models.definition import constant, normal, param
from intersyn_jax.models.vision.layers import Conv, GroupNorm, Linear, as_map, codes_of, enlarge
from intersyn_jax.models.vision.vqgan import Decoder, Encoder, PyramidConfig

EPSILON = 1e-5
"""Of the batch norms."""


@dataclasses.dataclass(frozen=True)
class Emu3VQConfig:
  """Sizes of the codec.

  Attributes:
    pyramid: of encoder and decoder; its `latent` is the code width c, because code vectors and latents pass the same layers.
    codebook: C.
    halvings: how often time is halved: a picture is 2 ** halvings frames.
  """

  pyramid: PyramidConfig
  codebook: int
  halvings: int


class TemporalConv(nnx.Module):
  """Convolution over frames and space; a frame sees itself and earlier ones, before the first of which are two of zeros."""

  def __init__(self, channels: int, window: tuple[int, int, int], rngs: nnx.Rngs):
    self.conv = Conv(channels, channels, window, rngs)

  def __call__(self, x: jax.Array, stride: int = 1) -> jax.Array:
    """[B,T,h,w,c] -> [B,T/stride,h,w,c]."""
    side = self.conv.kernel.shape[1] // 2
    return self.conv(x, stride=(stride, 1, 1), padding=((2, 0), (side, side), (side, side)))


class BatchNorm(nnx.Module):
  """Normalises by the mean and variance that training kept."""

  def __init__(self, channels: int, rngs: nnx.Rngs):
    self.scale, self.variance = (param(rngs, (channels,), ('width',), constant(1.0)) for _ in range(2))
    self.bias, self.mean = (param(rngs, (channels,), ('width',), constant(0.0)) for _ in range(2))

  def __call__(self, x: jax.Array) -> jax.Array:
    """[...,c] -> the same."""
    return (x - self.mean[...]) * jax.lax.rsqrt(self.variance[...] + EPSILON) * self.scale[...] + self.bias[...]


class TemporalBlock(nnx.Module):
  """Norm, SiLU, convolution over time, twice, around a shortcut."""

  def __init__(self, channels: int, rngs: nnx.Rngs):
    self.norm1 = BatchNorm(channels, rngs)
    self.conv1 = TemporalConv(channels, (3, 3, 3), rngs)
    self.norm2 = BatchNorm(channels, rngs)
    self.conv2 = TemporalConv(channels, (3, 3, 3), rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B,T,h,w,c] -> the same."""
    y = self.conv1(jax.nn.silu(self.norm1(x)))
    return x + self.conv2(jax.nn.silu(self.norm2(y)))


class SpatialNorm(nnx.Module):
  """Group norm, then scaled and shifted by linear maps of the code vectors at each place."""

  def __init__(self, code_width: int, channels: int, rngs: nnx.Rngs):
    self.norm_layer = GroupNorm(channels, rngs)
    self.conv_y = Linear(code_width, channels, rngs)
    self.conv_b = Linear(code_width, channels, rngs)

  def __call__(self, x: jax.Array, vectors: jax.Array) -> jax.Array:
    """x [B,h*k,w*k,channels], vectors [B,h,w,c] -> like x."""
    times = x.shape[1] // vectors.shape[1]
    # A map of one place commutes with the enlargement; first, it is times * times cheaper.
    return self.norm_layer(x) * enlarge(self.conv_y(vectors), times) + enlarge(self.conv_b(vectors), times)


class TimeDown(nnx.Module):
  """The encoder's part over time."""

  def __init__(self, config: Emu3VQConfig, rngs: nnx.Rngs):
    c = config.pyramid.latent
    self.time_conv = nnx.List([TemporalConv(c, (4, 3, 3), rngs) for _ in range(config.halvings)])
    self.time_res_stack = nnx.List([TemporalBlock(c, rngs) for _ in range(config.pyramid.blocks)])

  def __call__(self, x: jax.Array) -> jax.Array:
    """One picture's latents [B,h,w,c] -> [B,1,h,w,c]."""
    x = jnp.repeat(x[:, None], 2 ** len(self.time_conv), axis=1)
    for conv in self.time_conv:
      x = jax.nn.silu(conv(x, stride=2))
    for block in self.time_res_stack:
      x = block(x)
    return x


class TimeUp(nnx.Module):
  """The decoder's part over time, of which the first frame is computed."""

  def __init__(self, config: Emu3VQConfig, rngs: nnx.Rngs):
    c = config.pyramid.latent
    self.time_res_stack = nnx.List([TemporalBlock(c, rngs) for _ in range(config.pyramid.blocks)])
    self.time_conv = nnx.List([TemporalConv(c, (3, 3, 3), rngs) for _ in range(config.halvings)])

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B,1,h,w,c] -> [B,h,w,c]."""
    for block in self.time_res_stack:
      x = block(x)
    for conv in self.time_conv:  # each doubles the frames first, which the first frame does not see
      x = jax.nn.silu(conv(x))
    return x[:, 0]


class Emu3VQ(nnx.Module):
  """Encoder, codebook, decoder."""

  def __init__(self, config: Emu3VQConfig, rngs: nnx.Rngs):
    c = config.pyramid.latent
    self.encoder = Encoder(config.pyramid, rngs)
    self.time_down = TimeDown(config, rngs)
    self.quant_conv = TemporalConv(c, (3, 1, 1), rngs)
    self.codebook = param(rngs, (config.codebook, c), ('width', 'width'), normal(1.0))
    self.post_quant_conv = TemporalConv(c, (3, 1, 1), rngs)
    self.time_up = TimeUp(config, rngs)
    self.decoder = Decoder(config.pyramid, rngs, norm=lambda channels, rngs: SpatialNorm(c, channels, rngs))

  def latents(self, pixels: jax.Array) -> jax.Array:
    """[B,H,W,3] in -1..1 -> [B,h,w,c], what is compared with the code vectors."""
    return self.quant_conv(self.time_down(self.encoder(pixels)))[:, 0]

  def codes(self, pixels: jax.Array) -> jax.Array:
    """[B,H,W,3] in -1..1 -> int32[B,P,1]."""
    return codes_of(self.latents(pixels), self.codebook[...], 1)

  def pixels(self, codes: jax.Array) -> jax.Array:
    """int[B,P,1] -> [B,H,W,3], about -1..1."""
    vectors = as_map(self.codebook[...][codes[..., 0]])[:, None]
    return self.decoder(self.time_up(self.post_quant_conv(vectors)), self.time_up(vectors))
