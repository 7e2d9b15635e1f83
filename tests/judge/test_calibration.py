"""Temperatures against judges whose overconfidence is known, errors against bins worked out by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax.judge import calibration
from intersyn_jax.judge.model import TOP, expectation


def judged(n: int, seed: int, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
  """Logits [n,4,5] of a judge that knows the distribution of every label, times `sharpness`, and whole labels [n,4]."""
  rng = np.random.default_rng(seed)
  logits = np.sort(rng.normal(0, 1.5, (n, 4, 1)) + rng.normal(0, 1.2, (n, 4, TOP)))[..., ::-1]
  above = 1 / (1 + np.exp(-logits))
  labels = (rng.random((n, 4, 1)) < above).sum(-1).astype(np.float64)  # one draw: the higher implies the lower
  return logits * sharpness, labels


def test_fit_finds_how_sharp_a_judge_was_made():
  logits, labels = judged(4000, 0)
  logits *= np.array([0.5, 1.0, 2.0, 4.0])[:, None]
  assert calibration.fit(logits, labels) == pytest.approx((0.5, 1.0, 2.0, 4.0), rel=0.06)


def test_fit_leaves_out_what_has_no_label():
  logits, labels = judged(500, 1, sharpness=3.0)
  whole = calibration.fit(logits, labels)
  more, none = np.concatenate([logits, logits * 50]), np.full_like(labels, np.nan)
  assert calibration.fit(more, np.concatenate([labels, none])) == pytest.approx(whole, rel=1e-3)
  labels[:, 2] = np.nan
  assert calibration.fit(logits, labels)[2] == 1.0


def test_a_temperature_from_other_answers_mends_the_calibration_error():
  temperatures = calibration.fit(*judged(3000, 2, sharpness=3.0))
  found = calibration.report(*judged(3000, 3, sharpness=3.0), temperatures)
  assert json.loads(json.dumps(found)) == found and list(found) == ['tcc', 'icc', 'iq', 'its']
  for values in found.values():
    assert values['ece'] < 0.02 and values['ece_uncalibrated'] > 0.08
    assert sum(n for _, _, n in values['bins']) == 3000 * TOP
    assert values['low'] > 0.1  # what it is unsure of, it gets wrong


def test_error_and_points_by_hand():
  probability = np.array([[0.05, 0.0], [0.95, 1.0], [0.52, np.nan]])
  target = np.array([[0.0, 0.5], [1.0, 0.6], [0.02, 0.0]])
  assert calibration.reliability(probability, target, bins=10) == [
      pytest.approx([0.025, 0.25, 2]), pytest.approx([0.52, 0.02, 1]), pytest.approx([0.975, 0.8, 2])]
  expected = (2 * 0.225 + 1 * 0.5 + 2 * 0.175) / 5
  assert calibration.expected_calibration_error(probability, target, bins=10) == pytest.approx(expected)
  assert np.isnan(calibration.expected_calibration_error(np.zeros(0), np.zeros(0)))


def test_fractional_labels_are_calibrated_as_draws_between_their_neighbours():
  """A judge that says a label of 3.4 outright is calibrated, and its spread is that of the draw."""
  wanted = calibration.targets(np.array([3.4]), TOP)
  assert wanted == pytest.approx(np.array([[1, 1, 1, 0.4, 0]]))
  logits = np.log(np.clip(wanted, 1e-6, 1 - 1e-6) / (1 - np.clip(wanted, 1e-6, 1 - 1e-6)))
  assert calibration.expected_calibration_error(1 / (1 + np.exp(-logits)), wanted) == pytest.approx(0, abs=1e-5)
  assert float(calibration.spread(jnp.asarray(logits))[0]) == pytest.approx(np.sqrt(0.4 * 0.6), abs=1e-3)


def test_spread_is_that_of_the_distribution():
  logits, _ = judged(20, 4)
  above = np.concatenate([np.ones((20, 4, 1)), 1 / (1 + np.exp(-logits)), np.zeros((20, 4, 1))], axis=-1)
  chance, scores = above[..., :-1] - above[..., 1:], np.arange(TOP + 1)
  mean = (chance * scores).sum(-1, keepdims=True)
  expected = np.sqrt((chance * (scores - mean) ** 2).sum(-1))
  found = jax.jit(calibration.spread)(jnp.asarray(logits))
  assert np.allclose(found, expected, atol=1e-5) and np.allclose(expectation(jnp.asarray(logits)), mean[..., 0], atol=1e-5)


def test_spread_of_a_sure_judge_keeps_its_digits():
  logits = jnp.array([20.0, 20.0, 20.0, -20.0, -20.0])
  q = 1 / (1 + np.exp(20.0))
  # Each of the three low questions adds q, and twice for each pair of them; the two high ones the same.
  assert float(calibration.spread(logits)) == pytest.approx(np.sqrt((1 + 3 + 5) * q + (1 + 3) * q), rel=1e-3)


def test_spread_and_error():
  rng = np.random.default_rng(5)
  spreads = rng.uniform(0.1, 1.0, 600)
  errors = rng.normal(0, spreads)
  found = calibration.spread_error_correlation(spreads, errors)
  assert 0.2 < found['low'] < found['spearman'] < found['high'] < 0.7
  found = calibration.spread_error_correlation(rng.permutation(spreads), errors)
  assert found['low'] < 0 < found['high']
  spreads[0], errors[1] = np.nan, np.nan
  assert np.isfinite(calibration.spread_error_correlation(spreads, errors)['spearman'])
  assert np.isnan(calibration.spread_error_correlation(np.ones(5), np.arange(5.0))['spearman'])
