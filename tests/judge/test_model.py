"""Heads, start from a policy, and that one causal pass scores every step as if nothing followed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn
from intersyn_jax.judge import matching, model
from intersyn_jax.judge.views import Widths
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.unified import ModelConfig
from intersyn_jax.models.unified import define as define_policy
from tests import small_model as small


def config_of(layout_, layers=3):
  block = layout_.block
  return ModelConfig(TrunkConfig(32, layers, 4, 2, 8, 64), layout_.tokenizer.size, block.places, 1, block.codebook, mix=4)


@pytest.fixture(scope='module')
def judge():
  plain = small.plain()
  bound = model.SynJudge.of(config_of(plain), plain, dict(layers=2, reader=1, widths=dict(tcc=48, icc=48, its=72), max_steps=2))
  params = bound.definition.init(jax.random.key(1), small.one_device())
  return bound, params | {'score_head': params['score_head'] * 50}


def compiled(judge, of=lambda module, *args: module(*args)):
  """A function of the bound judge and more, compiled: run one operation at a time, each would be compiled by itself."""
  bound, params = judge
  program = jax.jit(lambda params, *args: of(bound.definition.bind(params), *args))
  return lambda *args: program(params, *args)


def conversation(steps):
  plain = small.plain()
  segments = tuple(s for i in range(steps) for s in (Text(('a red circle', 'move')[i]), small.image(plain, i)))
  return Conversation('c', 't', (Turn((Text('the blue square'),), segments),))


def two_answers(judge):
  """Views of an answer of one step and of one of two."""
  bound, _ = judge
  return jax.jit(bound.cut)(layout.stack([layout.tokenise(conversation(n), bound.layout) for n in (1, 2)], 64))


def test_steps_are_scored_as_if_nothing_followed(judge):
  bound, params = judge
  batch = layout.stack([layout.tokenise(conversation(n), bound.layout) for n in (1, 2)], 64)
  scores = bound.jitted(params, batch)
  np.testing.assert_allclose(scores.steps[0, 0], scores.steps[1, 0], atol=1e-5)
  assert np.abs(scores.whole[0] - scores.whole[1]).min() > 1e-4
  np.testing.assert_allclose(scores.whole[:, 2], [scores.steps[0, 0, 2], scores.steps[1, :, 2].mean()], atol=1e-6)


def test_whole_is_the_forward_of_the_view_alone(judge):
  """The view written by hand, through backbone and head by itself."""
  bound, params = judge
  found = bound.jitted(params, layout.stack([layout.tokenise(conversation(2), bound.layout)], 64))
  module = bound.definition.bind(params)
  context = Turn((Text('the blue square'),), (small.image(bound.layout, 0), small.image(bound.layout, 1)))
  icc = layout.tokenise(Conversation('c', 't', (context,)), bound.layout)  # pictures alone have no tags
  alone = layout.stack([icc], len(icc.text))
  begins = (alone.text == bound.layout.block.begin) & (alone.modality == layout.TEXT) & ~alone.forced
  inside = begins | alone.forced | (alone.modality == layout.CODES)
  hidden = compiled(judge)(alone.replace(step=np.where(inside, np.cumsum(begins, axis=1) - 1, -1))).hidden
  np.testing.assert_allclose(model.expectation(module.logits(hidden)[0, -1, 1]), found.whole[0, 1], atol=1e-5)


def test_narrow_views_give_the_same_scores(judge):
  bound, params = judge
  document = layout.tokenise(conversation(2), bound.layout)
  prompt = len(layout.prompt(conversation(2), bound.layout).text)
  batch = layout.stack([document], 64)
  narrow = bound.within(prompt, len(document.text) - prompt)
  assert narrow.widths.icc < bound.widths.icc
  scores = narrow.jitted(params, batch)
  assert scores.valid.all()
  np.testing.assert_allclose(scores.whole, bound.jitted(params, batch).whole, atol=1e-5)


def test_logits_fall_and_the_score_is_their_expectation(judge):
  bound, params = judge
  module = bound.definition.bind(params)
  logits = module.logits(jax.random.normal(jax.random.key(0), (50, 32)) * 5)
  assert logits.shape == (50, 4, 5) and bool((jnp.diff(logits, axis=-1) <= 0).all())
  score = model.expectation(jnp.array([100.0, 100.0, 0.0, -100.0, -100.0]))
  np.testing.assert_allclose(score, 2.5)


def test_cross_entropy_is_least_at_the_label():
  """Label 2.25: targets 1, 1, 0.25, 0, 0."""
  best = jnp.array([20.0, 20.0, np.log(0.25 / 0.75), -20.0, -20.0])
  label = jnp.array(2.25)
  entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
  np.testing.assert_allclose(model.cross_entropy(best, label), entropy, atol=1e-4)
  np.testing.assert_allclose(jax.grad(lambda x: model.cross_entropy(x, label))(best), 0.0, atol=1e-6)


def test_start_from_a_policy():
  plain = small.plain()
  policy = define_policy(config_of(plain)).init(jax.random.key(5), small.one_device())
  definition = model.define(config_of(plain), 2, 1)
  fresh = definition.init(jax.random.key(6), small.one_device())
  params = model.init_from(policy, fresh)
  assert jax.tree.structure(params) == jax.tree.structure(fresh)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh)
  ours, theirs = params['backbone'], policy['backbone']
  np.testing.assert_array_equal(ours['image_embedding']['code_embedding'], theirs['image_embedding']['code_embedding'])
  np.testing.assert_array_equal(ours['trunk']['layers']['up_kernel'], theirs['trunk']['layers']['up_kernel'][:2])
  np.testing.assert_array_equal(params['score_head'], fresh['score_head'])
  # the comparison starts as the logit of what was written
  np.testing.assert_array_equal(params['expected_code_embedding'], policy['image_head']['head'].T)
  np.testing.assert_array_equal(params['expected_text_embedding'], policy['text_head'].T)


def test_start_from_a_policy_whose_heads_are_its_embeddings():
  config = dataclasses.replace(config_of(small.plain()), tied=True, image_embedding='table')
  rng = np.random.default_rng(7)
  drawn = lambda shapes: jax.tree.map(lambda s: rng.standard_normal(s.shape), shapes)
  policy = drawn(define_policy(config).shapes)
  params = model.init_from(policy, drawn(model.define(config, 2, 1).shapes))
  np.testing.assert_array_equal(params['expected_text_embedding'], policy['backbone']['text_embedding'].astype(np.float32))
  np.testing.assert_array_equal(params['expected_code_embedding'],
                                policy['backbone']['image_embedding']['code_embedding'].astype(np.float32))


def test_prior_says_how_labels_are_spread(judge):
  bound, params = judge
  labels = [np.array([5.0, 5.0, 4.0, 2.5, np.nan]), np.array([0.0, 5.0]), np.full(3, np.nan), np.array([1.0, 2.0, 3.0])]
  params = model.with_prior(params, labels)
  scores = model.expectation(bound.definition.bind(params).logits(jnp.ones((32,))))
  np.testing.assert_allclose(scores[:2], [4.125, 2.5], atol=0.15)
  np.testing.assert_allclose(scores[3], 2.0, atol=0.06)


def test_too_many_layers_is_the_users_mistake():
  with pytest.raises(UserError, match=r'judge.layers is 4; the model has 3'):
    model.define(config_of(small.plain()), 4, 1)
  with pytest.raises(UserError, match='judge.widths.icc'):
    Widths(10, 1, 10)


def test_sums_of_marks_are_those_of_the_document_and_of_the_latest_picture():
  """Two packed documents; the second has two pictures of two codes, each closed by a forced token."""
  codes, text, forced = layout.CODES, layout.TEXT, True
  modality = np.array([[text, codes, codes, text, text, codes, codes, text, text, codes, codes, text, text]], np.int8)
  closed = np.isin(np.arange(13), [3, 7, 11])[None] & forced
  position = np.array([[0, 1, 2, 3, *range(9)]])
  fields = dict.fromkeys(('text', 'codes', 'loss', 'turn', 'step', 'document'), jnp.zeros((1, 13), jnp.int32))
  batch = layout.TokenBatch(**fields, modality=jnp.asarray(modality), forced=jnp.asarray(closed), position=jnp.asarray(position))
  marked = jnp.asarray(np.arange(1.0, 14.0)[None, :, None] * [1.0, 10.0])
  found = np.asarray(model.sums(batch, marked))
  pictures, texts, latest, before = found[0, :, ::2].T
  np.testing.assert_allclose(found[0, :, 1::2], 10 * found[0, :, ::2], rtol=1e-5)
  np.testing.assert_allclose(pictures, [0, 2, 5, 5, 0, 6, 13, 13, 13, 23, 34, 34, 34])
  np.testing.assert_allclose(texts, [1, 1, 1, 1, 5, 5, 5, 5, 14, 14, 14, 14, 27])
  np.testing.assert_allclose(latest, [0, 2, 5, 5, 0, 6, 13, 13, 13, 10, 21, 21, 21])
  np.testing.assert_allclose(before, [0, 1, 1, 1, 0, 5, 5, 5, 5, 9, 9, 9, 9])


def test_steps_are_counted_anew_in_each_document():
  step = np.array([[-1, 0, -1, 0, 0, 1, -1, -1, 0, *range(1, 10), -1]])
  document = np.array([[1, 1, 2, 2, 2, 2, 2, 3, 3, *[3] * 9, 0]])
  batch = layout.stack([layout.tokenise(conversation(1), small.plain())], 64).replace(step=step, document=document)
  most = model.STEPS - 1
  np.testing.assert_array_equal(model.begun(batch)[0, :-1], [0, 1, 0, 1, 1, 2, 2, 0, *np.minimum(np.arange(1, 11), most)])


def test_counts_tell_whole_numbers_apart():
  found = np.asarray(model.counts(jnp.asarray([[0.0, 2.5]]))).reshape(2, 1 + model.COUNTED)
  np.testing.assert_allclose(found, [[0, 0, 0, 0, 0], [np.log(3.5), 1, 1, 0.5, 0]], atol=1e-6)


def test_matches_are_of_words_and_picture_of_the_same_step(judge):
  """A change of a question, of another step's words or picture changes nothing; one of the step's own does."""
  bound, plain = judge[0], small.plain()
  cut, match = jax.jit(bound.cut), compiled(judge, lambda module, tokens: module.matching(tokens))

  def matches(question, *steps):
    segments = tuple(s for text, picture in steps for s in (Text(text), *([small.image(plain, picture)] if picture >= 0 else [])))
    batch = layout.stack([layout.tokenise(Conversation('c', 't', (Turn((Text(question),), segments),)), bound.layout)], 96)
    view = cut(batch).its.tokens
    found, view = np.asarray(match(view))[0], jax.tree.map(lambda a: np.asarray(a)[0], view)
    word = (view.modality == layout.TEXT) & ~view.forced & (view.step >= 0) & (view.text != bound.layout.block.begin)
    assert (found[~word] == matching.NOTHING).all()
    return [found[word & (view.step == step)] for step in range(len(steps))]

  base = matches('the blue square', ('a red circle', 0), ('move', 1))
  for same in (matches('a red circle', ('a red circle', 0), ('move', 1)),
               matches('the blue square', ('a red circle', 0), ('blue', 2))):
    np.testing.assert_allclose(same[0], base[0], atol=1e-4)
  claimed, denied = np.moveaxis(np.abs(matches('the blue square', ('a red circle', 2), ('move', 1))[0] - base[0]), -1, 0)
  assert claimed.max() == 0 and denied.min() > 1e-5
  claimed, denied = np.moveaxis(np.abs(matches('the blue square', ('a blue circle', 0), ('move', 1))[0] - base[0]), -1, 0)
  assert claimed.max() > 1e-3 and denied.max() > 1e-3
  alone, = matches('the blue square', ('a red circle', -1))
  assert (alone[:, 1] == matching.NOTHING).all() and (alone[:, 0] > matching.NOTHING).all()


def test_what_is_matched_is_where_the_words_say(judge):
  """One word is given the code and the place that it asks for, by hand: denied less where the code stands at that place, and not
  anywhere else."""
  bound, params = judge
  plain = small.plain()
  cut = jax.jit(bound.cut)
  zero = jax.tree.map(jnp.zeros_like, params['matching'])
  shown = small.image(plain, 0)

  def view_of(codes):
    turn = Turn((Text('one'),), (Text('a red'), Image(codes=codes)))
    return cut(layout.stack([layout.tokenise(Conversation('c', 't', (turn,)), plain)], 48)).its.tokens

  at = int(np.flatnonzero(np.asarray(view_of(shown.codes).step)[0] >= 0)[1])  # behind the tag
  word = int(view_of(shown.codes).text[0, at])
  place, code = 2, int(shown.codes[2, 0])
  one = jnp.zeros(matching.WIDTH).at[0].set(20.0)
  other = jnp.zeros(matching.WIDTH).at[1].set(20.0)
  here = matching.REACH - 1
  made = zero | {
      'word_embedding': zero['word_embedding'].at[word].set(one + other),
      'distance_embedding': zero['distance_embedding'].at[here, :, :matching.WIDTH].set(jnp.eye(matching.WIDTH)),
      'code_embedding': zero['code_embedding'].at[code].set(one),
      'place_embedding': zero['place_embedding'].at[place].set(other)}
  match = compiled((bound, params | {'matching': made}), lambda module, tokens: module.matching(tokens))

  def denied(codes):
    return float(match(view_of(codes))[0, at, model.DENIED - model.CLAIMED])

  moved = np.roll(shown.codes, 1, axis=0)
  assert code not in np.delete(shown.codes, place, axis=0) and moved[place, 0] != code
  assert denied(shown.codes) < denied(moved) - 10


def test_phrases_are_of_the_words_before_in_the_same_document(judge):
  bound, read = judge[0], compiled(judge, lambda module, tokens: module.matching.phrases(tokens))
  words = np.arange(30, 50)

  def phrases(words, modality=layout.TEXT, second=0):
    batch = jax.tree.map(lambda a: np.asarray(a)[:, :20], layout.stack([layout.tokenise(conversation(1), bound.layout)], 64))
    document = np.where(np.arange(20) < second, 1, 2)[None]
    return np.asarray(read(batch.replace(
        text=words[None], modality=np.full((1, 20), modality, np.int8), forced=np.zeros((1, 20), bool), document=document)))[0]

  base = phrases(words)
  for t in (0, 7, 19):
    other = words.copy()
    other[t] += 1
    changed = np.abs(phrases(other) - base).max(axis=-1)
    heard = (np.arange(20) >= t) & (np.arange(20) < t + matching.REACH)
    assert (changed[~heard] == 0).all() and (changed[heard] > 1e-4).all()
  np.testing.assert_allclose(phrases(words, second=12)[12:20], phrases(np.roll(words, -12))[:8], atol=1e-6)
  assert not phrases(words, layout.CODES).any()


def test_words_looked_up_are_words_multiplied(monkeypatch):
  """More positions than words, fewer, and a table too large to make: the same sums and gradients as products give."""
  draw = lambda n, *shape: jax.random.normal(jax.random.key(n), shape)
  plain = lambda words, kernels, ids, weights: jnp.einsum('nbt,nbtm,nmo->bto', weights, words[ids], kernels)
  for length, table in ((9, matching.TABLE), (3, matching.TABLE), (9, 100)):
    monkeypatch.setattr(matching, 'TABLE', table)
    args = (draw(0, 12, 5), draw(1, 3, 5, 4), jax.random.randint(jax.random.key(2), (3, 2, length), 0, 12), draw(3, 3, 2, length))
    found, pull = jax.vjp(matching.spoken, *args)
    want, pull_plain = jax.vjp(plain, *args)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    for part in (0, 1, 3):
      np.testing.assert_allclose(pull(found)[part], pull_plain(found)[part], rtol=1e-4, atol=1e-4)


def test_views_without_texts_of_the_answer_or_pictures_need_less_matching(judge):
  seen = two_answers(judge)
  read = lambda tokens, **less: np.asarray(compiled(judge, lambda module, tokens: module(tokens, **less).hidden)(tokens))
  for name, told, shown in (('tcc', True, False), ('icc', False, True), ('iq', False, True), ('its', True, True)):
    tokens = getattr(seen, name).tokens
    whole = read(tokens)
    for less, needed in ((dict(told=False), told), (dict(shown=False), told and shown)):
      changed = np.abs(read(tokens, **less) - whole).max()
      assert changed > 1e-3 if needed else changed < 1e-5, (name, less)


def test_what_is_read_at_some_positions_is_what_is_read_at_all(judge):
  view, read = two_answers(judge).its.tokens, compiled(judge)
  at = jnp.asarray([[0, 7, 3], [12, 9, 9]])
  some, whole = read(view, at), read(view)
  np.testing.assert_allclose(some.hidden, np.take_along_axis(np.asarray(whole.hidden), at[..., None], axis=1), atol=1e-5)
  np.testing.assert_allclose(some.marks, whole.marks, atol=1e-5)


def test_matches_of_some_positions_are_those_of_all(judge):
  view, match = two_answers(judge).its.tokens, compiled(judge, lambda module, *args: module.matching(*args))
  at = np.array([[0, 7, 3, view.text.shape[1] - 1], [12, 9, 9, 20]])
  whole = np.take_along_axis(np.asarray(match(view)), at[..., None], axis=1)
  np.testing.assert_allclose(match(view, jnp.asarray(at)), whole, atol=1e-4)


def test_matches_by_chunks_are_those_of_all_at_once(judge, monkeypatch):
  view, match = two_answers(judge).its.tokens, lambda: compiled(judge, lambda module, tokens: module.matching(tokens))
  whole = match()(view)
  monkeypatch.setattr(matching, 'MATCHED', 16)
  np.testing.assert_allclose(match()(view), whole, atol=1e-5)
