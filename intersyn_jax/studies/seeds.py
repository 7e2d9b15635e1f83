"""What studies of several seeds share: the loop over them, stages made once for all, controls, the size in a command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_collections
from etils import epath

from intersyn_jax.data import shards
from intersyn_jax.stages.common import Run, barrier, run_stage
from intersyn_jax.stages.finetune import finetune
from intersyn_jax.stages.parts import Parts, policy_folder
from intersyn_jax.training import checkpoints
from intersyn_jax.training.metrics import replace_text

SHARED = ('data', 'tokenizer')
"""Stages that seeds share where their configuration is the same for all."""


Rows = list[dict[str, Any]]


def study(name: str, folder: epath.Path, runs: Mapping[int, Run], make: Callable[[Run, int], Rows],
          page: Callable[[Rows, Mapping[int, Run]], str], verdicts: Callable[[Rows], Sequence[str]]) -> Rows:
  """Makes the rows of one seed after the other, writes FOLDER/NAME.json and NAME.md anew after each, and says what holds.

  Args:
    runs: by seed.
    make: does whatever a seed still lacks, and gives its rows.
    page: of the rows and the runs so far, as Markdown.
    verdicts: lines about all rows.
  """
  rows: Rows = []
  done: dict[int, Run] = {}
  for number, (seed, run) in enumerate(runs.items(), start=1):
    run.say(f'seed {seed} ({number}/{len(runs)}): {run.workdir}')
    rows += make(run, seed)
    done[seed] = run
    if run.active:
      replace_text(folder / f'{name}.json', json.dumps(rows, indent=1, allow_nan=False))
      replace_text(folder / f'{name}.md', page(rows, done))
  first = next(iter(runs.values()))
  for line in verdicts(rows):
    first.say(line)
  first.say(f'rows: {folder / f"{name}.json"}, table: {folder / f"{name}.md"}')
  return rows


def seeded(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
  """The configuration of a seed, to be changed further. Studies that leave the stages they share at the same values can share a
  work folder."""
  mine = ml_collections.ConfigDict(config.to_dict())
  mine.seed = seed
  return mine


def run_stages(run: Run, stages: Sequence[str], others: Iterable[Run]) -> None:
  """Runs what is not complete; data and tokenizers are taken from another seed where they would be the same."""
  for stage in stages:
    if stage in SHARED:
      adopt(run, stage, [other for other in others if other is not run])
    run_stage(run, stage)


def adopt(run: Run, stage: str, others: Sequence[Run]) -> bool:
  """Copies a stage that another seed has made with the very same values; whole or not at all."""
  if run.complete(stage):
    return False
  source = next((o for o in others if o.complete(stage) and o.config_hash(stage) == run.config_hash(stage)), None)
  if source is None:
    return False
  run.say(f'{stage}: the same as in {source.workdir}, copied')
  if run.active:
    target = run.workdir / stage
    part = run.workdir / f'.{stage}.part'
    for old in (part, target):
      if old.exists():
        old.rmtree()
    _copy(source.workdir / stage, part)
    part.rename(target)
  barrier(f'adopt-{stage}')
  return True


def _copy(source: epath.Path, target: epath.Path) -> None:
  target.mkdir(parents=True)
  for path in source.iterdir():
    if path.is_dir():
      _copy(path, target / path.name)
    else:
      path.copy(target / path.name)


def train_control(run: Run, name: str, count: int) -> None:
  """Trains a control as `finetune` is trained, on the first `count` conversations of its source; nothing where it is done or
  there are none. `finetune_k0` learns from what SEIR wrote before any refinement, `finetune_gold` from gold conversations, all
  others from what SEIR refined."""
  folder = policy_folder(run.workdir, name)
  if not count or (checkpoints.latest_step(folder) or -1) >= run.config.finetune.steps:
    return
  run.require('finetune')
  parts = Parts(run)
  if name == 'finetune_gold':
    source = parts.conversations('gold')
  else:
    source = shards.open_split(run.workdir / 'synthesize' / 'data', 'unrefined' if name == 'finetune_k0' else 'refined')
  finetune(run, parts, [source[i] for i in range(count)], name, folder.parent)


def size_of(command: str) -> str:
  """The size in `--config=FILE.py:SIZE` of a command line, '' where none is named."""
  return next((word.rsplit(':', 1)[-1] for word in command.split() if '.py:' in word and '--config' in word), '')
