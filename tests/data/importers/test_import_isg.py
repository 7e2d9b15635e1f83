"""ISG-Bench rows: entries in order, golden answers kept as they stand, prompts, and what is left out."""

import json

import pytest

from intersyn_jax.data import records
from intersyn_jax.data.importers import isg
from intersyn_jax.interleave.types import Image, Text
from tests.data import samples


def text(content):
  return {'type': 'text', 'content': content}


def image(content, **more):
  return {'type': 'image', 'content': content} | more


def row(name='0000', query=None, golden=None, **changes):
  query = [text('What happens next?'), image('images/0000_q1.png')] if query is None else query
  golden = [text('The hands are washed.'), image('images/0000_g1.png', caption='hands')] if golden is None else golden
  return {'id': name, 'Category': 'Prediction', 'Query': query, 'Golden': golden,
          'predict': {'structural': {'Query': ['<query_text1>'], 'Answer': ['<gen_text1>', '<gen_img1>']}}} | changes


@pytest.fixture
def read(tmp_path):
  (tmp_path / 'images').mkdir()
  for number, name in enumerate(('q1', 'g1')):
    (tmp_path / f'images/0000_{name}.png').write_bytes(samples.png(number, 12))

  def read(*rows):
    (tmp_path / 'ISG-Bench.jsonl').write_text('\n'.join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    rejected = []
    return list(isg.conversations(tmp_path / 'ISG-Bench.jsonl', rejected.append, pixels=8)), rejected

  return read


def shape(segments):
  return [s.text if isinstance(s, Text) else Image for s in segments]


def test_entries_in_order(read):
  (found,), rejected = read(row())
  assert not rejected and (found.id, found.topic, found.generator) == ('0000', 'Prediction', 'isg')
  (turn,) = found.turns
  assert shape(turn.question) == ['What happens next?', Image] and shape(turn.answer) == ['The hands are washed.', Image]
  assert turn.answer[1].caption == 'hands' and records.decode(records.encode(found)) == found


def test_the_golden_answer_keeps_its_structure_and_the_question_reads_on(read):
  (found,), _ = read(row(query=[text('One.'), text('Two.'), image('images/0000_q1.png')],
                         golden=[text('a'), text('b'), image('images/0000_g1.png'), image('images/0000_g1.png')]))
  assert shape(found.turns[0].question) == ['One.\nTwo.', Image]
  assert shape(found.turns[0].answer) == ['a', 'b', Image, Image]


def test_endings_in_capitals_find_files_in_small_letters(read):
  (found,), rejected = read(row(query=[text('x'), image('images/0000_q1.PNG')]))
  assert not rejected and shape(found.turns[0].question) == ['x', Image]


def test_rows_without_golden_answer_are_prompts(read):
  found, rejected = read(row('a') | {'Golden': None}, row('b', golden=[]))
  assert not rejected and [c.turns[0].answer for c in found] == [(), ()]


@pytest.mark.parametrize(('bad', 'reason'), [
    (row(), 'its id stands already at ISG-Bench.jsonl line 1'), (row(3), 'field id'),
    (row('b', query=[]), 'field Query holds neither'),
    (row('b', query='What?'), 'field Query'), (row('b', query=[7]), 'entry 0 of field Query'),
    (row('b', query=[{'type': 'video', 'content': 'x'}]), 'Query 0: field type'),
    (row('b', query=[text(['x'])]), 'Query 0: field content'),
    (row('b', golden=[text('a'), image('images/gone.png')]), "Golden 1: image 'images/gone.png' is missing"),
    (row('b', golden=[image('../../../etc/passwd')]), 'Golden 0: image'),
    (row('b', golden=[image(None)]), 'Golden 0: field content'),
    (row('b', golden=[image('images/0000_g1.png', caption=7)]), 'Golden 0: field caption'),
    (row('b', Category={}), 'field Category'),
    ('{"id": "b", "Query": [{"type"', 'no JSON'),
])
def test_rows_that_are_left_out(read, bad, reason):
  found, rejected = read(row(), bad, row('last'))
  assert [c.id for c in found] == ['0000', 'last']
  assert [r.where for r in rejected] == ['ISG-Bench.jsonl line 2'] and reason in rejected[0].reason
