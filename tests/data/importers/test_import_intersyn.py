"""InterSyn rows written to the documented schema: usable ones become conversations, the others are listed with reasons."""

import json

import pytest

from intersyn_jax.data import images, records
from intersyn_jax.data.importers import intersyn
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Image, Text
from tests.data import samples


def row(number=0, turns=2, **changes):
  messages = []
  for turn in range(turns):
    messages += [{'from': 'human', 'value': f' question {turn}? '},
                 {'from': 'gpt', 'value': f'answer {turn}', 'caption': f'caption {turn}', 'image': f'images/{turn}.png'}]
  return {'id': f'set_{number:010d}', 'topic': 'Panda', 'conversations': messages} | changes


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'images').mkdir()
  for turn in range(3):
    (tmp_path / f'images/{turn}.png').write_bytes(samples.png(turn, 24))
  return tmp_path


def read(folder, text, name='rows.jsonl', **options):
  (folder / name).write_text(text)
  rejected = []
  return list(intersyn.conversations(folder / name, rejected.append, **({'pixels': 16} | options))), rejected


def test_rows_become_conversations(folder):
  found, rejected = read(folder, '\n'.join(json.dumps(row(i, turns=i + 1)) for i in range(3)) + '\n\n')
  assert not rejected and [c.id for c in found] == [f'set_{i:010d}' for i in range(3)]
  assert [len(c.turns) for c in found] == [1, 2, 3]
  turn = found[1].turns[1]
  assert turn.question == (Text('question 1?'),)
  text, image = turn.answer
  assert text == Text('answer 1') and isinstance(image, Image) and image.caption == 'caption 1'
  assert images.pixels(image.data).shape == (16, 16, 3)
  assert records.decode(records.encode(found[1])) == found[1]
  assert found[1].topic == 'Panda' and found[1].generator == 'intersyn'


def test_a_list_in_one_file_and_jpeg(folder):
  found, rejected = read(folder, json.dumps([row(0), 3, row(1)], indent=2), 'rows.json', encoding='JPEG')
  assert len(found) == 2 and rejected[0].where == 'rows.json entry 2'
  assert images.sniff(found[0].turns[0].answer[1].data) == 'JPEG'


def test_an_answer_without_a_picture_is_kept(folder):
  bare = row(turns=1)
  del bare['conversations'][1]['image'], bare['conversations'][1]['caption']
  found, _ = read(folder, json.dumps(bare))
  assert found[0].turns[0].answer == (Text('answer 0'),)


def with_gpt(**changes):
  changed = row(turns=1)
  changed['conversations'][1] |= changes
  return changed


@pytest.mark.parametrize(('line', 'reason'), [
    ('{"id": ', 'no JSON'),
    ('[1]', 'no JSON object'),
    (json.dumps({'id': 'id', 'question': 'The question from sample_question.txt (a line)',
                 'answer': 'The corresponding model answer', 'image': 'the model answer image path, eg'}), 'placeholder row'),
    (json.dumps({'id': 'a', 'question': 'q', 'answer': 'b'}), 'field conversations'),
    (json.dumps(row(conversations=[])), 'field conversations'),
    (json.dumps(row(conversations=row()['conversations'][:3])), 'alternate'),
    (json.dumps(row(conversations=['a', 'b'])), 'alternate'),
    (json.dumps(row(id='')), 'field id'),
    (json.dumps(row(id=7)), 'field id'),
    (json.dumps(row(topic='\ud800')), 'Unicode'),
    (json.dumps(with_gpt(value=' ')), 'turn 0: field value'),
    (json.dumps(with_gpt(image='images/none.png')), 'missing'),
    (json.dumps(with_gpt(image='../rows.jsonl')), 'outside'),
    (json.dumps(with_gpt(image='rows.jsonl')), 'no PNG'),
    (json.dumps(with_gpt(image='http://example.org/a.png')), 'address'),
    (json.dumps(with_gpt(image=5)), 'field image'),
    (json.dumps(row(0)), 'stands already at rows.jsonl line 1'),
])
def test_rows_that_are_left_out(folder, line, reason):
  found, rejected = read(folder, json.dumps(row(0)) + '\n' + line + '\n' + json.dumps(row(9)))
  assert [c.id for c in found] == ['set_0000000000', 'set_0000000009']
  assert len(rejected) == 1 and rejected[0].where == 'rows.jsonl line 2'
  assert reason in rejected[0].reason


@pytest.mark.parametrize(('content', 'words'), [(b'[{"id": 1},\n oops]', 'line 2'), (b'\xff\xfe{}', 'UTF-8')])
def test_files_that_cannot_be_read(tmp_path, content, words):
  (tmp_path / 'rows.json').write_bytes(content)
  with pytest.raises(UserError, match=words):
    list(intersyn.conversations(tmp_path / 'rows.json', print, pixels=8))
  with pytest.raises(UserError, match='cannot be read'):
    list(intersyn.conversations(tmp_path / 'nowhere.json', print, pixels=8))
