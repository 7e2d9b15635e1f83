"""Imports that are stopped or killed and go on, or are shared out to processes: always the bytes of an import left in peace."""

import itertools
import json
import operator
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from intersyn_jax.data import builders, conversion, images, manifest, resume, shards
from intersyn_jax.data.importers import rows
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Text, Turn
from tests.data import samples

STORYWORLD = {'source': 'storyworld', 'pixels': 32, 'counts': {'gold': 11, 'validation': 3}, 'shard_records': 4}


def source(folder, count=30):
  """Rows of which every fifth has no picture, every seventh repeats an id, and one is no JSON."""
  for number in range(3):
    (folder / f'{number}.png').write_bytes(samples.png(number, 24))
  lines = []
  for number in range(count):
    name = f'row{number // 7 if number % 7 == 6 else number}'
    lines.append(json.dumps({'id': name, 'action_prompt': 'cut it', 'initial': '0.png', 'action': f'{number % 3}.png',
                             'final': 'none.png' if number % 5 == 4 else '2.png'}))
  lines.insert(count // 2, '{')
  (folder / 'rows.jsonl').write_text('\n'.join(lines))
  return {'source': 'genhowto', 'path': str(folder / 'rows.jsonl'), 'pixels': 8, 'shard_records': 4}


def content(folder):
  """Every file that an import leaves, by name."""
  return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir() if path.is_file()}


class Stop(Exception):
  pass


def stopping(monkeypatch, after):
  """Lets the import stop when so many more outcomes are there."""
  original = conversion.outcomes

  def outcomes(*args, **kwargs):
    found = list(itertools.islice(original(*args, **kwargs), after))
    yield from found
    if len(found) == after:
      raise Stop

  monkeypatch.setattr(conversion, 'outcomes', outcomes)


@pytest.mark.parametrize('data', ['rows', 'storyworld'])
def test_an_import_that_stops_again_and_again(tmp_path, monkeypatch, data):
  data = source(tmp_path) if data == 'rows' else STORYWORLD
  whole = builders.build(data, tmp_path / 'whole')
  with monkeypatch.context() as patch:
    stopping(patch, 9)  # more than one shard takes up, less than all
    for _ in range(40):
      try:
        built = builders.build(data, tmp_path / 'cut')
        break
      except Stop:
        assert not set(shards.splits(tmp_path / 'cut')) - {'gold'}, 'a split is not seen before it is complete'
  assert built == whole and content(tmp_path / 'cut') == content(tmp_path / 'whole')
  if data is not STORYWORLD:
    entry = whole.splits['interleaved']
    assert entry.records + entry.left_out == 31 and entry.left_out == len(entry.rejected) == 11


@pytest.mark.parametrize(('after', 'shards_then'), [(0, 0), (3, 0), (12, 2), (31, 5)])
def test_finished_shards_are_not_written_again(tmp_path, monkeypatch, after, shards_then):
  data = source(tmp_path)
  whole = builders.build(data, tmp_path / 'whole')
  with monkeypatch.context() as patch, pytest.raises(Stop):
    stopping(patch, after)
    builders.build(data, tmp_path / 'cut')
  with sqlite3.connect(tmp_path / 'cut/.interleaved.journal') as journal:
    assert journal.execute('SELECT count(*) FROM shard').fetchone()[0] == shards_then
  before = {path.stat().st_ino for path in (tmp_path / 'cut').glob('.*.part')}
  assert builders.build(data, tmp_path / 'cut') == whole
  kept = {path.stat().st_ino for path in (tmp_path / 'cut').glob('*.array_record')} & before
  assert len(kept) >= shards_then and content(tmp_path / 'cut') == content(tmp_path / 'whole')


@pytest.mark.parametrize('damage', ['cut', 'gone', 'journal', 'source'])
def test_what_cannot_be_gone_on_with_is_made_again(tmp_path, monkeypatch, damage):
  data = source(tmp_path)
  with monkeypatch.context() as patch, pytest.raises(Stop):
    stopping(patch, 25)
    builders.build(data, tmp_path / 'cut')
  part = tmp_path / 'cut/.interleaved-00001.part'
  if damage == 'cut':
    part.write_bytes(part.read_bytes()[:-1])
  elif damage == 'gone':
    part.unlink()
  elif damage == 'journal':
    (tmp_path / 'cut/.interleaved.journal').write_bytes(b'no database' * 100)
  else:
    text = (tmp_path / 'rows.jsonl').read_text()
    (tmp_path / 'rows.jsonl').write_text(text.replace('"row0"', '"row-0"', 1))
  assert builders.build(data, tmp_path / 'cut') == builders.build(data, tmp_path / 'whole')
  assert content(tmp_path / 'cut') == content(tmp_path / 'whole')


@pytest.mark.parametrize('step', ['listed_rows', 'save'])
def test_an_import_that_stops_between_its_last_shard_and_the_manifest(tmp_path, monkeypatch, step):
  data = source(tmp_path)
  whole = builders.build(data, tmp_path / 'whole')
  with monkeypatch.context() as patch, pytest.raises(Stop):
    patch.setattr(resume if step == 'listed_rows' else builders, step, lambda *args, **kwargs: (_ for _ in ()).throw(Stop))
    builders.build(data, tmp_path / 'cut')
  assert manifest.load(tmp_path / 'cut') is None and shards.splits(tmp_path / 'cut') == ['interleaved']
  with monkeypatch.context() as patch:
    patch.setattr(images, 'load', lambda *args, **kwargs: pytest.fail('nothing is left to be made'))
    assert builders.build(data, tmp_path / 'cut') == whole
  assert content(tmp_path / 'cut') == content(tmp_path / 'whole')


def test_a_source_that_gives_conversations_as_they_are(tmp_path, monkeypatch):
  class Own(builders.ConversationBuilder, skip_registration=True):
    name = 'own'

    def sizes(self):
      return {'interleaved': None}

    def settings(self, split):
      return {}

    def conversations(self, split):
      for number in range(13):
        if number % 4 == 1:
          self.rejected[split].append(manifest.Rejected(f'file {number}', '', 'bad'))
        else:
          yield samples.interleaved(number)

  data = {'source': Own, 'shard_records': 2, 'workers': 2}  # its own generator makes them, whatever `workers` says
  whole = builders.build(data, tmp_path / 'whole')
  with monkeypatch.context() as patch, pytest.raises(Stop):
    stopping(patch, 7)
    builders.build(data, tmp_path / 'cut')
  assert builders.build(data, tmp_path / 'cut') == whole
  entry = whole.splits['interleaved']
  assert (entry.records, [row.where for row in entry.rejected]) == (10, ['file 1', 'file 5', 'file 9'])


def test_very_many_rows_left_out_are_listed_in_a_file(tmp_path, monkeypatch):
  data = source(tmp_path)
  all_of_them = builders.build(data, tmp_path / 'all').splits['interleaved'].rejected
  monkeypatch.setattr(resume, 'LISTED', 4)
  entry = builders.build(data, tmp_path / 'some').splits['interleaved']
  assert entry.rejected == all_of_them[:4] and entry.left_out == len(all_of_them) and entry.unlisted == 7
  lines = (tmp_path / 'some/interleaved.rejected.jsonl').read_text().splitlines()
  assert [manifest.Rejected(**json.loads(line)) for line in lines] == list(all_of_them)
  assert manifest.load(tmp_path / 'some').splits['interleaved'] == entry
  assert not (tmp_path / 'all/interleaved.rejected.jsonl').exists()


def test_two_imports_into_one_folder(tmp_path, monkeypatch):
  data = source(tmp_path)
  monkeypatch.setattr(resume, 'WAIT', 0.05)

  def second(label, done, total):
    with pytest.raises(UserError, match='another process writes to this folder'):
      builders.build(data, tmp_path / 'out')

  assert builders.build(data, tmp_path / 'out', second).splits['interleaved'].records == 20


# Several processes.


def test_processes_share_the_rows_out(tmp_path):
  data = source(tmp_path, 40)
  assert builders.build(data | {'workers': 2}, tmp_path / 'shared') == builders.build(data, tmp_path / 'whole')
  assert content(tmp_path / 'shared') == content(tmp_path / 'whole')


def test_a_process_that_dies_is_told_with_its_rows():
  found = iter([(os._exit, 1)] * 3)
  source = rows.Conversations(found, operator.call, list().append, key='')  # make(where, row) is where(row)
  with pytest.raises(UserError, match=r'_exit.* ended early'):
    list(conversion.outcomes(source, [], workers=1))


def test_a_mistake_of_the_program_is_no_row_left_out():
  found = [('row 1', 'half \ud800')]
  strict = rows.Conversations(found, operator.add, list().append, key='', strict=True)  # text, no conversation
  with pytest.raises(AttributeError):
    list(conversion.outcomes(strict, []))
  half = Conversation('a', '', (Turn((Text('half \ud800'),), (Text('b'),)),))
  (outcome,) = conversion.outcomes(rows.Conversations([('row 1', half)], rows._given, list().append), [])
  assert not outcome.data and 'half a Unicode character' in outcome.reason


SCRIPT = """
import os, signal, sys
from intersyn_jax.data import builders

def progress(label, done, total):
  if done >= int(sys.argv[3]):
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == '__main__':
  data = {'source': 'genhowto', 'path': sys.argv[1], 'pixels': 8, 'shard_records': 32, 'workers': 1}
  builders.build(data, sys.argv[2], progress)
"""


@pytest.mark.slow
def test_an_import_that_is_killed_leaves_no_process_and_goes_on(tmp_path):
  data = source(tmp_path, 400) | {'shard_records': 32}
  (tmp_path / 'script.py').write_text(SCRIPT)
  command = [sys.executable, str(tmp_path / 'script.py'), data['path'], str(tmp_path / 'cut'), '200']
  root = pathlib.Path(builders.__file__).parents[2]
  killed = subprocess.run(command, env=os.environ | {'PYTHONPATH': str(root)}, timeout=300)
  assert killed.returncode == -signal.SIGKILL
  deadline = time.monotonic() + 60
  while children := _naming(str(tmp_path)):
    assert time.monotonic() < deadline, children
    time.sleep(0.1)
  assert len(list((tmp_path / 'cut').glob('.*.part'))) >= 3
  assert builders.build(data | {'workers': 2}, tmp_path / 'cut') == builders.build(data, tmp_path / 'whole')
  assert content(tmp_path / 'cut') == content(tmp_path / 'whole')


def _naming(text):
  """Processes that were spawned by one whose working folder or command names a text."""
  found = []
  for process in pathlib.Path('/proc').glob('[0-9]*') if pathlib.Path('/proc').exists() else ():
    try:
      if text in (process / 'cmdline').read_text() or text in (process / 'environ').read_text():
        found.append(process.name)
    except OSError:  # it ended, or is somebody else's
      continue
  return found
