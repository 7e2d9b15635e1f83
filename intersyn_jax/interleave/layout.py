"""The token stream: one layout that tokeniser, decoder, loss and grammar all read (DESIGN 3).

A conversation is written as its family's template says: for each turn what stands before a question, the question, what
stands before an answer, the answer, and what closes it; for a model trained from nothing `<s>` and then `<user>` question
`<model>` answer `</s>`. An answer that has text and images is a run of steps, each `<think>` text `</think><vis>` image
`</vis>` (Unified GRPO, section 1); any other answer is its plain segments. Text and image codes have separate index spaces.

A family may open an answer with plain words (`ASSISTANT:`), which a question may hold too. So nobody looks for them: of
every turn, the answer is what begins at the first position that has a loss weight.

Letters: B rows, T positions, D codes per image position.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import typing
from collections.abc import Container, Iterator, Sequence

import jax
import numpy as np

from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Image, Segment, Text, Turn, images_of, steps_of

PADDING, TEXT, CODES, FEATURES = 0, 1, 2, 3
CODE = -1
TAGS = ('<think>', '</think>', '<vis>', '</vis>')
"""The tags of an interleaved answer: names for `Layout.special`, in the order of `Layout.tags`."""
STOP = '</s>'
"""The name by which `Layout.special` gives the id that ends an answer, whatever the family calls it."""


class Tokenizer(typing.Protocol):
  """What a layout asks of a text tokenizer.

  Attributes:
    size: V, text ids.
    specials: ids that no text encodes to.
  """

  size: int
  specials: Container[int]

  def encode(self, text: str) -> list[int]: ...

  def encode_all(self, texts: Sequence[str]) -> list[list[int]]: ...

  def decode(self, ids: Sequence[int]) -> str: ...

  def special(self, name: str) -> int: ...


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

  @functools.cached_property
  def runs(self) -> tuple[tuple[bool, tuple[int, ...]], ...]:
    """The template cut where codes and forced ids meet: whether these are codes, and the entries."""
    return tuple((is_code, tuple(entries)) for is_code, entries in itertools.groupby(self.template, lambda entry: entry == CODE))


class Lead(typing.NamedTuple):
  """What stands between a role's name and what is said: `USER:` then a space, which most tokenizers put into the next word.

  Attributes:
    text: written before the text that a question or answer begins with, as part of it.
    image: ids written where it begins with an image.
  """

  text: str = ''
  image: tuple[int, ...] = ()


NO_LEAD = Lead()


@dataclasses.dataclass(frozen=True)
class Template:
  """How a family writes a conversation, as runs of text ids.

  Attributes:
    start: once, at the beginning.
    user: before every question.
    model: between question and answer; a prompt ends with it.
    end: closes every answer, and is trained; its last id is the stop token.
    null: the whole null context of guidance, up to the begin token of an image (a static run, not empty).
    between: after an answer, before the `user` of the next turn.
    question, answer: what goes before their first segment (never before a tag).
  """

  start: tuple[int, ...]
  user: tuple[int, ...]
  model: tuple[int, ...]
  end: tuple[int, ...]
  null: tuple[int, ...]
  between: tuple[int, ...] = ()
  question: Lead = NO_LEAD
  answer: Lead = NO_LEAD

  def __post_init__(self):
    if not self.end or not self.null:
      raise ValueError('a template needs an end and a null context')


@dataclasses.dataclass(frozen=True)
class Layout:
  """What a family needs to read and write conversations as tokens.

  Attributes:
    tokenizer: of text.
    block: how an image is written.
    template: how a conversation is written.
    tags: ids of TAGS.
    features: images of questions are read as features: written like any block, but with FEATURES where codes would be, and
      row r of the features (counted over the document, `codes[..., 0]`) at each.
    trains_forced: the forced positions of an image block are trained too (VILA-U trains its end token).
  """

  tokenizer: Tokenizer
  block: ImageBlock
  template: Template
  tags: tuple[int, int, int, int]
  features: bool = False
  trains_forced: bool = False

  def special(self, name: str) -> int:
    """Id of a tag, of STOP, or of a special token of the tokenizer. Raises ValueError where there is none."""
    if name in TAGS:
      return self.tags[TAGS.index(name)]
    return self.template.end[-1] if name == STOP else self.tokenizer.special(name)

  @functools.cached_property
  def structure(self) -> np.ndarray:
    """int[n]: the ids that only a layout writes, which a model never chooses: special, but no tag, begin or end of answer."""
    free = {*self.tags, self.block.begin, *self.template.end}
    return np.asarray([i for i in range(self.tokenizer.size) if i in self.tokenizer.specials and i not in free], np.int64)

  @functools.cached_property
  def marks(self) -> frozenset[int]:
    """Ids that end a run of words: structure, tags and the begin token."""
    return frozenset([*self.tags, self.block.begin, *self.structure.tolist()])


def plain_layout(tokenizer: Tokenizer, *, places: int, depth: int, codebook: int) -> Layout:
  """Layout of a model trained from nothing: `<image>`, `places` codes, a forced `</image>`."""
  special = tokenizer.special
  block = ImageBlock(special('<image>'), (CODE,) * places + (special('</image>'),), depth, codebook)
  start, user, model = ((special(name),) for name in ('<s>', '<user>', '<model>'))
  template = Template(start, user, model, end=(special('</s>'),), null=(*start, *user, *model))
  return Layout(tokenizer, block, template, tuple(special(name) for name in TAGS))


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
  """Collects the positions of documents, run by run: positions that have all but their ids or codes in common."""

  def __init__(self, layout: Layout):
    self.layout = layout
    self.runs: list[tuple[int, float, bool, int, int]] = []  # modality, loss, forced, turn, step
    self.text: list[Sequence[int]] = []  # ids of every run
    self.words: list[tuple[int, str]] = []  # number of a run whose ids are not known yet, and what it says
    self.codes: list[tuple[int, np.ndarray]] = []  # number of a run of codes, and those
    self.ends: list[int] = []  # runs up to the end of each document
    self.features = 0  # in this document

  def ids(self, ids: Sequence[int], loss: float, turn: int, step: int = -1, forced: bool = False) -> None:
    self.runs.append((TEXT, loss, forced, turn, step))
    self.text.append(ids)

  def say(self, text: str, loss: float, turn: int, step: int = -1) -> None:
    self.words.append((len(self.runs), text))
    self.ids((), loss, turn, step)

  def image(self, image: Image, loss: float, turn: int, step: int = -1, features: bool = False) -> None:
    block = self.layout.block
    if features:
      if not image.data:
        raise UserError('an image of a question has no picture, only codes; this family reads pictures there: add them')
      places = np.zeros((block.places, block.depth), np.int32)
      places[:, 0] = self.features + np.arange(block.places)
      self.features += block.places
    else:
      places = self._codes(image)
    self.ids([block.begin], loss, turn, step)
    place = 0
    for is_code, entries in block.runs:
      if not is_code:
        self.ids(entries, loss * self.layout.trains_forced, turn, step, forced=True)
        continue
      self.codes.append((len(self.runs), places[place:place + len(entries)]))
      self.runs.append((FEATURES if features else CODES, loss, False, turn, step))
      self.text.append((0,) * len(entries))
      place += len(entries)

  def _codes(self, image: Image) -> np.ndarray:
    block = self.layout.block
    if image.codes is None:
      raise UserError('an image has no codes yet; run the tokenizer stage, which adds them to the shards')
    codes = np.asarray(image.codes, np.int32)
    if codes.shape != (block.places, block.depth):
      raise UserError(f'image codes have shape {codes.shape}, the layout needs {(block.places, block.depth)}; '
                      'encode the shards with the tokenizer of this model')
    if codes.min() < 0 or codes.max() >= block.codebook:
      raise UserError(f'image codes lie outside 0..{block.codebook - 1}; encode the shards with the tokenizer of this model')
    return codes

  def said(self, segments: Sequence[Segment], lead: Lead, loss: float, turn: int, features: bool = False) -> None:
    """Segments one after another, the first behind its lead."""
    for number, segment in enumerate(segments):
      if isinstance(segment, Text):
        self.say(segment.text if number else lead.text + segment.text, loss, turn)
        continue
      if not number:
        self.ids(lead.image, loss, turn)
      self.image(segment, loss, turn, features=features)

  def answer(self, answer: Sequence[Segment], turn: int) -> None:
    interleaved = bool(images_of(answer)) and any(isinstance(s, Text) for s in answer)
    if not interleaved:
      self.said(answer, self.layout.template.answer, 1.0, turn)
      return
    think, think_end, vis, vis_end = self.layout.tags
    for step, (text, image) in enumerate(steps_of(answer)):
      if text is not None:
        self.ids([think], 1.0, turn, step)
        self.say(text, 1.0, turn, step)
        self.ids([think_end], 1.0, turn, step)
      if image is not None:
        self.ids([vis], 1.0, turn, step)
        self.image(image, 1.0, turn, step)
        self.ids([vis_end], 1.0, turn, step)

  def end(self) -> None:
    """What follows is another document."""
    self.ends.append(len(self.runs))
    self.features = 0

  def documents(self) -> tuple[TokenBatch, np.ndarray]:
    """All documents end to end, fields [T], and the length of each. Words are encoded here, all of them in one call."""
    if self.words:
      runs, texts = zip(*self.words, strict=True)
      for run, ids in zip(runs, self.layout.tokenizer.encode_all(texts), strict=True):
        self.text[run] = ids
    sizes = np.fromiter(map(len, self.text), np.int64, len(self.text))
    after = np.cumsum(sizes)
    length = int(after[-1])
    kinds = (np.int8, np.float32, bool, np.int32, np.int32)
    modality, loss, forced, turn, step = (
        np.repeat(np.asarray(column, kind), sizes) for column, kind in zip(zip(*self.runs, strict=True), kinds, strict=True))
    codes = np.zeros((length, self.layout.block.depth), np.int32)
    for run, found in self.codes:
      codes[after[run] - len(found):after[run]] = found
    ends = after[np.asarray(self.ends) - 1]
    lengths = np.diff(ends, prepend=0)
    position = np.arange(length, dtype=np.int32) - np.repeat((ends - lengths).astype(np.int32), lengths)
    text = np.fromiter(itertools.chain.from_iterable(self.text), np.int32, length)
    return TokenBatch(text=text, codes=codes, modality=modality, loss=loss, forced=forced,
                      document=np.ones(length, np.int32), position=position, turn=turn, step=step), lengths


def _write(writer: _Writer, turns: Sequence[Turn], *, drop_question: bool, closed: bool) -> None:
  """Adds one document."""
  template = writer.layout.template
  for number, turn in enumerate(turns):
    if drop_question and not number:
      writer.ids(template.null[:1], 0.0, -1)
      writer.ids(template.null[1:], 0.0, 0)
    else:
      writer.ids(template.between if number else template.start, 0.0, number or -1)
      writer.ids(template.user, 0.0, number)
      if not drop_question:
        writer.said(turn.question, template.question, 0.0, number, writer.layout.features)
      writer.ids(template.model, 0.0, number)
    if closed or number < len(turns) - 1:
      writer.answer(turn.answer, number)
      writer.ids(template.end, 1.0, number)
  writer.end()


def _one(conversation: Conversation, layout: Layout, *, drop_question: bool, closed: bool) -> TokenBatch:
  try:
    writer = _Writer(layout)
    _write(writer, conversation.turns, drop_question=drop_question, closed=closed)
    return writer.documents()[0]
  except UserError as error:
    raise UserError(f'record {conversation.id}: {error}') from error


def tokenise(conversation: Conversation, layout: Layout, *, drop_question: bool = False) -> TokenBatch:
  """Writes a conversation as one document: fields of shape [T], codes [T,D].

  Args:
    conversation: its images must carry codes.
    layout: of the model that will read it.
    drop_question: puts the null context of guidance in the place of the first question, and leaves later ones empty.

  Raises:
    UserError: an image without codes or with codes of another tokenizer; the record is named.
  """
  return _one(conversation, layout, drop_question=drop_question, closed=True)


def tokenise_all(conversations: Sequence[Conversation], layout: Layout, *,
                 drop_question: bool = False) -> tuple[TokenBatch, np.ndarray]:
  """The documents that `tokenise` gives, end to end, and the length of each; several times as quick for many."""
  writer = _Writer(layout)
  try:
    for conversation in conversations:
      _write(writer, conversation.turns, drop_question=drop_question, closed=True)
    return writer.documents()
  except UserError:
    for conversation in conversations:  # to name the record
      tokenise(conversation, layout, drop_question=drop_question)
    raise


def prompt(conversation: Conversation, layout: Layout) -> TokenBatch:
  """Writes a conversation up to where its last answer begins, which is left out: ready to be decoded."""
  return _one(conversation, layout, drop_question=False, closed=False)


def null_prompt(layout: Layout) -> TokenBatch:
  """The context of the unguided branch, up to the begin token of an image."""
  return _one(Conversation('', '', (Turn(()),)), layout, drop_question=True, closed=False)


def stack(documents: Sequence[TokenBatch], length: int, *, left: bool = False) -> TokenBatch:
  """Documents as rows [B, length], padded on the right, or on the left with `left`.

  FEATURES positions then name rows of the features of all documents, one document after another.

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
  is_feature = fields['modality'] == FEATURES
  counts = is_feature.sum(axis=1)
  fields['codes'][..., 0] += np.where(is_feature, (np.cumsum(counts) - counts)[:, None], 0).astype(np.int32)
  return TokenBatch(**fields)


def answer_begins(document: TokenBatch, turn: int) -> int:
  """Where in a document [T] the answer of a turn begins: at the first loss weight; T where there is none."""
  return int(np.argmax(np.append((np.asarray(document.turn) == turn) & (np.asarray(document.loss) > 0), True)))


def _segments(text: np.ndarray, codes: np.ndarray, modality: np.ndarray, forced: np.ndarray | None, layout: Layout,
              lead: Lead) -> Iterator[Segment]:
  *closing, stop = layout.template.end
  words: list[int] = []
  picture: list[np.ndarray] = []
  opening = True  # nothing but words so far

  def said() -> Iterator[Text]:
    string = layout.tokenizer.decode(words).removeprefix(lead.text if opening else '')
    if string:
      yield Text(string)
    words.clear()

  for t in range(len(text)):
    if modality[t] in (CODES, FEATURES):
      picture.append(codes[t])
      if len(picture) == layout.block.places:
        yield Image(codes=np.stack(picture).astype(np.int32)) if modality[t] == CODES else Image()
        picture = []
      continue
    if modality[t] != TEXT or (forced is not None and forced[t]):
      continue
    token = int(text[t])
    if token not in layout.marks and token != stop:
      words.append(token)
      continue
    if token == stop and closing and words[-len(closing):] == closing:
      del words[-len(closing):]
    if not (opening and token == layout.block.begin and tuple(words) == lead.image):
      yield from said()
    words.clear()
    opening = False
    if token == stop:
      return
  if words:
    yield from said()


def answer_of(text: np.ndarray, codes: np.ndarray, modality: np.ndarray, layout: Layout,
              forced: np.ndarray | None = None) -> tuple[Segment, ...]:
  """Reads decoded positions (fields of shape [T]) back as segments, whatever the model wrote.

  Tags are stripped, an image cut short is dropped, reading stops at the stop token. Whether the answer keeps the format
  is another question: see `interleave.grammar`.
  """
  return tuple(_segments(np.asarray(text), np.asarray(codes), np.asarray(modality), forced, layout, layout.template.answer))


def turns_of(document: TokenBatch, layout: Layout) -> tuple[Turn, ...]:
  """Reads a document back as turns; the inverse of `tokenise` up to image bytes, which become codes.

  Images that are read as features come back empty. Of a document with the null context only the answers mean something.
  """
  template = layout.template
  turns = []
  for number in range(int(document.turn.max()) + 1):
    start, stop = np.flatnonzero(document.turn == number)[[0, -1]] + (0, 1)
    middle = min(answer_begins(document, number), stop)
    opened = start + len(template.user) + (len(template.between) if number else 0)
    halves = [tuple(_segments(document.text[a:b], document.codes[a:b], document.modality[a:b], document.forced[a:b], layout,
                              lead))
              for a, b, lead in ((opened, middle - len(template.model), template.question), (middle, stop, template.answer))]
    turns.append(Turn(*halves))
  return tuple(turns)
