"""VILA-U's image codec: SigLIP features, quantised several times over, and a decoder of convolutions back to pixels.

A place's feature is replaced by D rows of one codebook: the nearest, then the nearest to what is left, and so on; their sum is
what the language model reads and what is decoded (Lee et al. 2022; Wu et al. 2024, section 3.1). There is no encoder of
pixels beside SigLIP, and nothing between its features and the codebook.

Letters: B pictures, H W pixels, h w rows and columns of the code grid, P = h w places, D codes per place, d SigLIP's width,
C codebook.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from intersyn_jax.models.definition import constant, normal, param
from intersyn_jax.models.vision.layers import Linear, as_map, codes_of
from intersyn_jax.models.vision.siglip import Siglip, SiglipConfig
from intersyn_jax.models.vision.vqgan import Decoder, PyramidConfig


@dataclasses.dataclass(frozen=True)
class ResidualConfig:
  """Sizes of the codec.

  Attributes:
    siglip: the encoder; it ends before SigLIP's last layer and has no last norm.
    decoder: the decoder.
    codebook: C. depth: D.
    side: rows and columns that the decoder starts from, where they are not those of the codes (384 pixels: 27 to 24).
  """

  siglip: SiglipConfig
  decoder: PyramidConfig
  codebook: int
  depth: int
  side: int


class ResidualCodec(nnx.Module):
  """SigLIP, codebook, decoder."""

  def __init__(self, config: ResidualConfig, rngs: nnx.Rngs):
    self.config = config
    d = config.siglip.width
    self.siglip = Siglip(config.siglip, rngs)
    self.codebook = param(rngs, (config.codebook, d), ('width', 'width'), normal(1.0))
    self.padding_row = param(rngs, (d,), ('width',), constant(0.0))  # row C of the checkpoint's table: kept for the way back
    self.post_quant_conv = Linear(d, config.decoder.latent, rngs)
    self.decoder = Decoder(config.decoder, rngs)

  def codes(self, pixels: jax.Array) -> jax.Array:
    """[B,H,W,3] in -1..1 -> int32[B,P,D]."""
    return codes_of(self.siglip(pixels), self.codebook[...], self.config.depth)

  def pixels(self, codes: jax.Array) -> jax.Array:
    """int[B,P,D] -> [B,H,W,3], about -1..1."""
    x = as_map(jnp.sum(self.codebook[...][codes], axis=-2))
    if x.shape[1] != self.config.side:
      shape = (x.shape[0], self.config.side, self.config.side, x.shape[-1])
      x = jax.image.resize(x, shape, 'bilinear', antialias=False)
    return self.decoder(self.post_quant_conv(x))
