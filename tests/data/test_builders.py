"""The builders: real TFDS builders, and `build`, which resumes and writes the same records; imports, one and several."""

import json
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from intersyn_jax import __main__ as cli
from intersyn_jax.data import builders, images, manifest, records, resume, shards
from intersyn_jax.data.importers import SOURCES
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
  monkeypatch.setattr(resume, 'write_split', lambda *args, **kwargs: pytest.fail('a complete split was written again'))
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
    ({'source': 'intersyn_flat', 'path': 'tests'}, 'data.path'),
    ({'source': 'llava', 'path': __file__, 'encoding': 'GIF'}, 'data.encoding'),
    ({'source': 'llava', 'path': __file__, 'fit': 'squeeze'}, 'data.fit'),
    ({'workers': -1}, 'data.workers'), ({'workers': 'two'}, 'data.workers'),
    ({'source': 'mixed', 'sources': {}}, 'data.sources.NAME.path'),
    ({'source': 'mixed', 'sources': {'llava': {'path': ''}}}, 'data.sources.llava.path'),
    ({'source': 'mixed', 'sources': {'llava': {'path': 'nowhere.json'}}}, 'data.sources.llava.path'),
    ({'source': 'mixed', 'sources': {'mine': {'path': __file__}}}, 'data.sources.mine.source'),
    ({'source': 'mixed', 'sources': {'llava': {'file': __file__}}}, 'data.sources.llava.file'),
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


def files(folder):
  """Rows of three data sets, and one picture."""
  (folder / 'a.png').write_bytes(samples.png(1, 12))
  triplet = {'initial': 'a.png', 'action': 'a.png', 'final': 'a.png', 'action_prompt': 'cut'}
  talk = [{'from': 'human', 'value': '<image> What?'}, {'from': 'gpt', 'value': 'A cat.'}]
  found = {'genhowto': [triplet | {'id': f'x{i}'} for i in (0, 1, 1)],
           'llava': [{'id': 'x0', 'image': 'a.png', 'conversations': talk}],
           'caption_pairs': [{'image': 'a.png', 'caption': 'A cat.'}, {'image': 'b.png', 'caption': 'A cat.'}]}
  for name, content in found.items():
    (folder / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, content)))
  return {name: {'path': str(folder / f'{name}.jsonl')} for name in found}


def test_several_sources_fill_the_splits_that_they_are_for(tmp_path):
  sources = files(tmp_path) | {'opening': {'path': ''}}
  sources['again'] = sources['genhowto'] | {'source': 'genhowto', 'images': str(tmp_path)}
  data = {'source': 'mixed', 'sources': sources, 'pixels': 8, 'encoding': 'JPEG'}
  built = builders.build(data, tmp_path / 'out')
  assert {name: (split.records, split.left_out) for name, split in built.splits.items()} == {
      'interleaved': (4, 2), 'understanding': (1, 0), 'text_to_image': (1, 1)}
  found = list(shards.open_split(tmp_path / 'out', 'interleaved'))
  assert [c.id for c in found] == ['genhowto/x0', 'genhowto/x1', 'again/x0', 'again/x1'], 'the same ids in two sources'
  assert images.sniff(found[0].turns[0].answer[1].data) == 'JPEG'
  rejected = built.splits['interleaved'].rejected
  assert [(r.where, r.id) for r in rejected] == [
      ('genhowto: genhowto.jsonl line 3', 'x1'), ('again: genhowto.jsonl line 3', 'x1')]
  assert rejected[0].reason == 'its id stands already at genhowto: genhowto.jsonl line 2'
  assert built.splits['text_to_image'].rejected[0].where == 'caption_pairs: caption_pairs.jsonl line 2'

  changed = data | {'sources': sources | {'llava': {'path': ''}, 'caption_pairs': {'path': ''}}}
  assert builders.build(changed, tmp_path / 'out') == built, 'what is there stays'
  source = tfds.builder_from_directory(tmp_path / 'out').as_data_source(split='understanding')
  assert source[0]['id'] == b'llava/llava.jsonl-1'


def test_one_source_alone_is_named_in_the_manifest_and_shaped_by_its_fields(tmp_path):
  path = files(tmp_path)['llava']['path']
  data = {'source': 'llava', 'path': path, 'pixels': 8}
  made = builders.builder(data, data_dir=tmp_path / 'tfds')
  assert made.name == 'llava' and made.sizes() == {'understanding': None}
  built = builders.build(data, tmp_path / 'out')
  assert built.dataset == 'llava' and built.splits['understanding'].settings == {
      'path': 'llava.jsonl', 'sha256': shards.sha256(path), 'pixels': 8, 'encoding': 'PNG', 'shard_records': 4096}
  (tmp_path / 'a.png').write_bytes(images.png(np.arange(16 * 40 * 3, dtype=np.uint8).reshape(16, 40, 3)))
  picture = lambda fit: next(iter(builders.builder(data | {'fit': fit}, data_dir=tmp_path).conversations('understanding')))
  first, second = (picture(fit).turns[0].question[0].data for fit in ('crop', 'stretch_bicubic'))
  assert first != second and images.pixels(first).shape == images.pixels(second).shape == (8, 8, 3)
  with pytest.raises(UserError, match='data.path is not set'):
    builders.builder({'source': 'llava', 'pixels': 8})


def test_every_source_says_what_it_is():
  for name, source in SOURCES.items():
    module = source.load()
    assert callable(module.conversations), name
    assert source.split in ('interleaved', 'understanding', 'text_to_image', 'test') and source.kind and source.description
    assert hasattr(module, 'files') == ('folder' in source.kind), name
  with pytest.raises(UserError) as error:
    builders.builder({'source': 'opnening'})
  assert all(name in samples.message(error) for name in SOURCES)


def test_the_stage_imports_a_mix(tmp_path, capsys):
  paths = [f'--config.data.sources.{name}.path={entry["path"]}' for name, entry in files(tmp_path).items()]
  flags = ['--config=configs/own.py:smoke', f'--workdir={tmp_path / "work"}', '--config.data.pixels=8', *paths]
  assert cli.main(['data', *flags]) == 0, capsys.readouterr().err
  summary = json.loads((tmp_path / 'work/data/summary.json').read_text())
  counts = {key: value for key, value in summary.items() if key.startswith(('records', 'rejected'))}
  assert counts == {'records.interleaved': 2, 'rejected.interleaved': 1, 'records.understanding': 1, 'rejected.understanding': 0,
                    'records.text_to_image': 1, 'rejected.text_to_image': 1}


def test_a_pipeline_needs_its_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  with pytest.raises(UserError, match=r"pip install 'intersyn_jax\[beam\]'"):
    builders.build(DATA | {'beam': '--runner=DirectRunner'}, tmp_path)
