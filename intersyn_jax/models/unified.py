"""The unified model: text and image codes in, text and image codes out, one trunk between (DESIGN 3).

Letters: B batch, T positions, D codes per image position, d model width, V vocabulary, C codebook, P places of an image
block, W reach of the token mixer, N rows of image features, f their width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from intersyn_jax import sharding
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import CODES, FEATURES, TokenBatch
from intersyn_jax.models.attention import Documents
from intersyn_jax.models.definition import Definition, normal, param
from intersyn_jax.models.image_embeddings import EMBEDDINGS, Projector
from intersyn_jax.models.image_heads import HEADS
from intersyn_jax.models.trunk import REMAT, LayerCache, Trunk, TrunkConfig, rotation, same_document


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A unified model.

  Attributes:
    trunk: its transformer.
    vocabulary: V, text ids.
    places, depth, codebook: P, D, C of the image block.
    mix: W, how many positions the causal token mixer reads (itself included); 1 turns it off. A small model binds an
      object to its place much sooner with 4 than without.
    image_embedding: a name in `image_embeddings.EMBEDDINGS`, or a constructor like those.
    image_head: a name in `image_heads.HEADS`, or a constructor like those.
    features: f, for a model that reads pictures as features (Janus); 0 for one that reads codes alone.
    embedding_scale: text and image embeddings are multiplied by it (Gemma).
    tied: the text head, and the image head if it is `flat`, are the embeddings transposed.
    param_dtype: of all parameters where they are held.
    head_remat: `TrunkConfig.remat` for the layers of the image head; '' is that of the trunk.
  """

  trunk: TrunkConfig
  vocabulary: int
  places: int
  depth: int
  codebook: int
  mix: int = 1
  image_embedding: Any = 'places'
  image_head: Any = 'flat'
  features: int = 0
  embedding_scale: float = 1.0
  tied: bool = False
  param_dtype: str = 'float32'
  head_remat: str = ''

  def __post_init__(self):
    if self.head_remat and self.head_remat not in REMAT:
      raise UserError(f'model.head_remat {self.head_remat!r} is none of {", ".join(REMAT)}')


def places_of(modality: jax.Array) -> jax.Array:
  """Place of each position inside its image block, int[B,T]; meaningless at positions that hold no codes."""
  t = jnp.arange(modality.shape[1])
  last_other = jax.lax.cummax(jnp.where(modality == CODES, -1, t[None, :]), axis=1)
  return t[None, :] - last_other - 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Cache:
  """What decoding carries: keys and values of each layer, and the last W-1 embeddings [B,W-1,d] for the mixer."""

  layers: list[LayerCache]
  recent: jax.Array


class Backbone(nnx.Module):
  """Embeddings, token mixer and trunk: what the model and the judge share.

  `features` [N,f] are the pictures of a batch that are read as features, and not as codes: position p of modality FEATURES
  reads row `codes[p, 0]` of them. A batch without such positions needs none.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    d = config.trunk.width
    self.config = config
    self.text_embedding = param(rngs, (config.vocabulary, d), ('vocab', 'embed'), normal(d ** -0.5))
    self.image_embedding = _constructor(config.image_embedding, EMBEDDINGS, 'image_embedding')(config, rngs)
    if config.features:
      self.feature_projector = Projector((config.features, d, d), ('width', 'mlp', 'embed'), rngs)
    if config.mix > 1:
      self.mix_embedding = param(rngs, (config.mix - 1, d), ('places', 'embed'), normal(0.5))
    self.trunk = Trunk(config.trunk, rngs)

  def embed(self, text: jax.Array, codes: jax.Array, modality: jax.Array, place: jax.Array,
            features: jax.Array | None = None) -> jax.Array:
    """Embeddings [...,d] of positions: the text id's, that of the D codes at their place in the block, or a row of features."""
    dtype = self.config.trunk.dtype
    words = self.text_embedding[...][text].astype(dtype)
    x = jnp.where((modality == CODES)[..., None], self.image_embedding(codes, place), words)
    if self.config.embedding_scale != 1.0:
      x = x * jnp.asarray(self.config.embedding_scale, dtype)
    if features is not None:
      seen = self.feature_projector.apply(features.astype(dtype))
      x = jnp.where((modality == FEATURES)[..., None], seen[codes[..., 0]], x)
    return x

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

  def __call__(self, batch: TokenBatch, features: jax.Array | None = None, beside: jax.Array | None = None) -> jax.Array:
    """Hidden states [B,T,d] of packed rows; `beside` [B,T,d] is added to their embeddings."""
    x = self.embed(batch.text, batch.codes, batch.modality, places_of(batch.modality), features)
    x = self.mix(x, self.empty_recent(x.shape[0]), batch.position)
    if beside is not None:
      x = x + beside
    return self.trunk(x, batch.position, same_document(batch.document))

  def answers(self, batch: TokenBatch, prompt: int, share: int = 1) -> jax.Array:
    """Hidden states [R,M,d] right before each position of answers: `share` neighbours have one prompt, which is read once.

    Args:
      batch: rows [R,T+M], each an answer of M positions behind its prompt, which is padded on the left.
      prompt: T.
    """
    x = self.embed(batch.text, batch.codes, batch.modality, places_of(batch.modality))
    x = self.mix(x, self.empty_recent(x.shape[0]), batch.position)
    first = lambda a: a.reshape(-1, share, *a.shape[1:])[:, 0, :prompt]
    hidden, before = self.trunk.read(first(x), first(batch.position), same_document(first(batch.document)))
    visible = Documents(batch.document[:, prompt:], batch.document)
    rest = self.trunk(x[:, prompt:], batch.position[:, prompt:], visible, before)
    return jnp.concatenate([jnp.repeat(hidden[:, -1:], share, axis=0), rest[:, :-1]], axis=1)

  def prefill(self, batch: TokenBatch, features: jax.Array | None = None) -> tuple[jax.Array, Cache]:
    """Hidden states [B,T,d] and the cache of T places; prompts end at the last position (padded on the left)."""
    plain = self.embed(batch.text, batch.codes, batch.modality, places_of(batch.modality), features)
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
      cache: its place `index` is written, of those that are each row's own.
      index: int, the same for all rows.
      visible: bool[B,S], which places of the cache each row sees, the shared ones first, and the one of `index` included.
    """
    plain = self.embed(text, codes, modality, place)[:, None]
    x = self.mix(plain, cache.recent, position[:, None])
    caches, by = [], rotation(position[:, None], self.trunk.config)
    for layer, old in zip(layers, cache.layers, strict=True):
      x, new = layer(x, by, visible[:, None], old, index)
      caches.append(new)
    recent = jnp.concatenate([cache.recent, plain], axis=1)[:, 1:]
    return self.trunk.norm(x)[:, 0], Cache(caches, recent)


class UnifiedModel(nnx.Module):
  """Backbone, text head and image head."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    self.backbone = Backbone(config, rngs)
    if not config.tied:
      self.text_head = param(rngs, (config.trunk.width, config.vocabulary), ('embed', 'vocab'), normal(0.02))
    self.image_head = _constructor(config.image_head, HEADS, 'image_head')(config, rngs)

  def __call__(self, batch: TokenBatch, features: jax.Array | None = None) -> jax.Array:
    """Hidden states [B,T,d]; see `Backbone`."""
    return self.backbone(batch, features)

  def text_logits(self, hidden: jax.Array) -> jax.Array:
    """Logits [...,V] in float32."""
    kernel = self.backbone.text_embedding[...].T if self.config.tied else self.text_head[...]
    return (hidden @ kernel.astype(hidden.dtype)).astype(jnp.float32)

  def code_logits(self, hidden: jax.Array, codes: jax.Array) -> jax.Array:
    """hidden [...,d], codes int[...,D] -> logits [...,D,C] in float32; code number i is given codes 0..i-1."""
    return self.image_head.logits(hidden, codes, self.backbone.image_embedding)

  def next_code_logits(self, hidden: jax.Array, codes: jax.Array, depth: int) -> jax.Array:
    """Logits [...,C] of code number `depth`; `codes` [...,D] is right before it."""
    return self.image_head.next_logits(hidden, codes, depth, self.backbone.image_embedding)


def _constructor(named: Any, table: dict[str, Any], field: str) -> Any:
  """What a config names: a constructor itself, or a name in the table."""
  if callable(named):
    return named
  if named not in table:
    raise UserError(f'model.{field} is {named!r}; take {", ".join(table)}, or a constructor as module:attribute')
  return table[named]


def define(config: ModelConfig) -> Definition:
  """The unified model's structure and parameter shapes."""
  return Definition(lambda rngs: UnifiedModel(config, rngs), config.param_dtype)


def by_chunks(score: Callable[[Any], Any], pieces: Any, chunk: int) -> Any:
  """score(pieces) of arrays [B,T,...], `chunk` positions of every row at a time (0: all at once); what a chunk builds is not kept
  for the backward pass either. All rows are in every chunk, so that each stays on the devices that hold it."""
  size = jax.tree.leaves(pieces)[0].shape[1]
  if not chunk or chunk >= size:
    return score(pieces)
  count = -(-size // chunk)
  padded = jax.tree.map(lambda a: jnp.pad(a, [(0, 0), (0, count * chunk - size)] + [(0, 0)] * (a.ndim - 2)), pieces)
  split = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(len(a), count, chunk, *a.shape[2:]), 1, 0), padded)
  out = jax.lax.map(jax.checkpoint(lambda piece: score(sharding.spread(piece))), split)
  return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(a.shape[1], count * chunk, *a.shape[3:])[:, :size], out)


def position_log_probs(model: UnifiedModel, hidden: jax.Array, batch: TokenBatch, *, chunk: int = 0,
                       temperature: tuple[float, float] = (1.0, 1.0)) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Log-probability of every position given those before it, and the entropy there.

  Position t is scored from hidden state t-1; the first position of a row gets 0. See `log_probs_after`.

  Args:
    hidden: [B,T,d] of `batch`.
  """
  before = jnp.concatenate([jnp.zeros_like(hidden[:, :1]), hidden[:, :-1]], axis=1)
  found = log_probs_after(model, before, batch, chunk=chunk, temperature=temperature)
  later = jnp.arange(hidden.shape[1]) > 0
  return jax.tree.map(lambda a: jnp.where(later.reshape(-1, *[1] * (a.ndim - 2)), a, 0.0), found)


def log_probs_after(model: UnifiedModel, before: jax.Array, batch: TokenBatch, *, chunk: int = 0,
                    temperature: tuple[float, float] = (1.0, 1.0)) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Log-probability of every position given the hidden state right before it, and the entropy there.

  Text is scored with the text head, codes with the image head; a head that no position of a chunk needs is skipped. Logits of a
  chunk of positions are built, used and dropped, so [B,T,V] never exists when `chunk` > 0.

  Args:
    model: its heads are used.
    before: [B,T,d].
    batch: the tokens scored, [B,T].
    chunk: positions of every row at a time; 0 takes all at once.
    temperature: of text and of image logits.

  Returns:
    text log-probs [B,T] (0 where a position holds codes or features), code log-probs [B,T,D] (0 where it holds none), entropy
    [B,T] in nats (of an image position: the sum over its codes; 0 at features, which nobody predicts).
  """
  def under(logits: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-prob and entropy [...] of ids under logits [...,V]."""
    p = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(p, ids[..., None], axis=-1)[..., 0], -jnp.sum(jnp.exp(p) * p, axis=-1)

  def score(piece):
    h, text, codes, modality = piece
    is_code, is_text = modality == CODES, (modality != CODES) & (modality != FEATURES)
    nothing = lambda like: (jnp.zeros(like.shape), jnp.zeros(like.shape))
    text_log_prob, text_entropy = jax.lax.cond(
        jnp.any(is_text), lambda: under(model.text_logits(h) / temperature[0], text), lambda: nothing(text))
    code_log_prob, code_entropy = jax.lax.cond(
        jnp.any(is_code), lambda: under(model.code_logits(h, codes) / temperature[1], codes), lambda: nothing(codes))
    return (jnp.where(is_text, text_log_prob, 0.0), jnp.where(is_code[..., None], code_log_prob, 0.0),
            jnp.where(is_code, jnp.sum(code_entropy, axis=-1), jnp.where(is_text, text_entropy, 0.0)))

  return by_chunks(score, (before, batch.text, batch.codes, batch.modality), chunk)
