"""Scores that somebody else gave, from a file: each is checked as a reply of a judge is.

    {"id": ..., "scores": {DIMENSION: number or null, ...}}      a row of JSON Lines, or an entry of a JSON list
    {"id": ..., DIMENSION: number or null, ...}                  the same

Several benchmarks have a form of their own, which their suites read. null, NA, -1 and whatever else is no number in the
range is a judgement that failed. It is never a zero. Of several rows about one question the valid ones are averaged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from intersyn_jax.data import manifest
from intersyn_jax.data.importers import rows
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites.suite import NO_VERDICT, Suite, Verdict

FLAG = '--judge'

Read = Callable[[dict[str, Any]], tuple[str, Verdict]]
"""Id and verdict of a row. Raises ValueError for a row that is none."""


def read(path: str | os.PathLike[str], dimensions: Sequence[str], top: float, of: Read | None = None) -> dict[str, Verdict]:
  """Verdicts by id.

  Args:
    path: JSON list or JSON Lines.
    dimensions: that may be scored.
    top: the best score.
    of: how a row is read where that is not as above.

  Raises:
    UserError: no such file, or a row that names no question.
  """
  found: dict[str, list[Verdict]] = {}
  for where, row in read_rows(path):
    try:
      name, verdict = of(row) if of else (identity(row), plain(row, dimensions, top))
    except ValueError as error:
      raise bad_row(path, where, f'{error}') from None
    found.setdefault(name, []).append(verdict)
  return {name: merged(verdicts) for name, verdicts in found.items()}


def merged(verdicts: Sequence[Verdict]) -> Verdict:
  """One verdict of several on the same answer: the means of the valid ones, or the first failure."""
  valid = [v.scores for v in verdicts if v.scores is not None]
  if not valid:
    return verdicts[0]
  return Verdict({d: sum(s[d] for s in valid if d in s) / sum(d in s for s in valid)
                  for d in dict.fromkeys(d for s in valid for d in s)})


def read_rows(path: str | os.PathLike[str], flag: str = FLAG) -> list[tuple[str, dict[str, Any]]]:
  """(where, row) of a file of scores or answers, in which a broken line is an error: what is lost would change the means."""
  bad: list[manifest.Rejected] = []
  found = list(rows.read(path, bad.append, flag))
  if bad:
    raise bad_row(path, bad[0].where, bad[0].reason, flag)
  return found


def at(path: str | os.PathLike[str], where: str) -> str:
  """A file and the row in it."""
  return f'{os.fspath(path)}, {where.removeprefix(f"{os.path.basename(path)} ")}'


def bad_row(path: str | os.PathLike[str], where: str, reason: str, flag: str = FLAG) -> UserError:
  """What to raise for a row that cannot be read."""
  return UserError(f'{at(path, where)}: {reason}; mend the row, or set {flag} to another file')


def completed(suite: Suite, found: Mapping[str, Verdict]) -> dict[str, Verdict]:
  """Verdicts of all questions of a suite. Raises UserError where the file is about questions that it does not have."""
  if strange := found.keys() - suite.entries.keys():
    raise UserError(f'{FLAG} scores {len(strange)} questions that --questions does not hold, such as {min(strange)!a}; name '
                    'the files that belong together')
  return {name: found.get(name, Verdict(None, NO_VERDICT, True)) for name in suite.entries}


def identity(row: Mapping[str, Any], field: str = 'id') -> str:
  """The id of a row; a whole number is one too."""
  value = row.get(field)
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value)
  if not isinstance(value, str) or not value:
    raise ValueError(f'field {field} is missing or no text')
  return value


def plain(row: Mapping[str, Any], dimensions: Sequence[str], top: float) -> Verdict:
  """The scores of a row in the common form."""
  scores = row.get('scores', row)
  if not isinstance(scores, Mapping):
    return Verdict(None, 'scores are no object')
  return checked({d: scores[d] for d in dimensions if d in scores}, top)


def checked(scores: Mapping[str, Any], top: float) -> Verdict:
  """A verdict of scores of any kind: all must be numbers from 0 to `top`, and there must be one."""
  if not scores:
    return Verdict(None, 'scores missing')
  for value in scores.values():
    if value is None:
      return Verdict(None, 'score is null')
    if isinstance(value, bool) or not isinstance(value, int | float):
      return Verdict(None, 'score is no number')
    if not 0 <= value <= top:  # NaN is not either
      return Verdict(None, 'score out of range')
  return Verdict({d: float(value) for d, value in scores.items()})
