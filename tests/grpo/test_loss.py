"""The loss against plain float64, for every choice of its fields."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.grpo.loss import LossConfig, divergence, make_loss, penalty_to_go, unit_mask, units
from intersyn_jax.interleave import layout

ROWS, LENGTH, DEPTH, CODEBOOK, WORDS = 3, 10, 4, 8, 20


def tokens(seed=0):
  """Rows of random positions in which a loss can be computed."""
  rng = np.random.default_rng(seed)
  shape = (ROWS, LENGTH)
  modality = np.where(rng.random(shape) < 0.5, layout.CODES, layout.TEXT).astype(np.int8)
  picture = modality == layout.CODES
  codes = rng.integers(0, CODEBOOK, (*shape, DEPTH)) * picture[..., None]
  zero = np.zeros(shape, np.int32)
  loss = (rng.random(shape) < 0.7).astype(np.float32)
  loss[:, 0] = 0
  return layout.TokenBatch(
      text=np.where(picture, 0, rng.integers(0, WORDS, shape)).astype(np.int32), codes=codes.astype(np.int32),
      modality=modality, loss=loss, forced=zero > 0, document=zero + 1, position=zero + np.arange(LENGTH, dtype=np.int32),
      turn=zero, step=zero - 1)


def score(params, batch):
  """Log-probs of a model that is a table of logits for every position."""
  words, codes = jax.nn.log_softmax(params['words']), jax.nn.log_softmax(params['codes'])
  picture = batch.modality == layout.CODES
  entropy = lambda p: -jnp.sum(jnp.exp(p) * p, axis=-1)
  text = jnp.take_along_axis(words, batch.text[..., None], axis=-1)[..., 0]
  each = jnp.take_along_axis(codes, batch.codes[..., None], axis=-1)[..., 0]
  return (jnp.where(picture, 0.0, text), jnp.where(picture[..., None], each, 0.0),
          jnp.where(picture, entropy(codes).sum(-1), entropy(words)))


@functools.cache
def case():
  """Parameters, tokens and the fields of a batch but `old` and `reference`."""
  rng = np.random.default_rng(1)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = {'words': normal(ROWS, LENGTH, WORDS), 'codes': normal(ROWS, LENGTH, DEPTH, CODEBOOK)}
  return params, tokens(), normal(ROWS, LENGTH)


def batch_of(config, noise=0.3):
  params, found, advantage = case()
  current = units(*score(params, found)[:2], config.code_ratio)
  rng = np.random.default_rng(2)
  near = lambda: current + jnp.asarray(rng.normal(0, noise, current.shape), jnp.float32)
  return {'tokens': found, 'old': near(), 'reference': near(), 'advantage': advantage,
          'entropy_weight': jnp.tile(jnp.array([0.3, 0.7]), (ROWS, 1))}


def total_of(config):
  loss, weights = make_loss(score, config)
  return lambda params, batch: sum(weight * pair[0] / pair[1] for name, weight in weights.items()
                                   for pair in [loss(params, batch, jax.random.key(0))[name]])


def expected(config, params, batch):
  """The whole loss in numpy float64, straight from the definitions; with finite differences it also gives the gradient."""
  words, codes = (np.asarray(params[name], np.float64) for name in ('words', 'codes'))
  log_softmax = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))
  words, codes = log_softmax(words), log_softmax(codes)
  found = batch['tokens']
  picture = np.asarray(found.modality == layout.CODES)
  text = np.where(picture, 0.0, np.take_along_axis(words, np.asarray(found.text)[..., None], -1)[..., 0])
  each = np.where(picture[..., None], np.take_along_axis(codes, np.asarray(found.codes)[..., None], -1)[..., 0], 0.0)
  if config.code_ratio == 'position':
    current = (text + each.sum(-1))[..., None]
  else:
    current = each + np.where(np.arange(DEPTH) == 0, text[..., None], 0.0)
  mask = np.asarray(unit_mask(found, config.code_ratio), np.float64)
  old, reference = (np.asarray(batch[name], np.float64) for name in ('old', 'reference'))
  log_ratio = (current - old) * mask
  if config.sequence_ratio:
    log_ratio = np.broadcast_to(log_ratio.sum((1, 2), keepdims=True) / mask.sum((1, 2), keepdims=True), mask.shape)
  ratio, advantage = np.exp(log_ratio), np.asarray(batch['advantage'], np.float64)[..., None]
  gain = np.minimum(ratio * advantage, np.clip(ratio, 1 - config.clip_low, 1 + config.clip_high) * advantage)
  if config.dual_clip:
    gain = np.where(advantage < 0, np.maximum(gain, config.dual_clip * advantage), gain)
  d = reference - current
  kl = {'k1': -d, 'k2': d ** 2 / 2, 'k3': np.exp(d) - d - 1, 'none': 0 * d}[config.kl_estimator]
  cost = (-gain + (config.kl if config.kl_place == 'loss' else 0.0) * kl) * mask
  where = [np.broadcast_to(kind[..., None], mask.shape) for kind in (~picture, picture)]
  if config.aggregation == 'sequence':
    value = np.mean(cost.sum((1, 2)) / mask.sum((1, 2)))
  elif config.aggregation == 'token':
    value = cost.sum() / mask.sum()
  elif config.aggregation == 'constant':
    value = cost.sum() / (ROWS * LENGTH)
  else:
    value = 0.5 * sum((cost * kind).sum() / (mask * kind).sum() for kind in where)
  spread = lambda p: -(np.exp(p) * p).sum(-1)
  entropy, weight = np.where(picture, spread(codes).sum(-1), spread(words)), np.asarray(found.loss, np.float64)
  return value - sum(bonus * (entropy * weight * kind).sum() / (weight * kind).sum()
                     for bonus, kind in ((0.3, ~picture), (0.7, picture)))


KINDS = [*itertools.product(('sequence', 'token', 'modality', 'constant'), ('k3',), ('position', 'code')),
         *itertools.product(('sequence',), ('k1', 'k2', 'none'), ('position', 'code'))]
CHOICES = [LossConfig(0.1, 0.2, kl=0.5, kl_estimator=estimator, aggregation=aggregation, code_ratio=code_ratio)
           for aggregation, estimator, code_ratio in KINDS]
CHOICES += [LossConfig(0.1, 0.2, kl=0.5, dual_clip=1.3, aggregation='token'), LossConfig(0.1, 0.3, kl=0.5, kl_place='reward')]


CHOICES += [LossConfig(0.1, 0.2, kl=0.5, sequence_ratio=True)]


@functools.cache
def found():
  """Value and gradient of every choice, from one program: compiling is what takes long."""
  batches = [batch_of(config) for config in CHOICES]
  every = lambda params, batches: [jax.value_and_grad(total_of(c))(params, b) for c, b in zip(CHOICES, batches, strict=True)]
  return jax.jit(every)(case()[0], batches)


@pytest.mark.parametrize('config', CHOICES, ids=lambda c: '-'.join(
    str(v) for v in (c.aggregation, c.kl_estimator, c.code_ratio, c.kl_place, c.dual_clip, c.sequence_ratio)))
def test_value_and_gradient_against_plain_float64(config):
  params, batch = case()[0], batch_of(config)
  value, gradient = found()[CHOICES.index(config)]
  np.testing.assert_allclose(value, expected(config, params, batch), rtol=2e-4, atol=1e-5)
  if config.sequence_ratio:  # each unit has its own gradient there: see below
    return
  rng = np.random.default_rng(3)
  for name in params:  # the slope in a random direction
    way = rng.normal(size=params[name].shape)
    at = lambda size, name=name, way=way: expected(
        config, params | {name: np.asarray(params[name], np.float64) + size * way}, batch)
    np.testing.assert_allclose((gradient[name] * way).sum(), (at(1e-5) - at(-1e-5)) / 2e-5, rtol=2e-3, atol=1e-4)


def test_the_ratio_of_a_sequence_with_one_advantage_has_the_gradient_of_gspo():
  """Where an answer has one advantage, the gradient is that of exp(mean log-ratio) x advantage."""
  config = LossConfig(0.9, 9.0, kl_estimator='none', sequence_ratio=True)
  params, batch = case()[0], batch_of(config)
  batch['advantage'] = jnp.broadcast_to(batch['advantage'][:, :1], batch['advantage'].shape)
  batch['entropy_weight'] = jnp.zeros((ROWS, 2))

  def gspo(params):
    mask = unit_mask(batch['tokens'], 'position')
    log_ratio = (units(*score(params, batch['tokens'])[:2], 'position') - batch['old']) * mask
    return -jnp.mean(jnp.exp(log_ratio.sum((1, 2)) / mask.sum((1, 2))) * batch['advantage'][:, 0])

  for mine, theirs in zip(*(jax.tree.leaves(jax.grad(f)(params)) for f in (lambda p: total_of(config)(p, batch), gspo)),
                          strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_divergence_is_zero_at_the_reference_and_k3_never_negative():
  x = jnp.linspace(-3, 0, 7)
  for estimator in ('k1', 'k2', 'k3'):
    np.testing.assert_allclose(divergence(x, x, estimator), 0.0)
  assert (divergence(x, x[::-1], 'k3') >= 0).all()


def test_what_positions_cost_is_summed_to_the_end():
  old, reference = jnp.array([[[0.0], [-1.0], [-2.0]]]), jnp.array([[[-5.0], [-2.0], [-4.0]]])
  mask = jnp.array([[[0.0], [1.0], [1.0]]])
  np.testing.assert_allclose(penalty_to_go(old, reference, mask, 'k1'), [[3.0, 3.0, 2.0]])


@pytest.mark.parametrize('field, value', [('kl_estimator', 'k9'), ('kl_place', 'both'), ('aggregation', 'mean'),
                                          ('code_ratio', 'pixel'), ('kl', -1), ('dual_clip', 1.1)])
def test_unknown_choices_are_named(field, value):
  with pytest.raises(UserError, match=f'grpo.*{field}'):
    LossConfig(**{field: value})
