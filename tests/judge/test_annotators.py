"""Votes that are made up, what they average to, and how far annotators agree by the library."""

import itertools

import krippendorff
import numpy as np
import pytest

from intersyn_jax.interleave.types import DIMENSIONS
from intersyn_jax.judge import annotators


def truth(rows=400, seed=0):
  return np.random.default_rng(seed).uniform(0.5, 4.5, (rows, 4)).astype(np.float32)


def test_votes_are_whole_and_depend_on_seed_and_number_alone():
  whole = truth(50)
  votes = annotators.simulate(whole, 3, 0.7, seed=4)
  assert votes.shape == (50, 3, 4) and votes.dtype == np.float32
  assert set(np.unique(votes)) <= set(range(6))
  np.testing.assert_array_equal(annotators.simulate(whole, 5, 0.7, seed=4)[:, :3], votes)
  np.testing.assert_array_equal(annotators.simulate(whole[20:], 3, 0.7, seed=4, first=20), votes[20:])
  assert (annotators.simulate(whole, 3, 0.7, seed=5) != votes).any()
  assert annotators.simulate(whole[:0], 3, 0.7, seed=4).shape == (0, 3, 4)


def test_zeros_of_the_rubric_stay_and_what_is_unknown_stays_unknown():
  whole = np.tile(np.array([0, np.nan, 5, 2.5], np.float32), (300, 1))
  votes = annotators.simulate(whole, 2, 3.0, seed=0)
  assert not votes[..., 0].any() and np.isnan(votes[..., 1]).all()
  assert votes[..., 2].max() == 5 and votes[..., 2].min() < 5
  assert len(np.unique(votes[..., 3])) == 6


def test_annotators_are_people_with_a_bias_each():
  """The mean error of an annotator is its own, the same in both halves of the rows, and larger than chance makes it."""
  whole = truth(2000)
  error = annotators.simulate(whole, 6, 0.5, seed=1) - whole[:, None]
  halves = error[:1000].mean(axis=0), error[1000:].mean(axis=0)
  assert np.corrcoef(halves[0].ravel(), halves[1].ravel())[0, 1] > 0.95
  assert 0.1 < halves[0].std() < 0.45
  exact = annotators.simulate(whole, 6, 0.0, seed=1)
  np.testing.assert_array_equal(exact, np.rint(whole)[:, None].repeat(6, axis=1))


def test_the_label_is_the_mean_of_the_votes_there_are():
  votes = np.full((3, 3, 4), np.nan, np.float32)
  votes[0], votes[1, 1], votes[1, 2, 0] = [[1], [2], [5]], [0, 1, 2, 3], 5
  found = annotators.mean(votes)
  np.testing.assert_allclose(found[0], np.full(4, 8 / 3), rtol=1e-6)
  np.testing.assert_array_equal(found[1], [2.5, 1, 2, 3])
  assert np.isnan(found[2]).all() and found.dtype == np.float32


def test_alpha_is_the_librarys_with_annotators_missing():
  votes = annotators.simulate(truth(120), 4, 0.8, seed=2)
  votes[np.random.default_rng(0).random(votes.shape) < 0.4] = np.nan
  found = annotators.alpha(votes, samples=50)
  assert list(found) == list(DIMENSIONS)
  for i, name in enumerate(DIMENSIONS):
    assert found[name].alpha == pytest.approx(krippendorff.alpha(votes[..., i].T, level_of_measurement='interval'))
    assert found[name].rows == (np.isfinite(votes[..., i]).sum(axis=1) >= 2).sum() < 120
    assert found[name].low < found[name].alpha < found[name].high


def test_intervals_are_those_of_the_library_on_the_same_samples():
  votes = annotators.simulate(truth(40), 3, 0.8, seed=3)
  votes[::3, 0] = np.nan
  votes[::6, 1] = np.nan
  rng = np.random.default_rng(7)
  drawn = [rng.integers(0, 40, 40) for _ in range(60)]
  found = annotators.alpha(votes, samples=60, seed=7)
  assert found == annotators.alpha(votes, samples=60, seed=7) != annotators.alpha(votes, samples=60, seed=8)
  for i, name in enumerate(DIMENSIONS):
    values = [krippendorff.alpha(votes[rows, :, i].T, level_of_measurement='interval') for rows in drawn]
    np.testing.assert_allclose((found[name].low, found[name].high), np.percentile(values, (2.5, 97.5)), rtol=1e-9)


def test_less_spread_is_more_agreement():
  values = [annotators.alpha(annotators.simulate(truth(), 3, spread, seed=0), samples=0)['its'].alpha
            for spread in (0.0, 0.4, 0.8, 1.6)]
  assert values[0] == 1 and all(a > b + 0.05 for a, b in itertools.pairwise(values))


def test_alpha_of_what_nobody_can_know_is_nan():
  votes = np.full((20, 2, 4), np.nan)
  votes[:, 0] = 3  # one annotator
  votes[:, 1, 1] = 3  # two, who never say anything else
  votes[:, 1, 2] = np.arange(20) % 2 + 3
  found = annotators.alpha(votes, samples=20)
  assert np.isnan(found['tcc'][:3]).all() and found['tcc'].rows == 0
  assert np.isnan(found['icc'][:3]).all() and found['icc'].rows == 20
  assert found['iq'].alpha < 0.1 and np.isfinite(found['iq'].high)
  assert np.isnan(annotators.alpha(votes[:0])['iq'].alpha)
