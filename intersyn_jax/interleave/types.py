"""Conversations: what a person reads, before any token exists.

A conversation has turns; a turn has a question and an answer; both are runs of segments (text or one image). An
interleaved answer is a run of steps, a step being one text segment and the image after it (DESIGN 3).
"""

from __future__ import annotations

import dataclasses
import io
import typing
from collections.abc import Sequence

import numpy as np

if typing.TYPE_CHECKING:
  import PIL.Image

DIMENSIONS = ('tcc', 'icc', 'iq', 'its')
"""The four scores of SynJudge: text completeness, image completeness, image quality, image-text synergy; each 0-5."""


@dataclasses.dataclass(frozen=True)
class Text:
  """A run of text."""

  text: str


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
  """One picture: encoded bytes (PNG, JPEG or WebP), image-tokenizer codes int32[places, D], or both.

  `caption` says what the picture should show, where the writer of the conversation left one.
  """

  data: bytes = b''
  codes: np.ndarray | None = None
  caption: str = ''

  def __eq__(self, other: object) -> bool:
    if not isinstance(other, Image):
      return NotImplemented
    same_codes = (self.codes is None) == (other.codes is None) and (
        self.codes is None or np.array_equal(self.codes, other.codes))
    return self.data == other.data and self.caption == other.caption and same_codes

  def __hash__(self) -> int:
    return hash((self.data, self.caption))

  def pil(self) -> PIL.Image.Image:
    """The picture as Pillow has it. Raises ValueError where there are codes alone."""
    if not self.data:
      raise ValueError('this image has no picture, only codes; decode them with an image tokenizer')
    import PIL.Image
    return PIL.Image.open(io.BytesIO(self.data), formats=('PNG', 'JPEG', 'WEBP'))


Segment = Text | Image


@dataclasses.dataclass(frozen=True)
class Turn:
  """One question and its answer."""

  question: tuple[Segment, ...]
  answer: tuple[Segment, ...] = ()


@dataclasses.dataclass(frozen=True)
class Score:
  """Scores 0-5 of one answer (`step` -1) or of one of its steps."""

  turn: int
  step: int
  tcc: float
  icc: float
  iq: float
  its: float

  def values(self) -> tuple[float, float, float, float]:
    return (self.tcc, self.icc, self.iq, self.its)


@dataclasses.dataclass(frozen=True)
class Conversation:
  """One record of a dataset.

  Attributes:
    id: unique in its dataset.
    topic: `domain/category/topic`, or whatever the source calls its subject.
    turns: at least one.
    scores: of answers and steps, where somebody gave some.
    generator: who wrote the answers (`gold`, `seir`, `opening`, ...).
    seed: that reproduces it, -1 where there is none.
    trace: id of the record that tells how it was made, '' where there is none.
  """

  id: str
  topic: str
  turns: tuple[Turn, ...]
  scores: tuple[Score, ...] = ()
  generator: str = ''
  seed: int = -1
  trace: str = ''


def text_of(segments: Sequence[Segment]) -> str:
  """All text of the segments, joined by a space."""
  return ' '.join(s.text for s in segments if isinstance(s, Text))


def images_of(segments: Sequence[Segment]) -> list[Image]:
  """All images of the segments, in order."""
  return [s for s in segments if isinstance(s, Image)]


def steps_of(answer: Sequence[Segment]) -> list[tuple[str | None, Image | None]]:
  """Reads an answer as steps: each text with the image after it; a missing half is None."""
  steps: list[tuple[str | None, Image | None]] = []
  for segment in answer:
    if isinstance(segment, Text):
      steps.append((segment.text, None))
    elif steps and steps[-1][1] is None:
      steps[-1] = (steps[-1][0], segment)
    else:
      steps.append((None, segment))
  return steps
