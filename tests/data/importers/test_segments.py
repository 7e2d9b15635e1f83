"""What importers of documents and benchmarks share: limits of a row, ids made of file and row, work for other processes."""

import pickle

import numpy as np
import pytest

from intersyn_jax.data import images
from intersyn_jax.data.importers import rows, segments
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn
from tests.data import samples


def importer(tmp_path, **options):
  return segments.Importer(tmp_path / 'rows.jsonl', None, **({'pixels': 8, 'encoding': 'PNG', 'fit': 'crop'} | options))


def convert(importer, row):
  answer = importer.text(row['text'], 'text') + importer.picture(row['image'], 'image')
  return Conversation(row['id'], '', (Turn((), tuple(answer)),))


def test_limits_count_for_one_row(tmp_path):
  (tmp_path / 'a.png').write_bytes(samples.png())
  row = {'id': 'x', 'text': 'a' * segments.MAX_TEXT, 'image': 'a.png'}
  found = [(f'rows.jsonl line {i}', row | {'id': str(i)}) for i in range(3)]
  rejected = []
  assert len(list(importer(tmp_path).conversations(found, convert, rejected.append, 'id'))) == 3 and not rejected
  longer = [('rows.jsonl line 4', row | {'text': ' ' + row['text']})]
  assert not list(importer(tmp_path).conversations(longer, convert, rejected.append, 'id'))
  assert [(r.where, r.id, r.reason) for r in rejected] == [('rows.jsonl line 4', 'x', 'the row has more than 1000000 characters')]


def test_other_processes_can_make_conversations(tmp_path):
  (tmp_path / 'a.png').write_bytes(samples.png())
  row = {'id': 'x', 'text': 'a', 'image': 'a.png'}
  found = importer(tmp_path).conversations([('rows.jsonl line 1', row)], convert, [].append, 'id')
  assert pickle.loads(pickle.dumps(found.make))('rows.jsonl line 1', row) == next(iter(found))


def test_places_of_pictures(tmp_path):
  for number, name in enumerate(('a.png', 'images/a.png', 'images/b.png', 'more/c.png')):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(samples.png(number))
  reader = importer(tmp_path, places=('images',))
  seen = [reader.picture(name, 'image', place='more')[0].data for name in ('a.png', 'images/a.png', 'b.png', 'c.png', 'b.PNG')]
  assert len(set(seen)) == 4 and seen[2] == seen[4]
  with pytest.raises(ValueError, match="'c.png' is missing"):
    reader.picture('c.png', 'image')
  with pytest.raises(ValueError, match='outside the folder'):
    reader.picture('../a.png', 'image')


def test_how_pictures_become_square(tmp_path):
  wide = np.zeros((8, 16, 3), np.uint8)
  wide[:, 4:12] = 255
  (tmp_path / 'a.png').write_bytes(images.png(wide))
  fits = ('crop', 'stretch_bicubic')
  crop, stretched = (importer(tmp_path, fit=fit).picture('a.png', 'image')[0].data for fit in fits)
  assert images.pixels(crop).min() > 200 and images.pixels(stretched)[:, 0].max() < 50
  assert importer(tmp_path, fit=fits[1]).held(images.png(wide), 'image') == [Image(stretched)]


def test_ids_made_of_file_and_row():
  (found,) = segments.numbered([('a row 7.jsonl line 12', {})])
  assert found == ('a row 7.jsonl line 12', ('a row 7.jsonl-12', {}))


def test_texts_that_follow_one_another():
  image = Image(b'x')
  assert segments.joined([], ' ') == ()
  assert segments.joined([Text('a'), Text('b'), image, image, Text('c')], '\n') == (Text('a\nb'), image, image, Text('c'))


@pytest.mark.parametrize('value', [7, ['a'], {}, b'a'])
def test_what_is_no_text(tmp_path, value):
  with pytest.raises(rows.BadRow, match='field x is missing or no text'):
    importer(tmp_path).text(value, 'x')
  assert importer(tmp_path).text(None, 'x') == importer(tmp_path).text(' \n', 'x') == []
