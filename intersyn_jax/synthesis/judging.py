"""SynJudge as a worker of SEIR: rates answers in batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from intersyn_jax.interleave import layout
from intersyn_jax.interleave.layout import FILL, TokenBatch
from intersyn_jax.interleave.types import steps_of
from intersyn_jax.judge.model import JudgeScores, SynJudge
from intersyn_jax.judge.views import Widths
from intersyn_jax.models.definition import Params
from intersyn_jax.synthesis.interfaces import Rate, Rating, Ticket

LANE, TOO_LONG = 'judge', 'not judged'
"""Lanes: answers, and those that have no room."""


class JudgeWorker:
  """Answers Rate with Rating, or None where the judge has no valid score.

  Args:
    judge: bound to its layout.
    params: of the judge.
    rows: answers rated at once.
    sizes: lengths of conversations, below the one that the judge's views have room for, that get narrower views of
      their own; each costs a program.
  """

  def __init__(self, judge: SynJudge, params: Params, *, rows: int = 128, sizes: Sequence[int] = ()):
    self.rows = rows
    self._judge, self._params = judge, params
    room = judge.widths
    self._sizes = (*sorted(size for size in sizes if size < room.its), room.its)
    self._judges = {
        size: dataclasses.replace(judge, widths=Widths(min(room.tcc, size), min(room.icc, size), size)) for size in self._sizes}

  def prepare(self, request: Rate) -> Ticket:
    """Tokenises the conversation."""
    document = layout.tokenise(request.conversation, self._judge.layout)
    size = next((size for size in self._sizes if len(document.text) <= size), None)
    return Ticket(TOO_LONG if size is None else LANE, size or 0, (document, len(steps_of(request.conversation.turns[-1].answer))))

  def run(self, lane: str, size: int, tickets: Sequence[Ticket]) -> list[Rating | None]:
    if lane == TOO_LONG:
      return [None] * len(tickets)
    documents, steps = zip(*(ticket.payload for ticket in tickets), strict=True)
    batch = empty_rows(layout.stack(documents, size), self.rows)
    scores: JudgeScores = jax.device_get(self._judges[size].jitted(self._params, batch))
    return [_rating(scores, row, count) for row, count in enumerate(steps)]


def _rating(scores: JudgeScores, row: int, steps: int) -> Rating | None:
  if not scores.valid[row]:
    return None
  values = [tuple(float(v) for v in line) for line in (scores.whole[row], *scores.steps[row, :steps])]
  return Rating(values[0], tuple(values[1:]))


def empty_rows(batch: TokenBatch, rows: int) -> TokenBatch:
  """Rows of padding alone behind, up to `rows`."""
  fields = {}
  for field in dataclasses.fields(TokenBatch):
    value = getattr(batch, field.name)
    width = [(0, rows - len(value))] + [(0, 0)] * (value.ndim - 1)
    fields[field.name] = np.pad(value, width, constant_values=FILL.get(field.name, 0))
  return TokenBatch(**fields)
