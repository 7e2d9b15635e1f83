"""Rows with scores, in the released format and ours: the votes of all annotators, and what is no vote left out."""

import dataclasses
import json

import numpy as np
import pytest

from intersyn_jax.data import images, shards
from intersyn_jax.data.importers import judged
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Image, Score, Text, Turn, steps_of
from tests.data import samples

PLACEHOLDER = {'id': 'id', 'question': 'The question from sample_question.txt (a line)',
               'answer': 'The corresponding model answer', 'image': 'the model answer image path, eg'}
"""The only row of the released sample file."""


def row(number=0, **changes):
  return {'id': f'q{number}', 'question': f' Draw number {number}. ', 'answer': f'number {number}', 'image': 'a.png',
          'labels': [4, 3, 5, 2]} | changes


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'images').mkdir()
  for number, name in enumerate(('a', 'b', 'c')):
    (tmp_path / f'images/{name}.png').write_bytes(samples.png(number, 24))
  return tmp_path


def read(folder, *lines):
  (folder / 'rows.jsonl').write_text('\n'.join(line if isinstance(line, str) else json.dumps(line) for line in lines))
  rejected = []
  return list(judged.rated(folder / 'rows.jsonl', rejected.append, pixels=16, folder=folder / 'images')), rejected


def test_a_row_becomes_a_conversation_with_one_vote(folder):
  found, rejected = read(folder, row(), row(1, labels=[4.0, 3, 5, 2], generator='anole'))
  assert not rejected
  one, other = found
  assert one.conversation.turns[0].question == (Text('Draw number 0.'),) and one.conversation.generator == judged.UNKNOWN
  text, image = one.conversation.turns[0].answer
  assert text == Text('number 0') and images.pixels(image.data).shape == (16, 16, 3)
  np.testing.assert_array_equal(one.votes, [[4, 3, 5, 2]])
  np.testing.assert_array_equal(other.votes, one.votes)
  assert one.votes.dtype == np.int32 and one.where == 'rows.jsonl line 1'
  assert (other.conversation.generator, other.conversation.id) == ('anole', 'anole/q1')


def test_missing_parts_have_the_rubrics_zeros(folder):
  texts, bare, empty = row(image=None, labels=[4, 0, 0, 0]), row(1, answer=' ', labels=[0, 3, 5, 0]), row(2, labels=[0] * 4)
  del empty['answer'], empty['image']
  found, rejected = read(folder, texts, bare, empty)
  assert not rejected
  answers = [r.conversation.turns[0].answer for r in found]
  assert answers[0] == (Text('number 0'),) and [type(s) for s in answers[1]] == [Image] and answers[2] == ()
  harsh, rejected = read(folder, row(labels=[0, 0, 0, 0]))  # things are there, and an annotator may still give nothing
  assert len(harsh) == 1 and not rejected


def test_several_steps(folder):
  steps = row(answer=['one', None, 'three'], image=['a.png', 'b.png', None])
  plain = row(1, answer=['one', 'two'], image='', labels=[4, 0, 0, 0])
  found, rejected = read(folder, steps, plain)
  assert not rejected
  halves = [(text, image is not None) for text, image in steps_of(found[0].conversation.turns[0].answer)]
  assert halves == [('one', True), (None, True), ('three', False)]
  assert found[1].conversation.turns[0].answer == (Text('one two'),)


def test_votes_of_several_annotators_are_brought_together(folder):
  found, rejected = read(
      folder, row(annotator='ada'), row(1, labels=[[1, 2, 3, 4], [5, 4, 3, 2]]), row(labels=[0, 1, 2, 3], annotator='bob'),
      row(labels=[5, 5, 5, 5]), row(generator='emu3', labels=[1, 1, 1, 1], answer='other'),
      row(labels=[1, 1, 1, 1], annotator='ada'), row(answer='another answer'), row(image='b.png'), row(question='Else?'))
  assert [r.conversation.id for r in found] == ['q0', 'q1', 'emu3/q0']
  np.testing.assert_array_equal(found[0].votes, [[4, 3, 5, 2], [0, 1, 2, 3], [5, 5, 5, 5]])
  np.testing.assert_array_equal(found[1].votes, [[1, 2, 3, 4], [5, 4, 3, 2]])
  np.testing.assert_array_equal(found[2].votes, [[1, 1, 1, 1]])
  reasons = [r.reason for r in rejected]
  assert "'ada' has scored it already at rows.jsonl line 1" in reasons[0]
  for reason, word in zip(reasons[1:], ('answer', 'image', 'question'), strict=True):
    assert f'already at rows.jsonl line 1 with another {word}' in reason


def test_one_bad_vote_does_not_take_the_others_along(folder):
  found, rejected = read(folder, row(), row(labels=[-1, -1, -1, -1]), row(labels=[1, 1, 1, 1]))
  np.testing.assert_array_equal(found[0].votes, [[4, 3, 5, 2], [1, 1, 1, 1]])
  assert rejected[0].where == 'rows.jsonl line 2' and rejected[0].id == 'q0'


def test_a_picture_that_is_missing_rejects_every_row_of_its_answer(folder):
  found, rejected = read(folder, row(image='none.png'), row(1), row(image='none.png', labels=[1, 1, 1, 1]))
  assert [r.conversation.id for r in found] == ['q1']
  assert [r.where for r in rejected] == ['rows.jsonl line 1', 'rows.jsonl line 3']


@pytest.mark.parametrize(('changes', 'reason'), [
    ({'labels': [-1, -1, -1, -1]}, 'TCC is -1, the mark of a judgement that failed'),
    ({'labels': [4, 3, 5, -1.0]}, 'ITS is -1'),
    ({'labels': [4, 6, 5, 2]}, 'ICC is 6; scores go from 0 to 5'),
    ({'labels': [4, 3, -2, 2]}, 'IQ is -2'),
    ({'labels': [4, True, 5, 2]}, "ICC is 'True'; an annotator gives whole numbers"),
    ({'labels': [4, 3.5, 5, 2]}, "ICC is '3.5'"),
    ({'labels': [4, float('nan'), 5, 2]}, "ICC is 'nan'"),
    ({'labels': [4, '3', 5, 2]}, 'whole numbers'),
    ({'labels': [4, None, 5, 2]}, 'whole numbers'),
    ({'labels': [4, 3, 5]}, '3 scores instead of the four'),
    ({'labels': [[4, 3, 5, 2], [4, 3]]}, '2 scores instead of the four'),
    ({'labels': [[4, 3, 5, 2], 4]}, '2 scores instead'),
    ({'labels': []}, 'field labels is missing'),
    ({'labels': {'tcc': 4}}, 'field labels is missing'),
    ({'labels': [[4, 3, 5, 2], [1, 1, 1, 1]], 'annotator': 'ada'}, 'field annotator names one person'),
    ({'answer': ''}, 'TCC is 4, but the answer has no text'),
    ({'answer': None, 'labels': [0, 3, 5, 1]}, 'ITS is 1, but the answer has no text'),
    ({'image': None}, 'ICC is 3, but the answer has no image'),
    ({'image': [], 'labels': [4, 0, 1, 0]}, 'IQ is 1, but the answer has no image'),
    ({'labels': [[0, 0, 0, 0], [4, 0, 0, 1]], 'image': ''}, 'ITS is 1, but'),
    ({'question': ''}, 'field question'),
    ({'answer': 7}, 'field answer'),
    ({'image': [3]}, 'field image'),
    ({'generator': 3}, 'field generator'),
    ({'id': 5}, 'field id'),
    ({'image': '../rows.jsonl'}, 'outside'),
    ({'image': 'http://example.org/a.png'}, 'address'),
])
def test_rows_that_are_left_out(folder, changes, reason):
  found, rejected = read(folder, row(1), row(**changes))
  assert [r.conversation.id for r in found] == ['q1']
  assert len(rejected) == 1 and rejected[0].where == 'rows.jsonl line 2'
  assert reason in rejected[0].reason and '\n' not in rejected[0].reason


def test_the_placeholder_of_the_release_is_no_answer(folder):
  found, rejected = read(folder, json.dumps(PLACEHOLDER))
  assert not found and len(rejected) == 1 and 'placeholder row' in rejected[0].reason


def test_scores_in_shards(tmp_path):
  """Votes are scores of whole answers; an answer inside the conversation is a row of its own, without what came after."""
  conversation = dataclasses.replace(samples.interleaved(0, steps=1), scores=(
      Score(1, -1, 5, 4, 3, 2), Score(0, -1, 1, 2, 3, 4), Score(0, 0, 0.3, 0.3, 0.3, 0.3), Score(1, -1, 4, 4, 4, 4)))
  turn = conversation.turns[0]
  two = dataclasses.replace(conversation, turns=(turn, Turn((Text('and now?'),), turn.answer)))
  model = dataclasses.replace(samples.interleaved(1), scores=(Score(0, -1, 4.2, 3.0, 0.1, 5.0),))
  beyond = dataclasses.replace(samples.interleaved(2), scores=(Score(3, -1, 4, 3, 0, 5),))
  bare = dataclasses.replace(samples.interleaved(3), scores=())
  no_image = dataclasses.replace(samples.interleaved(4), scores=(Score(0, -1, 4, 3, 0, 0),),
                                 turns=(Turn(turn.question, (Text('words'),)),))
  shards.write_split(tmp_path, 'rated', [two, model, beyond, bare, no_image, two])
  rejected = []
  first, second = judged.rated(tmp_path, rejected.append, pixels=8)
  assert (first.conversation.id, second.conversation.id) == ('i0/turn-0', 'i0')
  assert first.conversation.turns == (turn,) and second.conversation.turns == two.turns
  np.testing.assert_array_equal(first.votes, [[1, 2, 3, 4]])
  np.testing.assert_array_equal(second.votes, [[5, 4, 3, 2], [4, 4, 4, 4]])
  assert [r.where for r in rejected] == [f'rated record {i}' for i in range(1, 6)]
  for entry, reason in zip(rejected, ("TCC is '4.2'", 'has 1 turns', 'no scores', 'ICC is 3', 'already'), strict=True):
    assert reason in entry.reason


def test_a_file_that_is_not_there(tmp_path):
  with pytest.raises(UserError, match='cannot be read'):
    list(judged.rated(tmp_path / 'nowhere.jsonl', print, pixels=8))
