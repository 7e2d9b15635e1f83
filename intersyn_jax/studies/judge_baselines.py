"""Study `judge_baselines`: SynJudge beside its baselines in several seeds, and how it ranks answers of real policies.

Each seed has its own work folder WORKDIR/seed<k> with the pipeline up to `grpo`, which may be that of `main_job`. Alone it needs
less: with `--config.grpo.init=warmup --config.writer.steps=0` GRPO begins with the warm-up model, and SEIR is left out. Then the
warm-up and the GRPO policy each answer the same prompts of the validation split several times, and judge and ground truth rank
the answers to each prompt.

Rows: `{setting, seed, on, tcc.rmse, tcc.rmse.low, ..., tcc.a1, tcc.tau, ...}` with `on` = `held_out` (topics, generators,
combinations and strengths of flaws that training has not) or `unseen_flaws` (kinds of flaws that training has not, for
SynJudge alone); and `{setting, seed, on: 'ranking', tcc.tau, tcc.tau.low, ...}` with the policy as setting, where `mean` is the
mean of the four scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from intersyn_jax.errors import UserError
from intersyn_jax.evaluation import answers as answers_lib
from intersyn_jax.evaluation.truth import truth
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.types import DIMENSIONS, text_of
from intersyn_jax.judge import metrics
from intersyn_jax.stages import PIPELINE
from intersyn_jax.stages.common import Run, read_json
from intersyn_jax.stages.evaluate import DECODINGS, judged
from intersyn_jax.stages.judge import BASELINES
from intersyn_jax.stages.parts import Parts, identity
from intersyn_jax.studies.seeds import run_stages, seeded, study
from intersyn_jax.training.metrics import replace_text
from intersyn_jax.training.progress import duration

POLICIES = ('warmup', 'grpo')
GROUP = 8
"""Answers to one prompt that are ranked."""

PROMPTS = 128
"""Prompts at most; the validation split has as many, or fewer."""

SECONDS = {'data': 60, 'tokenizer': 30, 'warmup': 800, 'judge': 1800, 'synthesize': 210, 'finetune': 90, 'grpo': 180,
           'ranking': 60}
"""What stages of `tiny` take on 2 CPU cores, for the first announcement."""

GOALS = {'tcc': 0.55, 'icc': 0.70, 'iq': 0.65, 'its': 0.65}
"""RMSE; within one point 95 % of the answers; tau 0.7."""

Row = Mapping[str, Any]


def run(config: ml_collections.ConfigDict, workdir: str, seeds: Sequence[int], command: str) -> list[dict[str, Any]]:
  """Runs the study and gives its rows, which are also in WORKDIR/judge_baselines.json (with judge_baselines.md beside it)."""
  if config.judge.source or config.data.source != 'storyworld':
    raise UserError('judge_baselines compares with the known world: give a config whose data.source is storyworld and whose '
                    'judge.source is empty')
  folder = epath.Path(workdir)
  runs = {seed: Run(of_seed(config, seed), folder / f'seed{seed}') for seed in seeds}
  for one in runs.values():
    one.check_config('grpo')
  first = next(iter(runs.values()))
  first.say(announcement(runs))

  def make(one: Run, seed: int) -> list[dict[str, Any]]:
    run_stages(one, stages(one.config), runs.values())
    return rows_of(one, seed)

  return study('judge_baselines', folder, runs, make, lambda rows, done: page(rows, done, command), verdicts)


def of_seed(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
  """The configuration of one seed: every baseline."""
  mine = seeded(config, seed)
  mine.judge.baselines = tuple(name for name in BASELINES if name != 'endpoint')
  return mine.lock()


def stages(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """What must be there; SEIR and `finetune` only where GRPO begins with what they make."""
  needed = PIPELINE[:PIPELINE.index('grpo') + 1]
  return needed if config.grpo.init == 'finetune' else tuple(s for s in needed if s not in ('synthesize', 'finetune'))


def announcement(runs: Mapping[int, Run]) -> str:
  """A line that says how long the study will take."""
  left = sum(SECONDS[stage] for run in runs.values() for stage in stages(run.config) if not run.complete(stage))
  left += SECONDS['ranking'] * len(runs)
  return f'judge_baselines, {len(runs)} seeds: about {duration(left)} left (size tiny on 2 CPU cores)'


def rows_of(run: Run, seed: int) -> list[dict[str, Any]]:
  """All rows of one finished seed."""
  summary = run.summary('judge')
  table = json.loads((run.workdir / 'judge' / 'table.json').read_text())
  rows = [{'setting': row['setting'], 'seed': seed, 'on': 'held_out'} | {k: v for k, v in row.items() if k != 'setting'}
          for row in table]
  prefix = 'unseen_flaws.'
  rows.append({'setting': 'synjudge', 'seed': seed, 'on': 'unseen_flaws'} | {
      name.removeprefix(prefix): value for name, value in summary.items() if name.startswith(prefix)})
  return rows + [{'setting': policy, 'seed': seed, 'on': 'ranking', **found} for policy, found in ranking(run).items()]


def ranking(run: Run) -> dict[str, dict[str, Any]]:
  """How judge and truth rank sampled answers of each policy; kept in WORKDIR/seed<k>/ranking.json."""
  parts = Parts(run)
  weights = {name: f'{identity(parts.policy_folder(name))} {identity(run.workdir / "judge" / "checkpoints")}'
             for name in POLICIES}
  path = run.workdir / 'ranking.json'
  kept = read_json(path) if path.exists() else {}
  if kept.get('weights') == weights:
    return kept['policies']
  split = parts.conversations('validation')
  questions = [answers_lib.first_turn(split[i]) for i in range(min(PROMPTS, len(split)))]
  prompts = [layout.prompt(c, parts.layout) for c in questions for _ in range(GROUP)]
  texts = [text_of(c.turns[0].question) for c in questions for _ in range(GROUP)]
  decoder = parts.decoder(**DECODINGS['sampled'])
  length = answers_lib.room(prompts, decoder.config.bucket)
  judge = parts.judge()
  found = {}
  for policy in POLICIES:
    made = answers_lib.write(decoder, parts.policy(policy), prompts, np.arange(len(prompts)), length=length,
                             seed=run.config.seed)
    known = truth(texts, made.segments(parts.layout), parts.decode, jitter=run.config.data.jitter)
    said = judged(*judge, answers_lib.joined(prompts, made, length), run.config.decode.rows)
    found[policy] = {}
    for name, t, j in (*((name, known[:, i], said[:, i]) for i, name in enumerate(DIMENSIONS)),
                       ('mean', known.mean(axis=1), said.mean(axis=1))):
      ranked = metrics.rank_tau(t.reshape(-1, GROUP), j.reshape(-1, GROUP), seed=run.config.seed)
      found[policy] |= {f'{name}.{key}': None if isinstance(value, float) and not np.isfinite(value) else value
                        for key, value in (('tau', ranked['tau']), ('tau.low', ranked['low']), ('tau.high', ranked['high']),
                                           ('groups', ranked['groups']), ('share_of_ties', ranked['share_of_ties']),
                                           ('without_spread', ranked['without_spread']))}
    jax.clear_caches()
  if run.active:
    replace_text(path, json.dumps({'weights': weights, 'policies': found}, allow_nan=False))
  return found


# The page.


def verdicts(rows: Sequence[Row]) -> list[str]:
  """A line for each goal: whether it is reached in every seed, with the figures."""
  lines = []
  head = [row for row in rows if row['on'] == 'held_out']
  for name in DIMENSIONS:
    own = [row for row in head if row['setting'] == 'synjudge']
    for key, goal, good in (('rmse', GOALS[name], lambda v, g: v <= g), ('a1', 0.95, lambda v, g: v >= g)):
      values = [row[f'{name}.{key}'] for row in own]
      lines.append(f'{_holds(all(good(v, goal) for v in values))}: {name.upper()} {key} '
                   f'{"at most" if key == "rmse" else "at least"} {goal}: {_figures(values)}')
  for setting in dict.fromkeys(row['setting'] for row in head if row['setting'] != 'synjudge'):
    told = []
    for name in DIMENSIONS:
      mine = [row for row in head if row['setting'] == setting]
      beaten, equal = (all(row[f'{name}.{key}'] for row in mine) for key in ('rmse.beaten', 'equal'))
      told.append((name, 'equal' if equal else 'beaten' if beaten else 'NOT beaten'))
    words = ', '.join(f'{name.upper()} {word}' for name, word in told)
    lines.append(f'{_holds(all(word != "NOT beaten" for _, word in told))}: {setting} (RMSE, intervals apart): {words}')
  for row in (row for row in rows if row['on'] == 'ranking'):
    lines.append(f'{_holds((row["mean.tau"] or 0) >= 0.7)}: tau of the mean score at least 0.7 among {GROUP} answers of '
                 f'{row["setting"]}, seed {row["seed"]}: {_number(row["mean.tau"])}')
  return lines


def _holds(true: bool) -> str:
  return 'holds' if true else 'DOES NOT HOLD'


def _figures(values: Sequence[float]) -> str:
  return ', '.join(map(_number, values))


def _number(value: float | None) -> str:
  return '-' if value is None else f'{value:.2f}'


def page(rows: Sequence[Row], runs: Mapping[int, Run], command: str) -> str:
  """The Markdown page."""
  last = next(iter(runs.values())).summary('judge')
  line = lambda cells: '| ' + ' | '.join(map(str, cells)) + ' |'
  parts = ['# SynJudge and its baselines', '', f'    {command}', '',
           f'Machine: {last["devices"]}; {last["versions"]}. Scores 0-5 against the known world; measured on: '
           f'{last["measured_on"]} ({last["n"]} answers). A1: share within one point. "Beaten": SynJudge is better and the 95 % '
           'bootstrap intervals do not touch; "equal": the same scores, where the rubric hides that modality.', '',
           '## What holds', '', *(f'- {text}' for text in verdicts(rows))]
  for on, title in (('held_out', 'Held-out topics and generators'), ('unseen_flaws', 'Kinds of flaws that training has not')):
    head = ['setting', 'seed', *(f'{d.upper()} {key}' for d in DIMENSIONS for key in ('RMSE', 'A1', 'tau'))]
    parts += ['', f'## {title}', '', line(head), line(['---'] * len(head))]
    for row in sorted((r for r in rows if r['on'] == on), key=lambda r: _order(rows, r)):
      cells = [_number(row.get(f'{d}.{key}')) for d in DIMENSIONS for key in ('rmse', 'a1', 'tau')]
      parts.append(line([row['setting'], row['seed'], *cells]))
  head = ['policy', 'seed', *(f'{d} tau' for d in (*DIMENSIONS, 'mean')), 'groups', 'pairs that tie in truth (mean)']
  parts += ['', f'## Ranking {GROUP} sampled answers to one prompt (Kendall tau-b, groups with spread in truth)', '',
            line(head), line(['---'] * len(head))]
  for row in (r for r in rows if r['on'] == 'ranking'):
    cells = [f'{_number(row[f"{d}.tau"])} [{_number(row[f"{d}.tau.low"])}, {_number(row[f"{d}.tau.high"])}]'
             for d in (*DIMENSIONS, 'mean')]
    parts.append(line([row['setting'], row['seed'], *cells, row['mean.groups'], _number(row['mean.share_of_ties'])]))
  parts += ['', '## Calibration, agreement, exploits', '']
  head = ['seed', *(f'{d.upper()} {key}' for d in DIMENSIONS for key in ('ECE', 'before', 'alpha')), 'exploitable']
  parts += [line(head), line(['---'] * len(head))]
  for seed, one in runs.items():
    found = one.summary('judge')
    cells = [_number(found.get(f'{d}.{key}')) for d in DIMENSIONS for key in ('ece', 'ece_uncalibrated', 'alpha')]
    parts.append(line([seed, *cells, found.get('exploitable', '-')]))
  parts += ['', 'ECE: expected calibration error of the questions "above k?" with the fitted temperatures, and before. alpha: '
            'Krippendorff, of annotators who are made up around the truth.', '']
  return '\n'.join(parts)


def _order(rows: Sequence[Row], row: Row) -> int:
  return list(dict.fromkeys(r['setting'] for r in rows)).index(row['setting'])
