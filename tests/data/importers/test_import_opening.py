"""OpenING rows: markers, input pictures, several output pictures, and rows whose pictures are missing."""

import json

import pytest

from intersyn_jax.data.importers import opening
from intersyn_jax.interleave.types import Image, Text
from tests.data import samples


def row(uid='1', inputs=None, outputs=None):
  inputs = inputs or [{'image': None, 'text': '<BEGIN> Draw a flow chart.'}]
  outputs = outputs or [{'image': './images/1-o-1.png', 'text': 'Here it is. <image>'}]
  return {'total_uid': uid, 'meta_task_name': 'Brainstorming', 'subtask_name': 'Academic', 'data_id': '1',
          'conversations': [{'input': inputs}, {'output': outputs}]}


@pytest.fixture
def read(tmp_path):
  (tmp_path / 'images').mkdir()
  for name in ('1-o-1', '1-o-2', '1-i-1'):
    (tmp_path / f'images/{name}.png').write_bytes(samples.png(size=12))

  def read(*rows):
    (tmp_path / 'rows.jsonl').write_text('\n'.join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    rejected = []
    return list(opening.conversations(tmp_path / 'rows.jsonl', rejected.append, pixels=8)), rejected

  return read


def shape(segments):
  return [s.text if isinstance(s, Text) else Image for s in segments]


def test_markers_and_places_of_pictures(read):
  found, rejected = read(
      row(),
      row('2', inputs=[{'image': './images/1-i-1.png', 'text': '<BEGIN> What is <image> this?'}],
          outputs=[{'image': './images/1-o-1.png', 'text': '<image> First.'}, {'image': './images/1-o-2.png', 'text': 'Second.'},
                   {'image': None, 'text': 'Last.'}]))
  assert not rejected
  one, two = found
  assert one.topic == 'Brainstorming/Academic' and one.generator == 'opening' and one.id == '1'
  assert shape(one.turns[0].question) == ['Draw a flow chart.'] and shape(one.turns[0].answer) == ['Here it is.', Image]
  assert shape(two.turns[0].question) == ['What is', Image, 'this?']
  assert shape(two.turns[0].answer) == [Image, 'First.', 'Second.', Image, 'Last.']


def test_several_turns(read):
  twice = row()
  twice['conversations'] *= 2
  found, _ = read(twice)
  assert len(found[0].turns) == 2


@pytest.mark.parametrize(('bad', 'reason'), [
    (row('2', outputs=[{'image': './images/9-o-1.png', 'text': 'a <image>'}]), "output 0: image './images/9-o-1.png' is missing"),
    (row('2', inputs=[{'image': './images/9-i-1.png', 'text': '<BEGIN> a'}]), 'input 0'),
    (row('2', outputs=[{'image': None, 'text': '<image>'}]), 'neither text nor image'),
    (row('2', outputs=['text']), 'no object'),
    (row('2') | {'conversations': [{'input': []}]}, 'alternate'),
    (row('1'), 'stands already at rows.jsonl line 1'),
    (row(3), 'field total_uid'),
    ('{"total_uid": "2", ', 'no JSON'),
])
def test_rows_that_are_left_out(read, bad, reason):
  found, rejected = read(row('1'), bad, row('5'))
  assert [c.id for c in found] == ['1', '5']
  assert [r.where for r in rejected] == ['rows.jsonl line 2'] and reason in rejected[0].reason
