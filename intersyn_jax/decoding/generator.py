"""Questions in, conversations out: the decoder for people.

Any number of questions is written with a fixed number of rows: whoever is done makes room for the next (`serving`), and
results come back in the order of the requests, or segment by segment as they are completed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from intersyn_jax.data import images
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import GOING, Decoder, Written
from intersyn_jax.decoding.serving import Server
from intersyn_jax.errors import UserError
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.layout import Layout
from intersyn_jax.interleave.types import Conversation, Image, Segment, Text, Turn, images_of
from intersyn_jax.models.definition import Definition, Params

ImageDecoder = Callable[[np.ndarray], np.ndarray]
"""Image codes int32[N,P,D] to pictures uint8[N,height,width,3]."""

class Eyes(NamedTuple):
  """How pictures of questions are read, encoded ones of any size.

  Attributes:
    codes: n pictures to int32[n,P,D].
    features: n pictures to float32[n,P,f], for a layout that reads questions' pictures as features.
  """

  codes: Callable[[Sequence[bytes]], np.ndarray]
  features: Callable[[Sequence[bytes]], np.ndarray] | None = None


Question = str | Sequence[Segment] | Conversation


class Said(NamedTuple):
  """One segment as it is completed: the question it answers, which of the n answers it belongs to, and the segment."""

  question: int
  answer: int
  segment: Segment


class Generator:
  """Answers questions with a unified model.

      generator = Generator(definition, params, layout, image_decoder, mesh, DecodeConfig())
      (answers,) = generator.generate('Draw a red circle, then move it.', n=4)
      answers[0].turns[-1].answer[1].pil()

  Args:
    definition: of the model; params: its parameters on the mesh.
    layout: the token layout it was trained with.
    image_decoder: turns codes into pictures; None leaves images with their codes alone.
    mesh: of the machine.
    config: `config.rows` completions are at work at once.
    eyes: read pictures that come without codes.
  """

  def __init__(self, definition: Definition, params: Params, layout: Layout, image_decoder: ImageDecoder | None, mesh: Mesh,
               config: DecodeConfig, eyes: Eyes | None = None):
    self.layout = layout
    self.image_decoder = image_decoder
    self.eyes = eyes
    self.server = Server(Decoder(definition, layout, mesh, config), params, config.rows)

  def generate(self, questions: Sequence[Question] | Question, n: int = 1, seed: int = 0,
               name: str = 'decoder') -> list[list[Conversation]]:
    """Writes n answers to each question.

    Args:
      questions: texts, runs of segments, or conversations whose last turn is to be answered (its answer, if it has
        one, is replaced); images in them have codes, or bytes that `eyes` read. A single one is taken as a list of one.
      n: answers to each; the question is read once for all of them.
      seed: of all draws; answer g of question i depends on (seed, i, g) and on nothing else in the batch.
      name: what `Conversation.generator` of the answers says.

    Returns:
      for each question, n conversations with the answer in the last turn; images have codes and, with an image decoder,
      PNG bytes.
    """
    asked = _asked(questions)
    answers: list[list[Segment]] = [[] for _ in range(len(asked) * n)]
    for number, segments in self._segments(asked, n, seed):
      answers[number] += segments
    drawn = self._draw([segment for segments in answers for segment in segments])
    done = iter([tuple(next(drawn) for _ in segments) for segments in answers])
    return [[_answered(conversation, next(done), name, seed) for _ in range(n)] for conversation in asked]

  def stream(self, questions: Sequence[Question] | Question, n: int = 1, seed: int = 0) -> Iterator[Said]:
    """The same answers, one segment at a time, each as soon as it is complete. Arguments as of `generate`."""
    for number, segments in self._segments(_asked(questions), n, seed):
      for segment in self._draw(segments):
        yield Said(*divmod(number, n), segment)

  def _segments(self, asked: Sequence[Conversation], n: int, seed: int) -> Iterator[tuple[int, list[Segment]]]:
    """The number of an answer and the segments that were completed in it, chunk by chunk."""
    readers: dict[int, _Reader] = {}
    prompts = [layout.prompt(self._seen(conversation), self.layout) for conversation in asked]
    features = [self._features(conversation) for conversation in asked] if self.layout.features else None
    for number, columns, finish in self.server.stream(prompts, group=n, seed=seed, features=features):
      yield number, readers.setdefault(number, _Reader(self.layout)).read(columns, finish != GOING)
      if finish != GOING:
        del readers[number]

  def _seen(self, conversation: Conversation) -> Conversation:
    """The same with codes for all images that the model reads as such."""
    def see(segments: Sequence[Segment]) -> tuple[Segment, ...]:
      unseen = lambda s: isinstance(s, Image) and s.codes is None and s.data
      return tuple(dataclasses.replace(s, codes=self.eyes.codes([s.data])[0]) if unseen(s) else s for s in segments)

    if self.eyes is None:
      return conversation
    *earlier, last = conversation.turns
    question = (lambda segments: segments) if self.layout.features else see
    turns = [dataclasses.replace(turn, question=question(turn.question), answer=see(turn.answer)) for turn in earlier]
    return dataclasses.replace(conversation, turns=(*turns, dataclasses.replace(last, question=question(last.question))))

  def _features(self, conversation: Conversation) -> np.ndarray:
    """Features [n,f] of all pictures in questions, one picture after another."""
    found = [image.data for turn in conversation.turns for image in images_of(turn.question)]
    if found and (self.eyes is None or self.eyes.features is None):
      raise UserError(f'record {conversation.id}: this model reads pictures in questions as features, and the generator has no '
                      'eyes for them; build it with eyes=')
    if not found:
      return np.zeros((0, 0), np.float32)
    features = np.asarray(self.eyes.features(found))
    return features.reshape(-1, features.shape[-1])

  def _draw(self, segments: Sequence[Segment]) -> Iterator[Segment]:
    """Segments with their pictures, decoded in one call."""
    found = [segment.codes for segment in segments if isinstance(segment, Image)]
    if self.image_decoder is None or not found:
      return iter(segments)
    # Sizes are powers of two, so that few programs are compiled.
    padded = np.zeros((1 << (len(found) - 1).bit_length(), *found[0].shape), np.int32)
    padded[:len(found)] = found
    pictures = iter(np.asarray(self.image_decoder(padded))[:len(found)])
    return iter([dataclasses.replace(s, data=images.png(next(pictures))) if isinstance(s, Image) else s for s in segments])


class _Reader:
  """Reads one completion as it grows."""

  def __init__(self, layout_: Layout):
    self._layout = layout_
    self._columns: list[Written] = []
    self._known = 0

  def read(self, columns: Written, over: bool) -> list[Segment]:
    """Segments that these columns complete: a text when something else follows or the answer is over."""
    self._columns.append(columns)
    text, codes, modality, forced = (np.concatenate(parts) for parts in list(zip(*self._columns, strict=True))[:4])
    found = layout.answer_of(text, codes, modality, self._layout, forced)
    complete = len(found) - (not over and bool(found) and isinstance(found[-1], Text))
    new, self._known = list(found[self._known:complete]), max(self._known, complete)
    return new


def _asked(questions: Sequence[Question] | Question) -> list[Conversation]:
  if isinstance(questions, str | Conversation):
    questions = [questions]
  return [_conversation(question, number) for number, question in enumerate(questions)]


def _conversation(question: Question, number: int) -> Conversation:
  if isinstance(question, Conversation):
    return question
  segments = (Text(question),) if isinstance(question, str) else tuple(question)
  return Conversation(id=str(number), topic='', turns=(Turn(segments),))


def _answered(conversation: Conversation, answer: tuple[Segment, ...], name: str, seed: int) -> Conversation:
  *earlier, last = conversation.turns
  turns = (*earlier, dataclasses.replace(last, answer=answer))
  return dataclasses.replace(conversation, turns=turns, scores=(), generator=name, seed=seed)
