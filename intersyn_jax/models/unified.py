"""The unified model: text and image codes in, text and image codes out, one trunk between (DESIGN 3).

Letters: B batch, T positions, D codes per image position, d model width, V vocabulary, C codebook, P places of an image
block, W reach of the token mixer.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from intersyn_jax.interleave.layout import CODES, TokenBatch
from intersyn_jax.models.definition import Definition, normal, param
from intersyn_jax.models.image_heads import HEADS
from intersyn_jax.models.trunk import LayerCache, Trunk, TrunkConfig, same_document


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A unified model.

  Attributes:
    trunk: its transformer.
    vocabulary: V, text ids.
    places, depth, codebook: P, D, C of the image block.
    mix: W, how many positions the causal token mixer reads (itself included); 1 turns it off. A small model binds an
      object to its place much sooner with 4 than without.
    image_head: `flat`, `residual`, or a constructor like those in `image_heads`.
  """

  trunk: TrunkConfig
  vocabulary: int
  places: int
  depth: int
  codebook: int
  mix: int = 1
  image_head: Any = 'flat'


def places_of(modality: jax.Array) -> jax.Array:
  """Place of each position inside its image block, int[B,T]; meaningless at text positions."""
  t = jnp.arange(modality.shape[1])
  last_text = jax.lax.cummax(jnp.where(modality == CODES, -1, t[None, :]), axis=1)
  return t[None, :] - last_text - 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Cache:
  """What decoding carries: keys and values of each layer, and the last W-1 embeddings [B,W-1,d] for the mixer."""

  layers: list[LayerCache]
  recent: jax.Array


class Backbone(nnx.Module):
  """Embeddings, token mixer and trunk: what the model and the judge share."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    d = config.trunk.width
    self.config = config
    self.text_embedding = param(rngs, (config.vocabulary, d), ('vocab', 'embed'), normal(d ** -0.5))
    self.code_embedding = param(rngs, (config.codebook, d), ('codes', 'embed'), normal(d ** -0.5))
    self.place_embedding = param(rngs, (config.places, d), ('places', 'embed'), normal(d ** -0.5))
    if config.mix > 1:
      self.mix_embedding = param(rngs, (config.mix - 1, d), ('places', 'embed'), normal(0.5))
    self.trunk = Trunk(config.trunk, rngs)

  def embed(self, text: jax.Array, codes: jax.Array, modality: jax.Array, place: jax.Array) -> jax.Array:
    """Embeddings [...,d] of positions: the text id's, or the sum over its D codes and its place in the block."""
    dtype = self.config.trunk.dtype
    words = self.text_embedding[...].astype(dtype)[text]
    picture = jnp.sum(self.code_embedding[...].astype(dtype)[codes], axis=-2)
    picture = picture + self.place_embedding[...].astype(dtype)[jnp.clip(place, 0, self.config.places - 1)]
    return jnp.where((modality == CODES)[..., None], picture, words)

  def mix(self, x: jax.Array, before: jax.Array, position: jax.Array) -> jax.Array:
    """Adds the weighted W-1 embeddings before each position of x [B,T,d]; `before` [B,W-1,d] precede x.

    Never reaches over the start of a document: a position p adds only min(p, W-1) of them.
    """
    reach = self.config.mix - 1
    if not reach:
      return x
    weights = self.mix_embedding[...].astype(x.dtype)
    padded = jnp.concatenate([before, x], axis=1)
    out = x
    for back in range(1, reach + 1):
      earlier = padded[:, reach - back:reach - back + x.shape[1]]
      out = out + jnp.where((position >= back)[..., None], earlier * weights[back - 1], 0.0)
    return out

  def empty_recent(self, rows: int) -> jax.Array:
    return jnp.zeros((rows, self.config.mix - 1, self.config.trunk.width), self.config.trunk.dtype)

  def recent_of(self, document: TokenBatch) -> jax.Array:
    """What the mixer reads at the position after a document [T] of text: [1,W-1,d]."""
    plain = self.embed(jnp.asarray(document.text), jnp.asarray(document.codes), jnp.asarray(document.modality), 0)[None]
    padded = jnp.concatenate([self.empty_recent(1), plain], axis=1)
    return padded[:, padded.shape[1] - (self.config.mix - 1):]

  def __call__(self, batch: TokenBatch) -> jax.Array:
    """Hidden states [B,T,d] of packed rows."""
    x = self.embed(batch.text, batch.codes, batch.modality, places_of(batch.modality))
    x = self.mix(x, self.empty_recent(x.shape[0]), batch.position)
    return self.trunk(x, batch.position, same_document(batch.document))

  def prefill(self, batch: TokenBatch) -> tuple[jax.Array, Cache]:
    """Hidden states [B,T,d] and the cache of T places; prompts end at the last position (padded on the left)."""
    plain = self.embed(batch.text, batch.codes, batch.modality, places_of(batch.modality))
    x = self.mix(plain, self.empty_recent(plain.shape[0]), batch.position)
    hidden, layers = self.trunk.prefill(x, batch.position, same_document(batch.document))
    reach = self.config.mix - 1
    recent = jnp.concatenate([self.empty_recent(plain.shape[0]), plain], axis=1)
    return hidden, Cache(layers, recent[:, recent.shape[1] - reach:])

  def decode(self, layers: list[Any], text: jax.Array, codes: jax.Array, modality: jax.Array, place: jax.Array,
             position: jax.Array, cache: Cache, index: jax.Array, visible: jax.Array) -> tuple[jax.Array, Cache]:
    """One step: ids of B rows in, hidden [B,d] out.

    Args:
      layers: `trunk.unstack()`, made once outside the loop.
      text, codes, modality, place, position: int[B], codes [B,D], of the position to read.
      cache: its place `index` is written.
      index: int, the same for all rows.
      visible: bool[B,S], which places of the cache each row sees, `index` included.
    """
    plain = self.embed(text, codes, modality, place)[:, None]
    x = self.mix(plain, cache.recent, position[:, None])
    caches = []
    for layer, old in zip(layers, cache.layers, strict=True):
      x, new = layer(x, position[:, None], visible[:, None], old, index)
      caches.append(new)
    recent = jnp.concatenate([cache.recent, plain], axis=1)[:, 1:]
    return self.trunk.norm(x)[:, 0], Cache(caches, recent)


class UnifiedModel(nnx.Module):
  """Backbone, text head and image head."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    self.backbone = Backbone(config, rngs)
    self.text_head = param(rngs, (config.trunk.width, config.vocabulary), ('embed', 'vocab'), normal(0.02))
    head = HEADS.get(config.image_head, config.image_head) if isinstance(config.image_head, str) else config.image_head
    self.image_head = head(config.trunk, config.depth, config.codebook, rngs)

  def __call__(self, batch: TokenBatch) -> jax.Array:
    return self.backbone(batch)

  def text_logits(self, hidden: jax.Array) -> jax.Array:
    """Logits [...,V] in float32."""
    return (hidden @ self.text_head[...].astype(hidden.dtype)).astype(jnp.float32)


def define(config: ModelConfig) -> Definition:
  """The unified model's structure and parameter shapes."""
  return Definition(lambda rngs: UnifiedModel(config, rngs))


def position_log_probs(model: UnifiedModel, hidden: jax.Array, batch: TokenBatch, *, chunk: int = 0,
                       temperature: tuple[float, float] = (1.0, 1.0)) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Log-probability of every position given those before it, and the entropy there.

  Position t is scored from hidden state t-1 with the text head or the image head; the first position of a row gets 0.
  Logits of a chunk of positions are built, used and dropped, so [B,T,V] never exists when `chunk` > 0.

  Args:
    model: its heads are used.
    hidden: [B,T,d] of `batch`.
    batch: the tokens scored.
    chunk: positions at a time over B*T; 0 takes all at once.
    temperature: of text and of image logits.

  Returns:
    text log-probs [B,T] (0 at image positions), code log-probs [B,T,D] (0 at text positions), entropy [B,T] in nats
    (of an image position: the sum over its codes).
  """
  b, t, d = hidden.shape
  before = jnp.concatenate([jnp.zeros((b, 1, d), hidden.dtype), hidden[:, :-1]], axis=1).reshape(b * t, d)
  flat = jax.tree.map(lambda a: a.reshape(b * t, *a.shape[2:]), (batch.text, batch.codes, batch.modality))

  def score(piece):
    h, text, codes, modality = piece
    words = jax.nn.log_softmax(model.text_logits(h) / temperature[0])
    picture = jax.nn.log_softmax(model.image_head.logits(h, codes) / temperature[1])
    is_code = modality == CODES
    text_log_prob = jnp.take_along_axis(words, text[:, None], axis=-1)[:, 0]
    code_log_prob = jnp.take_along_axis(picture, codes[..., None], axis=-1)[..., 0]
    entropy = lambda p: -jnp.sum(jnp.exp(p) * p, axis=-1)
    spread = jnp.where(is_code, jnp.sum(entropy(picture), axis=-1), entropy(words))
    return jnp.where(is_code, 0.0, text_log_prob), jnp.where(is_code[:, None], code_log_prob, 0.0), spread

  pieces = (before, *flat)
  if not chunk or chunk >= b * t:
    out = score(pieces)
  else:
    count = -(-b * t // chunk)
    padded = jax.tree.map(lambda a: jnp.pad(a, [(0, count * chunk - b * t)] + [(0, 0)] * (a.ndim - 1)), pieces)
    split = jax.tree.map(lambda a: a.reshape(count, chunk, *a.shape[1:]), padded)
    out = jax.lax.map(jax.checkpoint(score), split)
    out = jax.tree.map(lambda a: a.reshape(count * chunk, *a.shape[2:])[:b * t], out)
  text, codes, entropy = jax.tree.map(lambda a: a.reshape(b, t, *a.shape[1:]), out)
  first = (jnp.arange(t) == 0)[None, :]
  return jnp.where(first, 0.0, text), jnp.where(first[..., None], 0.0, codes), jnp.where(first, 0.0, entropy)
