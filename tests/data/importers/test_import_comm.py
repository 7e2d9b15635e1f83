"""CoMM rows: titles and steps, the files of torch.save without unpickling, and what is left out."""

import json
import os
import pickle
import zipfile

import pytest

from intersyn_jax.data import records
from intersyn_jax.data.importers import comm
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Image, Text
from tests.data import samples


def text(content):
  return {'type': 'text', 'content': content}


def image(path, url='http://example.org/a.png'):
  return {'type': 'image', 'url': url, 'image_path': path}


def row(name='wiki_1', steps=None, **changes):
  if steps is None:
    steps = [[text('Fold it.'), image('wiki/1.png')], [text('Turn it.')], [text(' Pull. '), image('wiki/2.png')]]
  return {'data_id': name, 'dataset_type': 'wikihow', 'title': 'How to Fold a Crane',
          'summary_info': [text('Cranes.'), image('gone.png')], 'step_info': steps} | changes


@pytest.fixture
def read(tmp_path):
  (tmp_path / 'images/wiki').mkdir(parents=True)
  for number in (1, 2):
    (tmp_path / f'images/wiki/{number}.png').write_bytes(samples.png(number, 12))

  def read(*rows, name='train_data.jsonl'):
    if name.endswith('.pth'):
      with zipfile.ZipFile(tmp_path / name, 'w') as archive:
        archive.writestr('train_data/data.pkl', pickle.dumps(list(rows), 2))
    else:
      (tmp_path / name).write_text('\n'.join(map(json.dumps, rows)) if name.endswith('l') else json.dumps(rows))
    rejected = []
    return list(comm.conversations(tmp_path / name, rejected.append, pixels=8)), rejected

  return read


def shape(segments):
  return [s.text if isinstance(s, Text) else Image for s in segments]


@pytest.mark.parametrize('name', ['train_data.jsonl', 'train_data.json', 'train_data.pth'])
def test_titles_are_questions_and_steps_are_answers(read, name):
  found, rejected = read(row(), row('insta_2', title=None), name=name)
  assert not rejected and [c.id for c in found] == ['wiki_1', 'insta_2']
  assert found[0].topic == 'wikihow' and found[0].generator == 'comm'
  (turn,) = found[0].turns
  assert shape(turn.question) == ['How to Fold a Crane']
  assert shape(turn.answer) == ['Fold it.', Image, 'Turn it.\nPull.', Image]
  assert found[1].turns[0].question == () and found[1].turns[0].answer == turn.answer
  assert records.decode(records.encode(found[1])) == found[1]


def test_a_row_without_pictures_is_one_text(read):
  (found,), _ = read(row(steps=[[text('a'), text('b')], [text('c')]]))
  assert shape(found.turns[0].answer) == ['a\nb\nc']


BAD = [
    (row(), 'its data_id stands already at'), (row(5), 'field data_id'), (row('b', title=['x']), 'field title'),
    (row('b', steps={}), 'field step_info'), (row('b', steps=[text('a')]), 'step 0: field step'),
    (row('b', steps=[['a']]), 'step 0: entry 0'),
    (row('b', steps=[[text('a')], [{'type': 'video'}]]), 'step 1: field type'),
    (row('b', steps=[[text(3)]]), 'step 0: field content'),
    (row('b', steps=[[image('wiki/9.png')]]), "step 0: image 'wiki/9.png' is missing"),
    (row('b', steps=[[image(None)]]), 'field image_path'),
    (row('b', steps=[[image('../../x.png')]]), 'outside the folder'),
    (row('b', steps=[[image('http://a/b.png')]]), 'is an address'),
    (row('b', steps=[[], [text(' ')]]), 'neither text nor picture'), ('row', 'no '),
    (row('b', dataset_type=7), 'field dataset_type'),
]


@pytest.mark.parametrize(('bad', 'reason'), BAD)
@pytest.mark.parametrize('name', ['train_data.json', 'train_data.pth'])
def test_rows_that_are_left_out(read, name, bad, reason):
  found, rejected = read(row(), bad, row('last'), name=name)
  assert [c.id for c in found] == ['wiki_1', 'last']
  assert [r.where for r in rejected] == [f'{name} entry 2'] and reason in rejected[0].reason


def test_a_row_that_holds_itself(read):
  bad = row('b')
  bad['step_info'] = [bad]
  deep = row('c', steps=[])
  deep['step_info'].append(deep['step_info'])
  found, rejected = read(bad, deep, row(), name='train_data.pth')
  assert [c.id for c in found] == ['wiki_1'] and [r.id for r in rejected] == ['b', 'c']


class Program:
  """Makes a folder when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (self.path,)


def test_programs_are_refused(read, tmp_path):
  with pytest.raises(UserError, match='opcode GLOBAL at byte'):
    read(row(), row('b', title=Program(str(tmp_path / 'trap'))), name='train_data.pth')
  assert not (tmp_path / 'trap').exists()


def test_pickles_of_another_kind_are_not_opened(read, tmp_path):
  path = tmp_path / 'old.pt'
  path.write_bytes(pickle.dumps([row()]))
  with pytest.raises(UserError, match='is no zip of torch.save; write its rows as JSON Lines'):
    list(comm.conversations(path, [].append, pixels=8))
  with pytest.raises(UserError, match='cannot be read'):
    list(comm.conversations(tmp_path / 'nowhere.pth', [].append, pixels=8))
