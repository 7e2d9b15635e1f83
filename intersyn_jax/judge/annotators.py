"""Several annotators of one answer: the label that their votes give, how far they agree, and votes that are simulated.

Votes are whole scores 0-5, NaN where an annotator gave none; annotators need not be the same ones from row to row.

Letters: N answers, A annotators, M bootstrap samples.
"""

from __future__ import annotations

import typing

import krippendorff
import numpy as np

from intersyn_jax.interleave.types import DIMENSIONS

TOP = 5


class Agreement(typing.NamedTuple):
  """Krippendorff's alpha of one dimension.

  Attributes:
    alpha: 1 is perfect, 0 what chance gives; NaN where no row has two votes, or all votes are the same number.
    low, high: bootstrap 95 % interval over rows.
    rows: that have at least two votes.
  """

  alpha: float
  low: float
  high: float
  rows: int


def simulate(whole: np.ndarray, annotators: int, spread: float, seed: int, *, first: int = 0) -> np.ndarray:
  """Votes of annotators who are made up, around known scores: disagreement for worlds whose truth is exact.

  They say nothing of how far people agree: `spread` is an assumption, and whoever reports numbers on such votes says so.
  Every annotator is a little stricter or milder than the truth in each dimension, always by the same amount (normal, half
  the spread), and errs on every answer by itself (normal, the spread); the sum is rounded and clipped to 0-5. So near 0
  and 5 the mean of many votes lies inside the truth. Scores of exactly 0 stay 0: by the rubric there was nothing to score.

  Args:
    whole: float[N,4], true scores 0-5; NaN gives NaN.
    annotators: A. The first ones say the same whatever A is.
    spread: standard deviation of an error, in points.
    seed: of everything. The same seed is the same people.
    first: number of the first row. Votes depend on seed and number alone, so the sides of a data set count on.

  Returns:
    float32[N,A,4].
  """
  truth = np.asarray(whole, np.float64)
  votes = np.empty((len(truth), annotators, len(DIMENSIONS)), np.float32)
  for person in range(annotators):
    rng = np.random.Generator(np.random.Philox(key=[seed, person]))
    bias = rng.standard_normal(len(DIMENSIONS)) / 2
    error = rng.standard_normal((first + len(truth), len(DIMENSIONS)))[first:]
    votes[:, person] = np.where(truth == 0, 0, np.clip(np.rint(truth + spread * (bias + error)), 0, TOP))
  return votes


def mean(votes: np.ndarray) -> np.ndarray:
  """The label of each row: the mean of its votes [N,A,4] that are there, float32[N,4]; NaN where there is none."""
  given = np.isfinite(votes)
  count = given.sum(axis=1)
  total = np.where(given, votes, 0).sum(axis=1, dtype=np.float64)
  return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def alpha(votes: np.ndarray, *, samples: int = 1000, seed: int = 0) -> dict[str, Agreement]:
  """Krippendorff's alpha of votes [N,A,4] in each dimension, rows with fewer than two votes left out.

  Differences count as on an interval scale, squared: labels are averaged and judges measured by RMSE, which take the step
  from 1 to 2 for as long as that from 4 to 5, and the agreement should be about the same scale.

  Args:
    votes: whole scores 0-5 or NaN.
    samples: M; with 0 the intervals are NaN.
    seed: of the bootstrap.
  """
  votes = np.asarray(votes, np.float64)
  counts = (votes[..., None] == np.arange(TOP + 1)).sum(axis=1)  # [N,4,6]
  pairable = counts.sum(axis=-1) >= 2
  intervals = _intervals(counts * pairable[..., None], samples, seed)
  out = {}
  for i, name in enumerate(DIMENSIONS):
    mine = counts[pairable[:, i], i]
    varied = np.count_nonzero(mine.sum(axis=0)) > 1
    value = krippendorff.alpha(value_counts=mine, level_of_measurement='interval') if varied else np.nan
    out[name] = Agreement(float(value), *(intervals[i].tolist() if varied else (np.nan, np.nan)), len(mine))
  return out


def _intervals(counts: np.ndarray, samples: int, seed: int) -> np.ndarray:
  """95 % intervals [4,2] over rows of `counts` [N,4,6], which holds zeros for rows that cannot be paired.

  On an interval scale alpha is one minus a ratio of sums of squares, to which every row adds a term of its own. A sample
  is then a sum of terms, where a call of the library takes 15 ms for 4,000 rows, a minute for 1,000 samples.
  """
  n = counts.sum(axis=-1)
  values = np.arange(TOP + 1)
  total, squares = counts @ values, counts @ values ** 2
  within = np.where(n > 1, (n * squares - total ** 2) / np.maximum(n - 1, 1), 0)
  terms = np.stack([n, total, squares, within], axis=-1).astype(np.float64)  # [N,4,4]
  rng = np.random.default_rng(seed)
  sums = [terms[rng.integers(0, len(terms), len(terms))].sum(axis=0) for _ in range(samples if len(terms) else 0)]
  n, total, squares, within = np.moveaxis(np.reshape(sums, (-1, len(DIMENSIONS), 4)), -1, 0)
  across = n * squares - total ** 2
  varied = across > 0
  found = np.where(varied, 1 - (n - 1) * within / np.where(varied, across, 1), np.nan)  # [M,4]
  out = np.full((len(DIMENSIONS), 2), np.nan)
  for bounds, column in zip(out, found.T, strict=True):
    if np.isfinite(column).any():
      bounds[:] = np.nanpercentile(column, (2.5, 97.5))
  return out
