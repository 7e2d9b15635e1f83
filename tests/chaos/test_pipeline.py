"""The whole pipeline under every fault there is a cure for: what comes out is what an undisturbed run gives, to the bit."""

import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys

import pytest

from intersyn_jax.stages import PIPELINE

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from pipeline import Job, final_params, metric_rows, numbers

KILLS = 54
EACH = KILLS // len(PIPELINE)
DAMAGED = (('tokenizer', 100, 120), ('warmup', 10, 20), ('judge', 5, 10))
"""Stages that do something more after their last checkpoint, with the steps of the last two."""


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  return tmp_path_factory.mktemp('pipeline')


@pytest.fixture(scope='module')
def plain(base):
  """A run that nobody disturbs."""
  Job(base / 'plain', base / 'cache').finish()
  return base / 'plain'


def check(workdir, plain):
  assert numbers(workdir) == numbers(plain)
  assert (workdir / 'evaluate' / 'scores.json').read_bytes() == (plain / 'evaluate' / 'scores.json').read_bytes()
  one, two = final_params(plain), final_params(workdir)
  assert one.keys() == two.keys() and [name for name in one if one[name] != two[name]] == []
  assert metric_rows(workdir) == metric_rows(plain)


def lengths(plain):
  """Seconds of each stage where nobody disturbs."""
  return {stage: json.loads((plain / stage / 'summary.json').read_text())['seconds'] for stage in PIPELINE}


def interrupted(job, stage, delay, number):
  """The exit code after a signal inside a stage. A stage that had time to end is done again, as by a user who removes its folder,
  and the signal comes sooner: the machine may have been busier when the undisturbed run was timed."""
  while (code := job.signal_in(stage, delay, number)) is None:
    for later in PIPELINE[PIPELINE.index(stage):]:
      shutil.rmtree(job.workdir / later, ignore_errors=True)
    delay /= 2
  return code


def test_sigkill_at_random_moments_of_every_stage(base, plain):
  rng, seconds = random.Random(9), lengths(plain)
  job = Job(base / 'killed', base / 'cache')
  for stage in PIPELINE:
    for _ in range(EACH):
      assert interrupted(job, stage, rng.random() * seconds[stage] * 0.7, signal.SIGKILL) == -signal.SIGKILL, job.tail()
  job.finish()
  check(job.workdir, plain)


def test_sigterm_saves_at_once_and_ends_with_143(base, plain):
  rng, seconds = random.Random(2), lengths(plain)
  job = Job(base / 'stopped', base / 'cache')
  for stage in PIPELINE:
    code = interrupted(job, stage, rng.random() * seconds[stage] * 0.5, signal.SIGTERM)
    assert code == 143 and 'stopped by SIGTERM' in job.tail(), job.tail()
  job.finish()
  check(job.workdir, plain)


def test_a_damaged_latest_checkpoint_is_set_aside(base, plain):
  job = Job(base / 'damaged', base / 'cache')
  for stage, _, last in DAMAGED:
    checkpoints = job.workdir / stage / 'checkpoints'
    assert job.kill_inside(stage, f'checkpoints/{last}.files.json', 0.0), f'{stage} ended before it could be killed'
    files = [path for path in (checkpoints / str(last) / 'params').rglob('*') if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
  job.finish()
  said = job.log.read_text()
  for stage, before, last in DAMAGED:
    assert f'it was renamed to {last}.damaged, the run goes on from step {before}' in said
    assert (job.workdir / stage / 'checkpoints' / f'{last}.damaged').exists()
  check(job.workdir, plain)


def test_a_full_disk_and_one_that_can_only_be_read_lose_nothing(base, plain):
  size = int(subprocess.run(['du', '-sk', plain], capture_output=True, check=True, text=True).stdout.split()[0])
  disk = base / 'disk'
  disk.mkdir()
  if subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size // 8}k', 'none', disk], capture_output=True).returncode:
    pytest.skip('this user may not mount file systems')
  remount = lambda options: subprocess.run(['mount', '-o', f'remount,{options}', disk], check=True)
  try:
    job = Job(disk / 'work', base / 'cache')
    job.log = base / 'disk.log'
    for part in range(1, 9):  # room for one more part each time
      remount(f'size={size * part // 8}k')
      process = job.start()
      code = process.wait(900)
      if code == 0:
        break
      last = job.tail().strip().splitlines()[-1]
      assert code == 2 and last.startswith('error: ') and 'the disk is full: free some space' in last, job.tail()
      if part == 4:
        remount('ro')
        job.finish(2)
        assert 'can only be read: make it writable' in job.tail().strip().splitlines()[-1]
        remount('rw')
    remount(f'size={4 * size}k')
    job.finish()
    check(job.workdir, plain)
  finally:
    subprocess.run(['umount', '-l', disk], check=True)


def test_numbers_that_run_away_end_the_stage_and_say_so(base):
  wild = ('adam_learning_rate=1e30', 'clip=0.0')
  job = Job(base / 'wild', base / 'cache', '--config.warmup.steps=60', *(f'--config.warmup.optimizer.{field}' for field in wild))
  job.finish(2)
  last = job.tail().strip().splitlines()[-1]
  assert last.startswith('error: the last ') and 'had no finite loss or gradient' in last and 'optimizer.learning_rate' in last
