"""launch/worker.py on one machine: how a job begins, is asked after and ends, and what becomes of it when something dies."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time
import zipfile

import pytest

from tests.launch.world import ROOT


class Machine:
  """A machine's home with jobs of the name `vila-u` in it."""

  def __init__(self, world):
    self.world, self.home = world, world.folder / 'machines' / '0-vila-u-0'
    self._environment = {'PATH': f'{world.folder / "machine-bin"}:/usr/bin:/bin', 'HOME': str(self.home),
                         'FAKE_WORLD': str(world.folder), 'FAKE_MACHINE': str(self.home)}

  def ship(self, job: str) -> pathlib.Path:
    folder = self.home / 'intersyn' / 'vila-u' / job
    (folder / 'source').mkdir(parents=True)
    shutil.copy(ROOT / 'launch' / 'worker.py', folder)
    with zipfile.ZipFile(folder / 'x.whl', 'w') as wheel:
      wheel.writestr('intersyn_jax/__init__.py', '')
    (folder / 'job.json').write_text(json.dumps({
        'command': ['doctor'], 'env': {}, 'extras': 'tpu', 'python': '3.12', 'uv': '0.13.9', 'wheel': 'x.whl',
        'logs': 'gs://bucket/logs'}))
    return folder

  def ask(self, job: str, *what: str) -> dict:
    out = self.tell(job, *what)
    return json.loads(out.removeprefix('intersyn-worker '))

  def tell(self, job: str, *what: str) -> str:
    script = self.home / 'intersyn' / 'vila-u' / job / 'worker.py'
    return subprocess.run(['python3', str(script), *what], env=self._environment, stdout=subprocess.PIPE, text=True,
                          check=True, timeout=60).stdout

  def until(self, job: str, state: str) -> dict:
    begun = time.monotonic()
    while (report := self.ask(job, 'status'))['state'] != state:
      assert time.monotonic() - begun < 60, report
      time.sleep(0.05)
    return report


@pytest.fixture
def machine(world):
  return Machine(world)


def hangs(machine):
  begun = time.monotonic()
  while not (machine.home / 'hangs').exists():
    assert time.monotonic() - begun < 60
    time.sleep(0.05)


def lives(pid: int) -> bool:
  """Whether a process runs; one that nobody has waited for yet does not."""
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] not in 'ZX'
  except FileNotFoundError:
    return False


def test_a_job_is_installed_once_runs_apart_and_ends_with_its_code(machine):
  machine.world.plan(job=[3, 0])
  machine.ship('aaa')
  assert machine.ask('aaa', 'status')['state'] == 'absent'
  assert machine.ask('aaa', 'start')['state'] != 'absent'
  report = machine.until('aaa', 'exited')
  assert (report['code'], report['error'], report['host'], report['job']) == (
      3, 'RuntimeError: out of memory', 't1v-n-0-vila-u-0', 'aaa')
  assert machine.tell('aaa', 'log', '2').splitlines() == [
      'Traceback (most recent call last):', 'RuntimeError: out of memory']
  machine.ask('aaa', 'start')
  assert machine.until('aaa', 'exited')['code'] == 0
  commands = [call['command'] for program in ('python3', 'uv') for call in machine.world.calls(program)]
  assert len(commands) == 3  # pip install uv, uv venv, uv pip install: none again
  assert machine.world.calls('gcloud', 'storage cp')[-1]['arguments'][-1] == 'gs://bucket/logs/t1v-n-0-vila-u-0.log'


def test_stop_passes_sigterm_on_and_another_job_takes_the_machine(machine):
  machine.world.plan(job=['hang', 'hang'])
  machine.ship('aaa')
  machine.ship('bbb')
  machine.ask('aaa', 'start')
  hangs(machine)
  before = machine.ask('aaa', 'status')['pid']
  assert machine.ask('aaa', 'start')['pid'] == before  # twice is once
  (machine.home / 'hangs').unlink()
  machine.ask('bbb', 'start')
  report = machine.ask('aaa', 'status')
  assert (report['state'], report['code']) == ('stopped', 143)
  hangs(machine)
  assert machine.ask('bbb', 'stop')['state'] == 'stopped'
  assert len(machine.world.calls('python', 'job stopped')) == 2


def test_a_job_does_not_outlive_its_supervisor(machine):
  machine.world.plan(job=['hang'])
  machine.ship('aaa')
  machine.ask('aaa', 'start')
  hangs(machine)
  (job,) = machine.world.jobs()
  os.kill(machine.ask('aaa', 'status')['pid'], signal.SIGKILL)
  begun = time.monotonic()
  while lives(job['pid']):
    assert time.monotonic() - begun < 60
    time.sleep(0.05)
  assert machine.until('aaa', 'lost')['state'] == 'lost'


def test_an_environment_that_cannot_be_made_ends_the_job(machine):
  machine.world.plan(failures=[machine.world.fail('pip', 'ERROR: No matching distribution found for uv==0.13.9')])
  machine.ship('aaa')
  machine.ask('aaa', 'start')
  report = machine.until('aaa', 'failed')
  assert report['error'] == 'python3: ERROR: No matching distribution found for uv==0.13.9'
  assert not machine.world.jobs()
