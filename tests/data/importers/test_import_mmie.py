"""MMIE rows: topics and ids as they stand, prompts without answer, and what is left out."""

import json

import pytest

from intersyn_jax.data import records
from intersyn_jax.data.importers import mmie
from intersyn_jax.interleave.types import Image, Text
from tests.data import samples


def item(text=None, image=None):
  return {'text': text, 'image': image}


def row(name='PBL_0001', human=None, gpt=None, **changes):
  human = [item('How do I fold a crane?'), item('Begin here.', './images/1.png')] if human is None else human
  gpt = [item('Fold it.', 'images/2.png'), item('Done.')] if gpt is None else gpt
  return {'id': name, 'catagory': 'Project-based learning', 'field': 'Crafts',
          'conversations': [{'from': 'human', 'content': human}, {'from': 'gpt', 'content': gpt}]} | changes


@pytest.fixture
def read(tmp_path):
  (tmp_path / 'images').mkdir()
  for number in (1, 2):
    (tmp_path / f'images/{number}.png').write_bytes(samples.png(number, 12))

  def read(*rows, lines=False):
    text = '\n'.join(map(json.dumps, rows)) if lines else json.dumps(rows)
    (tmp_path / 'data.json').write_text(text, 'utf-8-sig')
    rejected = []
    return list(mmie.conversations(tmp_path / 'data.json', rejected.append, pixels=8)), rejected

  return read


def shape(segments):
  return [s.text if isinstance(s, Text) else Image for s in segments]


@pytest.mark.parametrize('lines', [False, True])
def test_questions_and_answers_in_order(read, lines):
  (found,), rejected = read(row(), lines=lines)
  assert not rejected and (found.id, found.generator) == ('PBL_0001', 'mmie')
  assert found.topic == 'Project-based learning/Crafts'
  (turn,) = found.turns
  assert shape(turn.question) == ['How do I fold a crane?\nBegin here.', Image]
  assert shape(turn.answer) == ['Fold it.', Image, 'Done.']
  assert records.decode(records.encode(found)) == found


def test_topics(read):
  found, _ = read(row('a', subfield='Paper'), row('b', field=None), row('c', catagory=None, category='Situational analysis'))
  assert [c.topic for c in found] == ['Project-based learning/Crafts/Paper', 'Project-based learning',
                                      'Situational analysis/Crafts']


def test_entries_of_an_answer_stay_apart(read):
  (found,), _ = read(row(gpt=[item('x = 3'), item('because of the picture')]))
  assert shape(found.turns[0].answer) == ['x = 3', 'because of the picture']


def test_rows_without_answer_are_prompts(read):
  question = {'from': 'human', 'content': [item('Why?')]}
  found, rejected = read(row('SA_1', conversations=[question]), row('SA_2', gpt=[item()]), row('SA_3', gpt=[]))
  assert not rejected and [len(c.turns) for c in found] == [1, 1, 1] and not any(c.turns[0].answer for c in found)
  assert records.decode(records.encode(found[0])) == found[0]


def test_several_turns(read):
  (found,), _ = read(row(conversations=row()['conversations'] * 2))
  assert len(found.turns) == 2


TALK = row()['conversations']


@pytest.mark.parametrize(('bad', 'reason'), [
    (row(), 'its id stands already at data.json entry 1'), (row(7), 'field id'),
    (row('x' * 5000), 'field id has 5000 characters'),
    (row('b', conversations={}), 'field conversations'), (row('b', conversations=[]), 'does not alternate'),
    (row('b', conversations=TALK[::-1]), 'does not alternate'),
    (row('b', conversations=[TALK[0]] * 2), 'does not alternate'),
    (row('b', human=[item()]), 'the question holds neither'),
    (row('b', conversations=[TALK[0], TALK[1] | {'content': []}, *TALK]), 'the answer'),
    (row('b', human='Why?'), 'content of human 0'), (row('b', gpt=['x']), 'entry 0 of field content of gpt 0'),
    (row('b', human=[item(3)]), 'human 0: field text'),
    (row('b', human=[item('a', 'images/9.png')]), "human 0: image 'images/9.png' is missing"),
    (row('b', gpt=[item('a', '../../x.png')]), 'outside the folder'),
    (row('b', gpt=[item('a', {'bytes': 'x'})]), 'gpt 0: field image'),
    (row('b', catagory=['x']), 'field catagory'), (7, 'no JSON object'),
])
def test_rows_that_are_left_out(read, bad, reason):
  found, rejected = read(row(), bad, row('last'))
  assert [c.id for c in found] == ['PBL_0001', 'last']
  assert [r.where for r in rejected] == ['data.json entry 2'] and reason in rejected[0].reason and len(rejected[0].id) <= 200
