"""VQGAN: the convolutional image codec of Chameleon, Anole, Liquid and Janus; VILA-U and Emu3 use its two pyramids.

The encoder halves the picture level by level, the decoder doubles it back (Esser et al. 2021). The families differ by numbers:
which levels attend, the width of a code, and whether code vectors have length one (Janus, after LlamaGen, Sun et al. 2024).

Letters: B pictures, H W pixels, h w rows and columns of the code grid, P = h w places, c code width, C codebook.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from intersyn_jax.models.definition import normal, param
from intersyn_jax.models.vision.layers import (
  Attention,
  Conv,
  GroupNorm,
  Linear,
  Norm,
  ResBlock,
  as_map,
  codes_of,
  enlarge,
)


@dataclasses.dataclass(frozen=True)
class PyramidConfig:
  """Sizes of an encoder or a decoder.

  Attributes:
    channels: of the level of full size. multipliers: of `channels`, one a level, full size first; each level but the last halves.
    blocks: residual blocks a level in the encoder; the decoder has one more.
    latent: channels on the code grid.
    attention: levels whose every block is followed by attention; the middle always has one.
    heads: of every attention.
  """

  channels: int
  multipliers: tuple[int, ...]
  blocks: int
  latent: int
  attention: tuple[int, ...] = ()
  heads: int = 1

  def width(self, level: int) -> int:
    return self.channels * self.multipliers[level]

  def heads_at(self, level: int) -> int:
    """Heads of the attention after the blocks of a level, 0 where there is none."""
    return self.heads if level in self.attention else 0

  @property
  def levels(self) -> int:
    return len(self.multipliers)

  @property
  def downsample(self) -> int:
    """Pixels per place along each side."""
    return 2 ** (self.levels - 1)


class Level(nnx.Module):
  """The blocks of one size, each followed by attention where the level has it; `resample` leads to the next size."""

  def __init__(self, inputs: int, outputs: int, blocks: int, rngs: nnx.Rngs, *, heads: int, resample: bool,
               norm: Norm = GroupNorm):
    self.block = nnx.List([ResBlock(inputs if i == 0 else outputs, outputs, rngs, norm) for i in range(blocks)])
    self.attn = nnx.List([Attention(outputs, heads, rngs, norm) for _ in range(blocks if heads else 0)])
    self.resample = Conv(outputs, outputs, (3, 3), rngs) if resample else None

  def __call__(self, x: jax.Array, *given: jax.Array) -> jax.Array:
    """x [B,h,w,inputs] -> [B,h,w,outputs], before `resample`; `given` is what the norms read beside x."""
    for i, block in enumerate(self.block):
      x = block(x, *given)
      if len(self.attn):
        x = self.attn[i](x, *given)
    return x


class Middle(nnx.Module):
  """Block, attention, block on the code grid."""

  def __init__(self, channels: int, heads: int, rngs: nnx.Rngs, norm: Norm = GroupNorm):
    self.block_1 = ResBlock(channels, channels, rngs, norm)
    self.attn_1 = Attention(channels, heads, rngs, norm)
    self.block_2 = ResBlock(channels, channels, rngs, norm)

  def __call__(self, x: jax.Array, *given: jax.Array) -> jax.Array:
    return self.block_2(self.attn_1(self.block_1(x, *given), *given), *given)


class Encoder(nnx.Module):
  """Pictures to latents."""

  def __init__(self, config: PyramidConfig, rngs: nnx.Rngs):
    last = config.levels - 1
    self.conv_in = Conv(3, config.channels, (3, 3), rngs)
    self.down = nnx.List([
        Level(config.width(i - 1) if i else config.channels, config.width(i), config.blocks, rngs,
              heads=config.heads_at(i), resample=i < last) for i in range(config.levels)])
    self.mid = Middle(config.width(last), config.heads, rngs)
    self.norm_out = GroupNorm(config.width(last), rngs)
    self.conv_out = Conv(config.width(last), config.latent, (3, 3), rngs)

  def __call__(self, pixels: jax.Array) -> jax.Array:
    """[B,H,W,3] in -1..1 -> [B,h,w,latent]."""
    x = self.conv_in(pixels)
    for level in self.down:
      x = level(x)
      if level.resample is not None:
        x = level.resample(x, stride=(2, 2), padding=((0, 1), (0, 1)))
    return self.conv_out(jax.nn.silu(self.norm_out(self.mid(x))))


class Decoder(nnx.Module):
  """Latents to pictures. The list `up` is in the order of the levels, full size first, and runs backwards."""

  def __init__(self, config: PyramidConfig, rngs: nnx.Rngs, norm: Norm = GroupNorm):
    last = config.levels - 1
    self.conv_in = Conv(config.latent, config.width(last), (3, 3), rngs)
    self.mid = Middle(config.width(last), config.heads, rngs, norm)
    self.up = nnx.List([
        Level(config.width(min(i + 1, last)), config.width(i), config.blocks + 1, rngs,
              heads=config.heads_at(i), resample=i > 0, norm=norm) for i in range(config.levels)])
    self.norm_out = norm(config.width(0), rngs)
    self.conv_out = Conv(config.width(0), 3, (3, 3), rngs)

  def __call__(self, latents: jax.Array, *given: jax.Array) -> jax.Array:
    """[B,h,w,latent] -> [B,H,W,3], about -1..1; `given` is what the norms read beside the feature map."""
    x = self.mid(self.conv_in(latents), *given)
    for level in reversed(self.up):
      x = level(x, *given)
      if level.resample is not None:
        x = level.resample(enlarge(x, 2))
    return self.conv_out(jax.nn.silu(self.norm_out(x, *given)))


@dataclasses.dataclass(frozen=True)
class VQGANConfig:
  """Sizes of a VQGAN.

  Attributes:
    pyramid: of encoder and decoder alike.
    codebook: C. code_width: c.
    unit: latents and code vectors are divided by their length before they are compared, and code vectors before they are decoded.
  """

  pyramid: PyramidConfig
  codebook: int
  code_width: int
  unit: bool = False


class VQGAN(nnx.Module):
  """Encoder, codebook, decoder."""

  def __init__(self, config: VQGANConfig, rngs: nnx.Rngs):
    self.config = config
    latent, c = config.pyramid.latent, config.code_width
    self.encoder = Encoder(config.pyramid, rngs)
    self.quant_conv = Linear(latent, c, rngs)
    self.codebook = param(rngs, (config.codebook, c), ('width', 'width'), normal(1.0))
    self.post_quant_conv = Linear(c, latent, rngs)
    self.decoder = Decoder(config.pyramid, rngs)

  def latents(self, pixels: jax.Array) -> jax.Array:
    """[B,H,W,3] in -1..1 -> [B,h,w,c], what is compared with the code vectors."""
    latents = self.quant_conv(self.encoder(pixels))
    return unit(latents) if self.config.unit else latents

  def codes(self, pixels: jax.Array) -> jax.Array:
    """[B,H,W,3] in -1..1 -> int32[B,P,1]."""
    return codes_of(self.latents(pixels), self._vectors(), 1)

  def pixels(self, codes: jax.Array) -> jax.Array:
    """int[B,P,1] -> [B,H,W,3], about -1..1."""
    return self.decoder(self.post_quant_conv(as_map(self._vectors()[codes[..., 0]])))

  def _vectors(self) -> jax.Array:
    return unit(self.codebook[...]) if self.config.unit else self.codebook[...]


def unit(x: jax.Array) -> jax.Array:
  """[...,c] divided by its length."""
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
