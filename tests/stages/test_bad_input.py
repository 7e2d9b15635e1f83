"""Bad input as a user meets it: each ends with exit code 2 and one line that names the file or field and the mend."""

import json

import pytest

from intersyn_jax import __main__ as cli

SMALL = ('--config=configs/storyworld.py:smoke', '--config.image.steps=40', '--config.image.autoencoder=10',
         '--config.image.pictures=64', '--config.warmup.steps=2', '--config.warmup.rows=8')


def _run(stage, workdir, *flags):
  return cli.main([stage, f'--workdir={workdir}', *SMALL, *flags])


def _mistake(capsys, stage, workdir, *flags):
  """The one line of a command that must end with exit code 2."""
  capsys.readouterr()
  assert _run(stage, workdir, *flags) == 2
  lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
  assert len(lines) == 1
  return lines[0]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A work folder whose data and tokenizers are made."""
  folder = tmp_path_factory.mktemp('work')
  assert _run('data', folder) == 0
  assert _run('tokenizer', folder) == 0
  return folder


def test_a_stage_before_its_time(tmp_path, capsys):
  assert 'run the stage' in _mistake(capsys, 'warmup', tmp_path)


def test_a_folder_of_another_configuration(folder, capsys):
  line = _mistake(capsys, 'tokenizer', folder, '--config.data.pixels=64')
  assert 'config.data.pixels' in line and '64' in line and '32' in line


def test_a_corrupt_shard_is_named(folder, capsys):
  shard = sorted((folder / 'tokenizer' / 'data').glob('*interleaved-*.array_record'))[0]
  whole = shard.read_bytes()
  try:
    shard.write_bytes(whole[:len(whole) // 2])
    assert shard.name.split('-of-')[0] in _mistake(capsys, 'warmup', folder)
  finally:
    shard.write_bytes(whole)


def test_a_truncated_checkpoint_is_named(folder, capsys):
  """The stage was killed before its summary; what it would go on from is damaged."""
  files = [path for path in (folder / 'tokenizer' / 'checkpoints').rglob('*') if path.is_file()]
  checkpoint = max(files, key=lambda path: path.stat().st_size)
  whole, summary = checkpoint.read_bytes(), (folder / 'tokenizer' / 'summary.json').read_text()
  try:
    (folder / 'tokenizer' / 'summary.json').unlink()
    checkpoint.write_bytes(whole[:-100])
    line = _mistake(capsys, 'tokenizer', folder)
    assert checkpoint.name in line and 'delete' in line
  finally:
    checkpoint.write_bytes(whole)
    (folder / 'tokenizer' / 'summary.json').write_text(summary)


def test_rows_that_do_not_divide_among_devices(folder, capsys):
  line = _mistake(capsys, 'warmup', folder, '--config.warmup.rows=4')
  assert 'rows' in line and '8' in line


def test_own_data_that_is_no_data(tmp_path, capsys):
  rows = tmp_path / 'rows.jsonl'
  rows.write_text(json.dumps({'id': 'a', 'topic': 't', 'conversations': []}) + '\n')
  flags = ('--config.data.source=intersyn_release', f'--config.data.path={rows}')
  assert 'manifest.json' in _mistake(capsys, 'data', tmp_path / 'none', *flags)
  (tmp_path / 'a.png').write_bytes(b'no picture')
  rows.write_text(json.dumps({'id': 'a', 'topic': 't', 'conversations': [
      {'from': 'human', 'value': 'q'}, {'from': 'gpt', 'value': 'x', 'caption': 'c', 'image': 'a.png'}]}) + '\n')
  assert 'a.png' in _mistake(capsys, 'data', tmp_path / 'picture', *flags)
  assert 'data.path' in _mistake(capsys, 'data', tmp_path / 'nowhere', flags[0], '--config.data.path=missing.jsonl')
