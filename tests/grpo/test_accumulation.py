"""Micro-batches give the gradient of the whole batch, whatever the loss is summed over."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax.grpo.loss import LossConfig, make_loss, units
from intersyn_jax.interleave import layout
from intersyn_jax.training.loop import gradients_of

ROWS, LENGTH, DEPTH, CODEBOOK, WORDS = 6, 10, 3, 8, 20


def score(params, batch):
  """Log-probs of a model that reads where it is: one table of logits for all rows."""
  words = jax.nn.log_softmax(params['words'][batch.position])
  codes = jax.nn.log_softmax(params['codes'][batch.position])
  picture = batch.modality == layout.CODES
  entropy = lambda p: -jnp.sum(jnp.exp(p) * p, axis=-1)
  text = jnp.take_along_axis(words, batch.text[..., None], axis=-1)[..., 0]
  each = jnp.take_along_axis(codes, batch.codes[..., None], axis=-1)[..., 0]
  return (jnp.where(picture, 0.0, text), jnp.where(picture[..., None], each, 0.0),
          jnp.where(picture, entropy(codes).sum(-1), entropy(words)))


@functools.cache
def case(code_ratio):
  """Parameters and a batch of answers of very different length and share of pictures, one of them without any weight."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  place = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH))
  picture = rng.random((ROWS, LENGTH)) < np.linspace(0.1, 0.9, ROWS)[:, None]
  modality = np.where(picture, layout.CODES, layout.TEXT).astype(np.int8)
  weight = ((place < np.array([10, 1, 3, 9, 0, 5])[:, None]) & (rng.random(place.shape) < 0.8)).astype(np.float32)
  zero = np.zeros_like(place)
  tokens = layout.TokenBatch(
      text=np.where(picture, 0, rng.integers(0, WORDS, place.shape)).astype(np.int32),
      codes=(rng.integers(0, CODEBOOK, (*place.shape, DEPTH)) * picture[..., None]).astype(np.int32), modality=modality,
      loss=weight, forced=zero > 0, document=zero + 1, position=place, turn=zero, step=zero)
  params = {'words': normal(LENGTH, WORDS), 'codes': normal(LENGTH, DEPTH, CODEBOOK)}
  current = units(*score(params, tokens)[:2], code_ratio)
  return params, {
      'tokens': tokens, 'old': current + 0.3 * normal(*current.shape), 'reference': current + 0.3 * normal(*current.shape),
      'advantage': normal(ROWS, LENGTH), 'entropy_weight': jnp.tile(jnp.array([0.3, 0.7]), (ROWS, 1))}


CASES = [dict(aggregation=name) for name in ('sequence', 'token', 'modality', 'constant')] + [
    dict(aggregation='token', code_ratio='code', kl_estimator='k2'), dict(sequence_ratio=True, dual_clip=2.0)]


@pytest.mark.parametrize('fields', CASES, ids=lambda fields: '-'.join(map(str, fields.values())))
def test_micro_batches_give_the_gradient_of_the_whole_batch(fields):
  config = LossConfig(kl=0.5, **fields)
  params, batch = case(config.code_ratio)
  loss, weights = make_loss(score, config)
  # What is only watched is left out, and code is not optimised: compiling is all the time that this takes.
  run = lambda count: jax.jit(lambda params, batch: gradients_of(loss, params, batch, jax.random.key(0), weights, count)[0],
                              compiler_options={'xla_backend_optimization_level': 0})(params, batch)
  whole, parts = run(1), run(3)
  for name, value in whole.items():
    assert np.abs(value).max() > 1e-3
    np.testing.assert_allclose(parts[name], value, rtol=1e-4, atol=1e-6)


def test_the_parts_are_uneven():
  """Else a mean of the means of the parts would pass too."""
  _, batch = case('position')
  weight, picture = np.asarray(batch['tokens'].loss), batch['tokens'].modality == layout.CODES
  for counted in (weight, weight * picture, weight.any(axis=1)):
    assert len({float(counted[i::3].sum()) for i in range(3)}) > 1
