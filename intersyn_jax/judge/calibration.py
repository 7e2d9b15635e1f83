"""Whether the judge's probabilities mean what they say: temperatures, reliability, and how sure a score is.

The probabilities are those of the cumulative questions "is the score above k?" (`judge.model`). With whole labels the
target of a question is 0 or 1. A label y between whole numbers, as a mean of annotators or a graded scorer gives, has
the target clip(y - k, 0, 1): it is read as a draw between its two neighbours whose mean is y, and a probability is
calibrated if, of the questions that are answered with p, the mean target is p. Such a label has a spread of its own, up to
0.5 in the middle between two whole numbers, which no judge can take away; so of fractional labels the spread says too much.

Letters: N answers, K cumulative questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats

from intersyn_jax.evaluation import statistics
from intersyn_jax.interleave.types import DIMENSIONS
from intersyn_jax.judge.metrics import percentiles, resampled_pearson

BINS = 15
"""Equal-width bins of a probability, as Guo et al. 2017 take them."""

RANGE = (0.05, 20.0)
"""Temperatures looked at; labels that a judge never gets wrong would ask for 0."""


def targets(labels: np.ndarray, questions: int) -> np.ndarray:
  """Targets [...,K] of labels [...], 0-5: the part of the label above each k. NaN stays NaN."""
  return np.clip(np.asarray(labels, np.float64)[..., None] - np.arange(questions), 0.0, 1.0)


def fit(logits: np.ndarray, labels: np.ndarray) -> tuple[float, ...]:
  """Temperature of each dimension: what its logits are divided by for the least cross-entropy (Guo et al. 2017, section 4).

  One number for a dimension keeps logits falling from question to question, and leaves the order of any two
  probabilities of it; the score, a sum of probabilities, does change.

  Args:
    logits: [N,4,K] cumulative logits of answers that the judge was not trained on, and that are in no test.
    labels: [N,4], NaN where there is none. Answers whose score is a null rule's zero have no logit to fit: give NaN.

  Returns:
    Four numbers in RANGE, 1.0 for a dimension without any label.
  """
  wanted = targets(labels, logits.shape[-1])
  temperatures = []
  for i in range(len(DIMENSIONS)):
    known = np.isfinite(labels[:, i]) & np.isfinite(logits[:, i]).all(axis=-1)
    x, y = logits[known, i].astype(np.float64), wanted[known, i]
    if not len(x):
      temperatures.append(1.0)
      continue
    # Over log T, where the loss is near to a parabola and halving costs as much as doubling.
    cost = lambda log, x=x, y=y: float(np.mean(np.logaddexp(0, x * np.exp(-log)) - y * x * np.exp(-log)))
    found = scipy.optimize.minimize_scalar(cost, bounds=tuple(np.log(RANGE)), method='bounded', options={'xatol': 1e-4})
    temperatures.append(float(np.exp(found.x)))
  return tuple(temperatures)


def reliability(probability: np.ndarray, target: np.ndarray, bins: int = BINS) -> list[list[float]]:
  """Points [mean probability, mean target, count] of the equal-width bins that hold anything, from low to high.

  Args:
    probability, target: any shape, the same for both; pooled. A NaN on either side leaves the pair out.
  """
  probability, target = (np.asarray(a, np.float64).ravel() for a in (probability, target))
  known = np.isfinite(probability) & np.isfinite(target)
  probability, target = probability[known], target[known]
  index = np.minimum((probability * bins).astype(int), bins - 1)
  count = np.bincount(index, minlength=bins)
  sums = [np.bincount(index, weights=a, minlength=bins) for a in (probability, target)]
  return [[float(sums[0][b] / count[b]), float(sums[1][b] / count[b]), int(count[b])] for b in np.flatnonzero(count)]


def expected_calibration_error(probability: np.ndarray, target: np.ndarray, bins: int = BINS) -> float:
  """Mean over all pairs of |mean probability - mean target| of their bin (Guo et al. 2017, eq. 3); NaN without a pair.

  Args:
    probability, target: as in `reliability`; of one dimension its K questions are pooled.
  """
  points = np.array(reliability(probability, target, bins)).reshape(-1, 3)
  if not len(points):
    return float('nan')
  return float(np.average(np.abs(points[:, 0] - points[:, 1]), weights=points[:, 2]))


def spread(logits: jax.Array) -> jax.Array:
  """Standard deviation [...] of the score that cumulative logits [...,K] describe, float32, in score points.

  The score is the sum of the indicators "above k" with P(above k) = p_k = sigmoid(logit_k), so P(score = k) =
  p_(k-1) - p_k. Whoever is above k is above all j < k, so the covariance of two indicators is p_k (1 - p_j), and

      variance = sum_k p_k ((1 - p_k) + 2 sum_(j<k) (1 - p_j)).

  Every term is positive, so a sure judge's small variance keeps all its digits, as E[score^2] - E[score]^2 would not.
  Divide logits by the temperature of their dimension first. For a mean of several scores the mean of their spreads is an
  upper bound, whatever they have to do with one another.
  """
  logits = logits.astype(jnp.float32)
  above, below = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
  return jnp.sqrt(jnp.sum(above * (2 * jnp.cumsum(below, axis=-1) - below), axis=-1))


def spread_error_correlation(spreads: np.ndarray, errors: np.ndarray, *, samples: int = 200,
                             seed: int = 0) -> dict[str, float]:
  """Whether answers that the judge is unsure of are those that it gets wrong: Spearman of spread and |error|.

  Args:
    spreads, errors: [N], errors as judge minus truth. A NaN on either side leaves the answer out.
    samples: of the bootstrap over answers, whose ranks stay those of the whole; 0 leaves the interval out.

  Returns:
    `spearman`, `low`, `high`; NaN where one side is constant. Above 0 with its interval, the uncertainty says something.
  """
  known = np.isfinite(spreads) & np.isfinite(errors)
  sizes = (np.asarray(spreads, np.float64)[known], np.abs(np.asarray(errors, np.float64)[known]))
  if known.sum() < 2 or any(np.ptp(a) == 0 for a in sizes):
    return {name: float('nan') for name in ('spearman', 'low', 'high')}
  low = high = float('nan')
  if samples:
    ranks = [scipy.stats.rankdata(a) for a in sizes]
    low, high = percentiles(resampled_pearson(*ranks, statistics.draws(len(ranks[0]), samples, seed)))
  return {'spearman': float(scipy.stats.spearmanr(*sizes).statistic), 'low': low, 'high': high}


def report(logits: np.ndarray, labels: np.ndarray, temperatures: Sequence[float], *, samples: int = 200,
           seed: int = 0) -> dict[str, dict[str, Any]]:
  """The content of calibration.json, fit for JSON; a dimension without any label is left out.

  Args:
    logits: [N,4,K] of the test, not yet divided. labels: [N,4], NaN for none. temperatures: from `fit` on other answers.
    samples: of the bootstrap of the correlation.

  Returns:
    {dimension: {n, temperature, ece, ece_uncalibrated, bins, spread, spearman, low, high}}: expected calibration error with
    the temperature and with 1, the points of `reliability` with it, the mean spread, and `spread_error_correlation`.
  """
  wanted = targets(labels, logits.shape[-1])
  out = {}
  for i, name in enumerate(DIMENSIONS):
    known = np.isfinite(labels[:, i]) & np.isfinite(logits[:, i]).all(axis=-1)
    if not known.any():
      continue
    x, y = logits[known, i].astype(np.float64), wanted[known, i]
    probability = scipy.special.expit(x / temperatures[i])
    unsure = np.asarray(spread(jnp.asarray(x / temperatures[i])))
    told = spread_error_correlation(unsure, probability.sum(axis=-1) - labels[known, i], samples=samples, seed=seed)
    out[name] = {'n': int(known.sum()), 'temperature': float(temperatures[i]),
                 'ece': expected_calibration_error(probability, y),
                 'ece_uncalibrated': expected_calibration_error(scipy.special.expit(x), y),
                 'bins': reliability(probability, y), 'spread': float(unsure.mean()),
                 **{key: value if np.isfinite(value) else None for key, value in told.items()}}
  return out
