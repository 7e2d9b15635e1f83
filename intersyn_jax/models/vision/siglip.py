"""SigLIP's image encoder: a vision transformer without class token (Zhai et al. 2023).

Janus reads its pictures with it (all layers, then the last norm), and VILA-U's codec quantises what it makes of them (without
the last layer and that norm). Nothing of SigLIP's pooling head and text side is used.

Letters: B pictures, H W pixels, P patches of a picture (row by row), d width, L layers.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
from flax import nnx

from intersyn_jax.models.definition import normal, param, stacked
from intersyn_jax.models.vision.layers import Conv, LayerNorm, Linear, attend

ACTIVATIONS = {'gelu': functools.partial(jax.nn.gelu, approximate=False),
               'gelu_pytorch_tanh': functools.partial(jax.nn.gelu, approximate=True)}
"""By their names in config.json."""


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
  """Sizes of the encoder.

  Attributes:
    pixels: side of a picture. patch: side of a patch; pixels beyond the last whole patch are not read.
    width: d. layers: L, those that run. heads: of d / heads each. mlp_width: of the MLPs.
    activation: of the MLPs, a name in ACTIVATIONS.
    epsilon: of the layer norms.
    final_norm: whether a norm follows the last layer.
  """

  pixels: int
  patch: int
  width: int
  layers: int
  heads: int
  mlp_width: int
  activation: str = 'gelu_pytorch_tanh'
  epsilon: float = 1e-6
  final_norm: bool = True

  @property
  def places(self) -> int:
    """P."""
    return (self.pixels // self.patch) ** 2


class SiglipLayer(nnx.Module):
  """One transformer block, norms first."""

  def __init__(self, config: SiglipConfig, rngs: nnx.Rngs):
    self.config = config
    d = config.width
    self.norm1 = LayerNorm(d, config.epsilon, rngs)
    self.query, self.key, self.value, self.out = (Linear(d, d, rngs) for _ in range(4))
    self.norm2 = LayerNorm(d, config.epsilon, rngs)
    self.fc1 = Linear(d, config.mlp_width, rngs)
    self.fc2 = Linear(config.mlp_width, d, rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B,P,d] -> the same."""
    y = self.norm1(x)
    x = x + self.out(attend(self.query(y), self.key(y), self.value(y), self.config.heads))
    return x + self.fc2(ACTIVATIONS[self.config.activation](self.fc1(self.norm2(x))))


class Siglip(nnx.Module):
  """Patches, positions, layers."""

  def __init__(self, config: SiglipConfig, rngs: nnx.Rngs):
    self.config = config
    self.patch = Conv(3, config.width, (config.patch, config.patch), rngs)
    self.position_embedding = param(rngs, (config.places, config.width), ('places', 'width'), normal(0.02))
    self.layers = stacked(lambda rngs: SiglipLayer(config, rngs), config.layers, rngs)
    self.norm = LayerNorm(config.width, config.epsilon, rngs) if config.final_norm else None

  def __call__(self, pixels: jax.Array) -> jax.Array:
    """[B,H,W,3] in -1..1 -> features [B,P,d]."""
    side = self.config.patch
    x = self.patch(pixels, stride=(side, side), padding=((0, 0), (0, 0)))
    x = x.reshape(x.shape[0], -1, x.shape[-1]) + self.position_embedding[...]
    graph, params = nnx.split(self.layers)
    x, _ = jax.lax.scan(lambda x, layer: (nnx.merge(graph, layer)(x), None), x, params)
    return x if self.norm is None else self.norm(x)
