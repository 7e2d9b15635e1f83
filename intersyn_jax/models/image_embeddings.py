"""Image embeddings: from the D codes of an image position to what the trunk reads there.

An embedding is a module made from a `ModelConfig` and called with codes and places; a user's own needs only that (DESIGN 9).
Heads may share its tables: `code_embedding` [C,d] of a tied flat head, `codebook` [C,c] of a depth transformer.

Letters: d model width, D codes per position, C codebook, c width of a code's vector, P places of an image block.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from intersyn_jax.models.definition import constant, normal, param
from intersyn_jax.models.trunk import project

if typing.TYPE_CHECKING:
  from intersyn_jax.models.unified import ModelConfig


class TableEmbedding(nnx.Module):
  """The rows of the D codes, summed (Chameleon, Emu3, Liquid: one row, part of their joint vocabulary)."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    d = config.trunk.width
    self.dtype = config.trunk.dtype
    self.code_embedding = param(rngs, (config.codebook, d), ('codes', 'embed'), normal(d ** -0.5))

  def __call__(self, codes: jax.Array, place: jax.Array) -> jax.Array:
    """codes int[...,D], place int[...] -> [...,d]."""
    del place
    return jnp.sum(self.code_embedding[...][codes].astype(self.dtype), axis=-2)


class PlaceEmbedding(TableEmbedding):
  """The same and a row of the place in the image block: for models trained from nothing."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    super().__init__(config, rngs)
    d = config.trunk.width
    self.place_embedding = param(rngs, (config.places, d), ('places', 'embed'), normal(d ** -0.5))

  def __call__(self, codes: jax.Array, place: jax.Array) -> jax.Array:
    """codes int[...,D], place int[...] -> [...,d]; a place outside the block (of a text position) is read as its edge."""
    rows = self.place_embedding[...]
    return super().__call__(codes, place) + rows[jnp.clip(place, 0, len(rows) - 1)].astype(self.dtype)


class Projector(nnx.Module):
  """Two linear layers and an exact GELU between them.

  Args:
    sizes: of input, middle and output.
    axes: their logical names.
  """

  def __init__(self, sizes: Sequence[int], axes: Sequence[str], rngs: nnx.Rngs):
    self.in_kernel = param(rngs, sizes[:2], axes[:2])
    self.in_bias = param(rngs, sizes[1:2], axes[1:2], constant(0.0))
    self.out_kernel = param(rngs, sizes[1:], axes[1:])
    self.out_bias = param(rngs, sizes[2:], axes[2:], constant(0.0))

  def apply(self, x: jax.Array) -> jax.Array:
    """[...,input] -> [...,output]."""
    y = jax.nn.gelu(project(x, self.in_kernel) + self.in_bias[...].astype(x.dtype), approximate=False)
    return project(y, self.out_kernel) + self.out_bias[...].astype(x.dtype)


class ProjectedEmbedding(Projector):
  """The vectors of the D codes, summed and projected (VILA-U's projector, Janus's generation aligner).

  Args:
    code_width: c; d if not given.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, code_width: int | None = None):
    d = config.trunk.width
    c = code_width or d
    self.dtype = config.trunk.dtype
    self.codebook = param(rngs, (config.codebook, c), ('codes', 'width'), normal(c ** -0.5))
    super().__init__((c, d, d), ('width', 'mlp', 'embed'), rngs)

  def __call__(self, codes: jax.Array, place: jax.Array) -> jax.Array:
    """codes int[...,D], place int[...] -> [...,d]."""
    del place
    return self.apply(jnp.sum(self.codebook[...][codes].astype(self.dtype), axis=-2))


EMBEDDINGS = {'places': PlaceEmbedding, 'table': TableEmbedding, 'projected': ProjectedEmbedding}
