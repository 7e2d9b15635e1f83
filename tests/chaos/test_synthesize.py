"""SEIR killed at random moments, and shared out to several processes: the data are the same to the byte."""

import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import time

import pytest

from intersyn_jax.data import manifest, shards
from intersyn_jax.synthesis import record

ROOT = pathlib.Path(__file__).parents[2]
KILLS = 20
CONVERSATIONS, WINDOW = 96, 4
SETTINGS = (
    '--config.image.steps=60', '--config.warmup.steps=60', '--config.warmup.long_steps=0', '--config.writer.steps=400',
    '--config.warmup.checkpoint_every=60', '--config.writer.rows=8', '--config.writer.checkpoint_every=400',
    '--config.data.counts.roles=2000', f'--config.synthesize.conversations={CONVERSATIONS}',
    f'--config.synthesize.window={WINDOW}', '--config.synthesize.shard_records=8', '--config.synthesize.rounds.question=1',
    '--config.synthesize.turns=1,1,2', '--config.synthesize.text_temperature=0.8', '--config.synthesize.retries=4')
"""`smoke`, but its writer has learnt enough for some conversations to succeed."""

PATIENCE = 900
CHANGING = ('seconds', 'finished', 'peak_rss_mib', 'goodput', 'processes', 'devices')


def start(stage: str, workdir: pathlib.Path, cache: pathlib.Path, **environment: str) -> subprocess.Popen:
  command = [sys.executable, '-m', 'intersyn_jax', stage, '--config=configs/storyworld.py:smoke', f'--workdir={workdir}',
             *SETTINGS]
  known = {'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': str(cache), 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': ''}
  with workdir.with_suffix('.log').open('a') as log:
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | known | environment, stdout=log, stderr=log)


def finish(*processes: subprocess.Popen, log: pathlib.Path) -> None:
  for process in processes:
    assert process.wait(PATIENCE) == 0, log.read_text()[-3000:]


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  return tmp_path_factory.mktemp('chaos')


@pytest.fixture(scope='module')
def trained(base):
  """A folder with a writer and a judge."""
  folder = base / 'trained'
  folder.mkdir()
  for stage in ('data', 'tokenizer', 'warmup', 'judge'):
    finish(start(stage, folder, base / 'cache'), log=folder.with_suffix('.log'))
  return folder


@pytest.fixture(scope='module')
def plain(base, trained):
  """The data of an undisturbed run."""
  folder = base / 'plain'
  shutil.copytree(trained, folder)
  finish(start('synthesize', folder, base / 'cache'), log=folder.with_suffix('.log'))
  return folder


def files(workdir: pathlib.Path) -> dict[str, bytes]:
  folder = workdir / 'synthesize'
  return {str(path.relative_to(folder)): path.read_bytes() for part in ('data', 'windows')
          for path in sorted((folder / part).rglob('*')) if path.is_file()}


def summary(workdir: pathlib.Path) -> dict[str, object]:
  found = json.loads((workdir / 'synthesize' / 'summary.json').read_text())
  return {name: value for name, value in found.items() if name not in CHANGING and 'second' not in name}


def check(workdir: pathlib.Path, plain: pathlib.Path) -> None:
  one, two = files(plain), files(workdir)
  assert one.keys() == two.keys() and [name for name in one if one[name] != two[name]] == []
  assert summary(workdir) == summary(plain)
  data = workdir / 'synthesize' / 'data'
  manifest.verify(data)  # every shard is there, whole
  ids = [conversation.id for conversation in shards.open_split(data, record.SPLIT)]
  rejected = [row.id for row in manifest.load(data).splits[record.SPLIT].rejected]
  assert sorted(ids + rejected) == [f'seir-0-{i:08d}' for i in range(CONVERSATIONS)]  # none lost, none twice


def test_killed_twenty_times_nothing_is_lost_doubled_or_half_written(base, trained, plain):
  rng = random.Random(6)
  folder = base / 'killed'
  shutil.copytree(trained, folder)
  windows = folder / 'synthesize' / 'windows'
  kills = 0
  while kills < KILLS:
    before = len(list(windows.glob('window-*')))
    process = start('synthesize', folder, base / 'cache')
    end = time.monotonic() + PATIENCE
    # Anywhere: while it starts, inside a window, while one is written. Mostly soon after it has made one more.
    if rng.random() < 0.8:
      while len(list(windows.glob('window-*'))) == before and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.002)
    time.sleep(rng.choice((0.0, 0.005, 0.05, 0.3)) * rng.random() * 2)
    process.kill()
    kills += process.wait() == -9
    assert process.returncode in (0, -9), folder.with_suffix('.log').read_text()[-3000:]
    assert process.returncode == -9, f'it ended after {kills} kills; make more conversations'
    for path in windows.glob('window-*'):  # what is there is whole
      record.read_window(windows, int(path.name[-5:]))
  finish(start('synthesize', folder, base / 'cache'), log=folder.with_suffix('.log'))
  check(folder, plain)


def test_two_processes_make_the_same_data(base, trained, plain):
  folder = base / 'two'
  shutil.copytree(trained, folder)
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  finish(*(start('synthesize', folder, base / 'cache', JAX_COORDINATOR_ADDRESS=f'127.0.0.1:{port}', JAX_NUM_PROCESSES='2',
                 JAX_PROCESS_ID=str(index)) for index in range(2)), log=folder.with_suffix('.log'))
  check(folder, plain)
