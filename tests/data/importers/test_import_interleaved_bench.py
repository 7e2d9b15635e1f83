"""InterleavedBench rows: marks, pictures of context and of gold answers, prompts, and what is left out."""

import json

import pytest

from intersyn_jax.data import records
from intersyn_jax.data.importers import interleaved_bench
from intersyn_jax.interleave.types import Image, Text
from tests.data import samples


def row(name='wikihow_next_step_0_1', images=('a', 'b', 'c'), human='<BEGIN> Goal: a cake. 1. Mix. <image> Go on.',
        gpt='2. Bake. <image> 3. Eat. <image>', **changes):
  talk = [{'from': 'human', 'value': human}] + ([] if gpt is None else [{'from': 'gpt', 'value': gpt}])
  return {'id': name, 'image': [f'wiki_images_test/{image}.png' for image in images], 'task_name': 'wikihow_next_step',
          'goal': 'Bake a cake', 'category': ['Food', 'Baking'], 'conversations': talk} | changes


@pytest.fixture
def read(tmp_path):
  (tmp_path / 'zipped_images/wiki_images_test').mkdir(parents=True)
  for number, name in enumerate('abc'):
    (tmp_path / f'zipped_images/wiki_images_test/{name}.png').write_bytes(samples.png(number, 12))

  def read(*rows):
    (tmp_path / 'interleaved_bench.json').write_text(json.dumps(rows))
    rejected = []
    return list(interleaved_bench.conversations(tmp_path / 'interleaved_bench.json', rejected.append, pixels=8)), rejected

  return read


def shape(segments):
  return [s.text if isinstance(s, Text) else Image for s in segments]


def test_each_mark_takes_the_next_picture(read):
  (found,), rejected = read(row())
  assert not rejected
  assert (found.id, found.topic, found.generator) == ('wikihow_next_step_0_1', 'wikihow_next_step', 'interleaved_bench')
  (turn,) = found.turns
  assert shape(turn.question) == ['Goal: a cake. 1. Mix.', Image, 'Go on.']
  assert shape(turn.answer) == ['2. Bake.', Image, '3. Eat.', Image]
  pictures = [s for s in (*turn.question, *turn.answer) if isinstance(s, Image)]
  assert pictures == [read(row(images=name, human='<image>', gpt=None))[0][0].turns[0].question[0] for name in 'abc']
  assert records.decode(records.encode(found)) == found


def test_pictures_without_mark_end_the_gold_answer(read):
  found, rejected = read(row('a', gpt='2. Bake. <image> 3. Eat.'), row('b', gpt=None, images='a'), row('c', gpt=''),
                         row('d', image='wiki_images_test/a.png', gpt='Fine.'))
  assert not rejected
  assert [shape(c.turns[0].answer) for c in found] == [['2. Bake.', Image, '3. Eat.', Image], [], [Image, Image], ['Fine.']]


def test_questions_without_context(read):
  (found,), _ = read(row(image=None, human='Write a report.', gpt=None))
  assert shape(found.turns[0].question) == ['Write a report.'] and found.turns[0].answer == ()


@pytest.mark.parametrize(('bad', 'reason'), [
    (row(), 'its id stands already'), (row(None), 'field id'),
    (row('b', images='ab'), '3 marks <image>, but field image lists 2'),
    (row('b', gpt=None), 'field image lists 3 pictures, but its only text has 1 marks'),
    (row('b', images='abz'), "image 'wiki_images_test/z.png' is missing"), (row('b', image={'a': 1}), 'field image'),
    (row('b', image=[1, 2, 3]), 'field image'), (row('b', image=['../' * 3 + 'x.png'] * 3), 'outside the folder'),
    (row('b', conversations=[]), 'one human'), (row('b', conversations=None), 'field conversations'),
    (row('b', conversations=[{'from': 'gpt', 'value': 'x'}]), 'one human'), (row('b', human=7), 'field value of human'),
    (row('b', human=' ', gpt='a <image><image><image>'), 'human says nothing'), (row('b', task_name=3), 'field task_name'),
])
def test_rows_that_are_left_out(read, bad, reason):
  found, rejected = read(row(), bad, row('last'))
  assert [c.id for c in found] == ['wikihow_next_step_0_1', 'last']
  assert [r.where for r in rejected] == ['interleaved_bench.json entry 2'] and reason in rejected[0].reason
