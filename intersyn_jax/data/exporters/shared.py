"""What the export formats share: what becomes of one conversation, names of picture files, answers with one picture."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from typing import Any

from intersyn_jax.data import images
from intersyn_jax.interleave.types import Conversation, Image, Segment, Text, images_of, steps_of

FOLDER = 'images'
"""Where the picture files of an export lie."""

_EXTENSIONS = {'PNG': '.png', 'JPEG': '.jpg', 'WEBP': '.webp'}
_PLAIN = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.-]{0,149}')


class CannotCarry(ValueError):
  """A conversation that the format has no place for; the message is the reason for the manifest."""


@dataclasses.dataclass(frozen=True)
class Carried:
  """What a conversation becomes.

  Attributes:
    rows: of the format.
    pictures: the bytes of its picture files, by name.
  """

  rows: list[dict[str, Any]]
  pictures: dict[str, bytes] = dataclasses.field(default_factory=dict)


def check(conversation: Conversation) -> None:
  """Raises CannotCarry for what no format has a place for: an answer that is missing, a picture without bytes."""
  if not conversation.id.strip():
    raise CannotCarry('its id is empty')
  for number, turn in enumerate(conversation.turns):
    if not turn.question or not turn.answer:
      raise CannotCarry(f'turn {number}: its {"answer" if turn.question else "question"} is missing')
    for segment in (*turn.question, *turn.answer):
      if isinstance(segment, Image) and not segment.data:
        raise CannotCarry(f'turn {number}: a picture has only codes and no bytes')
      if isinstance(segment, Text) and not segment.text.strip():
        raise CannotCarry(f'turn {number}: a text is empty')


def picture_name(name: str, turn: int, data: bytes, place: int | None = None) -> str:
  """File name of a picture: `<id>_caption_<turn>.png` as the generator has it, and `_<place>` where a turn may have several.

  An id that is not safe in a file name is replaced by a digest of it. The extension tells what the bytes are.
  """
  stem = name if _PLAIN.fullmatch(name) else f'record_{hashlib.sha256(name.encode()).hexdigest()[:16]}'
  return f'{stem}_caption_{turn}{"" if place is None else f"_{place}"}{_EXTENSIONS[images.sniff(data)]}'


def single_turns(conversation: Conversation) -> list[tuple[str, str, Image | None]]:
  """(question, answer, picture) of each turn, for formats with one text and at most one picture after it.

  Raises CannotCarry where a turn has anything else. Steps are never joined or spread over turns that nobody spoke.
  """
  turns = []
  for number, turn in enumerate(conversation.turns):
    if not _is_text(turn.question):
      raise CannotCarry(f'turn {number}: its question is not one text')
    pictures = images_of(turn.answer)
    if not _is_text(turn.answer[:1]) or list(turn.answer[1:]) != pictures or len(pictures) > 1:
      raise CannotCarry(f'turn {number}: its answer has {len(turn.answer) - len(pictures)} texts and {len(pictures)} '
                        'pictures; the format has one text and at most one picture after it')
    turns.append((turn.question[0].text, turn.answer[0].text, pictures[0] if pictures else None))
  return turns


@dataclasses.dataclass(frozen=True)
class Drawn:
  """A picture of an answer: where it stands, and what was said since the picture before, by whomever."""

  turn: int
  step: int
  image: Image
  said: list[str]


def drawn(conversation: Conversation) -> list[Drawn]:
  """A conversation as pictures, each after its text: for formats that know no speakers and end with a picture.

  Raises CannotCarry where a question holds a picture, which the format would have the model draw, or words come after the
  last picture.
  """
  found = []
  said: list[str] = []
  for number, turn in enumerate(conversation.turns):
    if images_of(turn.question):
      raise CannotCarry(f'turn {number}: its question holds a picture, which the format would have the model draw')
    said += [segment.text for segment in turn.question]
    for step, (text, image) in enumerate(steps_of(turn.answer)):
      said += [] if text is None else [text]
      if image is not None:
        found.append(Drawn(number, step, image, said))
        said = []
  if said:
    raise CannotCarry('its last text has no picture after it, and the format has no place for such a text')
  return found


def _is_text(segments: tuple[Segment, ...]) -> bool:
  return len(segments) == 1 and isinstance(segments[0], Text)
