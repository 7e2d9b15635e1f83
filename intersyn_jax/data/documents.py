"""Conversations as tokens, kept end to end, and rows filled with them.

Letters: B rows, T positions, D codes per image position, N documents.
"""

from __future__ import annotations

import itertools
import mmap
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np

from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import FEATURES, FILL, TEXT, Layout, TokenBatch, tokenise_all
from intersyn_jax.interleave.types import Conversation

NULLABLE = ('text_to_image',)
"""Splits whose questions `null_prompt_rate` may drop: guidance is about drawing from a text."""

MEMORY = 4 << 30
"""Bytes of documents above which they go to a file."""

_TOGETHER = 256
"""Records that are tokenised at once."""

_KINDS = {'turn': np.int32, 'step': np.int32}
"""Fields of a batch that have another type than where they are kept."""


def _kinds(depth: int) -> np.dtype:
  """What is kept of a position. One record instead of seven arrays: a document is then copied into its row at once."""
  return np.dtype([('text', np.int32), ('codes', np.int32, (depth,)), ('modality', np.int8), ('loss', np.float32),
                   ('forced', np.bool_), ('turn', np.int16), ('step', np.int16)])


class Documents:
  """The tokenised conversations of several splits, numbered through, 14 + 4 D bytes a position.

  Attributes:
    lengths: int32[N], positions of each document.
    ranges: numbers of the documents of each split.
    splits: int16[N], number of each document's split in `ranges`, those without question included.
    null: int32[N], number of the same document without its question, -1 where there is none.
    dropped: ids of the records that were too long.
  """

  def __init__(self, sources: Mapping[str, Sequence[Conversation]], layout: Layout, *, length: int, null: bool = False,
               too_long: str = 'error', question_weight: float = 0.0, memory: int = MEMORY):
    """Tokenises everything once.

    Args:
      sources: conversations with image codes, by split name.
      layout: of the model.
      length: T; a longer document cannot be packed.
      null: also tokenise the documents of NULLABLE splits without their questions.
      too_long: 'error', or 'drop' to leave such records out.
      question_weight: of the words of questions in the loss; those of answers, and their pictures, have 1.
      memory: bytes above which documents go to a temporary file, from which the system reads what a batch needs.

    Raises:
      UserError: an image without codes or one to be read as features, a record that is too long, a split without usable
        records, no room for the temporary file.
    """
    if too_long not in ('error', 'drop'):
      raise UserError(f'too_long is {too_long!r}; set it to error or drop')
    if not sources:
      raise UserError('no split has a record to train on; build the data with more records, or give another mix')
    self._layout, self._length, self._question_weight = layout, length, question_weight
    self._drop = too_long == 'drop'
    self._kinds = _kinds(layout.block.depth)
    self.has_null = null
    self.ranges: dict[str, range] = {}
    self.dropped: list[str] = []
    flat = _Flat(self._kinds.itemsize, memory)
    found: list[tuple[int, int, int]] = []  # split, where it begins, positions
    without: list[tuple[int, int, int, int]] = []  # the same of those without question, and the number of the whole one
    for number, (split, source) in enumerate(sources.items()):
      first, records = len(found), iter(source)
      while some := list(itertools.islice(records, _TOGETHER)):
        begun = len(found)
        whole = self._add(flat, some, split)
        found += [(number, *place) for place in whole if place]
        if null and split in NULLABLE:
          numbers = itertools.count(begun)
          again = [(record, next(numbers)) for record, place in zip(some, whole, strict=True) if place]
          places = self._add(flat, [record for record, _ in again], split, drop_question=True)
          without += [(number, *place, same) for place, (_, same) in zip(places, again, strict=True) if place]
      if len(found) == first:
        raise UserError(f'split {split} has no usable record; build it with more records or longer rows')
      self.ranges[split] = range(first, len(found))
    *columns, whole = np.asarray([*((*row, -1) for row in found), *without], np.int64).T
    self.splits, self._starts, self.lengths = columns[0].astype(np.int16), columns[1], columns[2].astype(np.int32)
    self.null = np.full(len(whole), -1, np.int32)
    self.null[whole[len(found):]] = np.arange(len(found), len(whole))
    self._flat = flat.array()

  def _add(self, flat: _Flat, records: Sequence[Conversation], split: str,
           drop_question: bool = False) -> list[tuple[int, int] | None]:
    """Keeps some conversations; gives the place and the length of each, None of one that is too long, and may be."""
    if not records:
      return []
    tokens, lengths = tokenise_all(records, self._layout, drop_question=drop_question)
    number = np.repeat(np.arange(len(records)), lengths)  # of the record, for every position
    if len(seen := number[tokens.modality == FEATURES]):
      raise UserError(f'record {records[seen[0]].id} of split {split} has a picture in a question, which this family reads as '
                      'features; training batches carry codes alone: leave such records out')
    fits = lengths <= self._length
    for record, length in zip(records, lengths.tolist(), strict=True):
      if length > self._length and not self._drop:
        raise UserError(f'record {record.id} of split {split} has {length} positions, a row has {self._length}; '
                        'make rows longer, or set too_long to drop')
    self.dropped += [record.id for record, fit in zip(records, fits, strict=True) if not fit]
    out = np.empty(len(number), self._kinds)
    for name in self._kinds.names:
      out[name] = getattr(tokens, name)
    if self._question_weight:
      asked = (tokens.loss == 0) & (tokens.modality == TEXT) & ~tokens.forced & (tokens.position > 0)
      out['loss'][asked] = self._question_weight
    if not fits.all():
      out = out[fits[number]]
    # As plain bytes, V[length]: copying these is ten times as quick as copying named fields.
    start = flat.add(out.view(f'V{out.itemsize}'))
    starts = start + np.cumsum(lengths * fits) - lengths
    return [(begin, length) if fit else None
            for begin, length, fit in zip(starts.tolist(), lengths.tolist(), fits.tolist(), strict=True)]

  def rows(self, rows: Sequence[Sequence[int]], length: int) -> TokenBatch:
    """Fills rows with documents.

    Args:
      rows: B lists of document numbers; their lengths add up to at most T.
      length: T.

    Returns:
      TokenBatch of numpy arrays [B,T], codes [B,T,D].
    """
    padding = np.zeros(length, self._kinds)
    for name, value in FILL.items():
      padding[name] = value
    padding = padding.view(f'V{padding.itemsize}')
    every = [number for row in rows for number in row]
    places = zip(self._starts[every].tolist(), self.lengths[every].tolist(), strict=True)
    runs: list[np.ndarray] = []  # every document, and after those of a row what fills it
    numbers: list[int] = []
    for row in rows:
      free = length
      for start, size in itertools.islice(places, len(row)):
        runs.append(self._flat[start:start + size])
        free -= size
      runs.append(padding[length - free:])
      numbers += [*range(1, len(row) + 1), 0]
    filled = np.concatenate(runs).view(self._kinds).reshape(len(rows), length)
    sizes = np.asarray([len(run) for run in runs])
    document = np.repeat(np.asarray(numbers, np.int32), sizes)
    position = np.arange(len(document), dtype=np.int32) - np.repeat((np.cumsum(sizes) - sizes).astype(np.int32), sizes)
    position *= document > 0
    fields = {name: filled[name].astype(_KINDS.get(name, self._kinds[name].base)) for name in self._kinds.names}
    return TokenBatch(**fields, document=document.reshape(filled.shape), position=position.reshape(filled.shape))


class _Flat:
  """Documents end to end: in memory, or past a limit in a file that nobody else sees and that ends with this process."""

  _PART = 1 << 26
  """Bytes that are written at once."""

  def __init__(self, itemsize: int, memory: int):
    self._itemsize, self._memory = itemsize, memory
    self._parts: list[np.ndarray] = []
    self._held = self._size = 0  # bytes in `_parts`, records in all
    self._file = None

  def add(self, records: np.ndarray) -> int:
    """Appends records V[n]; gives the place of the first."""
    start = self._size
    self._parts.append(records)
    self._held += records.nbytes
    self._size += len(records)
    if self._held > (self._memory if self._file is None else self._PART):
      self._write()
    return start

  def _write(self) -> None:
    try:
      self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115 -- open as long as the documents are
      self._file.write(np.concatenate(self._parts).view(np.uint8).data)
      self._file.flush()
    except OSError as error:
      size = self._size * self._itemsize >> 20
      raise UserError(f'there is no room for the tokens in {tempfile.gettempdir()} ({error.strerror}; {size} MiB up to now); '
                      'set TMPDIR to a folder on a larger disk') from error
    self._parts, self._held = [], 0

  def array(self) -> np.ndarray:
    """All records, V[n]."""
    if self._file is None:
      return np.concatenate(self._parts)
    if self._parts:
      self._write()
    return np.frombuffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ), f'V{self._itemsize}')
