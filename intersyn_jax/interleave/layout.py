"""The token stream: one layout that tokeniser, decoder, loss and grammar all read (DESIGN 3).

A conversation is written `<s>` and then, for each turn, `<user>` question `<model>` answer `</s>`. An answer that has
text and images is a run of steps, each `<think>` text `</think><vis>` image `</vis>` (Unified GRPO, section 1); any
other answer is its plain segments. Text and image codes have separate index spaces.

Letters: B rows, T positions, D codes per image position.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Image, Segment, Text, Turn, images_of, steps_of

if typing.TYPE_CHECKING:
  from intersyn_jax.interleave.text import TextTokenizer

PADDING, TEXT, CODES, FEATURES = 0, 1, 2, 3
CODE = -1


@dataclasses.dataclass(frozen=True)
class ImageBlock:
  """How a family writes one image.

  Attributes:
    begin: text id that opens the block; the model has to choose it.
    template: what follows, place by place: CODE, or the text id that is forced there.
    depth: D, codes per image position.
    codebook: C, how many codes there are.
  """

  begin: int
  template: tuple[int, ...]
  depth: int
  codebook: int

  @property
  def places(self) -> int:
    """Number of image positions in a block."""
    return sum(entry == CODE for entry in self.template)


@dataclasses.dataclass(frozen=True)
class Layout:
  """What a family needs to read and write conversations as tokens."""

  tokenizer: TextTokenizer
  block: ImageBlock

  def special(self, name: str) -> int:
    return self.tokenizer.special(name)


def plain_layout(tokenizer: TextTokenizer, *, places: int, depth: int, codebook: int) -> Layout:
  """Layout of a model trained from nothing: `<image>`, `places` codes, a forced `</image>`."""
  template = (CODE,) * places + (tokenizer.special('</image>'),)
  return Layout(tokenizer, ImageBlock(tokenizer.special('<image>'), template, depth, codebook))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TokenBatch:
  """B rows of T positions; a single document has the same fields without B. See DESIGN 3 for the meaning of each."""

  text: jax.Array  # int32[B,T]
  codes: jax.Array  # int32[B,T,D]
  modality: jax.Array  # int8[B,T]
  loss: jax.Array  # float32[B,T]; weight of predicting this position from the ones before
  forced: jax.Array  # bool[B,T]
  document: jax.Array  # int32[B,T]
  position: jax.Array  # int32[B,T]
  turn: jax.Array  # int32[B,T]
  step: jax.Array  # int32[B,T]

  def replace(self, **fields) -> TokenBatch:
    return dataclasses.replace(self, **fields)


FILL = {'turn': -1, 'step': -1}
"""What padding holds where it is not 0."""


class _Writer:
  """Collects the positions of one document."""

  def __init__(self, layout: Layout, loss_on_forced: bool):
    self.layout = layout
    self.loss_on_forced = loss_on_forced
    self.rows: list[tuple[int, int, float, bool, int, int]] = []  # text, modality, loss, forced, turn, step
    self.codes: list[np.ndarray] = []
    self.zero = np.zeros(layout.block.depth, np.int32)

  def ids(self, ids: Sequence[int], loss: float, turn: int, step: int = -1, forced: bool = False) -> None:
    for i in ids:
      self.rows.append((i, TEXT, loss, forced, turn, step))
      self.codes.append(self.zero)

  def special(self, name: str, loss: float, turn: int, step: int = -1) -> None:
    self.ids([self.layout.special(name)], loss, turn, step)

  def segment(self, segment: Segment, loss: float, turn: int, step: int = -1) -> None:
    if isinstance(segment, Text):
      self.ids(self.layout.tokenizer.encode(segment.text), loss, turn, step)
      return
    block = self.layout.block
    if segment.codes is None:
      raise UserError('an image has no codes yet; run the tokenizer stage, which adds them to the shards')
    codes = np.asarray(segment.codes, np.int32)
    if codes.shape != (block.places, block.depth):
      raise UserError(f'image codes have shape {codes.shape}, the layout needs {(block.places, block.depth)}; '
                      'encode the shards with the tokenizer of this model')
    if codes.min() < 0 or codes.max() >= block.codebook:
      raise UserError(f'image codes lie outside 0..{block.codebook - 1}; encode the shards with the tokenizer of this model')
    self.ids([block.begin], loss, turn, step)
    place = 0
    for entry in block.template:
      if entry == CODE:
        self.rows.append((0, CODES, loss, False, turn, step))
        self.codes.append(codes[place])
        place += 1
      else:
        self.ids([entry], loss * self.loss_on_forced, turn, step, forced=True)

  def answer(self, answer: Sequence[Segment], turn: int) -> None:
    interleaved = bool(images_of(answer)) and any(isinstance(s, Text) for s in answer)
    if not interleaved:
      for segment in answer:
        self.segment(segment, 1.0, turn)
      return
    for step, (text, image) in enumerate(steps_of(answer)):
      if text is not None:
        self.special('<think>', 1.0, turn, step)
        self.segment(Text(text), 1.0, turn, step)
        self.special('</think>', 1.0, turn, step)
      if image is not None:
        self.special('<vis>', 1.0, turn, step)
        self.segment(image, 1.0, turn, step)
        self.special('</vis>', 1.0, turn, step)

  def document(self) -> TokenBatch:
    text, modality, loss, forced, turn, step = (np.asarray(column) for column in zip(*self.rows, strict=True))
    length = len(self.rows)
    return TokenBatch(
        text=text.astype(np.int32), codes=np.stack(self.codes), modality=modality.astype(np.int8),
        loss=loss.astype(np.float32), forced=forced.astype(bool), document=np.ones(length, np.int32),
        position=np.arange(length, dtype=np.int32), turn=turn.astype(np.int32), step=step.astype(np.int32))


def _write(turns: Sequence[Turn], layout: Layout, *, loss_on_forced: bool, drop_question: bool, closed: bool) -> TokenBatch:
  writer = _Writer(layout, loss_on_forced)
  writer.special('<s>', 0.0, -1)
  for number, turn in enumerate(turns):
    writer.special('<user>', 0.0, number)
    if not drop_question:
      for segment in turn.question:
        writer.segment(segment, 0.0, number)
    writer.special('<model>', 0.0, number)
    if closed or number < len(turns) - 1:
      writer.answer(turn.answer, number)
      writer.special('</s>', 1.0, number)
  return writer.document()


def tokenise(conversation: Conversation, layout: Layout, *, loss_on_forced: bool = False,
             drop_question: bool = False) -> TokenBatch:
  """Writes a conversation as one document: fields of shape [T], codes [T,D].

  Args:
    conversation: its images must carry codes.
    layout: of the model that will read it.
    loss_on_forced: also train the forced positions of an image block (VILA-U trains its end token).
    drop_question: leaves every question empty, which is the null context of guidance.

  Raises:
    UserError: an image without codes or with codes of another tokenizer; the record is named.
  """
  try:
    return _write(conversation.turns, layout, loss_on_forced=loss_on_forced, drop_question=drop_question, closed=True)
  except UserError as error:
    raise UserError(f'record {conversation.id}: {error}') from error


def prompt(conversation: Conversation, layout: Layout) -> TokenBatch:
  """Writes a conversation up to the `<model>` of its last turn, whose answer is left out: ready to be decoded."""
  try:
    return _write(conversation.turns, layout, loss_on_forced=False, drop_question=False, closed=False)
  except UserError as error:
    raise UserError(f'record {conversation.id}: {error}') from error


def null_prompt(layout: Layout) -> TokenBatch:
  """The context of the unguided branch: an empty turn up to `<model>`."""
  return _write([Turn(())], layout, loss_on_forced=False, drop_question=True, closed=False)


def stack(documents: Sequence[TokenBatch], length: int, *, left: bool = False) -> TokenBatch:
  """Documents as rows [B, length], padded on the right, or on the left with `left`.

  Raises:
    UserError: a document is longer than `length`.
  """
  longest = max(len(d.text) for d in documents)
  if longest > length:
    raise UserError(f'a document has {longest} positions, the row has room for {length}')
  fields = {}
  for field in dataclasses.fields(TokenBatch):
    first = getattr(documents[0], field.name)
    out = np.full((len(documents), length, *first.shape[1:]), FILL.get(field.name, 0), first.dtype)
    for row, document in zip(out, documents, strict=True):
      value = getattr(document, field.name)
      if left:
        row[length - len(value):] = value
      else:
        row[:len(value)] = value
    fields[field.name] = out
  return TokenBatch(**fields)


def _segments(text: np.ndarray, codes: np.ndarray, modality: np.ndarray, forced: np.ndarray | None,
              layout: Layout) -> Iterator[Segment]:
  structural = {layout.special(name) for name in ('<think>', '</think>', '<vis>', '</vis>', '<image>', '</image>', '<pad>')}
  end = layout.special('</s>')
  words: list[int] = []
  picture: list[np.ndarray] = []
  for t in range(len(text)):
    if modality[t] == CODES:
      picture.append(codes[t])
      if len(picture) == layout.block.places:
        yield Image(codes=np.stack(picture).astype(np.int32))
        picture = []
      continue
    if modality[t] != TEXT or (forced is not None and forced[t]):
      continue
    token = int(text[t])
    if token not in structural and token != end:
      words.append(token)
    elif words:
      yield Text(layout.tokenizer.decode(words))
      words = []
    if token == end:
      return
  if words:
    yield Text(layout.tokenizer.decode(words))


def answer_of(text: np.ndarray, codes: np.ndarray, modality: np.ndarray, layout: Layout,
              forced: np.ndarray | None = None) -> tuple[Segment, ...]:
  """Reads decoded positions (fields of shape [T]) back as segments, whatever the model wrote.

  Tags are stripped, an image cut short is dropped, reading stops at `</s>`. Whether the answer keeps the format is
  another question: see `interleave.grammar`.
  """
  return tuple(_segments(np.asarray(text), np.asarray(codes), np.asarray(modality), forced, layout))


def turns_of(document: TokenBatch, layout: Layout) -> tuple[Turn, ...]:
  """Reads a document back as turns; the inverse of `tokenise` up to image bytes, which become codes."""
  user, model = layout.special('<user>'), layout.special('<model>')
  is_text = (document.modality == TEXT) & ~document.forced
  starts = np.flatnonzero(is_text & (document.text == user))
  turns = []
  for start, stop in zip(starts, [*starts[1:], len(document.text)], strict=True):
    middle = start + int(np.flatnonzero((is_text & (document.text == model))[start:stop])[0])
    halves = [answer_of(document.text[a:b], document.codes[a:b], document.modality[a:b], layout, document.forced[a:b])
              for a, b in ((start + 1, middle), (middle + 1, stop))]
    turns.append(Turn(*halves))
  return tuple(turns)
