"""SynJudge as a worker of SEIR: rates answers in batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from intersyn_jax.interleave import layout
from intersyn_jax.interleave.layout import FILL, TokenBatch
from intersyn_jax.interleave.types import Conversation, Image, Text, images_of, steps_of
from intersyn_jax.judge.model import JudgeScores, SynJudge
from intersyn_jax.models.definition import Params
from intersyn_jax.synthesis.interfaces import Rate, Rating, Ticket

LANE, TOO_LONG = 'judge', 'not judged'
"""Lanes: answers that have room, and those whose rating is None because they have none."""


class JudgeWorker:
  """Answers Rate with Rating, or None where the judge has no valid score.

  Args:
    judge: bound to its layout.
    params: of the judge.
    rows: answers rated at once.
  """

  def __init__(self, judge: SynJudge, params: Params, *, rows: int = 128):
    self.rows = rows
    self._judge, self._params = judge, params
    self._length = judge.widths.its + 1  # that view shows whole rows but for one `</s>`; a longer row cannot be judged
    block = judge.layout.block
    self._blank = Image(codes=np.zeros((block.places, block.depth), np.int32))

  def prepare(self, request: Rate) -> Ticket:
    """Tokenises the conversation. An answer without pictures gets blank ones, which TCC cannot see: it was learnt on steps."""
    conversation, texts_only = request.conversation, not images_of(request.conversation.turns[-1].answer)
    if texts_only:
      conversation = self._with_blanks(conversation)
    document = layout.tokenise(conversation, self._judge.layout)
    lane = LANE if len(document.text) <= self._length else TOO_LONG
    return Ticket(lane, self._length, (document, len(steps_of(conversation.turns[-1].answer)), texts_only))

  def run(self, lane: str, size: int, tickets: Sequence[Ticket]) -> list[Rating | None]:
    if lane == TOO_LONG:
      return [None] * len(tickets)
    batch = empty_rows(layout.stack([ticket.payload[0] for ticket in tickets], size), self.rows)
    scores: JudgeScores = jax.device_get(self._judge.jitted(self._params, batch))
    return [self._rating(scores, row, *ticket.payload[1:]) for row, ticket in enumerate(tickets)]

  def _rating(self, scores: JudgeScores, row: int, steps: int, texts_only: bool) -> Rating | None:
    if not scores.valid[row]:
      return None
    seen = np.array([1, 0, 0, 0]) if texts_only else np.ones(4)
    values = [tuple(float(v) for v in line * seen) for line in (scores.whole[row], *scores.steps[row, :steps])]
    return Rating(values[0], tuple(values[1:]))

  def _with_blanks(self, conversation: Conversation) -> Conversation:
    last = conversation.turns[-1]
    answer = tuple(part for s in last.answer if isinstance(s, Text) for part in (s, self._blank))
    return dataclasses.replace(conversation, turns=(*conversation.turns[:-1], dataclasses.replace(last, answer=answer)))


def empty_rows(batch: TokenBatch, rows: int) -> TokenBatch:
  """Rows of padding alone behind, up to `rows`."""
  fields = {}
  for field in dataclasses.fields(TokenBatch):
    value = getattr(batch, field.name)
    width = [(0, rows - len(value))] + [(0, 0)] * (value.ndim - 1)
    fields[field.name] = np.pad(value, width, constant_values=FILL.get(field.name, 0))
  return TokenBatch(**fields)
