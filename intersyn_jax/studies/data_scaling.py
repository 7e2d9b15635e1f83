"""Study `data_scaling`: does more SEIR data teach more? (InterSyn paper, section 4: 25K to 200K samples.)

Each seed has its own work folder WORKDIR/seed<k> with the stages up to `finetune`, and SEIR writes twice
`synthesize.conversations`. What `finetune` learns from is 200 %; the same student is trained with the same steps on the first
25, 50 and 100 % as well, and on 100 % of unrefined (`finetune_k0`) and of gold conversations (`finetune_gold`). `evaluate`
scores them all on the same test questions, and shows retained skills beside.

Rows as of `main_job`, with `share` (per cent, of policies that learnt from SEIR); and one a seed and decoding, `setting` =
`slope`: what doubling the data adds to the ground-truth mean of the four scores, `{slope, ci95}`, from a line through the four
means over log2 of the share, each question its own line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from intersyn_jax.data import shards
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation import statistics
from intersyn_jax.stages.common import Run, run_stage
from intersyn_jax.stages.evaluate import read_scores
from intersyn_jax.studies import table
from intersyn_jax.studies.main_job import PROMPTS
from intersyn_jax.studies.seeds import run_stages, seeded, study, train_control
from intersyn_jax.training.progress import duration

STAGES = ('data', 'tokenizer', 'warmup', 'judge', 'synthesize', 'finetune')
SHARES = {'finetune_25': 25, 'finetune_50': 50, 'finetune_100': 100, 'finetune': 200}
SECONDS = {'data': 60, 'tokenizer': 60, 'warmup': 800, 'judge': 1000, 'synthesize': 1300, 'finetune': 75, 'controls': 375,
           'evaluate': 300}
"""What stages of `tiny` take on 2 CPU cores, roughly."""

Row = Mapping[str, Any]


def run(config: ml_collections.ConfigDict, workdir: str, seeds: Sequence[int], command: str) -> list[dict[str, Any]]:
  """Runs the study and gives its rows, which are also in WORKDIR/data_scaling.json (with data_scaling.md beside it)."""
  if config.data.source != 'storyworld':
    raise UserError('data_scaling compares with the known world: give a config whose data.source is storyworld')
  folder = epath.Path(workdir)
  runs = {seed: Run(of_seed(config, seed), folder / f'seed{seed}') for seed in seeds}
  for one in runs.values():
    one.check_config('finetune')
  first = next(iter(runs.values()))
  left = sum(SECONDS[stage] for one in runs.values() for stage in (*STAGES, 'evaluate') if not one.complete(stage))
  first.say(f'data_scaling, {len(runs)} seeds: about {duration(left + len(runs) * SECONDS["controls"])} left (size tiny on 2 CPU '
            'cores)')

  def make(one: Run, seed: int) -> list[dict[str, Any]]:
    run_stages(one, STAGES, runs.values())
    for name, count in sizes(one).items():
      train_control(one, name, count)
    run_stage(one, 'evaluate')
    return rows_of(one, seed)

  return study('data_scaling', folder, runs, make, lambda rows, done: page(rows, done, command), verdicts)


def of_seed(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
  """The configuration of one seed: 200 % of the conversations, and prompts enough for a claim."""
  mine = seeded(config, seed)
  mine.synthesize.conversations = 2 * config.synthesize.conversations
  mine.synthesize.unrefined = True
  mine.evaluate.prompts = max(config.evaluate.prompts, min(PROMPTS, config.data.counts.test))
  return mine.lock()


def sizes(run: Run) -> dict[str, int]:
  """How many conversations each policy beside `finetune` learns from."""
  def size(stage: str, split: str) -> int:
    folder = run.workdir / stage / 'data'
    return len(shards.open_split(folder, split)) if split in shards.splits(folder) else 0

  whole = size('synthesize', 'refined') // 2
  found = {name: whole * share // 100 for name, share in SHARES.items() if name != 'finetune'}
  return found | {'finetune_k0': min(whole, size('synthesize', 'unrefined')),
                  'finetune_gold': min(whole, size('tokenizer', 'gold'))}


def rows_of(run: Run, seed: int) -> list[dict[str, Any]]:
  """All rows of one finished seed."""
  folder = run.workdir / 'evaluate'
  found = table.rows(json.loads((folder / 'scores.json').read_text()), seed, json.loads((folder / 'skills.json').read_text()))
  rows = [row | ({'share': SHARES[row['setting']]} if row['setting'] in SHARES else {}) for row in found]
  scores = read_scores(run.workdir)
  if not all(name in scores for name in SHARES):  # a toy run may have nothing to learn from
    return rows
  return rows + [{'setting': 'slope', 'seed': seed, 'decoding': decoding} | slope(
      {share: scores[name][decoding]['truth'] for name, share in SHARES.items()}, run.config.evaluate.bootstrap)
      for decoding in run.config.evaluate.decodings]


def slope(scores: Mapping[int, np.ndarray], resamples: int) -> dict[str, Any]:
  """What doubling the data adds to the mean of the four scores: {slope, ci95}.

  Args:
    scores: float32[N,4] of the same questions, by share of the data.
    resamples: of the bootstrap over questions.
  """
  x = np.log2(np.array(list(scores), float))
  x -= x.mean()
  means = np.stack([np.asarray(values, float).mean(axis=1) for values in scores.values()])  # [shares,N]
  lines = (x @ means / (x @ x))[:, None]
  low, high = statistics.interval(lines, statistics.draws(len(lines), resamples, 0))
  return {'slope': float(np.nanmean(lines)), 'ci95': [float(low[0]), float(high[0])]}


def verdicts(rows: Sequence[Row]) -> list[str]:
  """A line for each claim and decoding."""
  lines = []
  for decoding in dict.fromkeys(row['decoding'] for row in rows):
    slopes = {row['seed']: {'difference': row['slope'], 'ci95': row['ci95']} for row in rows
              if row['setting'] == 'slope' and row['decoding'] == decoding}
    lines.append(table.verdict('more data teach more (slope over doublings)', decoding, slopes))
    for a, b, words in (('finetune_25', 'finetune', '200 % teach more than 25 %'),
                        ('finetune_k0', 'finetune_100', 'refined data teach more than unrefined data of the same size')):
      found = {row['seed']: row['differences'][a] for row in rows if row['setting'] == b and row['decoding'] == decoding
               and row['scorer'] == 'truth' and a in row['differences']}
      lines.append(table.verdict(f'{words} ({b} - {a})', decoding, found))
  return lines


def page(rows: Sequence[Row], runs: Mapping[int, Run], command: str) -> str:
  """The Markdown page."""
  last = next(iter(runs.values())).summary('evaluate')
  parts = ['# More data', '', f'    {command}', '',
           f'Machine: {last["devices"]}; {last["versions"]}. The same test questions for all policies of a seed; 95 % bootstrap '
           'intervals over questions, differences are paired. Every policy is trained for the same number of steps.', '',
           '## What holds (ground truth, mean of the four scores)', '', *(f'- {line}' for line in verdicts(rows))]
  answers = [row for row in rows if row['setting'] != 'slope']
  for decoding in dict.fromkeys(row['decoding'] for row in answers):
    parts += ['', f'## truth, {decoding}', '', *table.scores_table(answers, 'truth', decoding)]
  parts += ['', '## Retained skills and diversity', '', *table.skills_table(answers)]
  told = [f'seed {seed}: ' + ', '.join(f'{name} {count}' for name, count in sizes(one).items()) for seed, one in runs.items()]
  return '\n'.join([*parts, '', '## Conversations that each policy learnt from', '', *(f'- {line}' for line in told), ''])
