"""OBELICS rows: documents with empty questions, pictures by address or bytes, and what is left out."""

import dataclasses
import hashlib
import io
import json

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intersyn_jax.data import images, records
from intersyn_jax.data.importers import obelics, segments
from intersyn_jax.errors import UserError
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.types import Image, Text, Turn
from tests.data import samples

URL = 'https://cdn.example.org/a/urus.jpg'
RELEASED = pa.schema([('images', pa.list_(pa.string())), ('metadata', pa.string()), ('general_metadata', pa.string()),
                      ('texts', pa.list_(pa.string()))])
WITH_BYTES = pa.schema([('images', pa.list_(pa.struct([('bytes', pa.binary()), ('path', pa.string())]))),
                        ('texts', pa.list_(pa.string()))])


def row(*places, page='https://example.org/page', **changes):
  """`places` are texts and, for pictures, lists of one value."""
  return {'images': [p[0] if isinstance(p, list) else None for p in places],
          'texts': [None if isinstance(p, list) else p for p in places],
          'metadata': '[]', 'general_metadata': json.dumps({'url': page, 'warc_filename': 'x'})} | changes


def again(path, **options):
  rejected = []
  return list(obelics.conversations(path, rejected.append, **({'pixels': 8} | options))), rejected


def read(path, rows, schema=RELEASED, **options):
  pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=2)
  return again(path, **options)


@pytest.fixture
def store(tmp_path):
  folder = tmp_path / 'store'
  digest = hashlib.sha256(URL.encode()).hexdigest()
  (folder / digest[:2]).mkdir(parents=True)
  (folder / digest[:2] / f'{digest}.jpg').write_bytes(samples.png(1, 20))
  return folder


def shape(turn):
  return [s.text if isinstance(s, Text) else Image for s in turn.answer]


def test_a_page_is_a_turn_with_an_empty_question(tmp_path, store):
  (found,), rejected = read(tmp_path / 'train-0.parquet', [row(' first ', [URL], 'second', 'third')], folder=store)
  assert not rejected
  assert (found.id, found.topic, found.generator, found.trace) == ('train-0.parquet-1', '', 'obelics', 'https://example.org/page')
  (turn,) = found.turns
  assert turn.question == () and shape(turn) == ['first', Image, 'second\n\nthird']
  assert images.pixels(turn.answer[1].data).shape == (8, 8, 3)
  assert records.decode(records.encode(found)) == found


def test_all_of_a_page_is_trained_and_nothing_before_it(tmp_path, store):
  (found,), _ = read(tmp_path / 'rows.parquet', [row('number one', [URL], 'number two')], folder=store)
  answer = tuple(s if isinstance(s, Text) else Image(s.data, samples.codes()) for s in found.turns[0].answer)
  document = layout.tokenise(dataclasses.replace(found, turns=(Turn((), answer),)), samples.layout())
  null = layout.null_prompt(samples.layout())
  before = len(null.text)
  assert (document.text[:before] == null.text).all() and not document.loss[:before].any()
  assert (document.loss[before:] > 0).sum() == (~document.forced[before:]).sum()
  (turn,) = layout.turns_of(document, samples.layout())
  assert turn.question == () and [s.text for s in turn.answer if isinstance(s, Text)] == ['number one', 'number two']


def test_documents_of_one_page_are_turns(tmp_path, store):
  text = f'end of one\n\n{obelics.END}\n\nbegin of two'
  (found,), rejected = read(tmp_path / 'rows.parquet', [row([URL], text, [URL], obelics.END)], folder=store)
  assert not rejected
  assert [shape(turn) for turn in found.turns] == [[Image, 'end of one'], ['begin of two', Image]]
  assert all(turn.question == () for turn in found.turns)


def test_pictures_may_lie_in_the_rows_or_under_a_name(tmp_path):
  (tmp_path / 'b.webp').write_bytes(encoded('WEBP'))
  found, rejected = read(tmp_path / 'rows.parquet',
                         [row('a', [{'bytes': encoded('JPEG'), 'path': None}]), row('b', [{'bytes': None, 'path': 'b.webp'}])],
                         WITH_BYTES, encoding='JPEG')
  assert not rejected and [shape(c.turns[0]) for c in found] == [['a', Image], ['b', Image]]
  assert found[0].trace == '' and images.sniff(found[1].turns[0].answer[1].data) == 'JPEG'


def encoded(form, size=(6, 4), mode='RGB', **options):
  out = io.BytesIO()
  PIL.Image.new(mode, size).save(out, form, **options)
  return out.getvalue()


@pytest.mark.parametrize(('bad', 'reason'), [
    (row('a', ['http://example.org/gone.jpg']), "'http://example.org/gone.jpg' is an address, and the image store has no file"),
    (row('a', ['http://[']), 'is an address'),
    (row('a', ['../outside.png']), 'outside the folder'),
    (row('a', ['x' * 5000]), 'has 5000 characters'),
    (row('a', images=[URL, None]), 'field texts has 1 entries, field images has 2'),
    (row('a', 'b', images=[URL, None]), 'place 0 has a text and a picture'),
    (row(None, [URL]), 'place 0 has neither text nor picture'),
    (row('a', texts=None), 'field texts is missing or no list'),
    (row(), 'it has neither text nor picture'),
    (row(obelics.END, ' '), 'it has neither text nor picture'),
    (row('a', general_metadata='{"url": '), 'field general_metadata is no JSON object'),
    (row('a', general_metadata='[' * 100_000), 'field general_metadata is no JSON object'),
    (row('a', general_metadata='{"url": 7}'), 'field url is missing or no text'),
    (row('a' * (segments.MAX_TEXT + 1)), 'more than 1000000 characters'),
    (row('a', *[[URL]] * (segments.MAX_PICTURES + 1)), 'more than 256 pictures'),
])
def test_rows_that_are_left_out(tmp_path, store, bad, reason):
  (tmp_path / 'outside.png').write_bytes(samples.png())
  found, rejected = read(tmp_path / 'rows.parquet', [row('a', [URL]), bad, row('c', [URL])], folder=store)
  assert [c.id for c in found] == ['rows.parquet-1', 'rows.parquet-3']
  assert [r.where for r in rejected] == ['rows.parquet row 2'] and reason in rejected[0].reason


@pytest.mark.parametrize(('data', 'reason'), [
    (b'', 'field images holds an empty picture'), (b'GIF89a' + bytes(40), 'no PNG, JPEG or WebP'),
    (encoded('GIF', save_all=True, append_images=[PIL.Image.new('RGB', (6, 4), 'red')]), 'no PNG, JPEG or WebP'),
    (samples.png(1, 20)[:-60], 'no PNG, JPEG or WebP'), (encoded('PNG', (10_000, 10_000), '1'), 'larger than'),
], ids=['empty', 'gif', 'film', 'cut', 'vast'])
def test_bytes_that_are_left_out(tmp_path, data, reason):
  found, rejected = read(tmp_path / 'rows.parquet', [row('a', [{'bytes': data, 'path': 'http://a/b.png'}])], WITH_BYTES)
  assert not found and reason in rejected[0].reason


def test_columns_of_other_types_leave_their_rows_out(tmp_path):
  schema = pa.schema([('images', pa.list_(pa.int64())), ('texts', pa.int64())])
  found, rejected = read(tmp_path / 'rows.parquet', [{'images': [1], 'texts': 1}], schema)
  assert not found and 'field texts is missing or no list' in rejected[0].reason


def test_text_that_is_no_utf8_and_damage_take_only_their_rows_along(tmp_path):
  path = tmp_path / 'rows.parquet'
  broken = pa.array([[b'fine'], [b'\xff\xfe'], [b'fine']], pa.list_(pa.binary()))
  texts = pa.ListArray.from_arrays(broken.offsets, broken.values.view(pa.string()))
  pq.write_table(pa.table({'texts': texts, 'images': pa.array([[None]] * 3, pa.list_(pa.string()))}), path)
  found, rejected = again(path)
  assert [c.id for c in found] == ['rows.parquet-1', 'rows.parquet-3'] and 'UTF-8' in rejected[0].reason

  read(path, [row(f'text {i}') for i in range(6)])
  column = pq.ParquetFile(path).metadata.row_group(1).column(3)
  data = bytearray(path.read_bytes())
  start = column.dictionary_page_offset or column.data_page_offset
  data[start:start + column.total_compressed_size] = b'\xff' * column.total_compressed_size
  path.write_bytes(data)
  found, rejected = again(path)
  assert [c.id[-1] for c in found] == ['1', '2', '5', '6']
  assert len(rejected) == 1 and 'from 3 on' in rejected[0].reason


def test_a_folder_is_read_a_file_at_a_time_and_only_as_far_as_it_is_asked_for(tmp_path):
  for name in ('b', 'a'):
    read(tmp_path / f'{name}.parquet', [row(f'{name} {i}') for i in range(3)])
  assert [c.id for c in again(tmp_path)[0]] == [f'{name}.parquet-{i}' for name in 'ab' for i in (1, 2, 3)]
  (tmp_path / 'b.parquet').write_bytes(b'PAR1 no parquet')
  found = iter(obelics.conversations(tmp_path, [].append, pixels=8))
  assert [next(found).id for _ in range(3)] == [f'a.parquet-{i}' for i in (1, 2, 3)]
  with pytest.raises(UserError, match=r'b\.parquet cannot be read as parquet'):
    next(found)


def test_files_that_cannot_be_read(tmp_path):
  with pytest.raises(UserError, match='set data.path to one'):
    again(tmp_path / 'nowhere.parquet')
  with pytest.raises(UserError, match='has no column images'):
    read(tmp_path / 'rows.parquet', [{'texts': ['a']}], pa.schema([('texts', pa.list_(pa.string()))]))
