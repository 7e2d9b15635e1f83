"""Battles: two answers to one question, and which is better. Verdicts, win rates under four rules for ties, and agreement.

A verdict is `A`, `B`, `Tie(A)` (a tie, A slightly ahead) or `Tie(B)`. How a tie counts, for a model in one of its
battles:

    fdt           forced tie division: Tie(A) is a win of A, Tie(B) one of B
    without_ties  battles that ended in a tie are left out
    ties_0        a tie is no win for either
    ties_05       a tie is half a win for both

Not taken over from the official scripts: a reply that cannot be read becomes a tie drawn by lot; a second verdict on the
same battle replaces the first unseen; the table of pairs counts ties among the battles `without` ties.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from intersyn_jax.endpoint import words
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites import rubric as rubrics
from intersyn_jax.evaluation.suites import score_files, tables
from intersyn_jax.evaluation.suites.suite import Asked, Verdict
from intersyn_jax.interleave.types import Segment
from intersyn_jax.judge.rubric import answer, parts
from intersyn_jax.judge.served import Judgement

A, B, TIE_A, TIE_B = VERDICTS = ('A', 'B', 'Tie(A)', 'Tie(B)')
RULES = ('fdt', 'without_ties', 'ties_0', 'ties_05')

POINTS = {
    'fdt': {A: 1.0, TIE_A: 1.0, TIE_B: 0.0, B: 0.0},
    'without_ties': {A: 1.0, B: 0.0},
    'ties_0': {A: 1.0, TIE_A: 0.0, TIE_B: 0.0, B: 0.0},
    'ties_05': {A: 1.0, TIE_A: 0.5, TIE_B: 0.5, B: 0.0},
}
"""What a model has won by a verdict with it as A, under each rule; a verdict that is not there does not count."""

_MIRROR = {A: B, B: A, TIE_A: TIE_B, TIE_B: TIE_A}


@dataclasses.dataclass(frozen=True)
class Battle:
  """Two answers to one question.

  Attributes:
    question: its id. a, b: the models. winner: of VERDICTS, '' where the judgement failed. reason: why it failed.
  """

  question: str
  a: str
  b: str
  winner: str
  reason: str = ''

  def key(self) -> tuple[str, str, str]:
    """The same for both orders of the models."""
    return (self.question, *sorted((self.a, self.b)))

  def from_side(self, model: str) -> str:
    """The verdict as it would be with this model as A."""
    return self.winner if model == self.a or not self.winner else _MIRROR[self.winner]


def read(path: str | os.PathLike[str], flag: str = score_files.FLAG) -> list[Battle]:
  """Battles of a file in the official form, `{"data_id", "model_A": {"name"}, "model_B": {"name"}, "winner"}`.

  Raises:
    UserError: a row that is no battle, or a second verdict on the same battle.
  """
  found: dict[tuple[str, str, str], Battle] = {}
  for where, row in score_files.read_rows(path, flag):
    try:
      battle = _battle(row)
    except ValueError as error:
      raise score_files.bad_row(path, where, str(error), flag) from None
    if battle.key() in found:
      raise UserError(f'{score_files.at(path, where)}: question {battle.question} has a verdict on {battle.a} and '
                      f'{battle.b} already; keep one')
    found[battle.key()] = battle
  if not found:
    raise UserError(f'{path} holds no battle; set {flag} to another file')
  return list(found.values())


def is_file_of_battles(path: str | os.PathLike[str]) -> bool:
  """Whether the rows of a file of scores are battles."""
  return any('winner' in row for _, row in score_files.read_rows(path)[:1])


def _battle(row: Mapping[str, Any]) -> Battle:
  names = []
  for field in ('model_A', 'model_B'):
    model = row.get(field)
    name = model.get('name') if isinstance(model, dict) else model
    if not isinstance(name, str) or not name:
      raise ValueError(f'field {field} has no name')
    names.append(name)
  if names[0] == names[1]:
    raise ValueError(f'{names[0]} fights itself')
  winner = row.get('winner')
  known = isinstance(winner, str) and winner in VERDICTS
  return Battle(score_files.identity(row, 'data_id'), *names, winner if known else '', '' if known else 'no verdict')


def win_rates(battles: Sequence[Battle], boot: tables.Bootstrap) -> dict[str, Any]:
  """`MODEL.RULE` with its interval and n, for every model and rule; `MODEL.battles` and `MODEL.failed`."""
  found: dict[str, Any] = {}
  for model in sorted({m for battle in battles for m in (battle.a, battle.b)}):
    mine = [battle.from_side(model) for battle in battles if model in (battle.a, battle.b)]
    for rule in RULES:
      won = np.array([POINTS[rule].get(verdict, np.nan) for verdict in mine], np.float64)
      found |= tables.mean(f'{tables.slug(model)}.{rule}', won, boot)
    found |= {f'{tables.slug(model)}.battles': len(mine), f'{tables.slug(model)}.failed': mine.count('')}
  return found


def agreement(judged: Sequence[Battle], people: Sequence[Battle], boot: tables.Bootstrap) -> dict[str, Any]:
  """How often two judges say the same of the battles that both have judged, `agreement.RULE` with its interval and n.

  Rules: `fdt`; `with_ties`, where a tie equals a tie, whoever is ahead; `without_ties`, where neither says tie.
  """
  said = {battle.key(): battle for battle in judged}
  both = [(theirs.winner, said[theirs.key()].from_side(theirs.a)) for theirs in people if theirs.key() in said]
  same = {rule: np.array([_same(rule, *pair) for pair in both], np.float64) for rule in ('fdt', 'with_ties', 'without_ties')}
  found: dict[str, Any] = {}
  for rule, values in same.items():
    found |= tables.mean(f'agreement.{rule}', values.reshape(-1), boot)
  return found | {'agreement.battles': len(both), 'agreement.failed': sum(not all(pair) for pair in both)}


def _same(rule: str, one: str, other: str) -> float:
  """1 or 0; NaN where the rule does not count such a pair."""
  if not one or not other:
    return np.nan
  ties = [verdict in (TIE_A, TIE_B) for verdict in (one, other)]
  if rule == 'fdt':
    return float(POINTS['fdt'][one] == POINTS['fdt'][other])
  if any(ties):
    return np.nan if rule == 'without_ties' else float(all(ties))
  return float(one == other)


# Battles that a model on a server decides.


class Pair(NamedTuple):
  """Two answers to one question, in the order in which they are shown."""

  question: Asked
  a: tuple[Segment, ...]
  b: tuple[Segment, ...]


def swapped(question: str, seed: int) -> bool:
  """Whether the second model's answer is shown first: drawn by hash, so that the place favours nobody."""
  return bool(hashlib.sha256(f'{seed}/{question}/place'.encode()).digest()[0] & 1)


_TASK = """Two assistants, A and B, have answered the same question with text and pictures. Say which answer is better as a \
whole. Weigh these criteria, the first most:

{criteria}

If neither is clearly better, it is a tie; then say which one is slightly ahead: Tie(A) or Tie(B). The order in which they \
are shown means nothing."""


class PairRubric(rubrics.Rubric):
  """Which of two answers is better. The replies are votes; without a plurality the judgement has failed."""

  def __init__(self, criteria: str):
    super().__init__(VERDICTS, 1)
    self._criteria = criteria

  def task(self, item: Pair, dimensions: Sequence[str]) -> str:
    return _TASK.format(criteria=self._criteria)

  def content(self, item: Pair) -> list[Segment]:
    return [*super().content(item.question), *item.a, *item.b]

  def material(self, item: Pair, smallest_side: int) -> list[dict[str, Any]]:
    turns = item.question.conversation.turns
    found: list[dict[str, Any]] = []
    for number, turn in enumerate(turns, start=1):
      found += [words(f'[Question {number}]'), *parts(turn.question, smallest_side)]
      if number < len(turns):
        found += answer(f'[Answer {number}]', turn.answer, smallest_side)
    return [*found, *answer('[Answer of A]', item.a, smallest_side), *answer('[Answer of B]', item.b, smallest_side)]

  def form(self, dimensions: Sequence[str]) -> str:
    return '{"verdict": "A", "B", "Tie(A)" or "Tie(B)"}'

  def schema(self, dimensions: Sequence[str]) -> dict[str, Any]:
    return rubrics.object_of({'verdict': {'type': 'string', 'enum': list(VERDICTS)}})

  def scores_in(self, found: Mapping[str, Any], dimensions: Sequence[str]) -> dict[str, int]:
    if found.keys() != {'verdict'}:
      raise ValueError('unknown names' if 'verdict' in found else 'verdict missing')
    if found['verdict'] not in VERDICTS:
      raise ValueError('verdict is none of the four')
    return {verdict: int(verdict == found['verdict']) for verdict in VERDICTS}

  def kept(self, scores: Mapping[str, Any]) -> dict[str, int]:
    if scores.keys() != set(VERDICTS) or sorted(scores.values()) != [0, 0, 0, 1]:
      raise ValueError('no verdict')
    return dict(scores)

  def verdict(self, judgement: Judgement) -> Verdict:
    found = super().verdict(judgement)
    if found.scores is None:
      return found
    most = max(found.scores.values())
    winners = [v for v in VERDICTS if found.scores[v] == most]
    return found if len(winners) == 1 else Verdict(None, 'replies disagree')


def battle_of(question: str, models: tuple[str, str], verdict: Verdict, swap: bool) -> Battle:
  """The battle of two models of which `verdict` was told in the order shown."""
  a, b = reversed(models) if swap else models
  winner = max(verdict.scores, key=verdict.scores.__getitem__) if verdict.scores is not None else ''
  return Battle(question, a, b, winner, verdict.reason)


def rows_of(battles: Iterable[Battle]) -> list[dict[str, Any]]:
  """Battles in the official form; one that failed has no winner."""
  return [{'data_id': b.question, 'model_A': {'name': b.a}, 'model_B': {'name': b.b}, 'winner': b.winner or None}
          for b in battles]
