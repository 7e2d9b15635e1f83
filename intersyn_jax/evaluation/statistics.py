"""Means, intervals and paired differences of per-prompt scores.

Intervals are 95 % percentile bootstraps over prompts. A draw is kept as how often it holds each prompt, so a bootstrap is
one matrix product and the same draws serve every policy, which is what pairs them.

Letters: N prompts, K columns, R resamples.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intersyn_jax.interleave.types import DIMENSIONS

ALL_DIMENSIONS = (*DIMENSIONS, 'mean')
LEVEL = (2.5, 97.5)

Scores = Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]
"""policy -> decoding -> scorer -> float[N,4], NaN where the scorer failed."""


@functools.lru_cache(maxsize=8)
def draws(count: int, resamples: int, seed: int) -> np.ndarray:
  """float32[R,N]: how often each resample of N prompts holds each of them; rows sum to N."""
  rng = np.random.Generator(np.random.Philox(key=[seed, count]))
  chosen = rng.integers(0, count, (resamples, count))
  offset = np.arange(resamples)[:, None] * count
  counts = np.bincount((chosen + offset).ravel(), minlength=resamples * count).reshape(resamples, count).astype(np.float32)
  counts.flags.writeable = False  # it is shared
  return counts


def with_mean(scores: np.ndarray) -> np.ndarray:
  """[N,4] -> [N,5]: the mean of the four as a fifth column, NaN where one of them is."""
  return np.concatenate([scores, scores.mean(axis=1, keepdims=True)], axis=1)


def interval(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """95 % interval (low, high), each [K], of the column means of values [N,K]; NaN entries are left out.

  Args:
    weights: from `draws`.
  """
  known = np.isfinite(values)
  centre = np.nanmean(values, axis=0) if known.any() else np.zeros(values.shape[1])
  deviations = np.where(known, values - centre, 0.0).astype(np.float64)  # around the mean, where float32 draws lose nothing
  with np.errstate(invalid='ignore', divide='ignore'):
    means = (weights @ deviations) / (weights @ known.astype(np.float64))
  low, high = np.nanpercentile(means, LEVEL, axis=0)
  return centre + low, centre + high


def describe(scores: np.ndarray, weights: np.ndarray) -> dict[str, dict[str, Any]]:
  """{dimension: {mean, variance, ci95, n}} of scores [N,4]; dimensions without any score are left out."""
  values = with_mean(np.asarray(scores, np.float64))
  count = np.isfinite(values).sum(axis=0)
  if not count.all():
    return {}
  low, high = interval(values, weights)
  mean = np.nanmean(values, axis=0)
  variance = np.nansum((values - mean) ** 2, axis=0) / np.maximum(count - 1, 1)
  return {name: {'mean': float(mean[k]), 'variance': float(variance[k]), 'ci95': [float(low[k]), float(high[k])],
                 'n': int(count[k])} for k, name in enumerate(ALL_DIMENSIONS)}


def paired(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> dict[str, dict[str, Any]]:
  """{dimension: {difference, ci95}} of b minus a, both [N,4] on the same prompts; prompts that one of them lacks are left out."""
  values = with_mean(np.asarray(b, np.float64)) - with_mean(np.asarray(a, np.float64))
  if not np.isfinite(values).any(axis=0).all():
    return {}
  low, high = interval(values, weights)
  mean = np.nanmean(values, axis=0)
  return {name: {'difference': float(mean[k]), 'ci95': [float(low[k]), float(high[k])]}
          for k, name in enumerate(ALL_DIMENSIONS)}


def summary(scores: Scores, pairs: Sequence[tuple[str, str]], *, resamples: int, seed: int) -> dict[str, Any]:
  """The content of scores.json (DESIGN 5).

  Args:
    scores: all of one set of prompts, in the same order.
    pairs: (a, b) policies to compare, b minus a; a pair of which one is missing is passed over.
    resamples, seed: of the bootstrap.
  """
  sizes = {len(array) for decodings in scores.values() for scorers in decodings.values() for array in scorers.values()}
  if len(sizes) != 1:
    raise ValueError(f'policies were scored on {sorted(sizes)} prompts; a paired comparison needs the same ones')
  weights = draws(sizes.pop(), resamples, seed)
  policies: dict[str, Any] = {}
  for policy, decodings in scores.items():
    policies[policy] = {decoding: {scorer: found for scorer, array in scorers.items()
                                   if (found := describe(array, weights))} for decoding, scorers in decodings.items()}
  differences = []
  for a, b in pairs:
    for decoding in scores.get(a, {}):
      for scorer, array in scores[a][decoding].items():
        other = scores.get(b, {}).get(decoding, {}).get(scorer)
        if other is None:
          continue
        differences += [{'a': a, 'b': b, 'decoding': decoding, 'scorer': scorer, 'dimension': dimension, **values}
                        for dimension, values in paired(array, other, weights).items()]
  return {'policies': policies, 'differences': differences}


def by_group(scores: np.ndarray, groups: np.ndarray, *, resamples: int, seed: int) -> dict[str, Any]:
  """`describe` of each group of prompts (by number of steps), keyed by the group as text."""
  return {str(g): describe(scores[groups == g], draws(int((groups == g).sum()), resamples, seed)) for g in np.unique(groups)}
