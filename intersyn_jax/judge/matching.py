"""Words and codes brought together: what words ask of a picture, and whether it is there.

Embeddings of the judge's own, beside the policy's states, in which what a place of a picture shows is lost: they say what comes
next. They are trained alone (`training.align_loss_of`), and then stay as they are.

Letters: B rows, T positions, Q positions that are asked for, V words, d model width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from intersyn_jax.interleave.layout import CODES, TEXT, TokenBatch
from intersyn_jax.models.definition import normal, param
from intersyn_jax.models.unified import ModelConfig, by_chunks, places_of

COUNTED = 4
"""Up to which number things are counted one by one."""

REACH, AHEAD, WIDTH = 10, 4, 96
"""How many words are read, up to the one where a match stands and after it ("the red circle", "... is gone"); and the width of
all embeddings here."""

WEIGHED = 0.03
"""How fast the weights of words learn beside all else of a match: they change what the kernels behind them have learnt."""

NOTHING = -30.0
"""Logit of a mark where there can be none."""

MATCHED = 256
"""Positions that are matched at once."""

TABLE = 1 << 22
"""Numbers that a table of all words may have (`spoken`): with the words of a large model it would be larger than the model."""


class Matching(nnx.Module):
  """Late interaction (ColBERT, Khattab and Zaharia 2020) between the words around a position and the places of a picture."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    d, around = config.trunk.width, REACH + AHEAD
    self.dtype = config.trunk.dtype
    self.word_embedding = param(rngs, (config.vocabulary, WIDTH), ('vocab', 'width'), normal(0.3))
    self.distance_embedding = param(rngs, (around, WIDTH, WIDTH + 3), ('places', 'width', None), normal(WIDTH ** -0.5))
    self.phrase_embedding = param(rngs, (REACH, WIDTH, d), ('places', 'width', 'embed'), normal(0.02))
    self.weight_embedding = param(rngs, (around, WIDTH, around), ('places', 'width', None), normal(0.1 * WIDTH ** -0.5))
    self.code_embedding = param(rngs, (config.codebook, WIDTH), ('codes', 'width'), normal(0.3))
    self.mean_embedding = param(rngs, (config.codebook, WIDTH), ('codes', 'width'), normal(0.3))
    self.place_embedding = param(rngs, (config.places, WIDTH), ('places', 'width'), normal(0.3))
    self.object_embedding = param(rngs, (config.codebook,), ('codes',), normal(1.0))
    self.count_embedding = param(rngs, (2 + COUNTED, WIDTH), ('width', None), normal(0.3))

  def phrases(self, batch: TokenBatch) -> jax.Array:
    """What is read beside each word, [B,T,d]: the words up to it, each through the kernel of its distance. So the one layer whose
    places of a picture look for the words about them finds what "red circle top left" says at a single position."""
    word = (batch.modality == TEXT) & ~batch.forced
    distances = range(1 - REACH, 1)
    heard = jnp.stack([word & near(word, i) & (near(batch.document, i) == batch.document) for i in distances])
    ids = jnp.stack([near(batch.text, i) for i in distances])
    said = spoken(self.word_embedding[...], self.phrase_embedding[...], ids, heard.astype(jnp.float32))
    return said.astype(self.dtype)

  def __call__(self, batch: TokenBatch, at: jax.Array | None = None, shown: bool = True) -> jax.Array:
    """Logits float32[B,Q,2] that the words around each position claim something of their step's picture (`model.CLAIMED`), and
    that the picture does not show it (`model.DENIED`); NOTHING where no word of a step stands, and where its step has no picture.

    The words, each through the kernel of its distance, ask for codes at places, for a number of objects, or for what most of the
    picture is; the best fit among all places, the number and the mean answers. How much a word counts is for all words around it
    to say: in "the red circle turns green" the colour asked for is the last one.

    Args:
      at: int32[B,Q], the positions; None are all T.
      shown: False where no row has a picture.
    """
    block = (batch.modality == CODES) | batch.forced
    opens = jnp.pad(block[:, 1:], ((0, 0), (0, 1)))  # the token that begins an image is no word
    word = (batch.modality == TEXT) & ~batch.forced & ~opens & (batch.step >= 0)
    picture = (batch.modality == CODES) & (batch.step >= 0)

    around = lambda a, i: near(a, i) if at is None else jnp.take_along_axis(near(a, i), at, axis=1)
    here, step, document = (around(a, 0) for a in (word, batch.step, batch.document))
    distances = range(1 - REACH, 1 + AHEAD)
    heard = jnp.stack([around(word, i) & (around(batch.step, i) == step) & (around(batch.document, i) == document)
                       for i in distances]).astype(jnp.float32)
    said = functools.partial(spoken, self.word_embedding[...], ids=jnp.stack([around(batch.text, i) for i in distances]))
    weights = said(self.weight_embedding[...], weights=heard)
    weights = heard * jnp.moveaxis(2 * jax.nn.sigmoid(WEIGHED * weights), -1, 0)
    asked = said(self.distance_embedding[...], weights=weights).astype(jnp.float32)
    asked, (gate, bias, claimed) = asked[..., :WIDTH], jnp.moveaxis(asked[..., WIDTH:], -1, 0)
    claimed = jnp.where(here, claimed - 3.0, NOTHING)  # little is claimed at the start
    if not shown:
      return jnp.stack([claimed, jnp.full_like(claimed, NOTHING)], axis=-1)
    place = self.place_embedding[...][jnp.clip(places_of(batch.modality), 0, len(self.place_embedding) - 1)]
    of = lambda table: jnp.sum(table[...][batch.codes], axis=-2)
    codes, common = of(self.code_embedding) + place, of(self.mean_embedding)
    filled = jax.nn.sigmoid(self.filled(batch))

    def best(piece: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
      """How well what is asked for fits anything there, and whether there is a picture."""
      asked, step, document = piece
      seen = picture[:, None] & (batch.step[:, None] == step[..., None]) & (batch.document[:, None] == document[..., None])
      total = lambda fit: jnp.sum(jnp.where(seen, fit, 0.0), axis=-1, keepdims=True)
      number = total(filled[:, None])
      number = jnp.concatenate([jnp.ones_like(number), jnp.clip(number - jnp.arange(1 + COUNTED), 0.0, 1.0)], axis=-1)
      counted = jnp.sum(asked * (number @ self.count_embedding[...]), axis=-1, keepdims=True)
      fit = lambda there: jnp.einsum('btm,bsm->bts', asked, there, preferred_element_type=jnp.float32)
      everywhere = total(fit(common)) / jnp.maximum(total(1.0), 1)
      fits = [jnp.where(seen, fit(codes) * WIDTH ** -0.5, -1e9), counted * WIDTH ** -0.5, everywhere * WIDTH ** -0.5]
      return jax.nn.logsumexp(jnp.concatenate(fits, axis=-1), axis=-1), jnp.any(seen, axis=-1)

    found, there = by_chunks(best, (asked, step, document), MATCHED)
    # At the start a fit of 3 is neither shown nor denied, and the gate, which says how much a fit counts and turns it round for
    # what is gone, is near 1.
    denied = bias - (1 + 0.1 * gate) * (found - 3.0)
    return jnp.stack([claimed, jnp.where(here & there, denied, NOTHING)], axis=-1)

  def filled(self, batch: TokenBatch) -> jax.Array:
    """Logits float32[B,T] that an object stands at a place of a picture, by its codes alone."""
    return jnp.sum(self.object_embedding[...][batch.codes], axis=-1).astype(jnp.float32)


def near(a: jax.Array, i: int) -> jax.Array:
  """What stands i positions behind each of [B,T], 0 beyond the row."""
  t = a.shape[1]
  return jnp.pad(a, ((0, 0), (max(-i, 0), max(i, 0))))[:, max(i, 0):max(i, 0) + t]


@jax.custom_vjp
def spoken(words: jax.Array, kernels: jax.Array, ids: jax.Array, weights: jax.Array) -> jax.Array:
  """Words that stand at N distances, each through the kernel of its distance, in all [...,o]: the sum over n of
  weights[n] words[ids[n]] kernels[n].

  Args:
    words: [V,m]. kernels: [N,m,o]. ids: int32[N,...]. weights: [N,...].
  """
  if len(words) > ids[0].size or len(words) * kernels[:, 0].size > TABLE:
    return _spoken(words, kernels, ids, weights)
  # Every word goes through the kernels once, and is looked up where it stands.
  through = jnp.einsum('vm,nmo->nvo', words, kernels)
  return sum(weights[n][..., None] * through[n][ids[n]] for n in range(len(kernels)))


def _spoken(words: jax.Array, kernels: jax.Array, ids: jax.Array, weights: jax.Array) -> jax.Array:
  return sum((weights[n][..., None] * words[ids[n]]) @ kernels[n] for n in range(len(kernels)))


# A gradient that adds rows up one by one where they were looked up takes three times as long as that of the products.
spoken.defvjp(lambda *args: (spoken(*args), args), lambda args, cotangent: jax.vjp(_spoken, *args)[1](cotangent))
