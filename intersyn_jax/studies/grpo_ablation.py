"""Study `grpo_ablation`: unified GRPO with each of its parts left out or replaced (Unified GRPO, section 4; DESIGN 4).

Each seed has its own work folder WORKDIR/seed<k> with `data`, `tokenizer`, `warmup` (without the writer) and `judge`, which all
settings share. A setting is GRPO from the warm-up model with some fields of `config.grpo` changed, kept in
WORKDIR/seed<k>/grpo/SETTING. Every setting has the same number of answers a step, whatever its G.

Rows are those of `studies.table`; differences are to `warmup`, to `warmup_long` and to `full`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from etils import epath

from intersyn_jax.errors import UserError
from intersyn_jax.evaluation import statistics
from intersyn_jax.stages import grpo
from intersyn_jax.stages.common import Run
from intersyn_jax.stages.evaluate import Work
from intersyn_jax.stages.parts import Parts
from intersyn_jax.stages.warmup import train
from intersyn_jax.studies import table
from intersyn_jax.studies.main_job import PROMPTS
from intersyn_jax.studies.seeds import run_stages, seeded, study
from intersyn_jax.training import checkpoints
from intersyn_jax.training.metrics import read_rows
from intersyn_jax.training.progress import duration
from intersyn_jax.training.times import USEFUL

STAGES = ('data', 'tokenizer', 'warmup', 'judge')

GROUP = 4
"""G of the paper; settings that say nothing of it have it."""

_OUTCOME = dict(process=False, reward_normalise='together')
_LATER = dict(inner_epochs=2)  # a clip and a ratio of the whole answer mean nothing while every ratio is 1

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    'full': {},
    'r_f': dict(_OUTCOME, reward=dict(textual=0.0, visual=0.0)),
    'r_f+r_t': dict(_OUTCOME, reward=dict(visual=0.0)),
    'r_f+r_t+r_v': _OUTCOME,
    'no_kl': dict(kl_estimator='none'),
    'G=2': dict(group_size=2),
    'G=2+no_kl': dict(group_size=2, kl_estimator='none'),
    'G=8': dict(group_size=8),
    'clip_r_v': dict(reward=dict(visual=0.0), rewards=('intersyn_jax.grpo.clip:clip_similarity',)),
    'dapo': dict(filter_groups=True, refills=2, aggregation='token', clip_high=0.28, kl_estimator='none'),
    'modality': dict(aggregation='modality'),
    'two_epochs': _LATER,
    'asymmetric': dict(_LATER, clip_high=0.28),
    'gspo': dict(_LATER, sequence_ratio=True, clip_low=0.05, clip_high=0.05),
}
"""Fields of `config.grpo` that a setting changes."""

NONE, WARMUP, LONG, FULL = 'none', 'warmup', 'warmup_long', 'full'

OLDER = 300
"""Steps by which the stage's `warmup_long`, on which the judge is tested, is older than `warmup`; the control is trained here."""

PAIRS = tuple((a, b) for b in (LONG, *SETTINGS) for a in (WARMUP, LONG, FULL) if a != b)

FINDINGS = (
    (WARMUP, FULL, 'the full method betters the policy it started from'),
    (LONG, FULL, 'the full method is above the same time of supervised training'),
    (NONE, WARMUP, 'a warm-up with interleaved samples is needed'),
    ('r_f', 'r_f+r_t', 'r_t adds to r_f'),
    ('r_f+r_t', 'r_f+r_t+r_v', 'r_v adds to both'),
    ('r_f+r_t+r_v', FULL, 'process rewards add to outcome rewards'),
    ('no_kl', FULL, 'the divergence penalty is needed'),
    ('G=2+no_kl', WARMUP, 'with G = 2 and no penalty the policy falls below its start'),
    ('G=2', FULL, 'G = 4 is above G = 2'),
    ('clip_r_v', FULL, 'the judge is a better visual reward than a CLIP-like score'),
)
"""(a, b, words): the paper's findings, each that b is above a."""

SECONDS = {'data': 20, 'tokenizer': 30, 'warmup': 200, 'judge': 800, 'iteration': 1.2, 'evaluate': 30}
"""What `tiny` takes on 2 CPU cores, roughly; `evaluate` a policy of 1,000 prompts."""

Row = Mapping[str, Any]


def run(config: ml_collections.ConfigDict, workdir: str, seeds: Sequence[int], command: str) -> list[dict[str, Any]]:
  """Runs the study and gives its rows, which are also in WORKDIR/grpo_ablation.json (with grpo_ablation.md beside it)."""
  if config.data.source != 'storyworld':
    raise UserError('grpo_ablation compares with the known world: give a config whose data.source is storyworld')
  folder = epath.Path(workdir)
  runs = {seed: Run(of_seed(config, seed), folder / f'seed{seed}') for seed in seeds}
  for one in runs.values():
    one.check_config('judge')
  first = next(iter(runs.values()))
  first.say(announcement(runs))

  def make(one: Run, seed: int) -> list[dict[str, Any]]:
    run_stages(one, STAGES, runs.values())
    train_controls(one, train_settings(one))
    return rows_of(one, seed)

  return study('grpo_ablation', folder, runs, make, lambda rows, done: page(rows, done, command), verdicts)


def of_seed(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
  """The configuration of one seed and of the setting `full`: the warm-up model is where GRPO begins; no writer."""
  mine = seeded(config, seed)
  mine.writer.steps = 0
  mine.warmup.long_steps = min(OLDER, config.warmup.long_steps)
  mine.judge.init = mine.grpo.init = WARMUP
  regroup(mine.grpo, GROUP)
  mine.evaluate.decodings = ('sampled',)
  mine.evaluate.prompts = max(config.evaluate.prompts, min(PROMPTS, config.data.counts.test))
  return mine.lock()


def regroup(section: ml_collections.ConfigDict, group: int) -> None:
  """Another G with as many answers a step."""
  answers = section.prompts * section.group_size
  if answers % group:
    raise UserError(f'config.grpo.prompts x group_size is {answers}; grpo_ablation needs a multiple of {group}')
  section.prompts, section.group_size = answers // group, group


def of_setting(config: ml_collections.ConfigDict, setting: str) -> ml_collections.ConfigDict:
  """The configuration of a seed with the fields of a setting."""
  mine = ml_collections.ConfigDict(config.to_dict())
  fields = dict(SETTINGS[setting])
  regroup(mine.grpo, fields.pop('group_size', mine.grpo.group_size))
  mine.grpo.update(fields)
  return mine.lock()


def announcement(runs: Mapping[int, Run]) -> str:
  """A line that says how long the study will take."""
  left = 0.0
  for one in runs.values():
    steps = sum(one.config.grpo.steps for name in SETTINGS if _done(one, name) < one.config.grpo.steps)
    left += sum(SECONDS[stage] for stage in STAGES if not one.complete(stage)) + SECONDS['iteration'] * steps
    left += SECONDS['evaluate'] * (len(SETTINGS) + 3)
  return f'grpo_ablation, {len(runs)} seeds of {len(SETTINGS)} settings: about {duration(left)} left (size tiny on 2 CPU cores)'


def train_settings(run: Run) -> float:
  """Trains what is missing; gives the seconds that the iterations of `full` took, without what they compiled."""
  for name in SETTINGS:
    if _done(run, name) < run.config.grpo.steps:
      run.say(f'setting {name}')
      grpo.train(Run(of_setting(run.config, name), run.workdir), f'grpo/{name}')
  return _median(run.workdir / 'grpo' / FULL, USEFUL) * run.config.grpo.steps


def _median(folder: epath.Path, parts: Sequence[str]) -> float:
  """Seconds that parts of the work take between two rows of a folder's metrics; what was compiled does not count."""
  each = sorted(sum(row.get(f'seconds.{part}', 0.0) for part in parts) for row in read_rows(folder / 'metrics.jsonl'))
  return each[len(each) // 2]


def _done(run: Run, setting: str) -> int:
  """Iterations that a setting has behind it."""
  folder = run.workdir / 'grpo' / setting / 'checkpoints'
  return 0 if checkpoints.latest_step(folder) is None else checkpoints.read_meta(folder)['iteration']


def train_controls(run: Run, seconds: float) -> None:
  """`warmup_long`: the warm-up goes on for as long as GRPO took. `none`: the same warm-up without any interleaved sample."""
  parts, section = Parts(run), run.config.warmup
  plain = ml_collections.ConfigDict(section.to_dict())
  plain.mix = {split: weight for split, weight in section.mix.items() if 'interleaved' not in split}
  noted = run.directory('grpo') / 'controls.json'
  if not noted.exists():  # measured once, or a resumed study would train it for another time
    each = _median(run.workdir / 'warmup', ('data', 'update')) / section.log_every
    noted.write_text(json.dumps({'steps': max(section.log_every, round(seconds / each)), 'seconds': seconds, 'each': each}))
  steps = {NONE: section.steps, LONG: json.loads(noted.read_text())['steps']}
  for name, fields, start in ((NONE, plain, parts.start), (LONG, section, lambda: parts.policy(WARMUP))):
    folder = run.workdir / 'grpo' / name
    if (checkpoints.latest_step(folder / 'checkpoints') or 0) < steps[name]:
      train(run, parts, fields, name, folder, start(), steps=steps[name])


def rows_of(run: Run, seed: int) -> list[dict[str, Any]]:
  """All rows of one finished seed."""
  policies = {WARMUP: WARMUP} | {name: f'grpo/{name}' for name in (NONE, LONG, *SETTINGS)}
  work = Work(run, Parts(run), run.directory('grpo_ablation'), list(policies.values()))
  order = (NONE, WARMUP, LONG, *SETTINGS)
  scores = {name: work.scores(policies[name]) for name in order}
  skills = {name: work.skills(policies[name]) | {'format': {d: work.form[f'{policies[name]}.{d}'] for d in work.decoders}}
            for name in order}
  wanted = dict.fromkeys((*PAIRS, *((a, b) for a, b, _ in FINDINGS)))
  summary = statistics.summary(scores, list(wanted), resamples=run.config.evaluate.bootstrap, seed=seed)
  return table.rows(summary, seed, skills)


def verdicts(rows: Sequence[Row]) -> list[str]:
  """A line for each finding of the paper."""
  lines = []
  for a, b, words in FINDINGS:
    found = {row['seed']: row['differences'][a] for row in rows
             if row['setting'] == b and row['scorer'] == 'truth' and a in row['differences']}
    lines.append(table.verdict(f'{words} ({b} - {a})', 'sampled', found))
  return lines


def page(rows: Sequence[Row], runs: Mapping[int, Run], command: str) -> str:
  """The Markdown page."""
  first = next(iter(runs.values()))
  last, section = first.summary('judge'), first.config.grpo
  parts = ['# Parts of GRPO', '', f'    {command}', '',
           f'Machine: {last["devices"]}; {last["versions"]}. Every setting has {section.steps} steps of '
           f'{section.prompts * section.group_size} answers each, G = {GROUP} where its name says nothing else. The same test '
           'questions and request keys for all policies of a seed, sampled at T = 1; 95 % bootstrap intervals over questions, '
           'differences are paired.', '',
           '## What holds (ground truth, mean of the four scores)', '', *(f'- {line}' for line in verdicts(rows)), '',
           '## Settings', '', '| setting | fields of `config.grpo` |', '|---|---|',
           *(f'| {name} | {_told(fields)} |' for name, fields in SETTINGS.items())]
  for scorer in ('truth', 'judge'):
    parts += ['', f'## {scorer}, sampled', '', *table.scores_table(rows, scorer, 'sampled')]
  parts += ['', '## Differences of the mean, ground truth', '', *_differences(rows)]
  parts += ['', '## Retained skills and diversity', '', *table.skills_table(rows), '', '## Compute', '']
  for seed, one in runs.items():
    found = json.loads((one.workdir / 'grpo' / 'controls.json').read_text())
    parts.append(f'- seed {seed}: the iterations of `full` took {found["seconds"]:.0f} s (their median times their number), '
                 f'`warmup_long` has {found["steps"]} steps more than `warmup`, of {found["each"]:.3f} s')
  return '\n'.join([*parts, ''])


def _told(fields: Mapping[str, Any]) -> str:
  return ', '.join(f'`{key}={value}`' for key, value in fields.items()) or 'the defaults'


def _differences(rows: Sequence[Row]) -> list[str]:
  """Markdown lines: each setting minus `warmup`, `warmup_long` and `full`, by seed."""
  others = (WARMUP, LONG, FULL)
  lines = ['| setting | seed | ' + ' | '.join(f'minus {name}' for name in others) + ' |', '|---|---|' + '---|' * len(others)]
  for name in (LONG, *SETTINGS):
    for row in rows:
      if row['setting'] == name and row['scorer'] == 'truth':
        cells = [table.signed(row['differences'][other]) if other in row['differences'] else '' for other in others]
        lines.append(f'| {name} | {row["seed"]} | ' + ' | '.join(cells) + ' |')
  return lines
