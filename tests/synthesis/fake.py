"""A scripted stand-in for all three interfaces of SEIR, for tests of control flow only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from intersyn_jax.data import roles
from intersyn_jax.data.roles import AnswerStep
from intersyn_jax.interleave.types import Image, images_of, text_of
from intersyn_jax.synthesis.interfaces import Crew, Draw, Rate, Rating, Reply, Ticket
from intersyn_jax.synthesis.seir import Method, Rounds

QUESTION = 'draw a red cross top left on sand , then make it blue . use two pictures .'
STEPS = [AnswerStep('here comes one shape , a red cross .', 'large red cross top left on sand'),
         AnswerStep('the cross turns from red to blue .', 'large blue cross top left on sand')]


def picture(seed: int) -> Image:
  return Image(codes=np.random.default_rng(seed).integers(0, 100, (4, 1)).astype(np.int32))


def usual(request) -> Reply | Image | Rating | None:
  """A writer whose critics ask once for more and are then content; its words name the address."""
  if isinstance(request, Rate):
    steps = tuple((4.0, 3.0, 3.0, 3.0) for _ in images_of(request.conversation.turns[-1].answer))
    return Rating((4.0, 3.0, 3.0, 3.0), steps)
  at = request.address
  if isinstance(request, Draw):
    return picture(at.number())
  if at.role.endswith('critique'):
    return Reply('none' if at.round > 1 else 'mend it')
  if at.role.startswith('question'):
    return Reply(f'{QUESTION} {at.conversation} {at.turn} {at.round}')
  if at.role.startswith('answer'):
    return Reply(roles.write_answer([AnswerStep(f'{s.text} {at.round}', s.caption) for s in STEPS]))
  return Reply(f'large red cross top left on sand {at.round}')


class Actor:
  """Answers whatever it is asked by a function; notes its batches and the requests in the order of their answers."""

  def __init__(self, answer: Callable = usual, rows: int = 8, lane: Callable = lambda request: type(request).__name__):
    self.rows, self._answer, self._lane = rows, answer, lane
    self.batches: list[list] = []

  def prepare(self, request) -> Ticket:
    size = 0 if isinstance(request, Rate) else len(text_of(request.prompt)) // 64
    return Ticket(self._lane(request), size, request)

  def run(self, lane: str, size: int, tickets: Sequence[Ticket]) -> list:
    assert 0 < len(tickets) <= self.rows
    assert all(ticket.lane == lane and ticket.size <= size for ticket in tickets)
    self.batches.append([ticket.payload for ticket in tickets])
    return [self._answer(ticket.payload) for ticket in tickets]

  @property
  def requests(self) -> list:
    return [request for batch in self.batches for request in batch]

  def asked(self, role: str) -> list:
    return [request for request in self.requests if not isinstance(request, Rate) and request.address.role == role]


def crew(actor: Actor) -> Crew:
  return Crew(actor, actor, actor, actor)


def method(**fields) -> Method:
  base = Method(seed=0, topics=('painting/painting a cross/painting a red cross on sand', 'adding/adding a ring/x'),
                templates=('draw * , then * . use two pictures .', 'one * .'), later_templates=('now * .',),
                rounds=Rounds(2, 2, 2))
  return dataclasses.replace(base, **fields)
