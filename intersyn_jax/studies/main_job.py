"""Study `main_job`: the pipeline in several seeds, with the controls that a claim needs (DESIGN 4).

Each seed has its own work folder WORKDIR/seed<k>, made by the same stages as `run`. Before `evaluate`, two more policies
are trained there with the code, size and steps of `finetune`: `finetune_k0` on what SEIR wrote before any refinement,
`finetune_gold` on gold conversations of the same topics. Everything resumes; the table is written anew after each seed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from intersyn_jax.data import shards
from intersyn_jax.evaluation import statistics
from intersyn_jax.stages import PIPELINE
from intersyn_jax.stages.common import Run
from intersyn_jax.stages.evaluate import PAIRS, read_scores
from intersyn_jax.stages.parts import policy_folder
from intersyn_jax.studies import table
from intersyn_jax.studies.seeds import run_stages, seeded, size_of, train_control
from intersyn_jax.training import checkpoints
from intersyn_jax.training.metrics import replace_text
from intersyn_jax.training.progress import duration

PROMPTS = 1000
"""Held-out prompts that a claim rests on, at least."""

CONTROLS = ('finetune_k0', 'finetune_gold')
SECONDS: Mapping[str, Mapping[str, float]] = {
    'smoke': dict.fromkeys((*PIPELINE, 'controls'), 9.0),
    'tiny': {'data': 20, 'tokenizer': 30, 'warmup': 440, 'judge': 800, 'synthesize': 90, 'finetune': 50, 'grpo': 130,
             'controls': 100, 'evaluate': 200, 'report': 1},
}
"""What stages take on 2 CPU cores, seconds, by the name of the configuration's size."""


def run(config: ml_collections.ConfigDict, workdir: str, seeds: Sequence[int], command: str) -> list[dict[str, Any]]:
  """Runs the study and gives its rows, which are also in WORKDIR/main_job.json (with main_job.md beside it)."""
  folder = epath.Path(workdir)
  runs = {seed: Run(of_seed(config, seed), folder / f'seed{seed}') for seed in seeds}
  first = next(iter(runs.values()))
  for other in runs.values():
    other.check_config(PIPELINE[-1])
  first.say(announcement(folder, runs, size_of(command)))
  prompts = first.config.evaluate.prompts
  if prompts < PROMPTS:
    first.say(f'only {prompts} held-out prompts (config.data.counts.test): a claim needs {PROMPTS}')
  rows: list[dict[str, Any]] = []
  for number, (seed, one) in enumerate(runs.items(), start=1):
    one.say(f'seed {seed} ({number}/{len(runs)}): {one.workdir}')
    run_seed(one, [other for other in runs.values() if other is not one])
    done = {s: r for s, r in list(runs.items())[:number]}
    rows = collect(done)
    if one.active:
      replace_text(folder / 'main_job.json', json.dumps(rows, indent=1, allow_nan=False))
      replace_text(folder / 'main_job.md', page(rows, done, config.grpo.init, command))
  for line in table.verdicts(rows, config.grpo.init):
    first.say(line)
  first.say(f'rows: {folder / "main_job.json"}, table: {folder / "main_job.md"}')
  return rows


def of_seed(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
  """The configuration of one seed, evaluated on as many prompts as a claim needs (or as the test split has)."""
  mine = seeded(config, seed)
  mine.evaluate.prompts = max(config.evaluate.prompts, min(PROMPTS, config.data.counts.test))
  return mine.lock()


def run_seed(run: Run, others: Sequence[Run]) -> None:
  """All stages of one seed, with the controls before `evaluate`."""
  before = PIPELINE.index('evaluate')
  run_stages(run, PIPELINE[:before], others)
  train_controls(run)
  run_stages(run, PIPELINE[before:], others)


def train_controls(run: Run) -> None:
  """Trains `finetune_k0` and `finetune_gold`, on as many conversations as `finetune` had (or as there are).

  A control without any conversation is left out, and so are its claims; that can only happen to a toy run.
  """
  sizes = control_sizes(run)
  for name in CONTROLS:
    if sizes[name] < sizes['finetune'] or not sizes[name]:
      run.say(f'{name}: {sizes[name]} conversations, finetune had {sizes["finetune"]}')
    train_control(run, name, sizes[name])


def control_sizes(run: Run) -> dict[str, int]:
  """How many conversations `finetune` and each control learn from."""
  def size(stage: str, split: str) -> int:
    folder = run.workdir / stage / 'data'
    return len(shards.open_split(folder, split)) if split in shards.splits(folder) else 0

  count = size('synthesize', 'refined')
  return {'finetune': count, 'finetune_k0': min(count, size('synthesize', 'unrefined')),
          'finetune_gold': min(count, size('tokenizer', 'gold'))}


# How long.


def announcement(folder: epath.Path, runs: Mapping[int, Run], size: str) -> str:
  """A line that says how long the study will take, from what was measured, here first of all."""
  measured = [json.loads(path.read_text()) for path in sorted(folder.glob('seed*/*/summary.json'))]
  here: dict[str, list[float]] = {}
  for summary in measured:
    here.setdefault(summary['stage'], []).append(summary['seconds'])
  known = dict(SECONDS.get(size, {})) | {stage: float(np.mean(values)) for stage, values in here.items()}
  if 'finetune' in here:
    known['controls'] = len(CONTROLS) * known['finetune']
  left, unknown = 0.0, set()
  for run in runs.values():
    trained = all(checkpoints.latest_step(policy_folder(run.workdir, name)) is not None for name in CONTROLS)
    for stage in (*PIPELINE, 'controls'):
      if trained if stage == 'controls' else run.complete(stage):
        continue
      left += known.get(stage, 0.0)
      unknown |= {stage} - known.keys()
  seeds = f'{len(runs)} seed{"s" if len(runs) > 1 else ""}'
  if unknown:
    return f'main_job, {seeds}: how long {", ".join(sorted(unknown))} take here is not known before they were run once'
  where = 'as measured in this folder' if measured else 'as on 2 CPU cores; other machines differ'
  return f'main_job, {seeds}: about {duration(left)} left ({where})'


# Results.


def collect(runs: Mapping[int, Run]) -> list[dict[str, Any]]:
  """The rows of all finished seeds, and, where there are several, of the seeds together (`seed` 'all')."""
  rows = []
  for seed, run in runs.items():
    folder = run.workdir / 'evaluate'
    rows += table.rows(json.loads((folder / 'scores.json').read_text()), seed,
                       json.loads((folder / 'skills.json').read_text()))
  if len(runs) > 1:
    first = next(iter(runs.values()))
    together = pool([read_scores(run.workdir) for run in runs.values()],
                    same_prompts=len({run.config_hash('data') for run in runs.values()}) == 1)
    rows += table.rows(statistics.summary(together, PAIRS, resamples=first.config.evaluate.bootstrap, seed=0), 'all', {})
  return rows


def pool(scores: Sequence[statistics.Scores], same_prompts: bool) -> dict[str, dict[str, dict[str, np.ndarray]]]:
  """Scores of several seeds as one: prompt by prompt the mean over seeds, or all prompts where every seed has its own.

  Policies that a seed lacks are left out.
  """
  join = (lambda arrays: np.mean(arrays, axis=0)) if same_prompts else np.concatenate
  result: dict[str, dict[str, dict[str, np.ndarray]]] = {}
  for policy, decodings in scores[0].items():
    for decoding, scorers in decodings.items():
      for scorer in scorers:
        found = [s.get(policy, {}).get(decoding, {}).get(scorer) for s in scores]
        if all(array is not None for array in found):
          result.setdefault(policy, {}).setdefault(decoding, {})[scorer] = join(found)
  return result


def page(rows: Sequence[Mapping[str, Any]], runs: Mapping[int, Run], start: str, command: str) -> str:
  """The Markdown page: how it was made, what may be claimed, tables, times."""
  summaries = {seed: {stage: run.summary(stage) for stage in PIPELINE} for seed, run in runs.items()}
  last = next(iter(summaries.values()))['report'] or {}
  prompts = next(iter(runs.values())).config.evaluate.prompts
  sizes = [f'seed {seed}: ' + ', '.join(f'{name} {size}' for name, size in control_sizes(run).items())
           for seed, run in runs.items()]
  return table.page(rows, table.verdicts(rows, start), table.times(summaries), sizes=sizes, command=command, prompts=prompts,
                    machine=f'{last.get("devices", "?")}; {last.get("versions", "?")}')
