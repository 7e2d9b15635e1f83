"""What SEIR asks of models: typed requests, and the three small interfaces that answer them (DESIGN 7).

A conversation in the making yields requests and is given results; who answers them is decided elsewhere. A worker says
first which batch a request fits in (`prepare`), and answers a whole batch at once (`run`), so that an engine can put the
requests of many conversations, in mixed roles, into full device batches.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Image, Segment


@dataclasses.dataclass(frozen=True)
class Address:
  """Where in a run a draw is made. With the seed of the run it decides the draw, whatever else is in the batch.

  Attributes:
    conversation: id.
    turn: number of the turn.
    role: `question_write`, ..., `draw` (see `data.roles.TAGS`).
    step: of the answer, -1 where the role is about the whole turn.
    round: k of the paper; 0 writes the first version.
    retry: counts what was tried before and could not be read.
  """

  conversation: str
  turn: int
  role: str
  step: int = -1
  round: int = 0
  retry: int = 0

  def number(self) -> int:
    """The address as a request id of the decoder, uint32."""
    text = f'{self.conversation}/{self.turn}/{self.role}/{self.step}/{self.round}/{self.retry}'
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), 'big')


@dataclasses.dataclass(frozen=True)
class Write:
  """Asks a language model for text. Answered by a Reply."""

  address: Address
  prompt: tuple[Segment, ...]


@dataclasses.dataclass(frozen=True)
class Look:
  """Asks a vision critic for text; the prompt holds a picture. Answered by a Reply."""

  address: Address
  prompt: tuple[Segment, ...]


@dataclasses.dataclass(frozen=True)
class Draw:
  """Asks an image generator for the picture that a prompt describes. Answered by an Image, or None where none came."""

  address: Address
  prompt: tuple[Segment, ...]


@dataclasses.dataclass(frozen=True)
class Rate:
  """Asks a judge about the answer of the last turn. Answered by a Rating, or None where the judge failed."""

  conversation: Conversation


Request = Write | Look | Draw | Rate


@dataclasses.dataclass(frozen=True)
class Reply:
  """Text of a model; `problem` says why it cannot be used, where the worker knows (cut at the limit, prompt too long)."""

  text: str
  problem: str = ''


Scores = tuple[float, float, float, float]
"""TCC, ICC, IQ and ITS, each 0-5."""


@dataclasses.dataclass(frozen=True)
class Rating:
  """SynJudge's scores of an answer: of the whole, and of each step given the steps before."""

  whole: Scores
  steps: tuple[Scores, ...]


@dataclasses.dataclass(frozen=True)
class Ticket:
  """A request made ready.

  Attributes:
    lane: requests of one lane may share a batch.
    size: of the batch shape it needs; it fits in a batch of its lane that is larger.
    payload: whatever the worker needs.
  """

  lane: str
  size: int
  payload: Any


class Worker(Protocol):
  """Answers requests in batches of at most `rows`; the same batch always has the same answers."""

  rows: int

  def prepare(self, request: Any) -> Ticket:
    """Makes a request ready. Is called once for each."""

  def run(self, lane: str, size: int, tickets: Sequence[Ticket]) -> list[Any]:
    """Answers the tickets of one batch, in their order."""


class LanguageModel(Worker, Protocol):
  """Answers Write with Reply."""


class VisionCritic(Worker, Protocol):
  """Answers Look with Reply."""


class OwnCritic(abc.ABC):
  """A vision critic of one's own (`synthesize.critic`): only `critique` is to be written.

  Attributes:
    rows: most pictures that `critique` is asked about at once.
  """

  rows = 64

  @abc.abstractmethod
  def critique(self, looks: Sequence[Look]) -> Sequence[str]:
    """Says of each picture, in words for the writer, what to change in its caption; `none` where nothing is to be mended.

    A prompt is what `data.roles.image_critique` writes: question, text and caption of the step, then the picture, whose codes
    alone are there.
    """

  def prepare(self, request: Look) -> Ticket:
    return Ticket('own_critic', 0, request)

  def run(self, lane: str, size: int, tickets: Sequence[Ticket]) -> list[Reply]:
    del lane, size
    said = self.critique([ticket.payload for ticket in tickets])
    kinds = [type(said).__name__] if not isinstance(said, list | tuple) else [
        type(text).__name__ for text in said if not isinstance(text, str)]
    if kinds or len(said) != len(tickets):
      raise UserError(f'config.synthesize.critic: {type(self).__name__} was asked about {len(tickets)} pictures and gave '
                      f'{kinds[0] if kinds else f"{len(said)} texts"}; critique must give a list with one text for each')
    return [Reply(text) for text in said]


class ImageGenerator(Worker, Protocol):
  """Answers Draw with Image or None."""


class Judge(Worker, Protocol):
  """Answers Rate with Rating or None."""


@dataclasses.dataclass(frozen=True)
class Crew:
  """Who answers what. One object may do several jobs; its requests then share batches."""

  language: LanguageModel
  critic: VisionCritic
  images: ImageGenerator
  judge: Judge | None = None

  def worker(self, request: Request) -> Worker:
    """The one who answers a request."""
    if isinstance(request, Write):
      return self.language
    if isinstance(request, Look):
      return self.critic
    if isinstance(request, Draw):
      return self.images
    if self.judge is None:
      raise ValueError('a rating is asked for, but the crew has no judge')
    return self.judge


Result = Reply | Image | Rating | None
