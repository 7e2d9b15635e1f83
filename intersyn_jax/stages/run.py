"""Stage `run`: all stages in order, in one process.

One process, because the parts of jax and the compiled programs of the decoder serve several stages; what a stage leaves
in memory is dropped after it. A stage that has its summary is not done again, so that the same command resumes.
"""

from __future__ import annotations

import json
import time
from typing import Any

from intersyn_jax.stages import PIPELINE, imports
from intersyn_jax.stages.common import Run, run_stage
from intersyn_jax.training.progress import duration

DIMENSIONS = ('tcc', 'icc', 'iq', 'its', 'mean')


def run(run: Run) -> dict[str, Any]:
  """Runs every stage and prints the scores; the metrics are the seconds of each stage."""
  start = time.monotonic()
  # A folder of another configuration, and a name that leads nowhere, are told before hours of work, not when their stage comes.
  run.check_config(PIPELINE[-1])
  imports.check_all(run.config)
  seconds: dict[str, Any] = {}
  for number, stage in enumerate(PIPELINE, start=1):
    if not run.complete(stage):
      run.say(f'[{number}/{len(PIPELINE)}] {stage}')
    summary = run_stage(run, stage)
    seconds[stage] = summary['seconds']
  scores = run.workdir / 'evaluate' / 'scores.json'
  if scores.exists():
    for line in score_table(json.loads(scores.read_text())):
      run.say(line)
  run.say(f'report: {run.workdir / "report" / "index.html"}')
  run.say(f'{duration(time.monotonic() - start)} now, {duration(sum(seconds.values()))} in all')
  return seconds


def score_table(scores: dict[str, Any]) -> list[str]:
  """Lines of text: one for each policy, decoding and scorer; mean and half of the interval, scale 0-5."""
  lines = [f'{"policy":<14}{"decoding":<10}{"scorer":<8}' + ''.join(f'{d:>12}' for d in DIMENSIONS) + f'{"n":>7}']
  for policy, decodings in scores['policies'].items():
    for decoding, scorers in decodings.items():
      for scorer, dimensions in scorers.items():
        cells = [_cell(dimensions.get(d)) for d in DIMENSIONS]
        n = next((str(d['n']) for d in dimensions.values() if d), '')
        lines.append(f'{policy:<14}{decoding:<10}{scorer:<8}' + ''.join(f'{c:>12}' for c in cells) + f'{n:>7}')
  for difference in scores.get('differences', []):
    if difference['dimension'] == 'mean':
      low, high = difference['ci95']
      lines.append(f'{difference["b"]} - {difference["a"]} ({difference["decoding"]}, {difference["scorer"]}, mean): '
                   f'{difference["difference"]:+.3f} [{low:+.3f}, {high:+.3f}]')
  return lines


def _cell(value: dict[str, Any] | None) -> str:
  if not value:
    return '-'
  low, high = value['ci95']
  return f'{value["mean"]:.2f} ±{(high - low) / 2:.2f}'
