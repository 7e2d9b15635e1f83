"""How close a judge comes to the truth: the measures of the InterSyn paper, each with an
interval, of SynJudge and of every baseline in one table, and how well it ranks the answers to one prompt.

Statistics by scipy. Intervals are 95 % percentile bootstraps over answers (over prompts in `rank_tau`), from the draws
of `evaluation.statistics`: a draw is how often it holds each answer, so that a measure of all resamples is a matrix product,
and two judges of the same answers are compared on the same draws. A judge failure (NaN) is no score:
it is left out and counted as `failed`.

Letters: N answers, R resamples, P prompts, G answers of one prompt.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from intersyn_jax.evaluation import statistics
from intersyn_jax.interleave.types import DIMENSIONS

MEASURES = ('rmse', 'a1', 'exact', 'pearson', 'tau')
"""Root mean squared error; share with |error| <= 1; share that agrees rounded to whole scores; Pearson; Kendall tau-b."""

MOMENTS = ('truth_mean', 'judge_mean', 'truth_variance', 'judge_variance')
"""Means and population variances."""

_PAIRED = 2000  # answers of which all pairs are held; of more, sorting each draw is cheaper

OURS = 'synjudge'
"""The setting that all others of a table are compared with."""


def measure(truth: np.ndarray, judge: np.ndarray) -> dict[str, float]:
  """The five measures of two arrays [N]. Correlations of a constant are NaN."""
  error = judge - truth
  return {'rmse': float(np.sqrt(np.mean(error ** 2))), 'a1': float(np.mean(np.abs(error) <= 1)),
          'exact': float(np.mean(_agrees(truth, judge))), 'pearson': _correlation(scipy.stats.pearsonr, truth, judge),
          'tau': _tau(truth, judge)}


def intervals(truth: np.ndarray, judge: np.ndarray, *, samples: int, seed: int = 0) -> dict[str, tuple[float, float]]:
  """(low, high) of each of MEASURES and MOMENTS of two arrays [N], NaN where no resample has the measure."""
  draws = statistics.draws(len(truth), samples, seed)
  values = _resampled(truth, judge, draws) | {'tau': _resampled_tau(truth, judge, draws)}
  return {name: percentiles(values[name]) for name in (*MEASURES, *MOMENTS)}


def table(truth: np.ndarray, judge: np.ndarray, *, samples: int = 200, seed: int = 0) -> dict[str, float]:
  """Flat metrics of score arrays [N,4]: `n`, `failed`, `tcc.rmse`, `tcc.rmse.low`, `tcc.rmse.high`, `tcc.judge_mean`, ...

  Args:
    truth, judge: in the order of DIMENSIONS. An answer with a NaN among the judge's scores is `failed` and in no measure;
      a dimension that the judge never scores is left out, as a judge of pictures alone has no TCC. An answer that has no
      truth in a dimension is left out there: `tcc.n` are left.
    samples: of the bootstrap; 0 leaves intervals out.
  """
  valid = valid_rows(judge)
  out: dict[str, float] = {'n': int(valid.sum()), 'failed': int((~valid).sum())}
  for i, name in enumerate(DIMENSIONS):
    known = valid & np.isfinite(truth[:, i]) & np.isfinite(judge[:, i])
    if not known.any():
      continue
    t, j = truth[known, i].astype(np.float64), judge[known, i].astype(np.float64)
    out |= {f'{name}.n': len(t)} | {f'{name}.{key}': value for key, value in measure(t, j).items()}
    out |= {f'{name}.truth_mean': float(t.mean()), f'{name}.judge_mean': float(j.mean()),
            f'{name}.truth_variance': float(t.var()), f'{name}.judge_variance': float(j.var())}
    if samples:
      for key, (low, high) in intervals(t, j, samples=samples, seed=seed).items():
        out |= {f'{name}.{key}.low': low, f'{name}.{key}.high': high}
  return out


def by_group(truth: np.ndarray, judge: np.ndarray, groups: Sequence[str], *, samples: int = 200,
             seed: int = 0) -> dict[str, Mapping[str, float]]:
  """`table` of each group of answers, as of each generator."""
  names = np.asarray(groups)
  return {str(g): table(truth[names == g], judge[names == g], samples=samples, seed=seed)
          for g in sorted(set(groups))}


def valid_rows(judge: np.ndarray) -> np.ndarray:
  """bool[N]: rows of scores [N,4] that are no failures. A dimension without any score says nothing about its rows."""
  finite = np.isfinite(judge)
  scored = finite.any(axis=0)
  return finite[:, scored].all(axis=1) & scored.any()


def compare(truth: np.ndarray, settings: Mapping[str, np.ndarray], *, samples: int = 200,
            seed: int = 0) -> list[dict[str, Any]]:
  """The table of the judge stage: a row for `synjudge` and one for each baseline, all on the same answers.

  A row is `setting` and `table` of its scores. The row of a baseline has besides, for each dimension that both score and on
  the answers that both have scored:

  - `tcc.rmse.difference` and `tcc.a1.difference`: synjudge minus baseline, with `.low` and `.high` of a paired bootstrap;
  - `tcc.rmse.beaten` and `tcc.a1.beaten`: synjudge is better and the two intervals in the table do not touch, which asks
    for more than a paired difference without zero;
  - `tcc.equal`: all scores are the same to the last bit, as a dimension's are where its view never held what was taken away.

  Args:
    truth: [N,4]. settings: name -> scores [N,4], NaN for failures; `synjudge` must be among them.
    samples: of the bootstrap, at least 1.

  Returns:
    Rows in the order of `settings`, fit for JSON: what is undefined (the correlation of a constant) is None.
  """
  ours = settings[OURS]
  rows = {name: {'setting': name} | table(truth, scores, samples=samples, seed=seed)
          for name, scores in settings.items()}
  for name, row in rows.items():
    if name == OURS:
      continue
    both = valid_rows(ours) & valid_rows(settings[name])
    for i, dimension in enumerate(DIMENSIONS):
      row |= {f'{dimension}.{key}': value for key, value in _against(
          truth[both, i], ours[both, i], settings[name][both, i], samples, seed).items()}
      if f'{dimension}.equal' in row:
        row[f'{dimension}.rmse.beaten'] = rows[OURS][f'{dimension}.rmse.high'] < row[f'{dimension}.rmse.low']
        row[f'{dimension}.a1.beaten'] = rows[OURS][f'{dimension}.a1.low'] > row[f'{dimension}.a1.high']
  return [{key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in row.items()}
          for row in rows.values()]


def rank_tau(truth: np.ndarray, judge: np.ndarray, *, samples: int = 200, seed: int = 0) -> dict[str, float]:
  """How well the judge ranks answers to the same prompt: Kendall tau-b within each group, averaged over groups.

  Args:
    truth, judge: [P,G] scores of one dimension. A NaN on either side leaves that answer out of its group.
    samples: of the bootstrap, over prompts.

  Returns:
    tau, low, high: NaN where no group can be ranked. A group in which the judge says the same of all answers, where tau-b is
      undefined, counts as 0: nothing was ranked.
    groups: those that tau is over, whose truth has spread. without_spread: share of the P prompts that have none, and are
      left out. constant: share of `groups` in which the judge says the same of all answers.
    share_of_ties: of all pairs of answers to the same prompt, those that the truth holds equal.
    failed: answers that have a truth and no judge score.
  """
  values, tied, pairs, constant = [], 0, 0, 0
  for t, j in zip(truth, judge, strict=True):
    known = np.isfinite(t) & np.isfinite(j)
    t, j = t[known], j[known]
    n = len(t)
    counts = np.unique(t, return_counts=True)[1]
    pairs, tied = pairs + n * (n - 1) // 2, tied + int((counts * (counts - 1) // 2).sum())
    if len(counts) > 1:
      flat = np.ptp(j) == 0
      constant += flat
      values.append(0.0 if flat else _tau(t, j))
  found = np.array(values)
  low = high = np.full(1, np.nan)
  if len(found) and samples:
    low, high = statistics.interval(found[:, None], statistics.draws(len(found), samples, seed))
  share = lambda part, of: part / of if of else float('nan')
  return {'tau': float(found.mean()) if len(found) else float('nan'), 'low': float(low[0]), 'high': float(high[0]),
          'groups': len(found), 'without_spread': share(len(truth) - len(found), len(truth)),
          'constant': share(int(constant), len(found)), 'share_of_ties': share(tied, pairs),
          'failed': int((np.isfinite(truth) & ~np.isfinite(judge)).sum())}


def resampled_pearson(a: np.ndarray, b: np.ndarray, draws: np.ndarray) -> np.ndarray:
  """Pearson's correlation of two arrays [N] in each draw, [R]; NaN where one of them is constant there."""
  # Around their means, where sums of squares lose nothing.
  a, b = a - a.mean(), b - b.mean()
  mean_a, mean_b, aa, bb, ab = _means(draws, a, b, a * a, b * b, a * b)
  spread = np.sqrt(np.maximum(aa - mean_a ** 2, 0) * np.maximum(bb - mean_b ** 2, 0))
  return np.where(spread > 1e-12, (ab - mean_a * mean_b) / np.maximum(spread, 1e-12), np.nan)


def percentiles(values: np.ndarray) -> tuple[float, float]:
  """95 % interval (low, high) of what resamples gave, [R]; NaN entries are left out."""
  known = values[np.isfinite(values)]
  low, high = np.percentile(known, statistics.LEVEL) if len(known) else (np.nan, np.nan)
  return float(low), float(high)


def _resampled(truth: np.ndarray, judge: np.ndarray, draws: np.ndarray) -> dict[str, np.ndarray]:
  """Each measure but tau in each draw, [R]."""
  error = judge - truth
  t, j = truth - truth.mean(), judge - judge.mean()
  squared, near, exact, mean_t, mean_j, square_t, square_j = _means(
      draws, error ** 2, np.abs(error) <= 1, _agrees(truth, judge), t, j, t * t, j * j)
  return {'rmse': np.sqrt(squared), 'a1': near, 'exact': exact, 'pearson': resampled_pearson(truth, judge, draws),
          'truth_mean': truth.mean() + mean_t, 'judge_mean': judge.mean() + mean_j,
          'truth_variance': np.maximum(square_t - mean_t ** 2, 0), 'judge_variance': np.maximum(square_j - mean_j ** 2, 0)}


def _resampled_tau(truth: np.ndarray, judge: np.ndarray, draws: np.ndarray) -> np.ndarray:
  """Kendall tau-b in each draw, [R], as scipy has it of the drawn answers; NaN where one side is constant there.

  scipy takes a millisecond a draw, however few the answers, and a table with generators has ten thousand draws. Of few
  answers all pairs can be held instead: two that were drawn i and j times make i times j pairs, so one
  product does for all draws.
  """
  if len(truth) > _PAIRED:
    drawn = (np.repeat(np.arange(len(truth)), counts.astype(int)) for counts in draws)
    return np.array([_tau(truth[i], judge[i]) for i in drawn])
  # Ranks, because differences of scores in float32 could round to 0.
  signs = [np.sign(np.subtract.outer(rank, rank)) for rank in (
      scipy.stats.rankdata(a, method='dense').astype(np.float32) for a in (truth, judge))]
  agreement = ((draws @ (signs[0] * signs[1])) * draws).sum(axis=1, dtype=np.float64)
  scale = np.sqrt(_pairs_apart(truth, draws) * _pairs_apart(judge, draws))
  return np.where(scale > 0, agreement / np.maximum(scale, 1), np.nan)


def _pairs_apart(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
  """Ordered pairs of drawn answers whose values [N] differ, in each draw, [R]."""
  order = np.argsort(values)
  starts = np.flatnonzero(np.diff(values[order], prepend=np.nan))  # NaN differs from all, itself included
  tied = np.add.reduceat(draws[:, order], starts, axis=1, dtype=np.float64)
  return float(len(values)) ** 2 - np.sum(tied ** 2, axis=1)


def _against(truth: np.ndarray, ours: np.ndarray, other: np.ndarray, samples: int, seed: int) -> dict[str, Any]:
  """Paired differences, ours minus other, of one dimension [N]; nothing where there is no common answer."""
  known = np.isfinite(truth) & np.isfinite(ours) & np.isfinite(other)
  if not known.any():
    return {}
  truth, ours, other = (a[known].astype(np.float64) for a in (truth, ours, other))
  draws = statistics.draws(len(truth), samples, seed)
  out: dict[str, Any] = {'equal': bool(np.abs(ours - other).max() == 0)}
  mine, theirs = measure(truth, ours), measure(truth, other)
  in_draws = [_resampled(truth, scores, draws) for scores in (ours, other)]
  for key in ('rmse', 'a1'):
    low, high = percentiles(in_draws[0][key] - in_draws[1][key])
    out |= {f'{key}.difference': mine[key] - theirs[key], f'{key}.difference.low': low, f'{key}.difference.high': high}
  return out


def _means(draws: np.ndarray, *columns: np.ndarray) -> np.ndarray:
  """Means [columns,R] of arrays [N] in each draw."""
  return (draws @ np.stack(columns, axis=1).astype(np.float64)).T / len(columns[0])


def _agrees(truth: np.ndarray, judge: np.ndarray) -> np.ndarray:
  return np.rint(judge) == np.rint(truth)


def _tau(truth: np.ndarray, judge: np.ndarray) -> float:
  return _correlation(scipy.stats.kendalltau, truth, judge)


def _correlation(of: Any, truth: np.ndarray, judge: np.ndarray) -> float:
  if len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(judge) == 0:
    return float('nan')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', scipy.stats.DegenerateDataWarning)
    return float(of(truth, judge).statistic)
