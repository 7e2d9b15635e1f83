"""Imports by a pipeline of Apache Beam give the records of an ordinary import, and leave the same rows out."""

import json

import pytest
import tensorflow_datasets as tfds

from intersyn_jax.data import builders, manifest, resume, shards
from intersyn_jax.errors import UserError
from tests.data import samples

pytest.importorskip('apache_beam')
pytestmark = pytest.mark.slow

LOCAL = '--runner=DirectRunner'
SEVERAL = f'{LOCAL} --direct_num_workers=2 --direct_running_mode=multi_processing'


@pytest.fixture
def data(tmp_path):
  (tmp_path / 'a.png').write_bytes(samples.png(1, 24))
  triplet = {'initial': 'a.png', 'action': 'a.png', 'action_prompt': 'cut'}
  lines = [json.dumps(triplet | {'id': f'x{i % 40}', 'final': 'b.png' if i % 9 == 3 else 'a.png'}) for i in range(60)]
  (tmp_path / 'genhowto.jsonl').write_text('\n'.join([*lines[:30], '{', *lines[30:]]))
  talk = [{'from': 'human', 'value': '<image> What?'}, {'from': 'gpt', 'value': 'A cat.'}]
  (tmp_path / 'llava.json').write_text(json.dumps([{'image': 'a.png', 'conversations': talk}] * 50 + [3]))
  return {'source': 'mixed', 'pixels': 8, 'sources': {
      'genhowto': {'path': str(tmp_path / 'genhowto.jsonl')}, 'llava': {'path': str(tmp_path / 'llava.json')}}}


@pytest.mark.parametrize('options', [LOCAL, SEVERAL])
def test_the_same_records(tmp_path, monkeypatch, data, options):
  plain = builders.build(data, tmp_path / 'plain')
  monkeypatch.setattr(resume, 'write_split', lambda *args, **kwargs: pytest.fail('this is no pipeline'))
  built = builders.build(data | {'beam': options}, tmp_path / 'beam')
  for split, entry in plain.splits.items():
    assert built.splits[split].rejected == entry.rejected and built.splits[split].records == entry.records
    assert list(shards.open_split(tmp_path / 'beam', split)) == list(shards.open_split(tmp_path / 'plain', split))
  # 1 no JSON, 7 without picture, 16 repeated ids: those of rows that are left out themselves do not count.
  assert (plain.splits['interleaved'].left_out, plain.splits['understanding'].left_out) == (24, 1)
  manifest.verify(tmp_path / 'beam')
  assert len(tfds.builder_from_directory(tmp_path / 'beam').as_data_source(split='understanding')) == 50
  assert not [path.name for path in (tmp_path / 'beam').iterdir() if path.name.startswith('.')]
  assert builders.build(data, tmp_path / 'beam') == built, 'how the records were made does not matter'


def test_a_source_with_no_usable_row(tmp_path, data):
  (tmp_path / 'a.png').unlink()
  with pytest.raises(UserError, match=r"no row of the source .* 'a.png' is missing"):
    builders.build(data | {'beam': LOCAL}, tmp_path / 'beam')
  assert manifest.load(tmp_path / 'beam').splits['interleaved'].left_out == 61


def test_storyworld_and_options_that_are_none(tmp_path):
  data = {'source': 'storyworld', 'counts': {'gold': 20}, 'beam': LOCAL}
  builders.build(data, tmp_path / 'beam')
  builders.build(data | {'beam': ''}, tmp_path / 'plain')
  assert list(shards.open_split(tmp_path / 'beam', 'gold')) == list(shards.open_split(tmp_path / 'plain', 'gold'))
  for options in ('--runner=NoRunner', '--runner=no.Runner', '--direct_num_workers=many', "--runner='DirectRunner"):
    with pytest.raises(UserError, match='data.beam'):
      builders.build(data | {'beam': options}, tmp_path / 'none')
