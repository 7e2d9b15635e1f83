"""Starts the command line on a work folder as a process of its own, again and again, and compares what it left behind."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np

from intersyn_jax.stages import PIPELINE
from intersyn_jax.training import checkpoints
from intersyn_jax.training.trees import flat, nested

ROOT = pathlib.Path(__file__).parents[1]
SMALLER = (
    '--config.image.steps=120', '--config.warmup.steps=20', '--config.warmup.long_steps=20', '--config.writer.steps=20',
    '--config.judge.steps=10', '--config.finetune.steps=20', '--config.finetune.checkpoint_every=10',
    '--config.grpo.steps=4', '--config.grpo.checkpoint_every=2', '--config.image.pictures=128',
    '--config.judge.log_every=5', '--config.judge.checkpoint_every=5', '--config.evaluate.decodings=sampled,greedy')
"""`smoke`, but every trained part has a checkpoint in its middle, so that there is something to go on from."""

CHANGING = ('seconds', 'finished', 'peak_rss_mib', 'goodput', 'made_from')
"""What a summary says of the machine's time and memory; stages add `seconds.*` and rates of their own."""

PATIENCE = 600
"""Seconds that a start may take on a loaded machine."""


class Job:
  """Starts `run` on one folder, again and again."""

  def __init__(self, workdir: pathlib.Path, cache: pathlib.Path, *settings: str):
    self.workdir = workdir
    self.log = workdir.with_suffix('.log')
    self._settings = (*SMALLER, *settings)
    self._environment = os.environ | {
        'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': str(cache), 'PYTHONPATH': str(ROOT)}

  def start(self) -> subprocess.Popen:
    command = [sys.executable, '-m', 'intersyn_jax', 'run', '--config=configs/storyworld.py:smoke',
               f'--workdir={self.workdir}', *self._settings]
    with self.log.open('a') as log:
      return subprocess.Popen(command, cwd=ROOT, env=self._environment, stdout=log, stderr=log)

  def finish(self, code: int = 0) -> None:
    process = self.start()
    assert process.wait(PATIENCE) == code, self.tail()

  def signal_in(self, stage: str, delay: float, number: signal.Signals) -> int | None:
    """Starts, sends a signal so many seconds after a stage has begun, and gives the exit code; None where it had ended."""
    process = self.start()
    end = time.monotonic() + PATIENCE
    try:
      while self._alive_in(process) != stage:
        if (self.workdir / stage / 'summary.json').exists():
          return None
        assert process.poll() is None and time.monotonic() < end, self.tail()
        time.sleep(0.005)
      time.sleep(delay)
      process.send_signal(signal.SIGSTOP)
      if (self.workdir / stage / 'summary.json').exists():
        return None
      process.send_signal(number)
      process.send_signal(signal.SIGCONT)
      return process.wait(PATIENCE)
    finally:
      process.kill()
      process.wait()

  def _alive_in(self, process: subprocess.Popen) -> str | None:
    """The stage that this very process is in, by its heartbeat."""
    path = self.workdir / 'heartbeat.json'
    beat = json.loads(path.read_text()) if path.exists() else {}
    return beat['stage'] if beat.get('pid') == process.pid else None

  def kill_inside(self, stage: str, pattern: str, delay: float) -> bool:
    """Runs until something new in `stage` matches `pattern`, and kills it there; False where the stage had ended by then."""
    folder = self.workdir / stage
    before = set(folder.glob(pattern or 'config.json'))
    process = self.start()
    end = time.monotonic() + PATIENCE
    try:
      while before >= set(folder.glob(pattern or 'config.json')):
        assert process.poll() is None and time.monotonic() < end, self.tail()
        if (folder / 'summary.json').exists():
          break
        time.sleep(0.005)
      time.sleep(delay)
      # Stopped first: whether the stage had ended must still be true when it is killed.
      process.send_signal(signal.SIGSTOP)
      return not (folder / 'summary.json').exists()
    finally:
      process.kill()
      process.wait()

  def tail(self) -> str:
    """The end of all that it has said."""
    return self.log.read_text()[-3000:]


def numbers(workdir: pathlib.Path) -> dict[str, object]:
  """Every metric of every summary that does not tell of time or memory."""
  found = {}
  for stage in PIPELINE:
    summary = json.loads((workdir / stage / 'summary.json').read_text())
    found |= {f'{stage}.{name}': value for name, value in summary.items()
              if name not in CHANGING and 'seconds' not in name and 'per_second' not in name}
  del found['report.page_kib']  # the page tells the seconds of every stage
  return found


def final_params(workdir: pathlib.Path) -> dict[str, bytes]:
  """Bytes of every array of the last checkpoint in each checkpoint folder."""
  found = {}
  for folder in sorted(workdir.rglob('checkpoints')):
    shapes = checkpoints.read_meta(folder)['shapes']
    like = nested({name.removeprefix('params/'): jax.ShapeDtypeStruct(tuple(shape), dtype)
                   for name, (dtype, *shape) in shapes.items() if name.startswith('params/')})
    params = flat(checkpoints.load_params(folder, like))
    at = f'{folder.parent.relative_to(workdir)}@{checkpoints.latest_step(folder)}'
    found |= {f'{at} {name}': np.asarray(array).tobytes() for name, array in params.items()}
  return found


def metric_rows(workdir: pathlib.Path) -> dict[str, list]:
  """The curves: every step stands in its file once, with the same values."""
  found = {}
  for path in sorted(workdir.rglob('metrics.jsonl')):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found[str(path.relative_to(workdir))] = [
        {name: value for name, value in row.items() if 'second' not in name} for row in rows]
  return found
