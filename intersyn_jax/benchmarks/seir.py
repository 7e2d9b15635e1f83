"""Benchmark `seir`: conversations a second, and how full the device batches are, by number of devices.

    python -m intersyn_jax.benchmarks seir --config=configs/storyworld.py:tiny --workdir=runs/tiny

The writer and the judge of a work folder, which is only read, make the same conversations on 1, 2, 4 and 8 devices, each
number in a process of its own: on a CPU they are virtual ones, which share its cores. 64 conversations are in flight and
batches have 16 rows. Goal: batches are 85 % full.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import jax

from intersyn_jax.benchmarks import rows
from intersyn_jax.benchmarks.rows import Options, Row
from intersyn_jax.errors import UserError

DEVICES = (1, 2, 4, 8)
WINDOW, IN_FLIGHT, BATCH = 128, 64, 16
"""Conversations that are made at once, of which so many are in flight, and rows of a batch."""

GOAL = 0.85
"""Share of the rows of a batch that are used."""


def run(options: Options) -> Iterator[Row]:
  if not any(flag.startswith('--workdir=') for flag in options.job):
    raise UserError('benchmarks seir: name a finished run, --config=configs/storyworld.py:tiny --workdir=runs/tiny')
  first = None
  for devices in DEVICES:
    case = f'{devices} device{"s" if devices > 1 else ""}'
    if not options.wants(case):
      continue
    found = _child(devices, options)
    rate = statistics.median(found['rates'])
    first = first or rate
    told = dict(device=found['device'])
    yield rows.row(case, f'{IN_FLIGHT} in flight, batches of {BATCH} rows', rate, 'conversations/s', options.runs, peer=first,
                   peer_name='the fewest devices', less_is_better=False) | told
    yield rows.row(case, 'rows of a batch that are used', found['fill'], 'of all', options.runs, peer=GOAL, peer_name='goal',
                   less_is_better=False) | told


def _child(devices: int, options: Options) -> dict:
  command = [sys.executable, '-m', __spec__.name, str(options.runs), *options.job]
  environment = os.environ | {'JAX_NUM_CPU_DEVICES': str(devices)}
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  if done.returncode:
    said = (done.stderr.strip().splitlines() or ['no word'])[-1].removeprefix('error: ')
    raise UserError(f'benchmarks seir on {devices} devices: {said}')
  return json.loads(done.stdout.splitlines()[-1])


def measure(runs: int, job: Sequence[str]) -> dict:
  """Makes a window of conversations to compile, then `runs` others: the conversations a second of each, and the share of rows
  used in all. Nothing is written to the work folder."""
  from intersyn_jax.stages import settings, synthesize
  from intersyn_jax.stages.common import Run
  from intersyn_jax.stages.parts import Parts
  command = settings.parse(['run', *job])
  config = command.config.copy_and_resolve_references()
  config.synthesize.update(in_flight=IN_FLIGHT, rows=BATCH, unrefined=False)
  one = Run(config.lock(), command.workdir)
  method, _ = synthesize.method_of(one)
  crew = synthesize.crew_of(one, Parts(one, jax.local_devices()), method)
  rates, used, there = [], 0, 0
  for number in range(runs + 1):
    start = time.perf_counter()
    *_, loads = synthesize.make(crew, method, range(number * WINDOW, (number + 1) * WINDOW), config.synthesize)
    if number:
      rates.append(WINDOW / (time.perf_counter() - start))
      used += sum(lane.requests for lane in loads.values())
      there += sum(lane.rows for lane in loads.values())
  return dict(rates=rates, fill=used / there, device=rows.device())


if __name__ == '__main__':
  try:
    print(json.dumps(measure(int(sys.argv[1]), sys.argv[2:])))
  except UserError as error:
    sys.exit(f'error: {error}')
