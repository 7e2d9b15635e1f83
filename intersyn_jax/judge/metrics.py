"""How close a judge comes to the truth: the measures of the InterSyn paper with intervals, and the mean as baseline.

Statistics by scipy. Pairs with a NaN on either side (judge failures) are left out and counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from intersyn_jax.interleave.types import DIMENSIONS

MEASURES = ('rmse', 'a1', 'exact', 'pearson', 'tau')
"""Root mean squared error; share with |error| <= 1; share that agrees rounded to whole scores; Pearson; Kendall tau-b."""


def measure(truth: np.ndarray, judge: np.ndarray) -> dict[str, float]:
  """The five measures of two arrays [n]. Correlations of a constant are NaN."""
  error = judge - truth
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', scipy.stats.ConstantInputWarning)
    constant = len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(judge) == 0
    pearson = np.nan if constant else scipy.stats.pearsonr(truth, judge).statistic
    tau = np.nan if constant else scipy.stats.kendalltau(truth, judge, variant='b').statistic
  return {'rmse': float(np.sqrt(np.mean(error ** 2))), 'a1': float(np.mean(np.abs(error) <= 1)),
          'exact': float(np.mean(np.rint(judge) == np.rint(truth))), 'pearson': float(pearson), 'tau': float(tau)}


def intervals(truth: np.ndarray, judge: np.ndarray, *, samples: int, seed: int = 0) -> dict[str, tuple[float, float]]:
  """Bootstrap 95 % intervals of the five measures, over answers."""
  rng = np.random.default_rng(seed)
  drawn = [rng.integers(0, len(truth), len(truth)) for _ in range(samples)]
  rows = [measure(truth[i], judge[i]) for i in drawn]
  return {name: tuple(float(v) for v in np.nanpercentile([row[name] for row in rows], (2.5, 97.5)))
          if np.isfinite([row[name] for row in rows]).any() else (float('nan'),) * 2 for name in MEASURES}


def table(truth: np.ndarray, judge: np.ndarray, *, mean: Sequence[float] | None = None, samples: int = 200) -> dict[str, float]:
  """Flat metrics of score arrays [n,4]: `tcc.rmse`, `tcc.rmse.low`, `tcc.rmse.high`, `tcc.mean_baseline.rmse`, ...

  Args:
    truth, judge: in the order of DIMENSIONS; rows whose judge scores are NaN count as `failed`.
    mean: training means of each dimension, for the baseline that always says them.
    samples: of the bootstrap; 0 leaves intervals out.
  """
  valid = np.isfinite(judge).all(axis=1)
  out: dict[str, float] = {'n': int(valid.sum()), 'failed': int((~valid).sum())}
  if not valid.any():
    return out
  for i, name in enumerate(DIMENSIONS):
    t, j = truth[valid, i].astype(np.float64), judge[valid, i].astype(np.float64)
    out |= {f'{name}.{key}': value for key, value in measure(t, j).items()}
    out |= {f'{name}.truth_mean': float(t.mean()), f'{name}.judge_mean': float(j.mean()),
            f'{name}.truth_variance': float(t.var()), f'{name}.judge_variance': float(j.var())}
    if samples:
      for key, (low, high) in intervals(t, j, samples=samples).items():
        out |= {f'{name}.{key}.low': low, f'{name}.{key}.high': high}
    if mean is not None:
      baseline = measure(t, np.full_like(t, mean[i]))
      out |= {f'{name}.mean_baseline.{key}': baseline[key] for key in ('rmse', 'a1', 'exact')}
  return out


def by_group(truth: np.ndarray, judge: np.ndarray, groups: Sequence[str]) -> dict[str, Mapping[str, float]]:
  """The same without intervals for each group of answers."""
  names = np.asarray(groups)
  return {str(g): table(truth[names == g], judge[names == g], samples=0) for g in sorted(set(groups))}
