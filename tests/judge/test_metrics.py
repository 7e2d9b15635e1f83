"""Measures against numbers worked out by hand."""

import numpy as np
import pytest

from intersyn_jax.judge import metrics

TRUTH = np.array([0.0, 1.0, 2.0, 5.0])
JUDGE = np.array([0.0, 2.0, 1.5, 3.0])


def test_by_hand():
  found = metrics.measure(TRUTH, JUDGE)
  assert found['rmse'] == pytest.approx(np.sqrt((0 + 1 + 0.25 + 4) / 4))
  assert found['a1'] == 0.75
  assert found['exact'] == 0.5  # 0 and 0, 2 and round(1.5) = 2
  # pairs: (0,1) (0,2) (0,3) (1,3) (2,3) agree, (1,2) does not
  assert found['tau'] == pytest.approx((5 - 1) / 6)
  centred = lambda x: x - x.mean()
  a, b = centred(TRUTH), centred(JUDGE)
  assert found['pearson'] == pytest.approx((a @ b) / np.sqrt((a @ a) * (b @ b)))


def test_tau_counts_ties():
  """Two tied in truth: tau-b = 2 / sqrt(2 * 3)."""
  assert metrics.measure(np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 2.0]))['tau'] == pytest.approx(2 / np.sqrt(6))


def test_constant_has_no_correlation():
  found = metrics.measure(np.array([5.0, 5.0]), np.array([4.0, 5.0]))
  assert np.isnan(found['pearson']) and np.isnan(found['tau']) and found['a1'] == 1


def test_table_counts_failures_and_has_the_baseline():
  truth = np.repeat(TRUTH[:, None], 4, axis=1)
  judge = np.repeat(JUDGE[:, None], 4, axis=1)
  judge[1] = np.nan
  found = metrics.table(truth, judge, mean=[1.0] * 4, samples=50)
  assert found['n'] == 3 and found['failed'] == 1
  assert found['icc.rmse'] == pytest.approx(np.sqrt((0 + 0.25 + 4) / 3))
  assert found['icc.rmse.low'] <= found['icc.rmse'] <= found['icc.rmse.high']
  assert found['its.mean_baseline.rmse'] == pytest.approx(np.sqrt((1 + 1 + 16) / 3))
  assert found['tcc.truth_variance'] == pytest.approx(np.var([0.0, 2.0, 5.0]))
  groups = metrics.by_group(truth, judge, ['a', 'b', 'a', 'b'])
  assert groups['a']['tcc.rmse'] == pytest.approx(np.sqrt(0.125)) and groups['b']['failed'] == 1


def test_all_failed():
  assert metrics.table(np.zeros((2, 4)), np.full((2, 4), np.nan)) == {'n': 0, 'failed': 2}
