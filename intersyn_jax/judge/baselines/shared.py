"""What the baselines share: views on the host, the rules in code, and the monotone map from any number to a score 0-5.

Letters: N answers, B rows of a chunk, T positions, L positions of a view, S steps.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import PADDING, TokenBatch, stack
from intersyn_jax.interleave.types import DIMENSIONS
from intersyn_jax.judge import annotators
from intersyn_jax.judge.labelled import Labelled
from intersyn_jax.judge.model import SynJudge
from intersyn_jax.judge.views import Views

WIDTH = 64
"""Rows are cut to multiples of it: few shapes, so few programs."""


class Baseline(typing.Protocol):
  """Scores labelled answers without looking at their labels.

  Attributes:
    name: of the row in the table.
  """

  name: str

  def scores(self, labelled: Labelled) -> np.ndarray:
    """float32[N,4], 0-5; NaN in rows that do not fit the judge's views."""
    ...


def some(labelled: Labelled, count: int, seed: int) -> Labelled:
  """At most `count` rows, drawn without replacement."""
  if len(labelled) <= count:
    return labelled
  return labelled.take(np.sort(np.random.default_rng(seed).permutation(len(labelled))[:count]))


def answer_begin(batch: TokenBatch) -> jax.Array:
  """Where the last answer of each row [B,T] begins: int32[B], T where there is none. As `views.build` reads it."""
  last = jnp.max(jnp.where(batch.modality != PADDING, batch.turn, -1), axis=1, keepdims=True)
  weighted = (batch.turn == last) & (batch.loss > 0)
  return jnp.where(jnp.any(weighted, axis=1), jnp.argmax(weighted, axis=1), batch.turn.shape[1])


class Viewer:
  """Cuts the views of labelled answers, some rows at a time, short answers first.

  Args:
    judge: its layout, widths and steps are used.
    rows: B.
  """

  def __init__(self, judge: SynJudge, rows: int = 64):
    self.judge, self.rows = judge, rows

    def cut(batch: TokenBatch) -> tuple[Views, jax.Array]:
      return judge.cut(batch), answer_begin(batch)

    self._cut = jax.jit(cut)
    self._rules: list[tuple[Labelled, np.ndarray, np.ndarray]] = []

  def chunks(self, labelled: Labelled) -> Iterator[tuple[np.ndarray, Views, np.ndarray]]:
    """Yields numbers of the answers [n], n <= B; their views of B rows, the last one repeated, as numpy arrays; and where
    their answers begin in the document [B]."""
    lengths = np.array([len(d.text) for d in labelled.documents], int)
    order = np.argsort(lengths, kind='stable')
    width = wide(lengths.max(initial=1))  # one for all, so that one program cuts all
    for first in range(0, len(order), self.rows):
      numbers = order[first:first + self.rows]
      documents = [labelled.documents[i] for i in numbers]
      documents += documents[-1:] * (self.rows - len(documents))
      yield numbers, *jax.device_get(self._cut(stack(documents, width)))

  def rules(self, labelled: Labelled) -> tuple[np.ndarray, np.ndarray]:
    """bool[N,4], what each answer has to score at all, and bool[N], whether it fits the views. Remembered."""
    for known, *found in self._rules:
      if known is labelled:
        return tuple(found)
    shown, fits = np.zeros((len(labelled), len(DIMENSIONS)), bool), np.zeros(len(labelled), bool)
    for numbers, seen, _ in self.chunks(labelled):
      shown[numbers], fits[numbers] = seen.shown[:len(numbers)], seen.fits[:len(numbers)]
    self._rules.append((labelled, shown, fits))
    return shown, fits


def wide(length: int) -> int:
  """The next multiple of WIDTH."""
  return -(-int(length) // WIDTH) * WIDTH


def ruled(scores: np.ndarray, shown: np.ndarray, fits: np.ndarray) -> np.ndarray:
  """Scores [N,4] with the rubric's zeros and NaN for what cannot be judged: float32[N,4]."""
  return np.where(fits[:, None], np.where(shown, scores, 0.0), np.nan).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class MonotoneMap:
  """A rising, piecewise linear map from a raw number to a score.

  Attributes:
    raw, score: float64[n], its knots; constant before the first and after the last.
  """

  raw: np.ndarray
  score: np.ndarray

  @classmethod
  def fit(cls, raw: np.ndarray, label: np.ndarray) -> MonotoneMap:
    """The least-squares rising map (isotonic regression) of numbers [n] to labels [n]; pairs with a NaN are left out."""
    real = np.isfinite(raw) & np.isfinite(label)
    knots, where = np.unique(raw[real].astype(np.float64), return_inverse=True)
    count = np.bincount(where)
    mean = np.bincount(where, weights=label[real].astype(np.float64)) / count
    return cls(knots, scipy.optimize.isotonic_regression(mean, weights=count).x)

  def __call__(self, raw: np.ndarray) -> np.ndarray:
    """float64, of the shape of `raw`; NaN stays NaN."""
    return np.interp(raw, self.raw, self.score)


def fit_maps(raw: np.ndarray, labelled: Labelled, shown: np.ndarray, fits: np.ndarray) -> tuple[MonotoneMap, ...]:
  """One map a dimension from raw numbers [N,4] of training rows to the mean of their votes; rows that a rule in code decides
  are left out.

  Raises:
    UserError: a dimension has no row to learn from.
  """
  label, maps = annotators.mean(labelled.votes), []
  for i, name in enumerate(DIMENSIONS):
    mine = np.where(shown[:, i] & fits, raw[:, i], np.nan)
    if not (np.isfinite(mine) & np.isfinite(label[:, i])).any():
      raise UserError(f'judge: of {len(labelled)} training answers none has what {name} scores and fits judge.widths; '
                      'build more of them (judge.answers)')
    maps.append(MonotoneMap.fit(mine, label[:, i]))
  return tuple(maps)


@dataclasses.dataclass(frozen=True)
class Mean:
  """Says the training mean of the answers that have what a dimension scores."""

  viewer: Viewer
  means: np.ndarray
  name: str = 'mean'

  @classmethod
  def fit(cls, viewer: Viewer, train: Labelled) -> Mean:
    shown, fits = viewer.rules(train)
    # A map from one and the same number is the mean.
    return cls(viewer, np.array([m.score[0] for m in fit_maps(np.zeros(train.whole.shape), train, shown, fits)]))

  def scores(self, labelled: Labelled) -> np.ndarray:
    return ruled(np.broadcast_to(self.means, labelled.whole.shape), *self.viewer.rules(labelled))
