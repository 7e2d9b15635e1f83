"""Shards and manifest: whole or absent, and a damaged file is named."""

import json

import pytest

from intersyn_jax.data import manifest, shards
from intersyn_jax.errors import UserError
from tests.data import samples


@pytest.fixture
def folder(tmp_path):
  written = shards.write_split(tmp_path, 'train', (samples.interleaved(i) for i in range(10)), records_per_shard=4)
  manifest.save(tmp_path, manifest.Manifest('test').with_split('train', manifest.Split(tuple(written))))
  return tmp_path


def test_names_and_content(folder):
  assert sorted(path.name for path in folder.glob('*.array_record')) == [
      f'train-0000{i}-of-00003.array_record' for i in range(3)]
  split = shards.open_split(folder, 'train')
  assert len(split) == 10 and split[-1] == samples.interleaved(9)
  assert list(split) == [samples.interleaved(i) for i in range(10)] == split[:]
  assert shards.splits(folder) == ['train']


def test_same_records_give_the_same_bytes(folder, tmp_path_factory):
  again = shards.write_split(tmp_path_factory.mktemp('again'), 'train', list(shards.open_split(folder, 'train')),
                             records_per_shard=4)
  assert tuple(again) == manifest.load(folder).splits['train'].shards


def test_a_cut_write_leaves_no_shard_and_is_cleared_by_the_next(tmp_path):
  def broken():
    for i in range(6):
      yield samples.interleaved(i)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    shards.write_split(tmp_path, 'train', broken(), records_per_shard=4)
  assert shards.splits(tmp_path) == []
  with pytest.raises(UserError, match='no split'):
    shards.open_split(tmp_path, 'train')
  shards.write_split(tmp_path, 'train', [samples.interleaved(0)])
  assert [path.name for path in tmp_path.iterdir()] == ['train-00000-of-00001.array_record']


@pytest.mark.parametrize('damage', ['cut', 'empty', 'other', 'flipped'])
def test_a_corrupt_shard_is_named(folder, damage):
  path = folder / 'train-00001-of-00003.array_record'
  data = bytearray(path.read_bytes())
  if damage == 'flipped':
    data[200] ^= 0xff
  path.write_bytes({'cut': data[:len(data) // 2], 'empty': b'', 'other': b'no shard' * 20_000, 'flipped': data}[damage])
  with pytest.raises(UserError) as error:
    list(shards.open_split(folder, 'train'))
  assert path.name in samples.message(error) and 'again' in samples.message(error)
  with pytest.raises(UserError, match=path.name):
    manifest.verify(folder)


def test_a_missing_shard_is_named(folder):
  (folder / 'train-00002-of-00003.array_record').unlink()
  with pytest.raises(UserError, match='missing or mixed'):
    shards.open_split(folder, 'train')
  with pytest.raises(UserError, match=r'train-00002-of-00003.array_record is missing'):
    manifest.verify(folder, contents=False)


def test_manifest_round_trip(folder):
  kept = manifest.verify(folder)
  rejected = (manifest.Rejected('rows.jsonl line 3', 'x', 'is no JSON'),)
  more = kept.with_split('other', manifest.Split((), rejected, {'seed': 3}))
  manifest.save(folder, more)
  assert manifest.load(folder) == more
  raw = json.loads((folder / manifest.FILE).read_text())
  assert raw['splits']['train']['records'] == 10 and raw['splits']['other']['rejected'][0]['reason'] == 'is no JSON'
  assert raw['versions']['format'] == '1'


@pytest.mark.parametrize('text', ['', '{}', '[]', '{"dataset": "a", "splits": {"b": {"shards": [{}]}}, "versions": {}}'])
def test_what_is_no_manifest(tmp_path, text):
  (tmp_path / manifest.FILE).write_text(text)
  with pytest.raises(UserError, match='no manifest'):
    manifest.load(tmp_path)


def test_a_changed_byte_is_found_by_the_digest(folder):
  path = folder / 'train-00000-of-00003.array_record'
  data = bytearray(path.read_bytes())
  data[-10] ^= 1  # in the padding of the footer: the reader does not notice
  path.write_bytes(data)
  manifest.verify(folder, contents=False)
  with pytest.raises(UserError, match='content changed'):
    manifest.verify(folder)
