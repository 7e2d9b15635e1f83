"""Draws: the right frequencies, exact truncation, nothing forbidden, and addresses that do not depend on the batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from intersyn_jax.decoding import sampling
from intersyn_jax.decoding.sampling import Sampling
from tests import small_model

LOGITS = np.asarray([2.0, 1.0, 0.5, -1.0, 0.0, 1.5, -np.inf, 0.2], np.float32)


def expected(control: Sampling) -> np.ndarray:
  """The distribution as one would write it down for distinct logits."""
  logits = LOGITS.astype(np.float64) / control.temperature
  order = np.argsort(-logits)
  keep = order[:control.top_k or None]
  p = np.exp(logits[keep] - logits.max())
  p /= p.sum()
  keep = keep[np.concatenate([[0.0], np.cumsum(p)[:-1]]) < control.top_p]
  out = np.zeros(len(logits))
  out[keep] = np.exp(logits[keep] - logits.max())
  return out / out.sum()


@pytest.mark.parametrize('control', [
    Sampling(), Sampling(0.5), Sampling(2.0), Sampling(top_k=3), Sampling(top_p=0.6), Sampling(0.7, 5, 0.8), Sampling(top_k=1)])
def test_frequencies_and_log_prob(control):
  count = 20_000
  uniform = sampling.uniforms(0, jnp.arange(count, dtype=jnp.uint32), 1, 1)[0, :, 0]
  ids, log_prob = jax.jit(lambda l, u: sampling.draw(l, u, control))(jnp.tile(LOGITS, (count, 1)), uniform)
  p = expected(control)
  np.testing.assert_allclose(np.exp(log_prob), p[ids], rtol=1e-5)
  drawn = np.bincount(ids, minlength=len(p))
  assert drawn[p == 0].sum() == 0
  if (p > 0).sum() > 1:
    assert scipy.stats.chisquare(drawn[p > 0], count * p[p > 0]).pvalue > 1e-4


def test_greedy_is_the_first_largest_logit():
  logits = jnp.asarray([[0.0, 3.0, 3.0], [-1.0, -2.0, -jnp.inf]])
  ids, log_prob = sampling.draw(logits, jnp.asarray([0.99, 0.99]), Sampling(0.0))
  assert ids.tolist() == [1, 0] and log_prob.tolist() == [0, 0]


@pytest.mark.parametrize('size', [1, 2, 7, 130, 1000])
def test_inverse_cdf_is_the_plain_search(size):
  rng = np.random.default_rng(size)
  weights = rng.random((200, size)).astype(np.float32) * (rng.random((200, size)) < 0.5)
  weights[:, rng.integers(size)] = 0.3
  uniform = rng.random(200).astype(np.float32)
  ids = np.asarray(sampling.inverse_cdf(jnp.asarray(weights), jnp.asarray(uniform)))
  sums = np.cumsum(weights.astype(np.float64), axis=1)
  plain = (sums > uniform[:, None] * sums[:, -1:]).argmax(1)
  # Float32 sums may move a boundary by a rounding error: then the draw lies on that boundary.
  for row in np.flatnonzero(ids != plain):
    assert np.abs(sums[row] / sums[row, -1] - uniform[row]).min() < 1e-6
  assert (ids == plain).mean() > 0.99


@pytest.mark.parametrize('uniform', [0.0, 1 - 2**-24])
def test_the_ends_of_the_interval_never_choose_weight_zero(uniform):
  rng = np.random.default_rng(0)
  weights = (rng.random((500, 300)) * 10.0 ** rng.integers(-9, 3, (500, 300)) * (rng.random((500, 300)) < 0.1)).astype(np.float32)
  weights[:, 17] = 1e-6
  ids = np.asarray(sampling.inverse_cdf(jnp.asarray(weights), jnp.full(500, uniform, jnp.float32)))
  assert (weights[np.arange(500), ids] > 0).all()


def test_uniforms_have_an_address_of_their_own():
  few = sampling.uniforms(3, jnp.asarray([5, 9], jnp.uint32), 4, 2)
  many = sampling.uniforms(3, jnp.asarray([1, 9, 5], jnp.uint32), 11, 2)
  np.testing.assert_array_equal(few[:, 0], many[:4, 2])
  np.testing.assert_array_equal(few[:, 1], many[:4, 1])
  assert len(np.unique(many)) == many.size
  assert not np.isin(sampling.uniforms(4, jnp.asarray([5, 9], jnp.uint32), 4, 2), few).any()
  assert scipy.stats.kstest(np.ravel(sampling.uniforms(0, jnp.arange(500, dtype=jnp.uint32), 4, 2)), 'uniform').pvalue > 1e-3


def test_structure_is_never_choosable():
  layout_ = small_model.plain()
  allowed = sampling.choosable(layout_, layout_.tokenizer.size + 8)
  assert not allowed[-8:].any()
  for name in ('<pad>', '<s>', '<user>', '<model>', '</image>'):
    assert not allowed[layout_.special(name)]
  for name in ('</s>', '<think>', '</think>', '<vis>', '</vis>', '<image>'):
    assert allowed[layout_.special(name)]


def test_numbers_do_not_depend_on_where_a_chunk_begins():
  requests = jnp.asarray([5, 9], jnp.uint32)
  whole = np.asarray(sampling.uniforms(3, requests, 12, 2))
  part = np.asarray(sampling.uniforms(3, requests, 5, 2, jnp.asarray([4, 7])))
  np.testing.assert_array_equal(part[:, 0], whole[4:9, 0])
  np.testing.assert_array_equal(part[:, 1], whole[7:12, 1])


def test_repetition_pushes_down_what_was_said():
  logits = jnp.asarray([[2.0, -1.0, 0.5, -3.0]])
  said = jnp.asarray([[True, True, False, False]])
  np.testing.assert_allclose(sampling.repetition(logits, said, 2.0), [[1.0, -2.0, 0.5, -3.0]])


def drawn_like(p: np.ndarray, logits: np.ndarray) -> bool:
  """Whether draws from logits [V] have the frequencies p [V]."""
  count = 20_000
  uniform = sampling.uniforms(1, jnp.arange(count, dtype=jnp.uint32), 1, 1)[0, :, 0]
  ids, log_prob = jax.jit(lambda l, u: sampling.draw(l, u, Sampling()))(jnp.tile(logits, (count, 1)), uniform)
  np.testing.assert_allclose(np.exp(log_prob), p[ids], rtol=1e-4)
  return scipy.stats.chisquare(np.bincount(ids, minlength=len(p)), count * p).pvalue > 1e-4


def test_repetition_has_the_frequencies_written_down_by_hand():
  logits, said = LOGITS[:6].astype(np.float64), np.asarray([True, False, False, True, True, False])
  weights = np.exp(np.where(said, np.where(logits > 0, logits / 1.7, logits * 1.7), logits))
  pushed = sampling.repetition(jnp.asarray(logits[None], jnp.float32), jnp.asarray(said[None]), 1.7)[0]
  assert drawn_like(weights / weights.sum(), pushed)


@pytest.mark.parametrize('scales', [(3.0, 0.0), (3.0, 1.2)])
def test_guidance_has_the_frequencies_written_down_by_hand(scales):
  full, images, null = np.random.default_rng(1).normal(size=(3, 6))
  s, t = scales
  by_hand = null + s * (full - null) if not t else null + t * (images - null) + s * (full - images)
  branches = [full, null] if not t else [full, images, null]
  guided = sampling.guide(jnp.asarray(branches, jnp.float32)[None], s, t)[0]
  assert drawn_like(np.exp(by_hand) / np.exp(by_hand).sum(), guided)


def test_words_are_no_tags():
  layout_ = small_model.plain()
  found = sampling.words(layout_, layout_.tokenizer.size + 5)
  assert found.sum() == layout_.tokenizer.size - len(layout_.tokenizer.specials)
  assert not found[layout_.special('<think>')] and not found[layout_.block.begin]


@pytest.mark.parametrize('scales', [(1.0, 0.0), (3.0, 0.0), (3.0, 1.2)])
def test_guidance_by_hand_and_the_same_on_log_softmax(scales):
  rng = np.random.default_rng(0)
  full, images, null = rng.normal(size=(3, 6, 11)).astype(np.float32)
  s, t = scales
  branches = {(1.0, 0.0): [full], (3.0, 0.0): [full, null], (3.0, 1.2): [full, images, null]}[scales]
  by_hand = {1: full, 2: null + s * (full - null), 3: null + t * (images - null) + s * (full - images)}[len(branches)]
  logits = jnp.stack(branches, axis=1)
  np.testing.assert_allclose(sampling.guide(logits, s, t), by_hand, atol=1e-5)
  normalised = sampling.guide(jax.nn.log_softmax(logits), s, t)
  for control in (Sampling(), Sampling(0.7, 5, 0.8)):
    p = [jax.nn.softmax(sampling.truncate(value, control)) for value in (by_hand, normalised)]
    np.testing.assert_allclose(*p, atol=1e-5)
