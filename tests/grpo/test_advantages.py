"""Rewards by the format rule, and advantages against cases computed by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.grpo import advantages, rewards
from intersyn_jax.grpo.advantages import AdvantageConfig
from intersyn_jax.interleave import grammar

WEIGHTS = {'textual': 1.0, 'visual': 1.0, 'format': 1.0, 'own': 1.0}


def plain(group=2, **fields):
  return AdvantageConfig(group, WEIGHTS, advantage_scale='none', **fields)


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


# Two answers of two steps asked for. The first writes both well, the second stops after an equally good first step.
TEXTUAL = jnp.array([[1.0, 1.0], [1.0, 0.0]])
SHORT = rewards.Rewards(TEXTUAL, TEXTUAL, None, jnp.array([1.0, 0.0]), jnp.ones((2, 2), bool), jnp.ones(2, bool))
PARSE = grammar.Parse(None, jnp.array([[1, 5], [1, -1]]), jnp.array([[3, 7], [3, -1]]), None, None)
LAST = jnp.array([8, 4])


def paid(*pairs):
  """Return-to-go [10] of (value, where it is paid)."""
  out = np.zeros(10)
  for value, where in pairs:
    out[:where + 1] += value
  return out


def test_process_advantage_by_hand_and_stopping_early_does_not_pay():
  found = advantages.process(SHORT, PARSE, LAST, 10, plain())
  # Means over all steps of the group: 0.75 for both parts, 0.5 for the format.
  np.testing.assert_allclose(found, [paid((0.25, 1), (0.25, 3), (0.25, 5), (0.25, 7), (0.5, 8)),
                                     paid((0.25, 1), (0.25, 3), (-0.75, 4), (-0.75, 4), (-0.5, 4))], atol=1e-6)
  assert found[1, 4] < 0 < found[0, 4]


def test_the_same_step_of_the_group_is_compared():
  found = advantages.process(SHORT, PARSE, LAST, 10, plain(process_normalise='step'))
  # The first step is alike in both and pays nothing.
  np.testing.assert_allclose(found[:, 4], [0.5 + 0.5 + 0.5, -1.5], atol=1e-6)


def test_raw_step_rewards():
  found = advantages.process(SHORT, PARSE, LAST, 10, plain(process_normalise='none'))
  np.testing.assert_allclose(found, [paid((1, 1), (1, 3), (1, 5), (1, 7), (1, 8)), paid((1, 1), (1, 3))], atol=1e-6)


def test_step_rewards_of_all_kinds_as_one_set():
  dull = SHORT._replace(visual=SHORT.visual * 0.5)
  found = advantages.process(dull, PARSE, LAST, 10, plain(reward_normalise='together'))
  # One mean for both kinds: (1 + 1 + 1 + 0 + 0.5 + 0.5 + 0.5 + 0) / 8.
  mean = 4.5 / 8
  np.testing.assert_allclose(found[0], paid((1 - mean, 1), (0.5 - mean, 3), (1 - mean, 5), (0.5 - mean, 7), (0.5, 8)), atol=1e-6)
  apart = advantages.process(dull, PARSE, LAST, 10, plain())
  np.testing.assert_allclose(apart[0], paid((0.25, 1), (0.125, 3), (0.25, 5), (0.125, 7), (0.5, 8)), atol=1e-6)


def test_a_whole_answer_with_more_steps_is_not_paid_for_their_number():
  """Normalised over the group's steps, equal steps are worth 0, however many."""
  equal = rewards.Rewards(jnp.full((2, 2), 0.7), jnp.full((2, 2), 0.7), None, jnp.ones(2),
                          jnp.array([[True, True], [True, False]]), jnp.ones(2, bool))
  np.testing.assert_allclose(advantages.process(equal, PARSE, LAST, 10, plain()), 0.0, atol=1e-6)


@pytest.mark.parametrize('scale, expected', [('none', [0.5, -0.5, 0, 0]), ('group', [1, -1, 0, 0]),
                                             ('batch', [2 ** 0.5, -(2 ** 0.5), 0, 0])])
def test_outcome_advantage(scale, expected):
  whole = jnp.array([[1.0, 0], [0, 0], [0.5, 0], [0.5, 0]])
  got = rewards.Rewards(None, None, whole, jnp.zeros(4), None, jnp.ones(4, bool))
  config = AdvantageConfig(2, WEIGHTS, process=False, advantage_scale=scale)
  np.testing.assert_allclose(advantages.outcome(got, config), expected, atol=2e-3)


def test_rewards_of_an_outcome_are_scaled_apart_or_together():
  whole = jnp.array([[1.0, 0.1], [0.0, 0.0]])
  got = rewards.Rewards(None, None, whole, jnp.zeros(2), None, jnp.ones(2, bool))
  config = lambda how: AdvantageConfig(2, WEIGHTS, process=False, reward_normalise=how)
  np.testing.assert_allclose(advantages.outcome(got, config('together')), [1, -1], atol=1e-3)
  np.testing.assert_allclose(advantages.outcome(got, config('each')), [2, -2], atol=5e-3)  # the small one counts as much


def test_an_answer_the_judge_could_not_score_moves_nobody():
  whole = jnp.array([[1.0, 0], [0.2, 0], [99.0, 0], [0.6, 0]])
  got = rewards.Rewards(None, None, whole, jnp.zeros(4), None, jnp.array([True, True, False, True]))
  config = plain(4, process=False)
  np.testing.assert_allclose(advantages.outcome(got, config), [0.4, -0.4, 0, 0], atol=1e-6)
  np.testing.assert_allclose(advantages.spread(got, config), [np.std([1.0, 0.2, 0.6])], atol=1e-6)


def test_spread_is_of_what_the_advantage_compares():
  same_whole = SHORT._replace(whole=jnp.ones((2, 2)), structure=jnp.ones(2))
  assert advantages.spread(same_whole, plain(process=False))[0] == 0
  assert advantages.spread(same_whole, plain())[0] > 0.4


@pytest.mark.parametrize('field', ['process_normalise', 'reward_normalise', 'advantage_scale'])
def test_unknown_choices_are_named(field):
  with pytest.raises(UserError, match=f'grpo.{field}'):
    AdvantageConfig(2, WEIGHTS, **{field: 'mean'})


def test_a_group_of_one_has_nothing_to_compare():
  with pytest.raises(UserError, match='grpo.group_size'):
    AdvantageConfig(1, WEIGHTS)
