"""Log-probs of answers whose group reads its prompt once, against whole rows read one by one."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import Decoder
from intersyn_jax.grpo import scoring
from intersyn_jax.interleave import layout
from intersyn_jax.models.unified import position_log_probs
from tests import small_model

PROMPT, GROUP, LENGTH = 16, 3, 48


@functools.cache
def rows(depth):
  """Three answers of different length to each of two prompts, which are padded on the left."""
  place = small_model.plain(depth)
  documents = []
  for text, seeds in (('a red circle', (0, 1, 2)), ('move the blue square', (3, 4, 5))):
    prompt = layout.stack([layout.prompt(small_model.question(text), place)], PROMPT, left=True)
    for number, seed in enumerate(seeds):
      whole = layout.tokenise(small_model.conversation(place, seed), place)
      begins = layout.answer_begins(whole, 0)
      cut = operator.itemgetter(slice(begins, begins + LENGTH - PROMPT - 5 * number))
      answer = layout.stack([jax.tree.map(cut, whole)], LENGTH - PROMPT)
      position = answer.position + (prompt.position.max() + 1 - answer.position[0, 0]) * (answer.document > 0)
      documents.append(jax.tree.map(lambda a, b: np.concatenate([a, b], axis=1), prompt, answer.replace(position=position)))
  return place, jax.tree.map(lambda *a: np.concatenate(a), *documents)


@functools.cache
def both(depth, remat):
  """Log-probs and entropy, and the gradient of a sum of them with weights of chance: read together, and read one by one."""
  place, tokens = rows(depth)
  definition = small_model.definition(place, remat=remat)
  params = definition.init(jax.random.key(0), small_model.one_device())
  shared = scoring.scorer(Decoder(definition, place, small_model.one_device(), DecodeConfig()), 'plain', PROMPT, chunk=29)

  def alone(params, tokens):
    model = definition.bind(params)
    return position_log_probs(model, model(tokens), tokens)

  real = np.asarray((np.arange(LENGTH) >= PROMPT) & (tokens.document > 0))

  def result(score):
    def total(params):
      found = [jnp.where(real.reshape(*real.shape, *[1] * (a.ndim - 2)), a, 0.0) for a in score(params, tokens)]
      weights = [jax.random.normal(jax.random.key(i), a.shape) for i, a in enumerate(found)]
      return sum(jnp.sum(a * w) for a, w in zip(found, weights, strict=True)), found
    return jax.device_get(jax.jit(jax.grad(total, has_aux=True))(params))

  return result(functools.partial(shared, share=GROUP)), result(alone)


@pytest.mark.parametrize(('depth', 'remat'), [(1, 'full'), (4, 'none')])
def test_a_group_that_reads_its_prompt_once_has_the_same_log_probs_and_gradient(depth, remat):
  (gradient, found), (expected_gradient, expected) = both(depth, remat)
  assert rows(depth)[1].codes[:, PROMPT:].any() and [np.abs(a).max() > 0.5 for a in found] == [True] * 3
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)
  for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, np.abs(b).max()))


def test_answers_of_a_group_do_not_see_one_another():
  place, tokens = rows(1)
  definition = small_model.definition(place)
  params = definition.init(jax.random.key(0), small_model.one_device())
  score = scoring.scorer(Decoder(definition, place, small_model.one_device(), DecodeConfig()), 'plain', PROMPT)
  run = jax.jit(functools.partial(score, share=GROUP))
  changed = jax.tree.map(np.copy, tokens)
  changed.text[1, PROMPT:], changed.codes[1, PROMPT:] = 20, 3
  before, after = run(params, tokens), run(params, changed)
  for a, b in zip(before, after, strict=True):
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_array_equal(np.delete(a, 1, axis=0), np.delete(b, 1, axis=0))
  assert not np.array_equal(before[0][1], after[0][1])


def test_less_is_computed():
  place, tokens = rows(1)
  definition = small_model.definition(place)
  score = scoring.scorer(Decoder(definition, place, small_model.one_device(), DecodeConfig()), 'plain', PROMPT)
  flops = lambda share: jax.jit(functools.partial(score, share=share)).lower(definition.shapes, tokens).cost_analysis()['flops']
  # A third of each row is the prompt, and two of three prompts are not read; heads take as long as before.
  assert flops(GROUP) < 0.9 * flops(1)
