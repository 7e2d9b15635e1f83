"""Conversations about pictures: marks, several pictures, several turns, and rows of text alone."""

import json

import pytest

from intersyn_jax.data.importers import llava
from intersyn_jax.interleave.types import Image, Text
from tests.data import samples


def row(*texts, **changes):
  texts = texts or ('<image>\nWhat is this?', 'A cat.', 'What colour?', 'Grey.')
  speakers = ('human', 'gpt') * len(texts)
  return {'id': '000000033471', 'image': 'coco/a.jpg',
          'conversations': [{'from': s, 'value': t} for s, t in zip(speakers, texts)]} | changes


@pytest.fixture
def read(tmp_path):
  (tmp_path / 'coco').mkdir()
  for number, name in enumerate('ab'):
    (tmp_path / f'coco/{name}.jpg').write_bytes(samples.png(number, 12))

  def read(*rows):
    (tmp_path / 'rows.json').write_text(json.dumps(rows, indent=1))
    rejected = []
    return list(llava.conversations(tmp_path / 'rows.json', rejected.append, pixels=8)), rejected

  return read


def shape(segments):
  return [s.text if isinstance(s, Text) else Image for s in segments]


def test_turns_and_marks(read):
  (made, tail, two, bare, unmarked), rejected = read(
      row(), row('Look: <image>', 'Yes.'), row('<image> or <image>?', 'Both.', image=['coco/a.jpg', 'coco/b.jpg']),
      row('Hello', 'Hi', image=None), row('What is this?', 'A cat.'))
  assert not rejected
  assert [shape(turn.question) for turn in made.turns] == [[Image, 'What is this?'], ['What colour?']]
  assert [shape(turn.answer) for turn in made.turns] == [['A cat.'], ['Grey.']]
  assert shape(tail.turns[0].question) == ['Look:', Image]
  assert shape(two.turns[0].question) == [Image, 'or', Image, '?']
  first, second = (s for s in two.turns[0].question if isinstance(s, Image))
  assert first == made.turns[0].question[0] != second
  assert shape(bare.turns[0].question) == ['Hello'] and shape(unmarked.turns[0].question) == [Image, 'What is this?']


def test_ids_of_the_release_repeat(read):
  found, rejected = read(row(), row(), row(id=7))
  assert not rejected and [c.id for c in found] == ['rows.json-1', 'rows.json-2', 'rows.json-3']
  assert [c.trace for c in found] == ['000000033471', '000000033471', '7']


@pytest.mark.parametrize(('bad', 'reason'), [
    (row('<image> <image>', 'x'), '2 marks'), (row('<image>', 'x', image=None), '1 marks'),
    (row('q', 'a <image>'), 'gpt has a mark'), (row('<image>', 'x', image=['coco/a.jpg', 'coco/b.jpg']), '2 pictures'),
    (row('q'), 'alternate'), (row(conversations=[]), 'alternate'),
    (row(conversations=['x']), 'entry 0'), (row(' ', 'a'), 'field value'), (row('q', None), 'field value'),
    (row(image='coco/c.jpg'), 'missing'), (row(image={'path': 'x'}), 'field image'), (row(image=[3]), 'field image')])
def test_rows_that_are_left_out(read, bad, reason):
  found, rejected = read(row(), bad, row())
  assert len(found) == 2 and [r.where for r in rejected] == ['rows.json entry 2'] and reason in rejected[0].reason
