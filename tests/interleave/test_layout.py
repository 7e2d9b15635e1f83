"""The token stream: conversation -> tokens -> conversation is exact, and every field says what DESIGN 3 says."""

from __future__ import annotations

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from intersyn_jax.errors import UserError
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.layout import CODE, CODES, PADDING, TEXT
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn, steps_of
from tests import small_model

LAYOUTS = {'flat': small_model.plain(1), 'residual': small_model.plain(4), 'lined': small_model.lined(2)}


@strategies.composite
def conversations(draw, layout_):
  block = layout_.block
  text = strategies.builds(Text, strategies.text(min_size=1, max_size=12))
  code = strategies.integers(0, block.codebook - 1)
  count = block.places * block.depth
  picture = strategies.lists(code, min_size=count, max_size=count).map(
      lambda c: Image(codes=np.asarray(c, np.int32).reshape(block.places, block.depth)))

  def run(parts):  # neighbouring texts would be read back as one
    twice = lambda p, before: isinstance(p, Text) and isinstance(before, Text)
    return tuple(p for p, before in zip(parts, [None, *parts], strict=False) if not twice(p, before))

  segments = strategies.lists(strategies.one_of(text, picture), max_size=4).map(run)
  turns = draw(strategies.lists(strategies.builds(Turn, segments, segments), min_size=1, max_size=3))
  return Conversation('c', 't', tuple(turns))


@pytest.mark.parametrize('name', LAYOUTS)
@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(data=strategies.data())
def test_a_conversation_comes_back(name, data):
  layout_ = LAYOUTS[name]
  conversation = data.draw(conversations(layout_))
  document = layout.tokenise(conversation, layout_)
  assert layout.turns_of(document, layout_) == conversation.turns
  assert set(np.unique(document.modality)) <= {TEXT, CODES}
  np.testing.assert_array_equal(document.position, np.arange(len(document.text)))
  assert (document.text[document.modality == CODES] == 0).all() and (document.codes[document.modality == TEXT] == 0).all()
  assert (np.diff(document.turn) >= 0).all() and document.turn.max() == len(conversation.turns) - 1
  prompt = layout.prompt(conversation, layout_)
  assert prompt.text[-1] == layout_.special('<model>')
  for field in dataclasses.fields(prompt):
    piece = getattr(document, field.name)[:len(prompt.text)]
    np.testing.assert_array_equal(getattr(prompt, field.name), piece, err_msg=field.name)
  open_answer = slice(len(prompt.text), None)
  read = layout.answer_of(*(getattr(document, f)[open_answer] for f in ('text', 'codes', 'modality')), layout_,
                          document.forced[open_answer])
  assert read == conversation.turns[-1].answer


@pytest.mark.parametrize('name', LAYOUTS)
@pytest.mark.parametrize('drop', [False, True])
@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(data=strategies.data())
def test_many_at_once_are_those_one_by_one_end_to_end(name, drop, data):
  layout_ = LAYOUTS[name]
  some = data.draw(strategies.lists(conversations(layout_), min_size=1, max_size=4))
  together, lengths = layout.tokenise_all(some, layout_, drop_question=drop)
  alone = [layout.tokenise(one, layout_, drop_question=drop) for one in some]
  assert lengths.tolist() == [len(one.text) for one in alone]
  for field in dataclasses.fields(together):
    joined = np.concatenate([getattr(one, field.name) for one in alone])
    assert getattr(together, field.name).dtype == joined.dtype
    np.testing.assert_array_equal(getattr(together, field.name), joined, err_msg=field.name)


def test_of_many_the_record_without_codes_is_named():
  layout_ = LAYOUTS['flat']
  fine = Conversation('fine', 't', (Turn((Text('a red'),), (Text('one'), small_model.image(layout_))),))
  wrong = Conversation('wrong', 't', (Turn((Text('a red'),), (Image(b'x'),)),))
  with pytest.raises(UserError, match='record wrong: an image has no codes yet'):
    layout.tokenise_all([fine, wrong, fine], layout_)


def test_stream_of_an_interleaved_answer():
  layout_ = small_model.lined(2)
  picture = small_model.image(layout_)
  conversation = Conversation('c', 't', (Turn((Text('a red'),), (Text('one'), picture)),))
  document = layout.tokenise(conversation, layout_)
  encode, special = layout_.tokenizer.encode, layout_.special
  block = [0 if entry == CODE else entry for entry in layout_.block.template]
  expected = [special('<s>'), special('<user>'), *encode('a red'), special('<model>'), special('<think>'), *encode('one'),
              special('</think>'), special('<vis>'), special('<image>'), *block, special('</vis>'), special('</s>')]
  assert document.text.tolist() == expected
  start = expected.index(special('<image>')) + 1
  inside = slice(start, start + len(block))
  assert document.modality[inside].tolist() == [CODES if e == CODE else TEXT for e in layout_.block.template]
  assert document.forced[inside].tolist() == [e != CODE for e in layout_.block.template]
  assert not np.delete(document.forced, np.r_[inside]).any()
  np.testing.assert_array_equal(document.codes[document.modality == CODES], picture.codes)
  answer = expected.index(special('<model>')) + 1
  np.testing.assert_array_equal(document.loss, (np.arange(len(expected)) >= answer) & ~document.forced)
  steps = np.zeros(len(expected), int)
  steps[:answer] = steps[-1] = -1
  np.testing.assert_array_equal(document.step, steps)
  trained = layout.tokenise(conversation, dataclasses.replace(layout_, trains_forced=True))
  np.testing.assert_array_equal(trained.loss, np.arange(len(expected)) >= answer)


def test_steps_of_answers_of_one_kind():
  layout_ = small_model.plain()
  picture = small_model.image(layout_)
  for answer in ((Text('one'),), (picture,), (picture, picture)):
    document = layout.tokenise(Conversation('c', 't', (Turn((Text('a'),), answer),)), layout_)
    assert (document.step == -1).all()
    assert not np.isin(document.text, [layout_.special('<think>'), layout_.special('<vis>')]).any()
  assert steps_of((Text('a'), picture, picture, Text('b'))) == [('a', picture), (None, picture), ('b', None)]


def test_dropped_question_begins_like_the_null_prompt():
  layout_ = small_model.plain()
  null = layout.null_prompt(layout_)
  assert null.text.tolist() == [layout_.special(n) for n in ('<s>', '<user>', '<model>')]
  single = dataclasses.replace(small_model.conversation(layout_), turns=small_model.conversation(layout_).turns[:1])
  dropped = layout.tokenise(single, layout_, drop_question=True)
  np.testing.assert_array_equal(dropped.text[:3], null.text)
  full = layout.tokenise(single, layout_)
  np.testing.assert_array_equal(dropped.text[3:], full.text[len(layout.prompt(single, layout_).text):])


@pytest.mark.parametrize('left', [False, True])
def test_stack_pads_on_the_named_side(left):
  layout_ = small_model.plain(4)
  documents = [layout.tokenise(small_model.conversation(layout_, seed), layout_) for seed in (0, 3)]
  documents.append(layout.null_prompt(layout_))
  room = len(documents[0].text) + 5
  batch = layout.stack(documents, room, left=left)
  for field in dataclasses.fields(batch):
    rows = getattr(batch, field.name)
    for row, document in zip(rows, documents, strict=True):
      value = getattr(document, field.name)
      padding = room - len(value)
      np.testing.assert_array_equal(row[padding:] if left else row[:len(value)], value)
      assert (np.asarray(row[:padding] if left else row[len(value):]) == layout.FILL.get(field.name, 0)).all()
    assert rows.dtype == getattr(documents[0], field.name).dtype
  with pytest.raises(UserError, match='positions'):
    layout.stack(documents, room - 6)


def test_reading_whatever_a_model_wrote():
  """An image cut short is dropped, reading stops at the end, nothing is raised."""
  layout_ = small_model.plain()
  special, encode = layout_.special, layout_.tokenizer.encode
  text = np.asarray([special('</vis>'), *encode('a'), special('<image>'), 0, 0, special('</s>'), *encode('red')])
  modality = np.full(len(text), TEXT)
  modality[[3, 4]] = CODES
  assert layout.answer_of(text, np.zeros((len(text), 1), int), modality, layout_) == (Text('a'),)
  nothing = np.zeros(4, int)
  assert layout.answer_of(nothing, np.zeros((4, 1), int), nothing + PADDING, layout_) == ()


@pytest.mark.parametrize('codes, message', [
    (None, 'no codes'), (np.zeros((3, 1), np.int32), 'shape'), (np.full((4, 1), 16, np.int32), 'outside'),
    (np.full((4, 1), -1, np.int32), 'outside')])
def test_bad_codes_name_the_record(codes, message):
  conversation = Conversation('rec-7', 't', (Turn((Image(codes=codes),)),))
  for write in (layout.tokenise, layout.prompt):
    with pytest.raises(UserError, match=f'record rec-7: .*{message}'):
      write(conversation, small_model.plain())
