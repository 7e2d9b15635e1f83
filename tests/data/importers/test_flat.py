"""Flat parquet rows of the dataset card, good, incomplete and hostile."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intersyn_jax.data import images, parquet, records
from intersyn_jax.data.importers import flat
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Image, Text
from tests.data import samples

PICTURE = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
SCHEMA = pa.schema([('id', pa.string()), ('topic', pa.string())]
                   + [(f'{kind}{turn}', PICTURE if kind == 'image' else pa.string())
                      for turn in (1, 2, 3) for kind in ('human', 'gpt', 'caption', 'image')])


def row(number=0, turns=1, **changes):
  made = {'id': f'set_{number:010d}', 'topic': 'Panda'}
  for turn in range(1, turns + 1):
    made |= {f'human{turn}': f' question {turn}? ', f'gpt{turn}': f'answer {turn}', f'caption{turn}': f'caption {turn}',
             f'image{turn}': {'bytes': samples.png(turn, 24), 'path': None}}
  return made | changes


def read(path, rows, schema=SCHEMA, **options):
  pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=2)
  return again(path, **options)


def again(path, **options):
  rejected = []
  return list(flat.conversations(path, rejected.append, **({'pixels': 16} | options))), rejected


def test_rows_become_conversations(tmp_path):
  found, rejected = read(tmp_path / 'rows.parquet', [row(i, turns=i + 1) for i in range(3)])
  assert not rejected and [len(c.turns) for c in found] == [1, 2, 3]
  turn = found[1].turns[1]
  assert turn.question == (Text('question 2?'),)
  text, image = turn.answer
  assert text == Text('answer 2') and isinstance(image, Image) and image.caption == 'caption 2'
  assert images.pixels(image.data).shape == (16, 16, 3) and found[1].topic == 'Panda'
  assert records.decode(records.encode(found[1])) == found[1]


def test_empty_texts_count_as_missing_and_pictures_may_be_plain_bytes(tmp_path):
  schema = pa.schema([('id', pa.large_string()), ('human1', pa.string()), ('gpt1', pa.string()), ('image1', pa.binary()),
                      ('human2', pa.string()), ('gpt2', pa.string()), ('other', pa.int64())])
  rows = [{'id': 'a', 'human1': 'q', 'gpt1': 'a', 'image1': samples.png(1), 'human2': '', 'gpt2': '', 'other': 3},
          {'id': 'b', 'human1': 'q', 'gpt1': 'a', 'image1': None, 'human2': 'q', 'gpt2': 'a', 'other': None}]
  found, rejected = read(tmp_path / 'rows.parquet', rows, schema, encoding='JPEG')
  assert not rejected and [len(c.turns) for c in found] == [1, 2]
  assert images.sniff(found[0].turns[0].answer[1].data) == 'JPEG' and found[1].turns[0].answer == (Text('a'),)


def test_a_folder_is_read_in_order_of_name_and_ids_are_unique_in_all_of_it(tmp_path):
  for place, name in enumerate(('b', 'a')):
    read(tmp_path / f'{name}.parquet', [row(place), row(9)])
  found, rejected = again(tmp_path)
  assert [c.id for c in found] == ['set_0000000001', 'set_0000000009', 'set_0000000000']
  assert [(r.where, r.reason) for r in rejected] == [('b.parquet row 2', 'its id stands already at a.parquet row 2')]


@pytest.mark.parametrize(('changes', 'reason'), [
    (dict(id=None), 'field id'), (dict(id='  '), 'field id'),
    (dict(human1=None), 'field human1'), (dict(gpt1=''), 'field gpt1'),
    (dict(human1=None, gpt1=None, caption1=None, image1=None), 'no turn'),
    (dict(human3='q', gpt3='a'), 'turn 3 is there but turn 2 is not'),
    (dict(image1={'bytes': b'no picture at all', 'path': None}), 'turn 1: a picture of field image1 is no PNG'),
    (dict(image1={'bytes': samples.png(1)[:-30], 'path': None}), 'turn 1'),
    (dict(image1={'bytes': None, 'path': '/etc/passwd'}), 'no bytes of a picture'),
    (dict(image1={'bytes': b'', 'path': 'http://example.org/a.png'}), 'no bytes of a picture'),
    (dict(image1={'bytes': b'GIF89a' + bytes(40), 'path': None}), 'no PNG, JPEG or WebP'),
])
def test_rows_that_are_left_out(tmp_path, changes, reason):
  found, rejected = read(tmp_path / 'rows.parquet', [row(0), row(1, **changes), row(2)])
  assert [c.id for c in found] == ['set_0000000000', 'set_0000000002']
  assert rejected[0].where == 'rows.parquet row 2' and reason in rejected[0].reason


def test_columns_of_other_types_leave_their_rows_out(tmp_path):
  schema = pa.schema([('id', pa.string()), ('human1', pa.list_(pa.int64())), ('gpt1', pa.string()), ('image1', pa.int64())])
  rows = [{'id': 'a', 'human1': [1], 'gpt1': 'a', 'image1': 3}]
  found, rejected = read(tmp_path / 'rows.parquet', rows, schema)
  assert not found and 'field human1' in rejected[0].reason


def test_a_date_beyond_all_years(tmp_path):
  schema = pa.schema([('id', pa.string()), ('topic', pa.date64()), ('human1', pa.string()), ('gpt1', pa.string())])
  rows = pa.table({'id': ['a', 'b'], 'topic': pa.array([2**62, None]).cast(pa.int64()).view(pa.date64()),
                   'human1': ['q'] * 2, 'gpt1': ['a'] * 2}, schema)
  pq.write_table(rows, tmp_path / 'rows.parquet')
  found, rejected = again(tmp_path / 'rows.parquet')
  assert [c.id for c in found] == ['b'] and 'cannot be read' in rejected[0].reason


def test_text_that_is_no_utf8_takes_only_its_row_along(tmp_path):
  path = tmp_path / 'rows.parquet'
  broken = pa.array([b'fine', b'\xff\xfe', b'fine']).cast(pa.binary()).view(pa.string())
  columns = {'id': pa.array(['a', 'b', 'c']), 'human1': broken, 'gpt1': pa.array(['x'] * 3)}
  pq.write_table(pa.table(columns), path)
  found, rejected = again(path)
  assert [c.id for c in found] == ['a', 'c'] and [r.where for r in rejected] == ['rows.parquet row 2']
  assert 'UTF-8' in rejected[0].reason


def test_a_damaged_row_group_is_left_out_and_the_others_are_read(tmp_path):
  path = tmp_path / 'rows.parquet'
  read(path, [row(i) for i in range(6)])
  column = pq.ParquetFile(path).metadata.row_group(1).column(2)
  data = bytearray(path.read_bytes())
  start = column.dictionary_page_offset or column.data_page_offset
  data[start:start + column.total_compressed_size] = b'\xff' * column.total_compressed_size
  path.write_bytes(data)
  found, rejected = again(path)
  assert [c.id for c in found] == [f'set_{i:010d}' for i in (0, 1, 4, 5)]
  assert len(rejected) == 1 and rejected[0].where == 'rows.parquet row group 1' and 'from 3 on' in rejected[0].reason


def test_a_row_group_that_unfolds_to_too_much_is_not_read(tmp_path, monkeypatch):
  monkeypatch.setattr(parquet, 'MAX_GROUP_BYTES', 100)
  found, rejected = read(tmp_path / 'rows.parquet', [row(0)])
  assert not found and 'unfolds to' in rejected[0].reason


def test_files_that_cannot_be_read(tmp_path):
  (tmp_path / 'rows.parquet').write_bytes(b'PAR1 no parquet')
  with pytest.raises(UserError, match=r'rows\.parquet cannot be read as parquet'):
    again(tmp_path / 'rows.parquet')
  with pytest.raises(UserError, match='set data.path to one'):
    again(tmp_path / 'nowhere.parquet')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match='nor a folder'):
    again(tmp_path / 'empty')
  with pytest.raises(UserError, match='no column gpt1'):
    read(tmp_path / 'rows.parquet', [{'id': 'a', 'human1': 'b'}], pa.schema([('id', pa.string()), ('human1', pa.string())]))
