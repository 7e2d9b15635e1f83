"""Measures against numbers worked out by hand, intervals against answers drawn one by one."""


import numpy as np
import pytest

from intersyn_jax.evaluation import statistics
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


def columns(*names: np.ndarray) -> np.ndarray:
  """Score arrays [N,4] with the same scores in every dimension."""
  return [np.repeat(a[:, None], 4, axis=1) for a in names]


def test_table_counts_failures():
  truth, judge = columns(TRUTH, JUDGE)
  judge[1] = np.nan
  found = metrics.table(truth, judge, samples=50)
  assert found['n'] == 3 and found['failed'] == 1
  assert found['icc.rmse'] == pytest.approx(np.sqrt((0 + 0.25 + 4) / 3))
  assert found['icc.rmse.low'] <= found['icc.rmse'] <= found['icc.rmse.high']
  assert found['tcc.truth_variance'] == pytest.approx(np.var([0.0, 2.0, 5.0]))
  groups = metrics.by_group(truth, judge, ['a', 'b', 'a', 'b'], samples=20)
  assert groups['a']['tcc.rmse'] == pytest.approx(np.sqrt(0.125)) and groups['b']['failed'] == 1
  assert groups['b']['tcc.rmse.low'] == groups['b']['tcc.rmse.high'] == pytest.approx(2)  # one answer, always drawn


def test_one_failed_score_fails_the_answer_and_a_missing_truth_only_its_dimension():
  truth, judge = columns(TRUTH, JUDGE)
  judge[0, 2] = np.nan
  truth[3, 1] = np.nan
  found = metrics.table(truth, judge, samples=0)
  assert (found['n'], found['failed'], found['tcc.n'], found['icc.n']) == (3, 1, 3, 2)
  assert found['icc.rmse'] == pytest.approx(np.sqrt((1 + 0.25) / 2))
  assert 'tcc.rmse.low' not in found


def test_a_dimension_that_is_never_scored_is_left_out():
  truth, judge = columns(TRUTH, JUDGE)
  judge[:, 0] = np.nan
  found = metrics.table(truth, judge, samples=5)
  assert found['failed'] == 0 and 'icc.rmse' in found and not any(key.startswith('tcc') for key in found)


def test_all_failed():
  assert metrics.table(np.zeros((2, 4)), np.full((2, 4), np.nan)) == {'n': 0, 'failed': 2}


@pytest.fixture
def noisy() -> tuple[np.ndarray, np.ndarray]:
  """80 answers with many ties, and a judge half a point off."""
  rng = np.random.default_rng(3)
  truth = rng.integers(0, 6, 80).astype(np.float64)
  return truth, np.clip(truth + rng.normal(0, 0.7, 80), 0, 5)


def test_intervals_are_those_of_measures_on_drawn_answers(noisy):
  """Products with counts give what drawing the answers one by one and measuring them gives, of every measure."""
  truth, judge = noisy
  found = metrics.intervals(truth, judge, samples=30, seed=4)
  rows = []
  for counts in statistics.draws(80, 30, 4):
    i = np.repeat(np.arange(80), counts.astype(int))
    rows.append(metrics.measure(truth[i], judge[i]) | {
        'truth_mean': truth[i].mean(), 'judge_mean': judge[i].mean(),
        'truth_variance': truth[i].var(), 'judge_variance': judge[i].var()})
  for name in (*metrics.MEASURES, *metrics.MOMENTS):
    assert found[name] == pytest.approx(np.percentile([row[name] for row in rows], (2.5, 97.5)), abs=1e-9), name
  assert found['tau'][0] < metrics.measure(truth, judge)['tau'] < found['tau'][1]


def test_tau_in_draws_is_the_same_from_pairs_and_by_sorting(noisy, monkeypatch):
  truth, judge = noisy[0], np.round(noisy[1])  # ties on both sides
  draws = statistics.draws(80, 12, 1)
  pairs = metrics._resampled_tau(truth, judge, draws), metrics._resampled_tau(truth, np.ones(80), draws)
  monkeypatch.setattr(metrics, '_PAIRED', 0)
  assert pairs[0] == pytest.approx(metrics._resampled_tau(truth, judge, draws), abs=1e-12)
  assert np.isnan(pairs[1]).all() and np.isnan(metrics._resampled_tau(truth, np.ones(80), draws)).all()


def test_an_interval_shrinks_with_the_root_of_the_answers(noisy):
  truth, judge = noisy
  width = lambda times: np.diff(metrics.intervals(np.tile(truth, times), np.tile(judge, times), samples=400)['rmse'])[0]
  assert width(1) / width(16) == pytest.approx(4, rel=0.2)



def test_compare_says_what_is_beaten_and_what_is_equal(noisy):
  rng = np.random.default_rng(0)
  truth, judge = columns(*noisy)
  blind = judge.copy()
  blind[:, 3] = rng.permutation(blind[:, 3])  # one dimension needed what was taken away
  near = np.clip(judge + rng.normal(0, 0.02, judge.shape), 0, 5)
  rows = metrics.compare(truth, {'synjudge': judge, 'mean': np.full_like(truth, truth.mean()), 'without_image': blind,
                                 'near': near}, samples=200)
  assert [row['setting'] for row in rows] == ['synjudge', 'mean', 'without_image', 'near']
  ours, mean, without, near = rows
  assert not any('difference' in key or 'beaten' in key or 'equal' in key for key in ours)
  assert mean['tcc.pearson'] is None and mean['tcc.tau.low'] is None  # JSON has no NaN
  assert mean['tcc.rmse'] == pytest.approx(truth[:, 0].std())
  assert mean['tcc.rmse.beaten'] and mean['tcc.a1.beaten'] and not mean['tcc.equal']
  assert mean['tcc.rmse.difference'] == pytest.approx(ours['tcc.rmse'] - mean['tcc.rmse'])
  assert mean['tcc.rmse.difference.low'] < mean['tcc.rmse.difference'] < mean['tcc.rmse.difference.high'] < 0
  assert without['tcc.equal'] and without['tcc.rmse.difference.low'] == without['tcc.rmse.difference.high'] == 0
  assert not without['tcc.rmse.beaten'] and not without['its.equal'] and without['its.rmse.beaten']
  # Pairing: two judges that err together are told apart far within either's own interval.
  assert not near['tcc.rmse.beaten']
  width = near['tcc.rmse.difference.high'] - near['tcc.rmse.difference.low']
  assert width < 0.1 * (near['tcc.rmse.high'] - near['tcc.rmse.low'])


def test_compare_pairs_only_answers_that_both_have_scored(noisy):
  truth, judge = columns(*noisy)
  other = judge.copy()
  judge[0], other[1], other[2:, 0] = np.nan, np.nan, other[2:, 0] + 1
  ours, row = metrics.compare(truth, {'synjudge': judge, 'endpoint': other}, samples=20)
  assert ours['failed'] == 1 and row['failed'] == 1
  expected = metrics.measure(truth[2:, 0], judge[2:, 0])['rmse'] - metrics.measure(truth[2:, 0], other[2:, 0])['rmse']
  assert row['tcc.rmse.difference'] == pytest.approx(expected) and row['icc.equal']


def test_rank_tau_by_hand():
  truth = np.array([[0, 1, 2, 3], [1, 1, 1, 1], [0, 0, 5, 5], [1, 2, 3, np.nan], [0, 5, 0, 5]], float)
  judge = np.array([[0, 1, 3, 2], [0, 1, 2, 3], [1, 2, 3, 3], [2, 1, np.nan, np.nan], [3, 3, 3, 3]], float)
  found = metrics.rank_tau(truth, judge, samples=100)
  # Second: no spread in truth. Third: 4 pairs agree, truth ties 2 of 6 pairs, the judge 1. Last: the judge ranks nothing.
  taus = [(5 - 1) / 6, 4 / np.sqrt(4 * 5), -1.0, 0.0]
  assert found['tau'] == pytest.approx(np.mean(taus))
  assert found['groups'] == 4 and found['without_spread'] == 1 / 5 and found['constant'] == 1 / 4
  assert found['share_of_ties'] == pytest.approx((0 + 6 + 2 + 0 + 2) / (6 + 6 + 6 + 1 + 6))
  assert found['failed'] == 1
  assert -1 <= found['low'] < found['tau'] < found['high'] <= 1


def test_rank_tau_without_any_group():
  found = metrics.rank_tau(np.ones((3, 2)), np.zeros((3, 2)))
  assert found['groups'] == 0 and np.isnan(found['tau']) and np.isnan(found['low']) and found['without_spread'] == 1
