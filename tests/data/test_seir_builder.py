"""The builder `intersyn`: finished shards through TFDS, equal to what was written."""

import pytest
import tensorflow_datasets as tfds

from intersyn_jax.data import builders, manifest, seir_builder, shards
from intersyn_jax.errors import UserError
from tests.data import samples

SPLITS = {'refined': [samples.interleaved(i) for i in range(7)], 'unrefined': [samples.text_to_image(i) for i in range(3)]}


@pytest.fixture
def folder(tmp_path):
  """What `synthesize` leaves, with a split that came out empty."""
  done = manifest.Manifest('seir')
  for split, items in (SPLITS | {'none': []}).items():
    written = shards.write_split(tmp_path / 'data', split, items, records_per_shard=3)
    done = done.with_split(split, manifest.Split(tuple(written), (), {'seed': 3}))
  builders.save(tmp_path / 'data', done)
  return tmp_path / 'data'


def test_shards_are_read_where_they_lie(folder):
  builder = tfds.builder_from_directory(folder)
  for split, items in SPLITS.items():
    assert list(seir_builder.read(builder, split)) == items
  assert builder.as_data_source(split='refined')[4]['id'] == b'i4'


def test_the_builder_copies_them_to_the_data_sets_of_tfds(folder, tmp_path):
  home = tmp_path / 'tfds'
  builder = tfds.builder('intersyn', path=folder, data_dir=home)
  assert isinstance(builder, seir_builder.InterSyn) and builder.name == 'intersyn'
  builder.download_and_prepare()
  again = tfds.builder('intersyn', data_dir=home)  # no path: it is prepared
  assert set(again.info.splits) == set(SPLITS)
  for split, items in SPLITS.items():
    assert list(seir_builder.read(again, split)) == items
  source = tfds.data_source('intersyn', split='refined', data_dir=home)
  assert [row['id'].decode() for row in source] == [c.id for c in SPLITS['refined']]


def test_the_stage_data_takes_them_as_its_source(folder, tmp_path):
  built = builders.build({'source': seir_builder.InterSyn, 'path': str(folder)}, tmp_path / 'again')
  assert {name: split.records for name, split in built.splits.items()} == {'refined': 7, 'unrefined': 3}
  assert list(shards.open_split(tmp_path / 'again', 'refined')) == SPLITS['refined']
  digests = [shard.sha256 for shard in manifest.load(folder).splits['refined'].shards]
  assert list(built.splits['refined'].settings['shards'].values()) == digests


@pytest.mark.parametrize('path', ['', 'nowhere'])
def test_without_finished_shards_the_field_is_named(tmp_path, path):
  with pytest.raises(UserError, match='data.path') as error:
    builders.build({'source': seir_builder.InterSyn, 'path': path}, tmp_path / 'out')
  assert 'finished shards' in samples.message(error)
