"""How likely a unified model finds given answers: teacher-forced log-probabilities of text, for multiple choice.

Letters: n answers, R rows of a device batch, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax import sharding
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.layout import TEXT, Layout, TokenBatch
from intersyn_jax.interleave.types import Conversation
from intersyn_jax.models.definition import Definition, Params
from intersyn_jax.models.unified import position_log_probs

_LOGITS = 2**27
"""Largest number of logits that exist at once."""


class LogProbs(NamedTuple):
  """Of n answers: the sum over the positions of each (nats), NaN where it is not finite, and how many these are."""

  total: np.ndarray
  positions: np.ndarray


class Scorer:
  """Scores last answers, which must be text.

  Args:
    definition: of the model; params: its parameters.
    layout: of the tokens.
    rows: R. bucket: T is a multiple of it, so that few programs are compiled.
    features: gives [m,f] of the pictures in a conversation's questions, where the layout reads them as features.
  """

  def __init__(self, definition: Definition, params: Params, layout: Layout, *, rows: int = 16, bucket: int = 64,
               features: Callable[[Conversation], np.ndarray] | None = None):
    self._params, self._layout, self._rows, self._bucket, self._features = params, layout, rows, bucket, features
    chunk = max(_LOGITS // (rows * (layout.tokenizer.size + layout.block.depth * layout.block.codebook)), 1)

    def log_probs(params: Params, tokens: TokenBatch, scored: jax.Array, features: jax.Array | None) -> jax.Array:
      model = definition.bind(params)
      text, _, _ = position_log_probs(model, model(tokens, features), tokens, chunk=chunk)
      return jnp.sum(jnp.where(scored, text, 0.0), axis=1)

    self._log_probs = jax.jit(log_probs)

  def score(self, conversations: Sequence[Conversation]) -> LogProbs:
    """Log-probabilities of the last answers and the tokens that close them, given all that stands before.

    Args:
      conversations: pictures have codes, or bytes where the layout reads features.
    """
    documents = [layout.tokenise(c, self._layout) for c in conversations]
    scored = [_scored(d, len(c.turns) - 1) for d, c in zip(documents, conversations, strict=True)]
    totals = np.zeros(len(documents))
    order = np.argsort([len(d.text) for d in documents], kind='stable')  # rows of a batch have the length of its longest
    for start in range(0, len(order), self._rows):
      mine = [order[min(i, len(order) - 1)] for i in range(start, start + self._rows)]
      width = -(-max(len(documents[i].text) for i in mine) // self._bucket) * self._bucket
      batch = layout.stack([documents[i] for i in mine], width)
      mask = np.stack([np.pad(scored[i], (0, width - len(scored[i]))) for i in mine])
      found = sharding.host(self._log_probs(self._params, batch, mask, self._read([conversations[i] for i in mine])))
      totals[order[start:start + self._rows]] = found[:len(order) - start]
    return LogProbs(np.where(np.isfinite(totals), totals, np.nan), np.array([mask.sum() for mask in scored]))

  def _read(self, conversations: Sequence[Conversation]) -> np.ndarray | None:
    """The features of all pictures, one conversation after another, padded to a power of two so that programs are few."""
    if self._features is None:
      return None
    parts = [part for c in conversations if len(part := np.asarray(self._features(c)))]
    if not parts:
      return None
    found = np.concatenate(parts)
    return np.pad(found, [(0, (1 << (len(found) - 1).bit_length()) - len(found)), (0, 0)])


def _scored(document: TokenBatch, turn: int) -> np.ndarray:
  """bool[T]: text positions of an answer that a model has to choose."""
  return (document.turn == turn) & (document.loss > 0) & (document.modality == TEXT) & ~document.forced
