"""Scores of many questions as flat numbers, each with a bootstrap 95 % interval and its n; counts of what has none.

Letters: N questions, K columns (dimensions), R resamples.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from intersyn_jax.evaluation import statistics
from intersyn_jax.judge.metrics import percentiles


class Bootstrap(NamedTuple):
  """How intervals are made."""

  resamples: int = 2000
  seed: int = 0

  def draws(self, count: int) -> np.ndarray:
    """float32[R,N], see `statistics.draws`."""
    return statistics.draws(count, self.resamples, self.seed)


def values(verdicts: Mapping[str, Any], names: Iterable[str], dimensions: Sequence[str]) -> np.ndarray:
  """float64[N,K] of the questions `names`, NaN where one has no score."""
  rows = [[verdicts[name].scores.get(d, np.nan) if verdicts[name].scores is not None else np.nan for d in dimensions]
          for name in names]
  return np.array(rows, np.float64).reshape(-1, len(dimensions))


def mean(name: str, column: np.ndarray, boot: Bootstrap) -> dict[str, Any]:
  """`name`, `name.low`, `name.high` and `name.n` of scores [N]; NaN is left out, and of none the mean is None."""
  return statistic(name, column[:, None], lambda means: means[..., 0], boot)


def statistic(name: str, columns: np.ndarray, combine: Callable[[np.ndarray], np.ndarray],
              boot: Bootstrap) -> dict[str, Any]:
  """The same of any function of the column means of scores [N,K]: `combine` takes means [...,K] to [...].

  A question counts in the columns that it has; `n` are those that count in one. Where a column is empty, or `combine` has no
  value (a share of nothing), the number is None.
  """
  known = np.isfinite(columns)
  counted = known.any(axis=1)
  found: dict[str, Any] = {name: None, f'{name}.low': None, f'{name}.high': None, f'{name}.n': int(counted.sum())}
  if not known.any(axis=0).all():
    return found
  draws = boot.draws(int(counted.sum())).astype(np.float64)
  there, filled = known[counted].astype(np.float64), np.where(known, columns, 0.0)[counted]
  with np.errstate(invalid='ignore', divide='ignore'):
    centre = combine(filled.sum(axis=0) / there.sum(axis=0))
    low, high = percentiles(combine((draws @ filled) / (draws @ there)))
  number = lambda value: float(value) if np.isfinite(value) else None
  return found | {name: number(centre), f'{name}.low': number(low), f'{name}.high': number(high)}


def weighted(means: Sequence[float | None], counts: Sequence[int]) -> float | None:
  """The average of categories, each weighted by its count. A category without a mean must have the count 0."""
  total = sum(counts)
  return sum(m * n for m, n in zip(means, counts, strict=True) if n) / total if total else None


def counts(verdicts: Iterable[Any], prefix: str = '') -> dict[str, int]:
  """`questions`, `judged`, `failed` and `missing`, and the last two by reason."""
  all_of = list(verdicts)
  failed = collections.Counter(v.reason for v in all_of if v.scores is None and not v.missing)
  missing = collections.Counter(v.reason for v in all_of if v.missing)
  found = {'questions': len(all_of), 'judged': sum(v.scores is not None for v in all_of), 'failed': failed.total(),
           'missing': missing.total()}
  for name, reasons in (('failed', failed), ('missing', missing)):
    found |= {f'{name}.{reason}': count for reason, count in sorted(reasons.items())}
  return {prefix + name: value for name, value in found.items()}


def slug(name: str) -> str:
  """A category as part of a name: no blanks, no dots, nothing that could steer a terminal."""
  return '_'.join(''.join(c if c.isprintable() and c != '.' else ' ' for c in name).split()) or 'none'
