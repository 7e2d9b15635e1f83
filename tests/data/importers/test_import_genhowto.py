"""Actions in three pictures: a question with the first, an answer of two steps."""

import json

import pytest

from intersyn_jax.data import images
from intersyn_jax.data.importers import genhowto, questions
from intersyn_jax.interleave.types import Image, Text, steps_of
from tests.data import samples


def row(number=0, **changes):
  return {'id': f'g{number}', 'initial': 'f/0.png', 'action': 'f/1.png', 'final': 'f/2.png', 'category': 'apple',
          'action_prompt': 'a person slicing an apple', 'final_prompt': 'apple slices on a plate'} | changes


@pytest.fixture
def read(tmp_path):
  (tmp_path / 'f').mkdir()
  for number in range(3):
    (tmp_path / f'f/{number}.png').write_bytes(samples.png(number, 12))

  def read(*rows, **options):
    (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    rejected = []
    return list(genhowto.conversations(tmp_path / 'rows.jsonl', rejected.append, pixels=8, **options)), rejected

  return read


def test_the_answer_is_the_action_and_its_result(read):
  (made,), rejected = read(row(question='How do I slice an apple?'))
  assert not rejected and (made.id, made.topic, made.generator) == ('g0', 'apple', 'genhowto')
  question, first = made.turns[0].question
  assert question.text.endswith('How do I slice an apple?') and len(question.text) > 60 and isinstance(first, Image)
  steps = steps_of(made.turns[0].answer)
  assert [text for text, _ in steps] == ['a person slicing an apple', 'apple slices on a plate']
  assert [picture.caption for _, picture in steps] == [text for text, _ in steps]
  pictures = [first.data, *(picture.data for _, picture in steps)]
  assert len(set(pictures)) == 3 and images.pixels(pictures[0]).shape == (8, 8, 3)


def test_without_texts_of_ones_own(read):
  (made,), _ = read(row(final_prompt=None))
  assert made.turns[0].question[0].text.endswith(genhowto.QUESTION)
  assert made.turns[0].answer[2] == Text(genhowto.RESULT) and made.turns[0].answer[3].caption == ''


def test_the_id_decides_the_template_and_all_of_them_come_up(read):
  found, _ = read(*(row(number) for number in range(40)))
  asked = [made.turns[0].question[0].text for made in found]
  assert len(set(asked)) == len(questions.REASON)
  assert asked == [made.turns[0].question[0].text for made in read(*map(row, range(40)))[0]]
  assert all('{' not in text for text in asked) and any('2 steps' in text for text in asked)


@pytest.mark.parametrize(('bad', 'reason'), [
    ({'final': 'f/9.png'}, "'f/9.png' is missing"), ({'initial': None}, 'field initial'),
    ({'action_prompt': ' '}, 'field action_prompt'),
    ({'id': 7}, 'field id'), ({'id': 'g1'}, 'stands already at rows.jsonl line 1'), ({'category': ['x']}, 'field category')])
def test_rows_that_are_left_out(read, bad, reason):
  found, rejected = read(row(1), row(2) | bad, row(3))
  assert [c.id for c in found] == ['g1', 'g3'] and [r.where for r in rejected] == ['rows.jsonl line 2']
  assert reason in rejected[0].reason
