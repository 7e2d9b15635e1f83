"""Intervals cover what they should, pairing pays, and scores.json has the promised form."""

import json

import numpy as np
import pytest

from intersyn_jax.evaluation import statistics
from intersyn_jax.evaluation.statistics import ALL_DIMENSIONS


def test_draws_are_resamples():
  weights = statistics.draws(50, 400, 1)
  assert weights.shape == (400, 50) and (weights.sum(axis=1) == 50).all()
  assert abs(weights.var() - 49 / 50) < 0.05  # of a binomial with 50 trials at 1/50
  np.testing.assert_array_equal(weights, statistics.draws(50, 400, 1))
  assert (weights != statistics.draws(50, 400, 2)).any()


def test_interval_is_the_known_one():
  """Of a normal sample: mean +- 1.96 standard errors."""
  values = np.random.default_rng(0).normal(2.0, 3.0, (900, 1))
  low, high = statistics.interval(values, statistics.draws(900, 8000, 0))
  error = values.std() / 30
  np.testing.assert_allclose([low[0], high[0]], [values.mean() - 1.96 * error, values.mean() + 1.96 * error],
                             atol=0.18 * error)


def test_interval_agrees_with_scipy():
  import scipy.stats
  values = np.random.default_rng(3).exponential(1.0, 300)
  low, high = statistics.interval(values[:, None], statistics.draws(300, 9000, 0))
  known = scipy.stats.bootstrap((values,), np.mean, n_resamples=9000, method='percentile', random_state=1).confidence_interval
  np.testing.assert_allclose([low[0], high[0]], known, atol=0.012)


def test_coverage():
  """About 95 % of the intervals hold the true mean, also of skewed scores on 0-5."""
  rng = np.random.default_rng(1)
  weights = statistics.draws(200, 600, 0)
  values = 5 * rng.beta(4, 1, (200, 400))  # 400 samples as columns
  low, high = statistics.interval(values, weights)
  assert 0.91 <= np.mean((low < 4.0) & (high > 4.0)) <= 0.98


def test_pairing_narrows_and_keeps_the_sign():
  rng = np.random.default_rng(0)
  prompt = rng.normal(3, 1, (500, 1))
  a = prompt + rng.normal(0, 0.1, (500, 4))
  b = a + 0.1 + rng.normal(0, 0.1, (500, 4))
  weights = statistics.draws(500, 1000, 0)
  found = statistics.paired(a, b, weights)
  for d in ALL_DIMENSIONS:
    low, high = found[d]['ci95']
    assert low < found[d]['difference'] < high and 0.08 < found[d]['difference'] < 0.12
    assert low > 0 and high - low < 0.04  # unpaired it would be about 0.25
  shuffled = statistics.paired(a, rng.permutation(b), weights)['mean']['ci95']
  assert shuffled[1] - shuffled[0] > 0.15
  back = statistics.paired(b, a, weights)['mean']
  assert back['difference'] == pytest.approx(-found['mean']['difference'])


def test_failures_are_left_out_and_counted():
  scores = np.full((40, 4), 2.0)
  scores[:10] = 4.0
  scores[30:, 1] = np.nan
  scores[39] = np.nan
  found = statistics.describe(scores, statistics.draws(40, 200, 0))
  assert [found[d]['n'] for d in ALL_DIMENSIONS] == [39, 30, 39, 39, 30]
  assert found['icc']['mean'] == pytest.approx((10 * 4 + 20 * 2) / 30)
  assert found['mean']['mean'] == pytest.approx((10 * 4 + 20 * 2) / 30)
  assert found['tcc']['variance'] == pytest.approx(np.var([4] * 10 + [2] * 29, ddof=1))
  other = scores + 1
  other[0] = np.nan
  assert statistics.paired(scores, other, statistics.draws(40, 200, 0))['tcc'] == {'difference': 1.0, 'ci95': [1.0, 1.0]}
  assert statistics.describe(np.full((5, 4), np.nan), statistics.draws(5, 10, 0)) == {}


def test_scores_json_has_the_promised_form():
  rng = np.random.default_rng(0)
  scores = {p: {d: {s: rng.uniform(0, 5, (30, 4)) for s in ('judge', 'truth')} for d in ('sampled', 'greedy')}
            for p in ('chance', 'warmup', 'grpo')}
  made = statistics.summary(scores, (('chance', 'grpo'), ('warmup', 'grpo'), ('finetune', 'grpo')), resamples=50, seed=0)
  made = json.loads(json.dumps(made, allow_nan=False))
  assert set(made) == {'policies', 'differences'}
  for policy in scores:
    for decoding in ('sampled', 'greedy'):
      for scorer in ('judge', 'truth'):
        assert set(made['policies'][policy][decoding][scorer]) == {'tcc', 'icc', 'iq', 'its', 'mean'}
        for value in made['policies'][policy][decoding][scorer].values():
          assert set(value) == {'mean', 'variance', 'ci95', 'n'}
          assert value['ci95'][0] <= value['mean'] <= value['ci95'][1] and value['n'] == 30
  assert len(made['differences']) == 2 * 2 * 2 * 5  # the pair without finetune is passed over
  for d in made['differences']:
    assert set(d) == {'a', 'b', 'decoding', 'scorer', 'dimension', 'difference', 'ci95'}
    means = [made['policies'][p][d['decoding']][d['scorer']][d['dimension']]['mean'] for p in (d['a'], d['b'])]
    assert d['difference'] == pytest.approx(means[1] - means[0])


def test_other_prompts_are_refused():
  scores = {'a': {'greedy': {'truth': np.ones((3, 4))}}, 'b': {'greedy': {'truth': np.ones((4, 4))}}}
  with pytest.raises(ValueError, match='same ones'):
    statistics.summary(scores, (), resamples=10, seed=0)


def test_by_group():
  scores = np.array([[1.0] * 4, [3.0] * 4, [2.0] * 4])
  found = statistics.by_group(scores, np.array([1, 1, 2]), resamples=20, seed=0)
  assert {g: found[g]['mean']['mean'] for g in found} == {'1': 2.0, '2': 2.0} and found['1']['mean']['n'] == 2
