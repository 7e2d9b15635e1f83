"""GRPO: rewards by the format rule, advantages by hand, the loss against plain float64, agreement with the decoder."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax import sharding
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import Decoder
from intersyn_jax.errors import UserError
from intersyn_jax.grpo import advantages, rewards
from intersyn_jax.grpo.loss import LossConfig, divergence, make_loss, unit_mask, units
from intersyn_jax.grpo.trainer import GRPOConfig, Trainer
from intersyn_jax.interleave import grammar, layout
from intersyn_jax.interleave.text import TextTokenizer
from intersyn_jax.interleave.types import Conversation, Text, Turn
from intersyn_jax.judge.model import JudgeScores
from intersyn_jax.models import unified
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.training import loop
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer

WEIGHTS = {'textual': 1.0, 'visual': 1.0, 'format': 1.0}


@functools.cache
def _parts(depth):
  tokenizer = TextTokenizer.train(['draw a red circle in two pictures'] * 5, 300)
  place = layout.plain_layout(tokenizer, places=4, depth=depth, codebook=8)
  config = unified.ModelConfig(TrunkConfig(16, 2, 2, 1, 8, 32), tokenizer.size, 4, depth, 8, mix=3,
                               image_head='flat' if depth == 1 else 'residual')
  definition = unified.define(config)
  mesh = sharding.make_mesh({'fsdp': 1}, jax.devices()[:1])
  params = definition.init(jax.random.key(0), mesh)
  # Larger weights than at the start, so that text and images both occur and log-probs differ.
  params = jax.tree.map(lambda a: a * 3.0, params)
  return place, definition, mesh, params


def _batch(place, rows, seed=0):
  """Rows of random positions in which a loss can be computed."""
  rng = np.random.default_rng(seed)
  shape = (rows, 10)
  modality = np.where(rng.random(shape) < 0.5, layout.CODES, layout.TEXT).astype(np.int8)
  depth = place.block.depth
  codes = rng.integers(0, 8, (*shape, depth)) * (modality == layout.CODES)[..., None]
  zero = np.zeros(shape, np.int32)
  loss = (rng.random(shape) < 0.7).astype(np.float32)
  loss[:, 0] = 0
  return layout.TokenBatch(
      text=np.where(modality == layout.TEXT, rng.integers(11, 200, shape), 0).astype(np.int32), codes=codes.astype(np.int32),
      modality=modality, loss=loss, forced=zero > 0, document=zero + 1, position=zero + np.arange(10, dtype=np.int32),
      turn=zero, step=zero - 1)


@functools.cache
def _log_probs(depth):
  place, definition, _, params = _parts(depth)
  tokens = _batch(place, 3)
  model = definition.bind(params)
  return jax.jit(lambda: unified.position_log_probs(model, model(tokens), tokens)[:2])()


@pytest.mark.parametrize('question, asked', [
    ('show a red circle . use two pictures .', 2), ('Draw 3 images of it', 3), ('one picture , please', 1),
    ('what is this ?', 0), ('twenty pictures', 0)])
def test_asked_steps(question, asked):
  assert rewards.asked_steps(question) == asked


def test_structure_reward_needs_format_and_number_of_steps():
  parse = grammar.Parse(None, None, None, steps=jnp.array([2, 1, 2]), well_formed=jnp.array([True, True, False]))
  got = rewards.hybrid(jnp.ones((3, 3, 4)), jnp.ones((3, 4)), jnp.ones(3, bool), parse, jnp.array([2, 2, 2]))
  np.testing.assert_array_equal(got.structure, [1, 0, 0])
  np.testing.assert_array_equal(got.counts, [[True, True, False]] * 3)
  free = rewards.hybrid(jnp.ones((3, 3, 4)), jnp.ones((3, 4)), jnp.ones(3, bool), parse, jnp.zeros(3, int))
  np.testing.assert_array_equal(free.structure, [1, 1, 0])
  np.testing.assert_allclose(free.textual, 0.2)


def test_process_advantage_by_hand_and_stopping_early_does_not_pay():
  # Two answers of two steps asked for. The first writes both well, the second stops after an equally good first step.
  textual = jnp.array([[1.0, 1.0], [1.0, 0.0]])
  got = rewards.Rewards(textual, textual, None, jnp.array([1.0, 0.0]), jnp.ones((2, 2), bool), jnp.ones(2, bool))
  parse = grammar.Parse(None, jnp.array([[1, 5], [1, -1]]), jnp.array([[3, 7], [3, -1]]), None, None)
  last = jnp.array([8, 4])
  found = advantages.process(got, parse, last, 10, WEIGHTS, group=2, scale='none', per_step=False)
  # Means over all steps of the group: 0.75 for both parts, 0.5 for the format.
  full = np.zeros(10)
  for value, where in ((0.25, 1), (0.25, 3), (0.25, 5), (0.25, 7), (0.5, 8)):
    full[:where + 1] += value
  short = np.zeros(10)
  for value, where in ((0.25, 1), (0.25, 3), (-0.75, 4), (-0.75, 4), (-0.5, 4)):
    short[:where + 1] += value
  np.testing.assert_allclose(found, [full, short], atol=1e-6)
  assert found[1, 4] < 0 < found[0, 4]
  same = advantages.process(got, parse, last, 10, WEIGHTS, group=2, scale='none', per_step=True)
  # The same step of the group: the first is alike in both and pays nothing.
  np.testing.assert_allclose(same[:, 4], [0.5 + 0.5 + 0.5, -1.5], atol=1e-6)


@pytest.mark.parametrize('scale, expected', [('none', [0.5, -0.5, 0, 0]), ('group', [1, -1, 0, 0]),
                                             ('batch', [2 ** 0.5, -(2 ** 0.5), 0, 0])])
def test_outcome_advantage(scale, expected):
  whole = jnp.array([[1.0, 0], [0, 0], [0.5, 0], [0.5, 0]])
  got = rewards.Rewards(None, None, whole, jnp.zeros(4), None, jnp.ones(4, bool))
  np.testing.assert_allclose(advantages.outcome(got, WEIGHTS, 2, scale), expected, atol=2e-3)


def test_an_answer_the_judge_could_not_score_moves_nobody():
  whole = jnp.array([[1.0, 0], [0.2, 0], [99.0, 0], [0.6, 0]])
  valid = jnp.array([True, True, False, True])
  got = rewards.Rewards(None, None, whole, jnp.zeros(4), None, valid)
  np.testing.assert_allclose(advantages.outcome(got, WEIGHTS, 4, 'none'), [0.4, -0.4, 0, 0], atol=1e-6)


@pytest.mark.parametrize('depth, aggregation, estimator, code_ratio', [
    *((4, *rest) for rest in itertools.product(('sequence', 'token', 'modality', 'constant'), ('k1', 'k2', 'k3'),
                                               ('position', 'code')))])
def test_loss_against_plain_float64(depth, aggregation, estimator, code_ratio):
  place, definition, _, params = _parts(depth)
  tokens = _batch(place, 3)
  config = LossConfig(0.1, 0.2, 0.5, estimator, aggregation, code_ratio)
  loss, weights = make_loss(definition, config)
  text, codes = _log_probs(depth)
  current = np.asarray(units(text, codes, code_ratio), np.float64)
  rng = np.random.default_rng(1)
  old, reference = (current + rng.normal(0, 0.3, current.shape) for _ in range(2))
  advantage = rng.normal(size=tokens.text.shape)
  batch = {'tokens': tokens, 'old': jnp.asarray(old, jnp.float32), 'reference': jnp.asarray(reference, jnp.float32),
           'advantage': jnp.asarray(advantage, jnp.float32)}
  pairs = jax.jit(loss)(params, batch, jax.random.key(0))
  found = sum(weight * pairs[name][0] / pairs[name][1] for name, weight in weights.items())

  mask = np.asarray(unit_mask(tokens, code_ratio), np.float64)
  ratio = np.exp(current - old)
  gain = np.minimum(ratio * advantage[..., None], np.clip(ratio, 0.9, 1.2) * advantage[..., None])
  d = reference - current
  kl = {'k1': -d, 'k2': d ** 2 / 2, 'k3': np.exp(d) - d - 1}[estimator]
  each = (-gain + 0.5 * kl) * mask
  if aggregation == 'sequence':
    expected = np.mean(each.sum((1, 2)) / mask.sum((1, 2)))
  elif aggregation == 'token':
    expected = each.sum() / mask.sum()
  elif aggregation == 'constant':
    expected = each.sum() / (3 * 10)
  else:
    picture = (tokens.modality == layout.CODES)[..., None]
    expected = 0.5 * sum((each * where).sum() / (mask * where).sum() for where in (picture, ~picture))
  np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)


def test_divergence_is_zero_at_the_reference_and_k3_never_negative():
  x = jnp.linspace(-3, 0, 7)
  for estimator in ('k1', 'k2', 'k3'):
    np.testing.assert_allclose(divergence(x, x, estimator), 0.0)
  assert (divergence(x, x[::-1], 'k3') >= 0).all()


@pytest.mark.parametrize('field, value', [('kl_estimator', 'k9'), ('aggregation', 'mean'), ('code_ratio', 'pixel'), ('kl', -1)])
def test_unknown_choices_are_named(field, value):
  with pytest.raises(UserError, match=f'grpo.*{field}'):
    LossConfig(**{field: value})


@pytest.mark.parametrize('depth', [1, 4])
def test_first_ratio_is_one_because_decoder_and_trainer_agree_and_reward_moves_the_policy(depth):
  place, definition, mesh, params = _parts(depth)
  decoder = Decoder(definition, place, mesh, DecodeConfig(max_positions=40, bucket=8))
  question = Conversation('q', '', (Turn((Text('draw a red circle in two pictures'),)),))
  document = layout.prompt(question, place)
  prompts = layout.stack([document, document], 16, left=True)

  def score(judge, tokens):
    # A stand-in judge with a known taste: even text ids.
    chosen = (tokens.loss > 0) & (tokens.modality == layout.TEXT)
    wish = jnp.sum(chosen & (tokens.text % 2 == 0), axis=1) / jnp.maximum(jnp.sum(chosen, axis=1), 1)
    steps = jnp.broadcast_to(5.0 * wish[:, None, None], (tokens.text.shape[0], 3, 4))
    return JudgeScores(steps[:, 0], steps, None, jnp.ones(tokens.text.shape[0], bool))

  optimizer = make_optimizer(OptimizerConfig(name='adamw', learning_rate=0.01), 5)
  config = GRPOConfig(8, WEIGHTS, process=False)
  trainer = Trainer(decoder, score, {}, optimizer, params, config, LossConfig(kl=0.0), seed=0)
  state = loop.init_state(jax.tree.map(jnp.copy, params), optimizer)
  history = []
  for number in range(12):
    state, metrics = trainer.iteration(state, number, prompts, np.array([2, 2], np.int32))
    history.append(metrics)
  assert max(m[f'log_ratio.{name}'] for m in history for name in ('text', 'image')) < 1e-4
  assert all(m['clipped.text'] == 0 for m in history)
  assert np.mean([m['reward.visual'] for m in history[-3:]]) > np.mean([m['reward.visual'] for m in history[:3]])
