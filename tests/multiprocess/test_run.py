"""The whole of `run` shared out to real processes on loopback: the losses of every stage are those of one process."""

import json

import numpy as np
import pytest

from intersyn_jax.stages import PIPELINE
from tests.multiprocess.job import Job
from tests.pipeline import SMALLER, metric_rows

FIRST = 20
"""Updates whose losses may differ by 1e-4; later ones drift apart by rounding."""


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  return tmp_path_factory.mktemp('run')


def finished(base, processes: int, devices: int):
  """The work folder of `run` on `smoke` by so many processes."""
  folder = base / f'{processes}x{devices}'
  command = ['-m', 'intersyn_jax', 'run', '--config=configs/storyworld.py:smoke', f'--workdir={folder}', *SMALLER]
  Job(command, base / f'log{processes}x{devices}', processes, devices, cache=base / f'cache{processes}x{devices}').finish()
  return folder


@pytest.fixture(scope='module')
def alone(base):
  return finished(base, 1, 4)


def curves(folder):
  """By metrics file: the rows of the first updates without what tells of the machine, and the step of every row."""
  told = lambda row: {name: value for name, value in row.items() if name != 'goodput' and value is not None}
  return {path: ([told(row) for row in rows if row['step'] <= FIRST], [row['step'] for row in rows])
          for path, rows in metric_rows(folder).items()}


@pytest.mark.slow
def test_losses_are_those_of_one_process(base, alone):
  """By two processes; tests/chaos takes four, each of which compiles every program for itself."""
  same_losses(finished(base, 2, 2), alone)


def same_losses(folder, alone):
  ours, theirs = curves(folder), curves(alone)
  assert ours.keys() == theirs.keys() and len(ours) >= 8
  for path, (rows, steps) in theirs.items():
    assert ours[path][1] == steps, f'{path}: process 0 writes each row once'
    for mine, row in zip(ours[path][0], rows, strict=True):
      assert mine.keys() == row.keys(), path
      for name, value in row.items():
        tolerance = dict(atol=1e-4) if name in ('loss', 'pixels') else dict(rtol=1e-2, atol=1e-3)
        np.testing.assert_allclose(mine[name], value, err_msg=f'{path} {name}', **tolerance)
  for stage in PIPELINE:
    assert json.loads((folder / stage / 'summary.json').read_text()).keys() == json.loads(
        (alone / stage / 'summary.json').read_text()).keys()
  assert (folder / 'data' / 'manifest.json').read_bytes() == (alone / 'data' / 'manifest.json').read_bytes()
