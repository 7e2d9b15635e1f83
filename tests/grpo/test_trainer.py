"""Iterations of GRPO on a small model: agreement of decoder and trainer, filtering, entropy, the reference, resuming."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax import sharding
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import Decoder
from intersyn_jax.errors import UserError
from intersyn_jax.grpo.advantages import AdvantageConfig
from intersyn_jax.grpo.loss import LossConfig
from intersyn_jax.grpo.trainer import GRPOConfig, Trainer
from intersyn_jax.interleave import layout
from intersyn_jax.judge.model import JudgeScores
from intersyn_jax.training import loop
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer
from tests import small_model

WEIGHTS = {'textual': 1.0, 'visual': 1.0, 'format': 0.0, 'own': 1.0}
LENGTH = 16


@functools.cache
def parts(depth):
  place = small_model.plain(depth)
  definition = small_model.definition(place, layers=1)
  params = small_model.eager(definition.init(jax.random.key(0), small_model.one_device()), place, begin=4.0)
  return place, definition, params


def draw(number, depth=1):
  """Two questions, the same ones in every batch."""
  place = parts(depth)[0]
  prompts = [layout.prompt(small_model.question(text), place) for text in ('a red circle', 'move the blue')]
  return layout.stack(prompts, LENGTH, left=True), np.array([2, 2], np.int32)


def even(judge, tokens):
  """A judge with a known taste: even text ids; with `judge` given, the same score for every answer to the first question."""
  chosen = (tokens.loss > 0) & (tokens.modality == layout.TEXT)
  wish = jnp.sum(chosen & (tokens.text % 2 == 0), axis=1) / jnp.maximum(jnp.sum(chosen, axis=1), 1)
  rows = len(wish)
  if judge:
    wish = jnp.where(jnp.arange(rows) < rows // 2, 0.5, wish)
  steps = jnp.broadcast_to(5.0 * wish[:, None, None], (rows, 3, 4))
  return JudgeScores(steps[:, 0], steps, None, jnp.ones(rows, bool))


def trainer(depth=1, group=8, judge=None, rate=0.01, decode=None, loss=None, advantage=None, mesh=None, **fields):
  place, definition, params = parts(depth)
  mesh = mesh or small_model.one_device()
  params = jax.device_put(params, definition.shardings(mesh))
  decoder = Decoder(definition, place, mesh, DecodeConfig(max_positions=24, bucket=8, max_images=2, **(decode or {})))
  optimizer = make_optimizer(OptimizerConfig(name='adamw', learning_rate=rate), 20)
  made = Trainer(decoder, even, judge or {}, optimizer, params, GRPOConfig(LENGTH, **fields),
                 AdvantageConfig(group, WEIGHTS, **(dict(process=False) | (advantage or {}))), LossConfig(**(loss or {})), seed=0)
  return made, loop.init_state(jax.tree.map(jnp.copy, params), optimizer)


@pytest.mark.parametrize('depth, scored, decode', [
    (4, 'drawn', dict(guidance=2.0, text_top_k=40, text_temperature=1.2, image_top_p=0.9)),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        (1, 'plain', {}), (4, 'plain', dict(guidance=2.0)), (1, 'drawn', dict(guidance=2.0, image_temperature=0.8)),
        (1, 'drawn', dict(image_guidance=1.2, guidance=2.0, min_steps=1, max_steps=2))))])
def test_the_first_ratio_is_one_because_decoder_and_trainer_agree(depth, scored, decode):
  made, state = trainer(depth, group=4, decode=decode, scored=scored, log_prob_chunk=37 if depth == 4 else 0)
  _, metrics = made.iteration(state, functools.partial(draw, depth=depth))
  assert metrics['images'] > 0.5
  for name in ('text', 'image'):
    assert 0 < metrics[f'log_ratio.{name}'] < 1e-4 and metrics[f'clipped.{name}'] == 0
    np.testing.assert_allclose(metrics[f'ratio.{name}'], 1.0, atol=1e-4)


def test_reward_moves_the_policy_and_later_updates_leave_ratio_one():
  made, state = trainer(inner_epochs=2, minibatches=2, loss=dict(kl_estimator='none', sequence_ratio=True))
  history = []
  for _ in range(10):
    state, metrics = made.iteration(state, draw)
    history.append(metrics)
  reward = [m['reward.visual'] for m in history]
  assert np.mean(reward[-3:]) > np.mean(reward[:3]) + 0.05
  assert 10 * max(m['ratio_variance.text'] for m in history) < min(m['last.ratio_variance.text'] for m in history[1:])
  assert made.reference is None and 'kl' not in history[0]


@functools.cache
def filtering():
  """A trainer in which every answer to the first question has the same score."""
  return trainer(group=4, judge={'same': jnp.ones(())}, filter_groups=True, refills=2, micro_batches=2)


def test_groups_without_spread_are_left_out_and_refilled():
  made, state = filtering()
  given = []
  update = made._update
  made._update = lambda state, batch, key: given.append(batch) or update(state, batch, key)
  state, metrics = made.iteration(state, draw)
  made._update = update
  # Of each batch of two groups the second one is useful, so two batches fill an update.
  assert made.memory['drawn'] == 2 and metrics['rollouts'] == 16 and metrics['zero_spread'] == 0.5
  rows = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), given[0]['tokens'])
  assert rows.text.shape[0] == 8 and (np.asarray(rows.loss).sum(1) > 0).all()
  second = draw(0)[0].text[1]
  assert (np.asarray(rows.text)[:, :LENGTH] == second).all()
  assert len({row.tobytes() for row in np.asarray(rows.text)}) > 4  # drawn anew, not the first ones again


def test_where_too_few_groups_have_spread_the_rest_of_the_update_has_no_weight():
  made, _ = filtering()
  chosen, counts = made._rows([np.array([1]), np.array([], int)], 2)
  assert chosen.tolist() == [1, 0] and counts.tolist() == [True, False]
  tokens = layout.stack([layout.prompt(small_model.question('a red'), parts(1)[0])] * 16, LENGTH)
  tokens = tokens.replace(loss=np.ones_like(tokens.loss), text=np.repeat(np.arange(16, dtype=np.int32), LENGTH).reshape(16, -1))
  halves = [jax.tree.map(lambda a, part=part: jnp.asarray(a[part]), tokens) for part in (slice(0, 8), slice(8, 16))]
  found = made._choose([{'tokens': half} for half in halves], chosen, counts)['tokens']
  assert found.text[:, 0].tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
  assert found.loss.sum(1).tolist() == [LENGTH] * 4 + [0] * 4


def test_entropy_is_steered_towards_its_target():
  made, state = trainer(group=4, rate=0.02, entropy={'text': 9.0, 'rate': 0.5}, loss=dict(kl_estimator='none'))
  entropies = []
  for number in range(6):
    state, metrics = made.iteration(state, draw)
    entropies.append(metrics['entropy.text'])
    assert made.memory['entropy'] == [0.5 * (number + 1), 0.0]  # images have no target
  assert entropies[-1] > entropies[1]
  for _ in range(7):  # above its target the weight falls, but never below 0
    made._steer_entropy({'entropy.text': 9.5})
  assert made.memory['entropy'] == [0.0, 0.0]


def test_a_penalty_in_the_reward_lowers_advantages_and_leaves_the_loss():
  """With raw rewards of 0, all that is left of the advantage is the divergence from here to the end."""
  made, _ = trainer(group=4, loss=dict(kl=0.5, kl_estimator='k1', kl_place='reward'),
                    advantage=dict(process=True, process_normalise='none'))
  _, _, params = parts(1)
  made.advantage = AdvantageConfig(4, dict.fromkeys(WEIGHTS, 0.0), process_normalise='none')
  other = jax.tree.map(lambda a: a * 1.3, params)
  sample = made._sample({'params': other}, draw)
  tokens, old, reference, advantage = (np.asarray(x, np.float64) for x in (
      sample.batch['tokens'].loss, sample.batch['old'][..., 0], sample.batch['reference'][..., 0], sample.batch['advantage']))
  cost = (old - reference) * tokens
  assert np.abs(cost).max() > 0.1
  np.testing.assert_allclose(advantage, -0.5 * np.cumsum(cost[:, ::-1], axis=1)[:, ::-1], atol=1e-4)


@pytest.mark.slow
def test_an_iteration_on_eight_devices_is_that_on_one():
  losses = []
  for mesh in (small_model.one_device(), sharding.make_mesh({'fsdp': 4, 'tensor': 2}, jax.devices()[:8])):
    made, state = trainer(4, group=4, mesh=mesh, rate=1e-3)
    for _ in range(2):
      state, metrics = made.iteration(state, functools.partial(draw, depth=4))
    losses.append([metrics[name] for name in ('loss', 'reward', 'entropy.image', 'gradient_norm')])
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_prompts_of_a_group_are_read_once_however_an_update_is_split():
  """Groups of four are read whole, by halves, or answer by answer where micro-batches are as small; the numbers stay the same."""
  found = []
  for count, share in ((2, 4), (4, 2), (8, 1)):
    made, state = trainer(4, group=4, micro_batches=count, minibatches=1)
    made.reference = jax.tree.map(lambda a: a * 1.1, made.reference)
    assert made._in_sets(np.zeros((8, LENGTH))).shape == (8 // share, share, LENGTH)
    _, metrics = made.iteration(state, functools.partial(draw, depth=4))
    found.append([metrics[name] for name in ('loss', 'kl.text', 'kl.image', 'entropy.image', 'gradient_norm')])
  assert min(found[0][1:]) > 1e-3
  np.testing.assert_allclose(found, [found[2]] * 3, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('fields, words', [
    (dict(scored='guided'), 'grpo.scored'), (dict(minibatches=0), 'grpo.minibatches'), (dict(refills=1), 'grpo.filter_groups'),
    (dict(scored='drawn', decode=dict(image_temperature=0.0)), 'temperatures must be above 0')])
def test_wrong_choices_are_named(fields, words):
  with pytest.raises(UserError, match=words):
    trainer(**fields)
