"""The builders: real TFDS builders, and `build`, which resumes by split and writes the same records."""

import pytest
import tensorflow_datasets as tfds

from intersyn_jax.data import builders, manifest, records, shards
from intersyn_jax.errors import UserError
from tests.data import samples

DATA = {'source': 'storyworld', 'pixels': 32, 'jitter': 0, 'objects': 2, 'steps': (1, 2), 'turns': 1, 'path': '',
        'counts': {'interleaved': 12, 'understanding': 5, 'text_to_image': 0, 'roles': 6, 'validation': 3}, 'shard_records': 8}


def test_build_is_read_by_tfds_without_tensorflow(tmp_path):
  built = builders.build(DATA, tmp_path)
  assert {name: split.records for name, split in built.splits.items()} == {
      'interleaved': 12, 'understanding': 5, 'roles': 6, 'validation': 3}
  source = tfds.builder_from_directory(tmp_path).as_data_source(split='interleaved')
  ours = shards.open_split(tmp_path, 'interleaved')
  assert len(source) == len(ours) == 12
  assert [source[i]['id'].decode() for i in range(12)] == [conversation.id for conversation in ours]
  assert len(manifest.verify(tmp_path).splits['interleaved'].shards) == 2


def test_the_builder_alone_writes_the_same_records(tmp_path):
  builders.build(DATA, tmp_path / 'ours')
  alone = builders.builder(DATA, data_dir=tmp_path / 'alone')
  assert isinstance(alone, tfds.core.GeneratorBasedBuilder)
  alone.download_and_prepare()
  for split in ('interleaved', 'understanding', 'roles', 'validation'):
    raw = alone.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    assert [records.decode(raw[i]) for i in range(len(raw))] == list(shards.open_split(tmp_path / 'ours', split))


def test_seed_and_splits_decide_the_content(tmp_path):
  one, two = (builders.build(DATA, tmp_path / str(seed), seed=seed) for seed in (1, 2))
  again = builders.build(DATA, tmp_path / 'again', seed=1)
  assert one == again and one.splits['interleaved'].shards != two.splits['interleaved'].shards
  gold = builders.build(DATA | {'counts': {'interleaved': 20, 'gold': 20}}, tmp_path / 'gold', seed=1)
  assert set(gold.splits) == {'interleaved', 'gold'}
  ids = [{c.id for c in shards.open_split(tmp_path / 'gold', split)} for split in gold.splits]
  assert not ids[0] & ids[1]


def test_an_interrupted_build_goes_on_with_the_missing_split(tmp_path, monkeypatch):
  whole = builders.build(DATA, tmp_path / 'whole')

  def stop(label, done, total):
    if label == 'split validation':
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    builders.build(DATA, tmp_path / 'cut', stop)
  assert set(manifest.load(tmp_path / 'cut').splits) == {'interleaved', 'understanding', 'roles'}
  assert shards.splits(tmp_path / 'cut') == ['interleaved', 'roles', 'understanding']
  made = []
  assert builders.build(DATA, tmp_path / 'cut', lambda label, done, total: made.append(label)) == whole
  assert set(made) == {'split validation'}
  monkeypatch.setattr(shards, 'write_split', lambda *args, **kwargs: pytest.fail('a complete split was written again'))
  assert builders.build(DATA, tmp_path / 'cut') == whole


def test_a_split_with_other_settings_or_a_lost_shard_is_made_again(tmp_path):
  first = builders.build(DATA, tmp_path)
  (tmp_path / first.splits['understanding'].shards[0].file).unlink()
  assert builders.build(DATA, tmp_path) == first
  longer = builders.build(DATA | {'counts': {'interleaved': 13}}, tmp_path)
  assert longer.splits['interleaved'].records == len(shards.open_split(tmp_path, 'interleaved')) == 13


@pytest.mark.parametrize(('change', 'words'), [
    ({'source': 'imagenet'}, 'data.source'),
    ({'counts': {'hugo': 3}}, 'data.counts.hugo'),
    ({'counts': {'gold': -1}}, 'data.counts.gold'),
    ({'counts': {'gold': 0}}, 'data.counts'),
    ({'source': 'opening', 'path': 'nowhere.jsonl'}, 'data.path'),
    ({'source': 'intersyn_release', 'path': ''}, 'data.path'),
])
def test_mistakes_name_the_field(tmp_path, change, words):
  with pytest.raises(UserError) as error:
    builders.build(DATA | change, tmp_path)
  assert words in samples.message(error)


def test_another_data_set_in_the_folder(tmp_path):
  builders.build(DATA, tmp_path)
  (tmp_path / 'rows.jsonl').write_text('{}')
  with pytest.raises(UserError, match='holds storyworld'):
    builders.build({'source': 'opening', 'path': tmp_path / 'rows.jsonl', 'pixels': 8}, tmp_path)


def test_rows_that_are_all_unusable_are_listed_and_told(tmp_path):
  (tmp_path / 'answers.jsonl').write_text('{"id": "id", "question": "The question from", "answer": "a", "image": "b"}\n{')
  data = {'source': 'intersyn_release', 'path': str(tmp_path / 'answers.jsonl'), 'pixels': 8}
  for _ in range(2):
    with pytest.raises(UserError, match='placeholder row'):
      builders.build(data, tmp_path / 'out')
  rejected = manifest.load(tmp_path / 'out').splits['interleaved'].rejected
  assert [row.where for row in rejected] == ['answers.jsonl line 1', 'answers.jsonl line 2']
  assert 'no JSON' in rejected[1].reason
