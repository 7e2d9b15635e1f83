"""Two and four real processes on loopback: the numbers are those of one process, and a lost one ends the others."""

import json
import re
import signal
import time

import jax
import numpy as np
import pytest

from intersyn_jax import sharding
from intersyn_jax.training import stopping
from tests.multiprocess import worker
from tests.multiprocess.job import Job

LOST = ('error: process {} of 2 was lost: it was killed, or its machine is gone; the same command on all machines goes on '
        'from here')


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  return tmp_path_factory.mktemp('processes')


def start(base, name, *arguments, fsdp=4, tensor=1, processes=2, devices=2, seconds=0.0):
  folder = base / name
  folder.mkdir(exist_ok=True)
  command = ['-m', 'tests.multiprocess.worker', str(folder), str(fsdp), str(tensor), str(seconds), *arguments]
  return folder, Job(command, folder / 'log', processes, devices, cache=base / f'cache{processes}x{devices}')


def found(folder, processes=2):
  return [json.loads((folder / f'found.{index}.json').read_text()) for index in range(processes)]


@pytest.fixture(scope='module')
def two(base):
  """What two processes of two devices found, undisturbed."""
  folder, job = start(base, 'two')
  job.finish()
  return found(folder)


def alone(tmp_path, fsdp, tensor):
  """The same in this process, which has as many devices."""
  return worker.work(sharding.make_mesh({'fsdp': fsdp, 'tensor': tensor}, jax.devices()[:fsdp * tensor]), tmp_path)


def check(many, one):
  for each in many[1:]:  # metrics and gathered parameters are the same in all processes
    assert all(each[name] == many[0][name] for name in ('warmup', 'grpo', 'params'))
  losses = [np.array([row[1] for row in run['warmup'][:20]]) for run in (many[0], one)]
  np.testing.assert_allclose(*losses, atol=1e-4)
  assert losses[0][0] - losses[0][-1] > 0.5
  np.testing.assert_allclose(many[0]['grpo'], one['grpo'], rtol=1e-3, atol=1e-4)
  assert 0 < many[0]['grpo'][0][2] <= 1  # the reward on the host has seen pictures
  texts = {row: text for run in many for row, text in zip(run['rows'], run['texts'], strict=True)}
  assert [texts[row] for row in range(worker.ROWS)] == one['texts']


def test_two_processes_agree_with_one(two, tmp_path):
  check(two, alone(tmp_path, 4, 1))
  assert [run['rows'] for run in two] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def begun_saving(folder, job):
  """Waits until a checkpoint is whole, which is before the last."""
  end = time.monotonic() + 300
  while not (folder / 'checkpoints' / '4.files.json').exists():
    assert time.monotonic() < end and all(p.poll() is None for p in job.processes), job.said(0)[-2000:] + job.said(1)[-2000:]
    time.sleep(0.02)


def ends_as(base, name, two):
  """Started again, the job ends with the numbers of the undisturbed one, and has not begun anew."""
  folder, job = start(base, name, 'warmup')
  job.finish()
  again = found(folder)
  assert again[0]['params'] == two[0]['params']
  assert again[0]['warmup'] == two[0]['warmup'][-len(again[0]['warmup']):] and len(again[0]['warmup']) < worker.STEPS


@pytest.mark.slow
@pytest.mark.parametrize('lost', [0, 1])
def test_a_lost_process_ends_the_other_and_the_job_goes_on(base, two, lost):
  folder, job = start(base, f'lost{lost}', 'warmup', seconds=0.5)
  begun_saving(folder, job)
  job.processes[lost].kill()
  begun = time.monotonic()
  codes = job.wait(60)
  assert time.monotonic() - begun < 15  # the heartbeat has 30 s
  assert codes[lost] == -9 and codes[1 - lost] not in (0, 2)
  assert LOST.format(lost) in job.said(1 - lost)
  ends_as(base, f'lost{lost}', two)


@pytest.mark.slow
def test_sigterm_in_one_process_saves_and_ends_all(base, two):
  folder, job = start(base, 'term', 'warmup', seconds=0.5)
  begun_saving(folder, job)
  job.processes[1].send_signal(signal.SIGTERM)
  assert job.wait(60) == [stopping.CODE] * 2
  assert not re.search('process . of 2', job.said(0) + job.said(1))
  ends_as(base, 'term', two)


@pytest.mark.parametrize('end, code, words', [
    ('mistake', 2, 'error: process 1 of 2 has ended with a mistake that its own output tells'),
    ('exit', 1, 'error: process 1 of 2 has failed, and its own output tells why; the same command on all machines goes on')])
def test_a_process_that_fails_alone_ends_the_other_with_its_code(base, end, code, words):
  _, job = start(base, end, end)
  assert job.wait(60) == [code, code]
  assert words in job.said(0)
  assert ('a bug' if end == 'exit' else 'the disk is full') in job.said(1)
  assert not re.search('process . of 2', job.said(1))


@pytest.mark.slow
@pytest.mark.parametrize('fsdp, tensor, devices', [(2, 2, 1), (1, 4, 1), (4, 2, 2)])
def test_four_processes_agree_with_one(base, tmp_path, fsdp, tensor, devices):
  """Where `tensor` reaches over processes, they share rows."""
  folder, job = start(base, f'four{fsdp}x{tensor}', fsdp=fsdp, tensor=tensor, processes=4, devices=devices)
  job.finish()
  many = found(folder, 4)
  check(many, alone(tmp_path, fsdp, tensor))
  assert [len(run['rows']) for run in many] == [worker.ROWS // fsdp] * 4
