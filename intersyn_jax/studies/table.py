"""Rows, tables and verdicts of studies.

A row is `{setting, seed, decoding, scorer, n, tcc, icc, iq, its, mean, ci95: {dimension: [low, high]}, differences: {other
setting: {difference, ci95}}, skills}`; differences are of the mean of the four scores, this setting minus the other one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intersyn_jax.evaluation.statistics import ALL_DIMENSIONS
from intersyn_jax.training.progress import duration

Row = Mapping[str, Any]


def rows(scores: Mapping[str, Any], seed: int | str, skills: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Rows of one scores.json (and skills.json)."""
  made = []
  for policy, decodings in scores['policies'].items():
    for decoding, scorers in decodings.items():
      for scorer, found in scorers.items():
        differences = {d['a']: {'difference': d['difference'], 'ci95': d['ci95']} for d in scores['differences']
                       if (d['b'], d['decoding'], d['scorer'], d['dimension']) == (policy, decoding, scorer, 'mean')}
        made.append({'setting': policy, 'seed': seed, 'decoding': decoding, 'scorer': scorer, 'n': found['mean']['n'],
                     **{d: found[d]['mean'] for d in ALL_DIMENSIONS}, 'ci95': {d: found[d]['ci95'] for d in ALL_DIMENSIONS},
                     'differences': differences, 'skills': skills.get(policy, {})})
  return made


def claims(rows: Sequence[Row], start: str) -> list[tuple[str, str, str]]:
  """(a, b, words) for each claim that b is above a; only those whose settings are there.

  Args:
    start: the policy that GRPO started from.
  """
  settings = list(dict.fromkeys(row['setting'] for row in rows))
  wanted = [(start, 'grpo', 'GRPO betters the policy it started from'),
            ('warmup_long', 'grpo', 'GRPO is above the same time of supervised training'),
            ('finetune_k0', 'finetune', 'refined data teach more than unrefined data of the same size'),
            *(('chance', name, f'{name} is above chance') for name in settings if name != 'chance')]
  return [claim for claim in wanted if claim[0] in settings and claim[1] in settings]


def verdicts(rows: Sequence[Row], start: str) -> list[str]:
  """One line for each claim and decoding: holds in every seed with an interval above 0, or where it does not."""
  lines = []
  decodings = list(dict.fromkeys(row['decoding'] for row in rows))
  for a, b, words in claims(rows, start):
    for decoding in decodings:
      found = {row['seed']: row['differences'][a] for row in rows
               if (row['setting'], row['decoding'], row['scorer']) == (b, decoding, 'truth') and row['seed'] != 'all'
               and a in row['differences']}
      lines.append(verdict(f'{words} ({b} - {a})', decoding, found))
  return lines


def verdict(words: str, decoding: str, found: Mapping[Any, Mapping[str, Any]]) -> str:
  """Whether differences {difference, ci95}, by seed, are all above 0."""
  if not found:
    return f'not measured: {words}, {decoding}: no ground-truth scores of both'
  failed = [seed for seed, d in found.items() if d['ci95'][0] <= 0]
  figures = ', '.join(f'seed {seed} {signed(d)}' for seed, d in found.items())
  if not failed:
    return f'holds: {words}, {decoding}: {figures}'
  below = [seed for seed in failed if found[seed]['ci95'][1] < 0]
  tail = f'; the opposite in seed {_list(below)}' if below else ''
  return f'DOES NOT HOLD in seed {_list(failed)}: {words}, {decoding}: {figures}{tail}'


def _list(values: Sequence[Any]) -> str:
  return ', '.join(map(str, values))


def signed(d: Mapping[str, Any]) -> str:
  """A difference with its interval."""
  low, high = d['ci95']
  return f'{d["difference"]:+.3f} [{low:+.3f}, {high:+.3f}]'


def times(summaries: Mapping[int, Mapping[str, Mapping[str, Any] | None]]) -> list[str]:
  """Markdown lines: seconds of each stage and the most memory, by seed."""
  stages = list(next(iter(summaries.values())))
  lines = [_line(['seed', *stages, 'all', 'memory, MiB']), _line(['---'] * (len(stages) + 3))]
  for seed, found in summaries.items():
    seconds = [(found[stage] or {}).get('seconds') for stage in stages]
    memory = max(((s or {}).get('peak_rss_mib', 0.0) for s in found.values()), default=0.0)
    lines.append(_line([seed, *('-' if s is None else f'{s:.0f}' for s in seconds),
                        duration(sum(s or 0.0 for s in seconds)), f'{memory:.0f}']))
  return lines


def scores_table(rows: Sequence[Row], scorer: str, decoding: str) -> list[str]:
  """Markdown lines: mean and half interval of each dimension, a line for each setting and seed."""
  chosen = [row for row in rows if row['scorer'] == scorer and row['decoding'] == decoding]
  if not chosen:
    return []
  settings = list(dict.fromkeys(row['setting'] for row in chosen))
  lines = [_line(['setting', 'seed', *ALL_DIMENSIONS, 'n']), _line(['---'] * (len(ALL_DIMENSIONS) + 3))]
  for row in sorted(chosen, key=lambda row: settings.index(row['setting'])):
    cells = [f'{row[d]:.2f} ±{(row["ci95"][d][1] - row["ci95"][d][0]) / 2:.2f}' for d in ALL_DIMENSIONS]
    lines.append(_line([row['setting'], row['seed'], *cells, row['n']]))
  return lines


def skills_table(rows: Sequence[Row]) -> list[str]:
  """Markdown lines: understanding, text-to-image, diversity and format, a line for each setting and seed."""
  seen: dict[tuple[str, Any], Mapping[str, Any]] = {}
  for row in rows:
    if row['skills']:
      seen.setdefault((row['setting'], row['seed']), row['skills'])
  head = ['setting', 'seed', 'understanding', 'text-to-image ICC', 'objects drawn', 'different texts', 'different pictures',
          'format, sampled', 'format, greedy']
  lines = [_line(head), _line(['---'] * len(head))]
  order = list(dict.fromkeys(setting for setting, _ in seen))
  for (setting, seed), skills in sorted(seen.items(), key=lambda item: order.index(item[0][0])):
    cells = [_value(skills, *path) for path in (
        ('understanding', 'accuracy', 'mean'), ('text_to_image', 'icc', 'mean'), ('text_to_image', 'objects', 'mean'),
        ('diversity', 'texts'), ('diversity', 'pictures'), ('format', 'sampled', 'steps_asked'),
        ('format', 'greedy', 'steps_asked'))]
    lines.append(_line([setting, seed, *cells]))
  return lines if seen else []


def _value(found: Any, *path: str) -> str:
  for name in path:
    found = found.get(name) if isinstance(found, Mapping) else None
  return '-' if found is None else f'{found:.3f}'


def _line(cells: Sequence[Any]) -> str:
  return '| ' + ' | '.join(map(str, cells)) + ' |'


def page(rows: Sequence[Row], verdicts: Sequence[str], times: Sequence[str], *, sizes: Sequence[str], command: str,
         prompts: int, machine: str) -> str:
  """The whole Markdown page."""
  parts = ['# The main job', '', f'    {command}', '',
           f'Machine: {machine}. {prompts} held-out prompts on test topics, the same ones and the same request keys for all '
           'policies of a seed; scores 0-5; intervals are 95 % bootstraps over prompts, differences are paired. `truth` is '
           'the known world, `judge` is SynJudge. Sampled is T = 1.', '',
           '## What may be claimed (ground truth, mean of the four scores)', '',
           *(f'- {line}' for line in verdicts)]
  for scorer in ('truth', 'judge'):
    for decoding in dict.fromkeys(row['decoding'] for row in rows):
      lines = scores_table(rows, scorer, decoding)
      if lines:
        parts += ['', f'## {scorer}, {decoding}', '', *lines]
  lines = skills_table(rows)
  if lines:
    parts += ['', '## Retained skills and diversity', '',
              'Understanding: share of exact answers about held-out pictures; text-to-image: greedy; different: share of '
              'different texts and pictures among 4 samples of one prompt; format: share of answers that keep the format '
              'with the number of steps asked for.', '', *lines]
  parts += ['', '## Conversations that each fine-tuning learnt from', '', *(f'- {line}' for line in sizes)]
  parts += ['', '## Seconds', '', 'The controls are trained between grpo and evaluate and not counted here.', '', *times, '']
  return '\n'.join(parts)
