"""Labelled answers: labels where the views look for them, sides that share nothing, and a judge that learns from them."""

import dataclasses

import jax
import numpy as np
import pytest

from intersyn_jax.data.storyworld import flaws, language, story
from intersyn_jax.data.storyworld.render import encode_png, render
from intersyn_jax.data.storyworld.world import COLOURS, Object, scene
from intersyn_jax.errors import UserError
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.text import TextTokenizer
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn
from intersyn_jax.judge import labelled, model, training
from intersyn_jax.judge.labelled import GENERATORS, MARKS, TEST, TRAIN, Corpus
from intersyn_jax.judge.views import ICC, IQ, ITS, TCC
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.unified import ModelConfig
from intersyn_jax.training import loop
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer
from tests import small_model as small

CODEBOOK = 8192


class Patches:
  """A lossless image tokenizer: every different 8x8 patch is a code of its own; unknown codes are grey."""

  def __init__(self):
    self.known: dict[bytes, int] = {}
    self.patches = np.full((CODEBOOK, 8, 8, 3), 128, np.uint8)

  def encode(self, pictures):
    cut = pictures.reshape(-1, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 8, 8, 3)
    codes = []
    for patch in cut:
      code = self.known.setdefault(patch.tobytes(), len(self.known))
      self.patches[code] = patch
      codes.append(code)
    return np.array(codes, np.int32).reshape(-1, 16, 1)

  def decode(self, codes):
    return self.patches[codes[..., 0]].reshape(-1, 4, 4, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 32, 32, 3)


@pytest.fixture(scope='module')
def corpus():
  texts = [s.text for i in range(100) for t in story.conversation(0, i, 'roles').turns
           for s in (*t.question, *t.answer) if isinstance(s, Text)]
  written = layout.plain_layout(TextTokenizer.train(texts, 420), places=16, depth=1, codebook=CODEBOOK)
  tokenizer = Patches()

  def gold(conversations):
    return [layout.tokenise(c, written) for c in conversations]

  return Corpus(written, tokenizer.encode, tokenizer.decode, {'sampled': gold}, turns=(1, 1, 2))


@pytest.fixture(scope='module')
def sides(corpus):
  return corpus.build(TRAIN, 240), corpus.build(TEST, 120)


def test_gold_is_perfect_and_damage_is_not(sides):
  train, _ = sides
  names = np.array(train.generators)
  assert set(names) == {'gold', 'flaws', 'codes', 'sampled', 'texts', 'foreign', 'retold'}
  for good in ('gold', 'sampled'):  # the sampler of this test writes the gold answer
    np.testing.assert_allclose(train.whole[names == good], 5.0)
    assert np.nanmin(train.steps[names == good]) == 5.0
  damaged = train.whole[names == 'flaws']
  assert (damaged.min(axis=1) < 5).mean() > 0.9 and damaged.mean(axis=0).max() < 5
  codes = train.whole[names == 'codes']
  assert codes[:, IQ].mean() < 4.9 and codes[:, TCC].mean() > codes[:, ICC].mean()


def test_texts_told_anew_teach_its_alone(corpus, sides):
  """Right and wrong about the same pictures, as many texts as the corpus says or fewer, where nothing can be told of a picture;
  half of the pictures are damaged after the text was told, which makes fewer of its claims true."""
  train, test = sides
  names = np.array(train.generators)
  told = names == labelled.RETOLD
  pictures = sum(len(train.pictures[i]) for i in np.flatnonzero(~told))
  assert 0.8 < told.sum() / (corpus.retold * pictures) <= 1 and labelled.RETOLD not in test.generators
  assert {train.questions[i] for i in np.flatnonzero(told)} <= {train.questions[i] for i in np.flatnonzero(~told)}
  answers = {p for i in np.flatnonzero(~told) for p in train.pictures[i]}
  whole = np.array([train.pictures[i][0] in answers for i in np.flatnonzero(told)])
  assert 0.45 < whole.mean() < 0.6
  its = train.steps[told, 0, ITS]
  assert (its < 2).sum() > 10 and (its > 4).sum() > 10
  np.testing.assert_array_equal(train.whole[told, ITS], its)
  assert its[~whole].mean() < its[whole].mean() - 0.3
  for dimension in (TCC, ICC, IQ):
    assert not np.isfinite(train.votes[told, :, dimension]).any() and not np.isfinite(train.steps[told, :, dimension]).any()
  assert np.isfinite(train.votes[told, :, ITS]).all()


def test_what_texts_can_lack_teaches_tcc_alone(sides):
  """An answer to another question is seldom right about anything; the pictures of such rows are no training pictures."""
  train, test = sides
  names = np.array(train.generators)
  mine = np.isin(names, ('texts', 'foreign'))
  assert not np.isin(test.generators, ('texts', 'foreign')).any()
  assert np.isfinite(train.votes[mine, :, TCC]).all() and np.isfinite(train.steps[mine, :, TCC]).any()
  for dimension in (ICC, IQ, ITS):
    assert not np.isfinite(train.votes[mine, :, dimension]).any() and not np.isfinite(train.steps[mine, :, dimension]).any()
  assert train.whole[names == 'foreign', TCC].mean() < 2 < train.whole[names == 'texts', TCC].mean() < 4.5
  assert not any(train.pictures[i] for i in np.flatnonzero(mine)) and any(train.pictures[i] for i in np.flatnonzero(~mine))
  told = {train.ids[i].split('-retold')[0] for i in np.flatnonzero(names == labelled.RETOLD)}
  assert told and not told & {train.ids[i] for i in np.flatnonzero(mine)}


def test_sides_share_nothing_and_leaks_are_found(corpus, sides):
  train, test = sides
  clean = labelled.unseen(test, train)
  assert 0 < len(clean) <= len(test) and set(clean.ids) <= set(test.ids)
  labelled.check_leaks(train, clean)
  assert all(g == labelled.RETOLD or GENERATORS[g].train for g in train.generators)
  assert any(GENERATORS[g].held_out for g in test.generators)
  row = next(i for i, pictures in enumerate(train.pictures) if pictures)
  for field in ('ids', 'questions', 'pictures'):
    leaky = dataclasses.replace(clean, **{field: [getattr(train, field)[row], *getattr(clean, field)[1:]]})
    with pytest.raises(UserError, match=f'a {field[:-1]} of test record {leaky.ids[0]} is also in'):
      labelled.check_leaks(train, leaky)
  with pytest.raises(UserError, match='leaves no topic'):
    dataclasses.replace(corpus, held_out=0.0).build(TEST, 4)


def test_deterministic(corpus, sides):
  again = corpus.build(TEST, 120)
  np.testing.assert_array_equal(again.whole, sides[1].whole)
  assert again.ids == sides[1].ids and again.questions == sides[1].questions
  assert all(np.array_equal(a.text, b.text) and np.array_equal(a.codes, b.codes)
             for a, b in zip(again.documents, sides[1].documents, strict=True))


def test_step_labels_stand_where_the_views_count(corpus):
  """Two steps were asked; the first text is missing, so the second text is the first that TCC sees."""
  conversation = story.conversation(3, 7, 'roles', steps=2)
  answer = conversation.turns[0].answer
  flawed = dataclasses.replace(conversation, turns=(Turn(conversation.turns[0].question, answer[1:]),))
  draft = labelled._Draft(flawed, 'gold', story.keyed(0, 0), tuple(s for s in answer if isinstance(s, Image)))
  labelled._encode(corpus, [draft])
  draft.document = layout.tokenise(draft.conversation, corpus.layout)
  found = label(corpus, [draft])
  nan = np.nan
  np.testing.assert_allclose(found.steps[0], [[5, 5, 5, nan], [nan, 5, 5, 5], [nan] * 4])
  np.testing.assert_allclose(found.whole[0], [2.5, 5, 5, 2.5])
  told, claimed, denied, shown, filled = found.marks[0].T
  codes = draft.document.modality == layout.CODES
  np.testing.assert_array_equal(shown[codes], 0)  # both pictures are the gold ones
  np.testing.assert_array_equal(found.expected[0][codes], draft.document.codes[codes])
  assert (found.expected[0][~codes] == -1).all()
  assert not np.isfinite(found.marks[0][~codes, 3:]).any() and np.isfinite(told).sum() >= 3 and np.nansum(told) == 0
  assert np.nansum(denied) == 0 and np.nansum(filled) >= 1
  np.testing.assert_array_equal(np.isfinite(denied), claimed == 1)
  assert np.isfinite(denied).sum() >= 1


def label(corpus, drafts):
  return labelled._label(corpus, drafts, labelled._readings(corpus, drafts), TRAIN)


def draft_of(corpus, conversation, gold):
  draft = labelled._Draft(conversation, 'flaws', story.keyed(0, 0), tuple(s for s in gold if isinstance(s, Image)))
  labelled._encode(corpus, [draft])
  draft.document = layout.tokenise(draft.conversation, corpus.layout)
  return draft


def test_wrong_places_are_marked_and_reach_the_views(corpus):
  conversation = story.conversation(3, 9, 'roles', steps=1, turns=1)
  flawed, kinds = flaws.inject(conversation, story.keyed(1, 1), ['wrong_place'])
  assert kinds == ['wrong_place']
  found = label(corpus, [draft_of(corpus, flawed, conversation.turns[0].answer)])
  told, claimed, denied, shown, filled = range(len(MARKS))
  assert np.nansum(found.marks[0][:, shown]) == 2  # where it stands and where it should
  other = (found.expected[0] != found.documents[0].codes).any(1) & (found.expected[0] >= 0).any(1)
  np.testing.assert_array_equal(np.flatnonzero(other), np.flatnonzero(found.marks[0][:, shown] == 1))
  judge = model.SynJudge.of(ModelConfig(TrunkConfig(32, 1, 2, 2, 16, 64), corpus.layout.tokenizer.size, 16, 1, CODEBOOK),
                            corpus.layout, dict(layers=1, reader=1, widths=dict(tcc=160, icc=240, its=300), max_steps=3))
  data = training.examples(judge, found)
  for dimension, known in ((TCC, [told, claimed]), (ICC, [shown, filled]), (IQ, []),
                           (ITS, [claimed, denied, shown, filled])):
    at = slice(*(data.start[data.dimension == dimension][0] + (0, data.length[data.dimension == dimension][0])))
    reached, marks = data.marks[at], found.marks[0]
    for kind in range(len(MARKS)):
      mine = reached[np.isfinite(reached[:, kind]), kind]
      np.testing.assert_array_equal(mine, marks[np.isfinite(marks[:, kind]), kind] if kind in known else [])
    assert dimension not in (ICC, ITS) or (data.modality[at][np.isfinite(reached[:, shown])] == layout.CODES).all()


def test_places_are_held_against_what_the_answer_had_to_show(corpus):
  """The second picture does what it should to the wrong scene of the first: none of its places is wrong, and what the gold answer
  has there is not what should have stood where that wrong scene lives on."""
  circle, square = Object(0, 0, 1, 0), Object(1, 1, 0, 5)
  draw = lambda *objects: Image(encode_png(render(scene(0, objects))))
  question = ('show a large red circle top left and a small blue square upper midleft on sand , '
              'then move the red circle to lower midleft . use two pictures .')
  texts = Text('two shapes , a red circle and a blue square .'), Text('the red circle moves from top left to lower midleft .')
  answer = lambda square: (texts[0], draw(circle, square), texts[1], draw(circle._replace(cell=9), square))
  conversation = Conversation('c', 't', (Turn((Text(question),), answer(square._replace(cell=10))),))
  found = label(corpus, [draft_of(corpus, conversation, answer(square))])
  codes = found.documents[0].modality == layout.CODES
  shown = found.marks[0][codes, list(MARKS).index('shown')].reshape(2, -1)
  np.testing.assert_array_equal(np.flatnonzero(shown[0]), [5, 10])
  assert not shown[1].any()
  unknown = (found.expected[0][codes] < 0).all(axis=-1).reshape(2, -1)
  assert not unknown[0].any()
  np.testing.assert_array_equal(np.flatnonzero(unknown[1]), [5, 10])


def test_wrong_words_are_marked(corpus):
  """The text names another colour than question and picture: a wrong fact, and one that the picture denies, at the token that
  ends the name."""
  conversation = story.conversation(3, 9, 'roles', steps=1, turns=1)
  answer = conversation.turns[0].answer
  item = language.items_in(answer[0].text)[0]
  other = language.name_of(((item.colour + 1) % len(COLOURS), item.shape))
  changed = answer[0].text.replace(language.name_of(item.name), other, 1)
  flawed = dataclasses.replace(conversation, turns=(Turn(conversation.turns[0].question, (Text(changed), *answer[1:])),))
  draft, gold = draft_of(corpus, flawed, answer), draft_of(corpus, conversation, answer)
  found, right = (label(corpus, [d]).marks[0] for d in (draft, gold))
  for kind in (0, model.DENIED):
    wrong = np.flatnonzero(found[:, kind] == 1)
    assert any(corpus.layout.tokenizer.decode(draft.document.text[:t + 1]).endswith(other) for t in wrong)
  assert np.nansum(right[:, 0]) == np.nansum(right[:, model.DENIED]) == 0


def test_words_and_codes_are_brought_together(corpus, sides):
  """By the losses of matches alone, which move nothing else: after few steps less is lost than by constant guesses."""
  train, _ = sides
  config = ModelConfig(TrunkConfig(32, 1, 2, 2, 16, 64), corpus.layout.tokenizer.size, 16, 1, CODEBOOK, mix=4)
  judge = model.SynJudge.of(config, corpus.layout, dict(layers=1, reader=1, widths=dict(tcc=260, icc=320, its=400), max_steps=3))
  told = train.take(np.flatnonzero(np.array(train.generators) == labelled.RETOLD))
  data = training.examples(judge, told)
  batch = training.batches(data, training.chances(data, (0, 0, 0, 1), 0.0), rows=8, length=200, seed=0)
  optimizer = make_optimizer(OptimizerConfig(learning_rate=0.02, warmup=10, b2=0.999, frozen=(training.OTHERS,)), 200)
  before = judge.definition.init(jax.random.key(0), small.one_device())
  kept = jax.tree.map(np.asarray, before)
  step = loop.make_step(training.align_loss_of(judge.definition), optimizer, weights=dict.fromkeys(training.ALIGNED, 1.0))
  state, last = loop.fit(step, loop.init_state(before, optimizer), loop.Indexed(batch), steps=200, seed=0)
  for kind, part in ((model.CLAIMED, 0.1), (model.DENIED, 0.7), (model.FILLED, 0.7)):
    share = np.nanmean(np.concatenate([m[:, kind] for m in told.marks]))
    constant = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    assert last[list(MARKS)[kind]] < part * constant, (last, constant)
  for name, value in kept.items():
    same = all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(value), jax.tree.leaves(state['params'][name]), strict=True))
    assert same != (name == 'matching'), name


def test_iq_of_the_whole_is_of_the_pictures_that_are_there(corpus):
  conversation = story.conversation(3, 7, 'roles', steps=2)
  answer = conversation.turns[0].answer
  flawed = dataclasses.replace(conversation, turns=(Turn(conversation.turns[0].question, answer[:3]),))
  draft = labelled._Draft(flawed, 'gold', story.keyed(0, 0), tuple(s for s in answer if isinstance(s, Image)))
  labelled._encode(corpus, [draft])
  draft.document = layout.tokenise(draft.conversation, corpus.layout)
  found = label(corpus, [draft])
  np.testing.assert_allclose((found.whole[0, IQ], found.asked_iq[0], found.whole[0, ICC]), (5, 2.5, 2.5))


def test_the_judge_knows_which_marks_it_matches():
  numbered = tuple(list(MARKS)[i] for i in (model.CLAIMED, model.DENIED, model.FILLED))
  assert numbered == training.ALIGNED and len(MARKS) == model.MARKS


def test_a_share_of_the_texts_told_anew_is_kept(sides):
  train, _ = sides
  count = lambda rows: rows.generators.count(labelled.RETOLD)
  some, none = train.take(labelled.taught(train, 1 / 3)), labelled.answers(train)
  assert count(train) > 30 and count(none) == 0 and abs(count(some) - count(train) / 3) <= 1
  assert len(some) - count(some) == len(none) == len(train) - count(train)


def test_a_row_has_room_for_some_short_views_and_not_for_all_it_could_hold():
  """One view in two hundred fills half a row, the others two positions."""
  n, depth = 200, 1
  length = np.where(np.arange(n) == 7, 100, 2)
  every = lambda *shape: np.zeros((length.sum(), *shape), np.int32)
  data = training.Examples(
      every(), every(depth), every(), every(), every(), np.full((length.sum(), len(MARKS)), np.nan, np.float32), every(depth),
      np.cumsum(length) - length, length, np.full(n, IQ, np.int8), np.arange(n, dtype=np.int32), np.zeros((n, 2), np.int32),
      np.ones((n, 2), np.float32))
  chance = np.where(np.arange(n) == 7, 0.5, 0.5 / (n - 1))
  batch = training.batches(data, chance, rows=4, length=200, seed=0)(0)
  assert batch.place.shape == (4, 2 * 24) and np.isfinite(batch.label).sum() == 2 * batch.tokens.document.max(axis=1).sum()
  assert batch.tokens.document.max() <= 24


def test_unseen_flaws_are_no_training_flaws():
  assert set(labelled.UNSEEN) <= set(flaws.COSTS) | set(flaws.CODE_FLAWS)
  for generator in GENERATORS.values():
    if generator.train:
      assert not set(labelled.UNSEEN) & {*generator.kinds, *generator.codes}


@pytest.mark.slow
def test_a_judge_learns_that_damage_costs(corpus, sides):
  """A few dozen updates are enough to see that damaged pictures have less IQ; the other dimensions need longer."""
  train, _ = sides
  config = ModelConfig(TrunkConfig(32, 1, 2, 2, 16, 64), corpus.layout.tokenizer.size, 16, 1, CODEBOOK, mix=4)
  judge = model.SynJudge.of(config, corpus.layout, dict(layers=1, reader=1, widths=dict(tcc=260, icc=320, its=400), max_steps=3))
  data = training.examples(judge, train)
  batch = training.batches(data, training.chances(data, (1, 1, 1, 1), 0.5), rows=4, length=400, seed=0)
  whole = np.stack([np.nanmean(train.votes[row, :, d]) for row, d in zip(data.row, data.dimension, strict=True) if d != IQ])
  np.testing.assert_allclose(data.labels[data.dimension != IQ, -1], whole, rtol=1e-5)
  assert set(data.row[data.dimension == IQ]) == set(np.flatnonzero(np.isfinite(train.steps[..., IQ]).any(axis=1)))
  some = training.kept(data, np.isin(data.row, [3, 5]))
  assert set(some.row) == {3, 5} and some.length.sum() < data.length.sum() == len(some.text)
  first = batch(0)
  np.testing.assert_array_equal(first.tokens.text, batch(0).tokens.text)
  assert (first.tokens.document > 0).mean() > 0.8 and np.isfinite(first.label).sum() > 20
  optimizer = make_optimizer(OptimizerConfig(name='adamw', learning_rate=5e-3, b2=0.98), 60)
  params = judge.definition.init(jax.random.key(0), small.one_device())
  params = model.with_prior(params, [data.labels[data.dimension == i] for i in range(4)])
  step = loop.make_step(training.loss_of(judge.definition), optimizer, weights={'loss': 1.0, 'marks.shown': 1.0})
  state, last = loop.fit(step, loop.init_state(params, optimizer),
                         loop.Indexed(batch), steps=60, seed=0)
  judged = training.judge_all(judge, state['params'], train.documents, rows=32)
  whole, spread, steps, valid = judged[:4]
  assert (spread[valid] >= 0).all() and spread[valid].max() < 2.6
  assert valid.mean() > 0.95 and whole.shape == (len(train), 4) and steps.shape == (len(train), 3, 4)
  assert set(last) >= {'loss', 'tcc', 'icc', 'iq', 'its', 'expected', *(f'marks.{name}' for name in MARKS)}
  seen = train.whole[:, IQ] > 0
  bad, good = seen & (train.whole[:, IQ] < 3.5), seen & (train.whole[:, IQ] > 4.5)
  assert whole[bad, IQ].mean() < whole[good, IQ].mean() - 0.1


def test_balance_lifts_what_is_rare():
  labels = np.array([[5.0]] * 90 + [[1.0]] * 10, np.float32)
  empty = np.zeros(0, np.int32)
  data = training.Examples(*[empty] * 9, np.zeros(100, np.int8), empty, empty, labels)
  plain, even = (training.chances(data, (1, 1, 1, 1), balance)[90:].sum() for balance in (0.0, 1.0))
  np.testing.assert_allclose((plain, even), (0.1, 0.5))
