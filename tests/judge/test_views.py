"""What a score may not see changes it by exactly 0; the rubric's zeros; answers that cannot be judged."""

import dataclasses

import jax
import numpy as np
import pytest

from intersyn_jax.interleave import layout
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn
from intersyn_jax.judge import model, views
from intersyn_jax.judge.views import ICC, IQ, ITS, TCC, Widths
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.unified import ModelConfig
from tests import small_model as small

WIDTH, STEPS = 96, 3


@pytest.fixture(scope='module')
def judge():
  """A judge with random weights that are large enough for every input to matter."""
  plain = small.plain()
  config = ModelConfig(TrunkConfig(32, 3, 4, 2, 8, 64), plain.tokenizer.size, plain.block.places, 1, small.CODEBOOK, mix=4)
  bound = model.SynJudge(model.define(config, 2, 1), plain, Widths(64, 64, 90), STEPS)
  params = bound.definition.init(jax.random.key(0), small.one_device())
  return bound, params | {'score_head': params['score_head'] * 50}


def answer(*segments) -> Conversation:
  """Two turns, the second with a picture in its question."""
  plain = small.plain()
  written = tuple(Text(s) if isinstance(s, str) else small.image(plain, s) for s in segments)
  first = Turn((Text('a red'),), (Text('one'), small.image(plain, 90)))
  return Conversation('c', 't', (first, Turn((small.image(plain, 91), Text('move the square')), written)))


def score(judge, conversations, left=False):
  bound, params = judge
  documents = [c if isinstance(c, layout.TokenBatch) else layout.tokenise(c, bound.layout) for c in conversations]
  # One shape for all, so that one program scores all.
  documents += [documents[0]] * (8 - len(documents))
  return jax.device_get(bound.jitted(params, layout.stack(documents, WIDTH, left=left)))


BASE = ('a red circle', 1, 'the blue square', 2)


def test_hidden_changes_give_exactly_zero_difference(judge):
  changed = score(judge, [
      answer(*BASE),
      answer('move', 1, 'the blue square at the top left', 2),  # other texts, other lengths
      answer('a red circle', 3, 'the blue square', 4),  # other pictures
      answer('a red circle', 'the blue square'),  # no pictures; texts in one plain run
      answer(1, 2),  # no texts
      answer('a red circle', 1, 2),  # second text missing
      answer('a red circle', 1, 'the blue square')])  # second picture missing
  assert changed.valid.all()
  whole, steps = changed.whole, changed.steps
  for other in (1, 4, 5):  # texts differ: pictures are the same
    np.testing.assert_array_equal(whole[0, [ICC, IQ]], whole[other, [ICC, IQ]])
    np.testing.assert_array_equal(steps[0][:, [ICC, IQ]], steps[other][:, [ICC, IQ]])
  for other in (2, 6):  # pictures differ: texts are the same
    np.testing.assert_array_equal(whole[0, TCC], whole[other, TCC])
    np.testing.assert_array_equal(steps[0][:, TCC], steps[other][:, TCC])
  # and what may be seen does count
  assert whole[0, TCC] != whole[1, TCC] and whole[0, ICC] != whole[2, ICC] and whole[0, IQ] != whole[2, IQ]
  assert len({float(v) for v in whole[[0, 1, 2, 5, 6], ITS]}) == 5
  # IQ sees each picture alone: the first step's score is the same whatever follows
  assert steps[0][0, IQ] == score(judge, [answer('a', 1)]).steps[0][0, IQ]


def test_context_and_padding(judge):
  base = answer(*BASE)
  turns = base.turns
  earlier = Turn(turns[0].question, (turns[0].answer[0], small.image(small.plain(), 7)))
  picture = dataclasses.replace(base, turns=(earlier, turns[1]))
  words = dataclasses.replace(base, turns=(turns[0], Turn((turns[1].question[0], Text('move')), turns[1].answer)))
  right, left = score(judge, [base, picture, words]), score(judge, [base, picture, words], left=True)
  np.testing.assert_array_equal(right.whole, left.whole)
  np.testing.assert_array_equal(right.steps, left.steps)
  assert right.whole[0, TCC] == right.whole[1, TCC] and right.whole[0, ICC] != right.whole[1, ICC]
  assert right.whole[0, IQ] == right.whole[2, IQ] and right.whole[0, TCC] != right.whole[2, TCC]


def test_zeros_of_the_rubric(judge):
  found = score(judge, [answer('a red circle'), answer(1, 2), answer('a', 1, 2), answer(), answer('a', 1, 'red')])
  assert found.valid.all()
  np.testing.assert_array_equal(found.whole[0] > 0, [True, False, False, False])
  np.testing.assert_array_equal(found.whole[1] > 0, [False, True, True, False])
  assert (found.whole[2] > 0).all() and not found.whole[3].any()
  np.testing.assert_array_equal(found.present[2], [[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]])
  np.testing.assert_array_equal(found.present[4], [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
  np.testing.assert_array_equal(found.steps > 0, found.present)


def test_failures_are_no_numbers(judge):
  plain = small.plain()
  long = answer('move the blue square ' * 10, 1)
  many = answer('a', 1, 'a', 2, 'a', 3, 'a', 4)
  empty = jax.tree.map(np.zeros_like, layout.tokenise(answer(), plain))
  found = score(judge, [answer(*BASE), long, many, empty])
  np.testing.assert_array_equal(found.valid[:4], [True, False, False, False])
  assert np.isnan(found.whole[1:4]).all() and np.isnan(found.steps[1:4]).all() and np.isfinite(found.whole[0]).all()
  bound, params = judge
  broken = score((bound, params | {'score_bias': params['score_bias'] * np.nan}), [answer(*BASE)])
  assert not broken.valid[0] and np.isnan(broken.whole[0]).all()


def test_an_image_cut_short_is_no_image(judge):
  plain = small.plain()
  whole = layout.tokenise(answer('a red circle', 1), plain)
  # <vis> <image> 4 codes </image> </vis> </s>: cut inside the codes
  cut = jax.tree.map(lambda a: a[:-4], whole)
  found = score(judge, [cut, answer('a red circle')])
  assert not found.present[0][:, IQ].any() and found.whole[0, TCC] > 0 and found.whole[0, ICC] == 0
  np.testing.assert_array_equal(found.present[0], found.present[1])


def test_soup_is_judged_too(judge):
  """Whatever a policy writes has views; the answer begins where the last turn is first weighted."""
  plain = small.plain()
  base = layout.prompt(answer(), plain)
  names = ['</think>', '<model>', '<vis>', '<think>', '<think>', '</vis>', '<user>', '<s>']
  ids = np.array([plain.special(n) for n in names], np.int32)
  ids = np.insert(ids, 3, plain.tokenizer.encode('red'))
  fill = dict(text=ids, codes=np.zeros((len(ids), 1), np.int32), modality=np.ones(len(ids), np.int8),
              loss=np.ones(len(ids), np.float32), forced=np.zeros(len(ids), bool), document=np.ones(len(ids), np.int32),
              position=len(base.text) + np.arange(len(ids), dtype=np.int32), turn=np.full(len(ids), 1, np.int32),
              step=np.full(len(ids), -1, np.int32))
  soup = layout.TokenBatch(**{name: np.concatenate([getattr(base, name), value]) for name, value in fill.items()})
  found = score(judge, [soup, answer('red')])
  assert found.valid[0] and found.whole[0, TCC] > 0 and not found.whole[0, [ICC, IQ, ITS]].any()


def test_views_hold_what_they_should():
  """Read back as segments, view by view, with a template of forced text inside the image block too."""
  lined = small.lined()
  conversation = Conversation('c', 't', (Turn((Text('a red'),), (
      Text('one'), small.image(lined, 1), Text('two'), small.image(lined, 2))),))
  batch = layout.stack([layout.tokenise(conversation, lined)], 64)
  seen = views.build(jax.tree.map(np.asarray, batch), lined, Widths(32, 32, 48), 2)

  def read(view, row=0):
    row = jax.tree.map(lambda a: np.asarray(a)[row], view.tokens)
    return layout.answer_of(row.text, row.codes, row.modality, lined, row.forced)

  kinds = lambda segments: [s.text if isinstance(s, Text) else int(s.codes.sum()) for s in segments]
  sums = [int(small.image(lined, i).codes.sum()) for i in (1, 2)]
  words = lambda segments: ''.join(s.text for s in segments if isinstance(s, Text)).replace('<user>', '')
  assert 'one' in words(read(seen.tcc)) and 'two' in words(read(seen.tcc))
  assert not any(isinstance(s, Image) for s in read(seen.tcc))
  assert kinds(s for s in read(seen.icc) if isinstance(s, Image)) == sums and 'one' not in words(read(seen.icc))
  assert [kinds(read(seen.iq, row)) for row in (0, 1)] == [[s] for s in sums]
  assert [k for k in kinds(read(seen.its)) if k in ('one', 'two', *sums)] == ['one', sums[0], 'two', sums[1]]
  for view in (seen.tcc, seen.icc, seen.its, seen.iq):  # `source` says where in the row each position was
    tokens, source = jax.tree.map(np.asarray, (view.tokens, view.source))
    row = np.arange(len(source)) // (len(source) // len(batch.text))
    known = source >= 0
    assert known.sum() == (tokens.document > 0).sum() - (len(source) if view is not seen.iq else 0)
    assert (np.asarray(batch.text)[row[:, None], source] == tokens.text)[known].all()
    assert (np.asarray(batch.codes)[row[:, None], source] == tokens.codes)[known].all()
