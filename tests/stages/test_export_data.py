"""`export_data`: a split of a work folder in another format, whole or not at all, with its origin."""

import json

import pytest
from ml_collections import ConfigDict

from intersyn_jax import __main__ as cli
from intersyn_jax.data import builders, exporters, manifest, shards
from intersyn_jax.data.importers import intersyn
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn
from intersyn_jax.stages.common import Run
from intersyn_jax.stages.export_data import export_data
from tests.data import samples


def single(number):
  turn = Turn((Text(f'draw {number}'),), (Text('here it is'), Image(samples.png(number), caption='a wall')))
  return Conversation(f's{number}', 'a', (turn,), generator='seir')


@pytest.fixture
def run(tmp_path):
  """A work folder with splits of `synthesize` and of `data`; a record of `refined` has an answer of several steps."""
  work = tmp_path / 'work'
  for folder, splits in (('synthesize/data', {'refined': [single(0), samples.interleaved(1), single(2)], 'unrefined': []}),
                         ('data', {'understanding': [samples.understanding(i) for i in range(2)]})):
    done = manifest.Manifest('seir')
    for split, items in splits.items():
      written = shards.write_split(work / folder, split, items, records_per_shard=2)
      done = done.with_split(split, manifest.Split(tuple(written), (), {'seed': 3}))
    builders.save(work / folder, done)
  return Run(ConfigDict(dict(seed=0)).lock(), work)


def files(folder):
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def test_the_manifest_tells_the_origin_and_what_was_left_out(run, tmp_path, capsys):
  out = export_data(run, 'intersyn', 'refined', tmp_path / 'deep' / 'out')
  told = json.loads((out / 'manifest.json').read_text())
  assert told['counts'] == {'conversations': 2, 'rows': 2, 'pictures': 2, 'left_out': 1}
  (left,) = told['left_out']
  assert (left['where'], left['id']) == ('record 1', 'i1') and '2 pictures' in left['reason']
  entry = manifest.load(run.workdir / 'synthesize' / 'data').splits['refined']
  assert told['source']['shards'] == [{'file': s.file, 'records': s.records, 'bytes': s.bytes, 'sha256': s.sha256}
                                      for s in entry.shards]
  assert told['source']['settings'] == {'seed': 3} and told['format'] == 'intersyn' and told['split'] == 'refined'
  assert told['files'] == {name: shards.sha256(out / name) for name in ('refined.json', 'provenance.jsonl')}
  assert '1 conversations left out: its answer has 2 texts' in capsys.readouterr().err
  found = list(intersyn.conversations(out / 'refined.json', print, pixels=8, folder=out / 'images'))
  assert [c.id for c in found] == ['s0', 's2']
  assert [path.name for path in out.parent.iterdir()] == ['out']


@pytest.mark.parametrize('name', exporters.FORMATS)
def test_the_same_split_gives_the_same_files(run, tmp_path, name):
  (tmp_path / 'b').mkdir()  # empty: may be written
  one, two = (files(export_data(run, name, 'refined', tmp_path / folder)) for folder in ('a', 'b'))
  assert one == two and 'manifest.json' in one


def test_splits_of_the_stage_data_are_found(run, tmp_path):
  out = export_data(run, 'bagel', 'understanding', tmp_path / 'out')
  assert json.loads((out / 'manifest.json').read_text())['counts']['conversations'] == 2


@pytest.mark.parametrize(('name', 'split', 'words'), [
    ('webdataset', 'refined', '--data=webdataset is no format; there are intersyn, flat'),
    ('flat', 'gold', "no split 'gold' (it has: refined, unrefined, understanding)"),
    ('flat', 'unrefined', 'holds no conversation'),
    ('show_o2', 'understanding', 'format show_o2 can carry no conversation of split understanding (record 0: turn 0')])
def test_mistakes_leave_nothing(run, tmp_path, name, split, words):
  with pytest.raises(UserError) as error:
    export_data(run, name, split, tmp_path / 'out')
  assert words in samples.message(error)
  assert [path.name for path in tmp_path.iterdir()] == ['work']


def test_a_folder_with_something_in_it_is_refused(run, tmp_path):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'mine').touch()
  with pytest.raises(UserError, match='not empty'):
    export_data(run, 'flat', 'refined', tmp_path / 'out')
  with pytest.raises(UserError, match='not empty'):
    export_data(run, 'flat', 'refined', tmp_path / 'out' / 'mine')


def test_a_shard_that_changed_is_refused(run, tmp_path):
  path = run.workdir / 'synthesize' / 'data' / 'refined-00001-of-00002.array_record'
  path.write_bytes(path.read_bytes()[:-1] + b'x')
  with pytest.raises(UserError, match='not the file that'):
    export_data(run, 'flat', 'refined', tmp_path / 'out')


def test_a_cut_export_leaves_nothing_under_its_name(run, tmp_path, monkeypatch):
  def stop(self, row, size):
    raise KeyboardInterrupt
  monkeypatch.setattr(exporters.files.JsonLines, 'write', stop)
  with pytest.raises(KeyboardInterrupt):
    export_data(run, 'anole', 'refined', tmp_path / 'out')
  assert [path.name for path in tmp_path.iterdir()] == ['work']


def command(work, *flags):
  return cli.main(['export', '--config=configs/opening.py:smoke', f'--workdir={work}', *map(str, flags)])


def test_by_the_command_line_and_back(run, tmp_path, capsys):
  assert command(run.workdir, '--data=flat', f'--out={tmp_path / "out"}') == 0
  data = {'source': 'intersyn_flat', 'path': str(tmp_path / 'out'), 'pixels': 8}
  built = builders.build(data, tmp_path / 'again')
  assert built.splits['interleaved'].records == 2
  assert list(built.splits['interleaved'].settings['files']) == ['refined-00000-of-00001.parquet']
  for flags, words in ((['--data=flat'], '--out is missing'), (['--split=refined', '--out=x'], '--split is given without --data'),
                       (['--data=flat', '--policy=warmup', '--out=x'], '--policy and --data are both given')):
    assert command(run.workdir, *flags) == 2 and words in capsys.readouterr().err
