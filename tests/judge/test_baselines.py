"""Baselines of the judge: what they see, what they learn, and that they follow the rules in code."""

import dataclasses

import jax
import numpy as np
import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn
from intersyn_jax.judge import baselines, model, training, views
from intersyn_jax.judge.baselines import blinded
from intersyn_jax.judge.baselines.clip import ClipConfig, pairs_of
from intersyn_jax.judge.baselines.likelihood import in_written_order
from intersyn_jax.judge.baselines.shared import Mean, MonotoneMap, some
from intersyn_jax.judge.labelled import MARKS, Labelled
from intersyn_jax.judge.views import ICC, IQ, ITS, TCC, Widths
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.unified import ModelConfig, position_log_probs
from intersyn_jax.models.unified import define as define_policy
from tests import small_model as small

PLAIN = small.plain()
CONFIG = ModelConfig(TrunkConfig(32, 2, 4, 2, 8, 64), PLAIN.tokenizer.size, 4, 1, small.CODEBOOK, mix=4)
STEPS = 3


@pytest.fixture(scope='module')
def judge():
  """A judge with random weights that are large enough for every input to matter."""
  bound = model.SynJudge(model.define(CONFIG, 2, 1), PLAIN, Widths(64, 64, 90), STEPS)
  params = bound.definition.init(jax.random.key(0), small.one_device())
  return bound, params | {'score_head': params['score_head'] * 50}


@pytest.fixture(scope='module')
def policy():
  definition = define_policy(CONFIG)
  params = definition.init(jax.random.key(5), small.one_device())
  return definition, small.eager(params, PLAIN)


def answer(*segments) -> Conversation:
  """Two turns, the second with a picture in its question."""
  written = tuple(Text(s) if isinstance(s, str) else small.image(PLAIN, s) for s in segments)
  first = Turn((Text('a red'),), (Text('one'), small.image(PLAIN, 90)))
  return Conversation('c', 't', (first, Turn((small.image(PLAIN, 91), Text('move the square')), written)))


def labelled(conversations, whole=None) -> Labelled:
  n = len(conversations)
  documents = [layout.tokenise(c, PLAIN) for c in conversations]
  whole = np.tile(np.array([[1, 2, 3, 4]], np.float32), (n, 1)) if whole is None else np.asarray(whole, np.float32)
  return Labelled(
      ids=[str(i) for i in range(n)], generators=['gold'] * n, documents=documents, whole=whole, votes=whole[:, None],
      steps=np.full((n, STEPS, 4), 2.5, np.float32),
      marks=[np.full((len(d.text), len(MARKS)), np.nan, np.float32) for d in documents],
      expected=[np.full(d.codes.shape, -1, np.int32) for d in documents],
      asked_iq=whole[:, IQ], questions=[str(i) for i in range(n)], pictures=[()] * n)


BASE = ('a red circle', 1, 'the blue square', 2)
MANY = (1, 2, 3, 4)
"""More pictures than the views have room for."""


WORDS = ('red', 'circle', 'top', 'left', 'blue', 'square', 'move', 'at')


def drawn(rng):
  """A text of two words and a picture that shows them: each word has its code at its place."""
  first, second = rng.integers(0, len(WORDS), 2)
  codes = np.array([first, first, 8 + second, 8 + second], np.int32)[:, None]
  return f'{WORDS[first]} {WORDS[second]}', Image(codes=codes)


@pytest.fixture(scope='module')
def fitted(judge, policy):
  """Towers trained on pictures drawn as asked; maps fitted to answers of which every other shows something else."""
  rng = np.random.default_rng(0)
  conversations = []
  for i in range(200):
    text, image = drawn(rng)
    turn = Turn((Text(text),), (image,)) if i % 2 else Turn((Text('move'),), (Text(text), image))
    conversations.append(Conversation(str(i), 't', (turn,)))
  rows, whole = [], []
  for i in range(48):
    text, image = drawn(rng)
    other = drawn(rng)[1] if i % 2 else image
    rows.append(Conversation(str(i), 't', (Turn((Text(text),), (Text(text), other)),)))
    whole.append([5, 1, 1, 1] if i % 2 else [5, 5, 5, 5])
  config = ClipConfig(width=32, layers=1, steps=60, rows=32, optimizer=dict(learning_rate=0.01))
  return baselines.fit_all(judge[0], CONFIG, policy[1], labelled(rows, whole), conversations, small.one_device(), clip=config,
                           rows=40)


@pytest.fixture(scope='module')
def viewer(fitted):
  return fitted['mean'].viewer


@pytest.fixture(scope='module')
def likelihood(fitted):
  return fitted['likelihood']


@pytest.fixture(scope='module')
def clip(fitted):
  return fitted['clip']


def test_likelihood_sees_what_its_views_show(likelihood):
  found = likelihood.log_probs(labelled([
      answer(*BASE),
      answer('move', 1, 'the blue square at the top left', 2),  # other texts, other lengths
      answer('a red circle', 3, 'the blue square', 4),  # other pictures
      answer('a red circle', 'the blue square'),  # no pictures
      answer(1, 2)]))  # no texts
  for other in (1, 4):
    np.testing.assert_array_equal(found[0, [ICC, IQ]], found[other, [ICC, IQ]])
  np.testing.assert_array_equal(found[0, TCC], found[2, TCC])
  assert found[0, TCC] != found[1, TCC] and (found[0, [ICC, IQ, ITS]] != found[2, [ICC, IQ, ITS]]).all()
  assert found[0, ITS] != found[1, ITS]
  np.testing.assert_array_equal(np.isfinite(found[3:]), [[True, False, False, False], [False, True, True, True]])


def test_likelihood_is_the_models_own(likelihood, policy):
  """One turn, one step: the numbers by hand, from documents written by hand."""
  definition, params = policy
  picture, question = small.image(PLAIN, 1), Text('a red circle')
  found = likelihood.log_probs(labelled([Conversation('c', 't', (Turn((question,), (Text('move'), picture)),))]))

  @jax.jit
  def scored(params, batch):
    bound = definition.bind(params)
    return position_log_probs(bound, bound(batch), batch)

  def log_probs(*turn, drop_question=False):
    batch = layout.stack([layout.tokenise(Conversation('c', 't', (Turn(*turn),)), PLAIN, drop_question=drop_question)], 64)
    text, codes, _ = scored(params, batch)
    return batch, np.asarray(text[0]), np.asarray(codes[0, :, 0])[batch.modality[0] == layout.CODES]

  batch, text, with_text = log_probs((question,), (Text('move'), picture))
  inside = np.flatnonzero(np.isin(batch.text[0], [PLAIN.special('<think>'), PLAIN.special('</think>')]))
  np.testing.assert_allclose(found[0, TCC], text[inside[0] + 1:inside[1] + 1].mean(), atol=1e-5)
  without = log_probs((question,), (picture,))[2].mean()
  np.testing.assert_allclose(found[0, ICC], without, atol=1e-5)
  np.testing.assert_allclose(found[0, IQ], log_probs((question,), (picture,), drop_question=True)[2].mean(), atol=1e-5)
  np.testing.assert_allclose(found[0, ITS], with_text.mean() - without, atol=1e-5)


def test_views_in_written_order(viewer):
  _, seen, begin = next(viewer.chunks(labelled([answer(*BASE)])))
  view = in_written_order(seen.its)
  document = layout.tokenise(answer(*BASE), PLAIN)
  count = int((view.source[0] >= 0).sum())
  np.testing.assert_array_equal(np.sort(seen.its.source[0][:count]), view.source[0][:count])
  np.testing.assert_array_equal(view.tokens.text[0, :count], document.text[view.source[0, :count]])
  np.testing.assert_array_equal(view.tokens.codes[0, :count], document.codes[view.source[0, :count]])
  assert view.tokens.text[0, count] == PLAIN.special('</s>') and begin[0] == layout.answer_begins(document, 1)


def test_monotone_map():
  rng = np.random.default_rng(0)
  raw = rng.integers(0, 30, 400) / 3.0
  label = np.clip(raw / 2 + rng.normal(size=400), 0, 5)
  label[:5], raw[5:9] = np.nan, np.nan
  fitted = MonotoneMap.fit(raw, label)
  at = np.linspace(-5, 15, 200)
  score = fitted(at)
  assert (np.diff(score) >= 0).all() and np.ptp(score) > 3
  assert score[0] == fitted(fitted.raw[0]) and score[-1] == fitted(fitted.raw[-1])  # flat outside
  real = np.isfinite(raw) & np.isfinite(label)
  # the best rising map: no worse than the line that made the labels, and right on the mean
  assert np.mean((fitted(raw[real]) - label[real]) ** 2) <= np.mean((np.clip(raw[real] / 2, 0, 5) - label[real]) ** 2)
  np.testing.assert_allclose(fitted(raw[real]).mean(), label[real].mean())
  np.testing.assert_allclose(MonotoneMap.fit(np.zeros(3), np.array([1.0, 2.0, 6.0]))(np.array([-1.0, 0.0, 4.0])), 3.0)


def test_rules_in_code_hold_for_baselines(viewer):
  train = labelled([answer(*BASE), answer('a', 1), answer('a red circle'), answer('a', 2)],
                   [[1, 2, 3, 4], [2, 3, 4, 5], [4, 0, 0, 0], [np.nan, 1, 1, 1]])
  mean = Mean.fit(viewer, train)
  np.testing.assert_allclose(mean.means, [7 / 3, 2, 8 / 3, 10 / 3], rtol=1e-6)  # zeros of a rule are not averaged in
  found = mean.scores(labelled([answer('a', 1), answer('a'), answer(1), answer(*MANY)]))
  np.testing.assert_array_equal(found > 0, [[1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
  assert np.isnan(found[3]).all() and found.dtype == np.float32
  with pytest.raises(UserError, match='none has what icc scores'):
    Mean.fit(viewer, labelled([answer('a')]))


def test_some_rows():
  rows = labelled([answer('a', i) for i in range(6)])
  few = some(rows, 4, seed=1)
  assert len(few) == len(few.documents) == len(few.whole) == 4 and few.ids == some(rows, 4, seed=1).ids
  for i, document in zip(few.ids, few.documents, strict=True):
    np.testing.assert_array_equal(document.codes, rows.documents[int(i)].codes)
  assert some(rows, 6, seed=1) is rows


def test_clip_learns_which_text_goes_with_which_picture(clip):
  every = [(f'{a} {b}', np.array([i, i, 8 + j, 8 + j], np.int32)[:, None]) for i, a in enumerate(WORDS)
           for j, b in enumerate(WORDS)]
  texts = clip.embed_texts([PLAIN.tokenizer.encode(text) for text, _ in every])
  pictures = clip.embed_pictures(np.stack([codes for _, codes in every]))
  np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-4)
  assert (np.argmax(texts @ pictures.T, axis=1) == np.arange(64)).mean() > 0.6  # chance: 1/64


def test_clip_scores(clip, viewer):
  rng = np.random.default_rng(7)
  good, bad = [], []
  for _ in range(16):
    text, image = drawn(rng)
    other = Image(codes=(image.codes + 3) % 8 + 8 * (image.codes >= 8))
    for to, picture in ((good, image), (bad, other)):
      to.append(Conversation('c', 't', (Turn((Text(text),), (Text(text), picture)),)))
  rows = labelled([*good, *bad, answer('red'), answer(1), answer(*MANY)])
  scores = clip.scores(rows)
  for dimension in (ICC, ITS):
    assert scores[:16, dimension].mean() > scores[16:32, dimension].mean() + 1.5
  np.testing.assert_array_equal(scores[:16, TCC], scores[16:32, TCC])  # the same texts
  np.testing.assert_array_equal(scores[32:34] == 0, [[False, True, True, True], [True, False, False, True]])
  assert np.isnan(scores[34]).all() and np.nanmin(scores) >= 0 and np.nanmax(scores) <= 5


def test_pairs_of_conversations():
  plain = small.conversation(PLAIN)
  pairs = pairs_of([plain, Conversation('d', 't', (Turn((Text('draw'),), (small.image(PLAIN, 5),)),))], PLAIN, 8)
  assert [PLAIN.tokenizer.decode(row[row >= 0].tolist()) for row in pairs.texts][::2] == ['one', 'draw']
  np.testing.assert_array_equal(pairs.codes[2], small.image(PLAIN, 5).codes)
  assert pairs.texts.shape[1] == 32 and (pairs.texts >= 0).sum(1).max() <= 8
  for conversations, message in (([Conversation('e', 't', (Turn((Text('draw'),), (Image(),)),))], 'record e'),
                                 ([Conversation('f', 't', (Turn((Text('a'),), (Text('b'),)),))], 'no text with a picture')):
    with pytest.raises(UserError, match=message):
      pairs_of(conversations, PLAIN, 8)


@pytest.mark.parametrize('hide', [blinded.IMAGES, blinded.TEXTS])
def test_a_blinded_judge_does_not_see(judge, hide):
  bound, params = judge
  texts = ('move', 1, 'the blue square at the top left', 2)
  pictures = ('a red circle', 3, 'the blue square', 4)
  rows = labelled([answer(*BASE), answer(*(pictures if hide == blinded.IMAGES else texts)),
                   answer(*(texts if hide == blinded.IMAGES else pictures)), answer(1), answer('a'), answer(*MANY)])
  full = training.judge_all(bound, params, rows.documents).whole
  found = blinded.blinded_scores(bound, params, rows, full, hide)
  touched = list(blinded.TOUCHED[hide])
  rest = [d for d in range(4) if d not in touched]
  np.testing.assert_array_equal(found[0], np.where(np.isin(range(4), touched), found[1], full[0]))  # hidden: no difference
  np.testing.assert_array_equal(found[:5, rest], full[:5, rest])
  assert (np.abs(found[0, touched] - full[0, touched]) > 1e-5).all()
  assert found[0, ITS] != found[2, ITS]  # what is left is seen
  np.testing.assert_array_equal(found[3:5] > 0, [[0, 1, 1, 0], [1, 0, 0, 0]])
  assert np.isnan(found[5]).all()


def test_blinded_views_hold_the_rest():
  """With a template of forced text inside the image block too; readouts stay where they can."""
  lined = small.lined()
  conversation = Conversation('c', 't', (Turn((Text('a red'), small.image(lined, 7)), (
      Text('one'), small.image(lined, 1), Text('two'), small.image(lined, 2))),))
  batch = layout.stack([layout.tokenise(conversation, lined)], 64)

  @jax.jit
  def cut(batch):
    seen = views.build(batch, lined, Widths(48, 48, 64), 2)
    return seen, *(blinded.blind(seen, batch, lined, hide) for hide in (blinded.IMAGES, blinded.TEXTS))

  seen, blind, without = jax.device_get(cut(batch))

  def read(view, row=0):
    tokens = jax.tree.map(lambda a: np.asarray(a)[row], view.tokens)
    real = tokens.document > 0
    np.testing.assert_array_equal(tokens.position[real], np.arange(real.sum()))
    return ['code' if m == layout.CODES else 'forced' if f else lined.tokenizer.decode([t]) or t for t, m, f in
            zip(tokens.text[real], tokens.modality[real], tokens.forced[real], strict=True)]

  assert read(blind.icc).count('code') == read(seen.icc).count('code') - 8 == 4
  assert read(blind.its).count('code') == 4 and read(blind.tcc) == read(seen.tcc)
  assert [len(read(blind.iq, row)) for row in (0, 1)] == [1, 1] and (np.asarray(blind.iq.end) == 0).all()
  assert read(without.icc) == read(seen.icc) and read(without.iq) == read(seen.iq)
  assert read(without.its).count('code') == 12
  special = lined.special
  inside = [t for t in np.asarray(without.tcc.tokens.text[0]) if t in (special('<think>'), special('</think>'))]
  assert inside == [special('<think>'), special('</think>')] * 2
  words = set(lined.tokenizer.encode('onetwo'))
  begin = layout.answer_begins(layout.tokenise(conversation, lined), 0)
  for view in (without.tcc, without.its):
    kept = np.asarray(view.tokens.text[0])[np.asarray(view.source[0]) >= begin]
    assert not words & set(kept.tolist())
  for view, old in ((blind.its, seen.its), (without.its, seen.its), (without.tcc, seen.tcc), (blind.icc, seen.icc)):
    source, before = np.asarray(view.source[0]), np.asarray(old.source[0])
    assert np.asarray(view.tokens.text)[0, int(view.end[0])] == special('</s>')
    for new_end, old_end in zip(np.asarray(view.ends[0]), np.asarray(old.ends[0]), strict=True):
      # the last place that is left of what stood before
      left = [s for s in before[:old_end + 1] if s in source]
      assert source[new_end] == left[-1]


def test_blinded_examples_lack_what_is_hidden(judge):
  bound, _ = judge
  rows = labelled([answer(*BASE), answer('a', 3)])
  full = training.examples(bound, rows)
  found = training.examples(blinded.BlindJudge.like(bound, blinded.IMAGES), rows)
  np.testing.assert_array_equal(found.dimension, full.dimension)
  np.testing.assert_array_equal(found.labels, full.labels)
  touched = found.dimension != TCC
  assert (found.length[touched] < full.length[touched]).all()
  np.testing.assert_array_equal(found.length[~touched], full.length[~touched])
  assert (found.places < found.length[:, None]).all()


def test_all_that_is_fitted(fitted):
  test = labelled([answer('a red', 40), answer('the blue square')])
  blank = dataclasses.replace(test, whole=np.full((2, 4), np.nan, np.float32), votes=np.full((2, 1, 4), np.nan))
  assert list(fitted) == [f.name for f in fitted.values()] == ['mean', 'likelihood', 'clip']
  for baseline in fitted.values():
    scores = baseline.scores(test)
    np.testing.assert_array_equal(scores, baseline.scores(blank))  # labels are not looked at
    assert scores.shape == (2, 4) and np.isfinite(scores).all() and not scores[1, 1:].any()
  np.testing.assert_allclose(fitted['mean'].scores(test)[0, [TCC, IQ]], [5, 3])
