"""SynJudge as a worker of SEIR: rates answers in batches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax.interleave import layout
from intersyn_jax.interleave.layout import FILL, TokenBatch
from intersyn_jax.interleave.types import DIMENSIONS, Conversation, Image, Text, images_of, steps_of
from intersyn_jax.judge import views
from intersyn_jax.judge.model import JudgeScores, SynJudge, expectation, read
from intersyn_jax.judge.views import Widths
from intersyn_jax.models.definition import Params
from intersyn_jax.synthesis.interfaces import Rate, Rating, Ticket

LANE, TEXTS, TOO_LONG = 'judge', 'judge texts', 'not judged'
"""Lanes: whole answers; answers without pictures, of which only TCC is read; and those that have no room."""


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
    self._texts = {size: jax.jit(functools.partial(score_texts, judge)) for size, judge in self._judges.items()}
    block = judge.layout.block
    self._blank = Image(codes=np.zeros((block.places, block.depth), np.int32))

  def prepare(self, request: Rate) -> Ticket:
    """Tokenises the conversation. An answer without pictures gets blank ones, which TCC cannot see: it was learnt on steps."""
    conversation, texts_only = request.conversation, not images_of(request.conversation.turns[-1].answer)
    if texts_only:
      conversation = self._with_blanks(conversation)
    document = layout.tokenise(conversation, self._judge.layout)
    size = next((size for size in self._sizes if len(document.text) <= size), None)
    lane = TOO_LONG if size is None else TEXTS if texts_only else LANE
    return Ticket(lane, size or 0, (document, len(steps_of(conversation.turns[-1].answer))))

  def run(self, lane: str, size: int, tickets: Sequence[Ticket]) -> list[Rating | None]:
    if lane == TOO_LONG:
      return [None] * len(tickets)
    documents, steps = zip(*(ticket.payload for ticket in tickets), strict=True)
    batch = empty_rows(layout.stack(documents, size), self.rows)
    score = self._texts[size] if lane == TEXTS else self._judges[size].jitted
    scores: JudgeScores = jax.device_get(score(self._params, batch))
    return [_rating(scores, row, count) for row, count in enumerate(steps)]

  def _with_blanks(self, conversation: Conversation) -> Conversation:
    last = conversation.turns[-1]
    answer = tuple(part for s in last.answer if isinstance(s, Text) for part in (s, self._blank))
    return dataclasses.replace(conversation, turns=(*conversation.turns[:-1], dataclasses.replace(last, answer=answer)))


def score_texts(judge: SynJudge, params: Params, batch: TokenBatch) -> JudgeScores:
  """As `SynJudge.score`, but TCC alone, at a quarter of the cost; the other scores are the rubric's zeros."""
  seen = judge.cut(batch)
  temperature = judge.temperatures[views.TCC]
  ends, whole = (expectation(a / temperature) for a in read(judge.definition.bind(params), seen.tcc, views.TCC))
  alone = lambda a: jnp.pad(a[..., None], [(0, 0)] * a.ndim + [(0, len(DIMENSIONS) - 1)])
  valid = seen.fits & jnp.isfinite(whole)
  return JudgeScores(alone(whole), alone(ends.reshape(len(whole), -1)), seen.present, valid)


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
