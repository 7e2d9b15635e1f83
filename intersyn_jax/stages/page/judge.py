"""The judge's part of the page: scatter, the table of settings, each generator by itself, reliability, adversarial answers.

What the files hold is read here once, with anything that is no number shown as a dash; the template only lays it out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from intersyn_jax.interleave.types import DIMENSIONS
from intersyn_jax.stages.page import charts

FILES = ('scatter', 'table', 'calibration', 'adversarial')
"""JSON files of WORKDIR/judge that are shown."""

MEASURES = {'rmse': 'RMSE', 'a1': 'A@1', 'exact': 'exact agreement', 'pearson': 'Pearson', 'tau': 'Kendall tau-b',
            'judge_mean': 'mean', 'judge_variance': 'variance'}
COMPARED = ('rmse', 'a1')
"""Measures that are open on the page and have paired differences; the others are folded away."""

TOO_KIND = 0.5
"""Points by which a judge may exceed the truth of an adversarial case before the page marks it."""

SCATTER_POINTS = 400


def part(files: Mapping[str, Any], summary: Any) -> dict[str, Any]:
  """What the template needs.

  Args:
    files: content of FILES by name, None for one that is missing.
    summary: of the stage, None where there is none.
  """
  return {'charts': _scatter(_fields(files.get('scatter'))), 'tables': _tables(_rows(files.get('table'))),
          'differences': _differences(_rows(files.get('table'))), 'generators': _generators(_fields(summary)),
          'reliability': _reliability(_fields(files.get('calibration'))),
          'adversarial': _adversarial(_rows(files.get('adversarial'))), 'dimensions': DIMENSIONS, 'too_kind': TOO_KIND}


def _fields(value: Any) -> dict[str, Any]:
  return value if isinstance(value, dict) else {}


def _rows(value: Any) -> list[dict[str, Any]]:
  return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
  real = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
  return float(value) if real else None


def _cell(row: Mapping[str, Any], key: str) -> dict[str, Any]:
  """The value of `key` in a flat row and its interval; the tag says what `compare` found."""
  dimension = key.split('.')[0]
  tag = 'equal' if row.get(f'{dimension}.equal') is True else 'beaten' if row.get(f'{key}.beaten') is True else ''
  return {'value': _number(row.get(key)), 'low': _number(row.get(f'{key}.low')), 'high': _number(row.get(f'{key}.high')),
          'tag': tag}


def _scatter(data: Mapping[str, Any]) -> list[str]:
  drawn = []
  for dimension, pairs in data.items():
    array = np.asarray(pairs, np.float64).reshape(-1, 2)
    if not len(array):
      continue
    error = array[:, 1] - array[:, 0]
    note = f'RMSE {np.sqrt(np.mean(error**2)):.2f}, ≤ 1: {100 * np.mean(np.abs(error) <= 1):.0f} %, n {len(array)}'
    drawn.append(charts.scatter(dimension, array[:SCATTER_POINTS].tolist(), note))
  return drawn


def _tables(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """One table a measure, a row for each setting and the truth's own moments last."""
  tables = []
  for measure, title in MEASURES.items():
    lines = [{'name': str(row.get('setting', '')), 'n': row.get('n', ''), 'failed': row.get('failed', 0),
              'cells': [_cell(row, f'{d}.{measure}') for d in DIMENSIONS]} for row in rows]
    if lines and measure.startswith('judge_'):
      of_truth = measure.replace('judge_', 'truth_')
      lines.append({'name': 'truth', 'n': rows[0].get('n', ''), 'failed': 0,
                    'cells': [_cell(rows[0], f'{d}.{of_truth}') for d in DIMENSIONS]})
    if any(cell['value'] is not None for line in lines for cell in line['cells']):
      tables.append({'title': title, 'open': measure in COMPARED, 'rows': lines})
  return tables


def _differences(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Paired differences, synjudge minus baseline."""
  found = []
  for row in rows:
    for measure in COMPARED:
      cells = [_cell(row, f'{d}.{measure}.difference') for d in DIMENSIONS]
      if any(cell['value'] is not None for cell in cells):
        found.append({'name': str(row.get('setting', '')), 'measure': MEASURES[measure], 'cells': cells})
  return found


def _generators(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
  """RMSE of each generator's answers. A generator is what has failures counted under its name."""
  names = [key.removesuffix('.failed') for key in summary if key.endswith('.failed')]
  return [{'name': name, 'n': summary.get(f'{name}.n', ''), 'failed': summary[f'{name}.failed'],
           'cells': [_cell(summary, f'{name}.{d}.rmse') for d in DIMENSIONS]} for name in names]


def _reliability(data: Mapping[str, Any]) -> list[str]:
  drawn = []
  for dimension, found in data.items():
    found = _fields(found)
    bins = found.get('bins')
    points = [tuple(map(float, p)) for p in (bins if isinstance(bins, list) else [])
              if isinstance(p, list) and len(p) == 3 and all(_number(v) is not None for v in p)]
    told = [(text, _number(found.get(key))) for text, key in
            (('ECE {:.3f}', 'ece'), ('uncalibrated {:.3f}', 'ece_uncalibrated'), ('T {:.2f}', 'temperature'))]
    note = ', '.join(text.format(value) for text, value in told if value is not None)
    if points:
      drawn.append(charts.reliability(dimension, points, note))
  return drawn


def _adversarial(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  found = []
  for row in rows:
    cells = []
    for d in DIMENSIONS:
      truth, judge, gap = (_number(_fields(row.get(key)).get(d)) for key in ('truth', 'judge', 'gap'))
      if gap is None and truth is not None and judge is not None:
        gap = judge - truth
      cells.append({'truth': truth, 'judge': judge, 'gap': gap, 'over': gap is not None and gap > TOO_KIND})
    found.append({'case': str(row.get('case', '')), 'n': row.get('n', ''), 'cells': cells})
  return found
