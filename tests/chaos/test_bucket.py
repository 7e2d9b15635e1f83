"""A run whose work folder lies in a bucket, on machines that are lost: the same bits as on a disk that nobody disturbed."""

import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import gcs
from pipeline import PATIENCE, Job, final_params, metric_rows, numbers

from intersyn_jax.stages import PIPELINE

LOSSES = (('warmup/checkpoints/10/commit_success.txt', signal.SIGKILL),
          ('synthesize/windows/window-00000/window.json', signal.SIGKILL),
          ('grpo/checkpoints/2/commit_success.txt', signal.SIGTERM))
"""When this object is there, the job gets this signal, and then its machine is gone with all that lay on it."""


class BucketJob(Job):
  """`run` on a work folder in a bucket; each start finds an empty cache."""

  def __init__(self, base: pathlib.Path, name: str, cache: pathlib.Path, server: gcs.Server):
    super().__init__(base / name, cache)
    self._server, self._home = server, base / 'home'
    self.workdir, self.folder = f'gs://{gcs.BUCKET}/runs/{name}', f'runs/{name}'
    self._environment |= server.environment | {'XDG_CACHE_HOME': str(self._home)}

  def start(self) -> subprocess.Popen:
    shutil.rmtree(self._home, ignore_errors=True)
    return super().start()

  def lose(self, name: str, number: signal.Signals) -> int:
    """Signals the process when an object is there; gives its exit code."""
    process, end = self.start(), time.monotonic() + PATIENCE
    try:
      while f'{self.folder}/{name}' not in self._server.objects:
        assert process.poll() is None and time.monotonic() < end, self.tail()
        time.sleep(0.01)
      process.send_signal(number)
      return process.wait(PATIENCE)
    finally:
      process.kill()
      process.wait()


def both(base: pathlib.Path, cache: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path, gcs.Server]:
  """A run on a disk, and what the bucket held in the end of one that lost its machine again and again."""
  Job(base / 'disk' / 'one', cache).finish()
  with gcs.Server() as server:
    job = BucketJob(base, 'one', cache, server)
    for name, number in LOSSES:
      code = job.lose(name, number)
      assert code == (-signal.SIGKILL if number == signal.SIGKILL else 128 + number), (name, code, job.tail())
    job.finish()
    server.save(base / 'bucket')
  return base / 'disk' / 'one', base / 'bucket' / 'runs' / 'one', server


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  base = tmp_path_factory.mktemp('bucket')
  (base / 'disk').mkdir()
  return both(base, base / 'cache')


def test_all_numbers_are_equal(runs):
  disk, bucket, server = runs
  assert server.unknown == []
  assert len(numbers(disk)) > 100
  assert numbers(disk) == numbers(bucket)
  assert (disk / 'evaluate' / 'scores.json').read_bytes() == (bucket / 'evaluate' / 'scores.json').read_bytes()


def test_curves_and_parameters_are_equal(runs):
  disk, bucket, _ = runs
  assert metric_rows(disk) == metric_rows(bucket)
  plain, lost = final_params(disk), final_params(bucket)
  assert plain.keys() == lost.keys() and len(plain) > 50
  assert [name for name in plain if plain[name] != lost[name]] == []


def test_a_summary_comes_after_all_else_of_its_stage(runs):
  _, bucket, server = runs
  put = [name.removeprefix('runs/one/') for method, name in server.log if method == 'PUT']
  for stage in PIPELINE:
    end = put.index(f'{stage}/summary.json')
    late = {name for name in put[end + 1:] if name.startswith(f'{stage}/')} - set(put[:end])
    assert not {name for name in late if (bucket / name).exists()}, stage


def test_nothing_half_written_is_in_the_bucket(runs):
  names = [name.removeprefix('runs/one/') for name in runs[2].objects]
  assert not [name for name in names if any(part.startswith('.') or part.endswith('.part') for part in name.split('/'))]
