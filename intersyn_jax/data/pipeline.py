"""Shards to batches of tokens: tokenise, mix, shuffle, pack, slice by process; resumes exactly (DESIGN 10).

The order of documents is one global plan, a function of seed and lengths alone: Grain mixes and shuffles document
numbers, windows of them are packed first-fit into rows, and rows are cut into batches of which every process fills its
slice. So the number of processes never changes the data, and the iterator's whole state is a place in the plan. (Grain's
own packers work on a stream: packing after slicing would make rows depend on the number of processes.)

Letters: B rows of a global batch, T positions, D codes per image position.
"""

from __future__ import annotations

import bisect
import collections
import json
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import FEATURES, FILL, TEXT, Layout, TokenBatch, tokenise
from intersyn_jax.interleave.types import Conversation

NULLABLE = ('text_to_image',)
"""Splits whose questions `null_prompt_rate` may drop: guidance is about drawing from a text."""

WINDOW = 256
ENDLESS = 2**48
_STORED = {'turn': np.int16, 'step': np.int16}


class Documents:
  """The tokenised conversations of several splits, numbered through.

  Up to `keep` documents are laid end to end in memory, so that a batch is one gather per field; of larger sets only the
  lengths are kept, and a document is read and tokenised again whenever it is needed.

  Attributes:
    lengths: int32[N], positions of each document.
    ranges: numbers of the documents of each split.
    null: int32[N], number of the same document without its question, -1 where there is none.
    dropped: ids of the records that were too long.
  """

  def __init__(self, sources: Mapping[str, Sequence[Conversation]], layout: Layout, *, length: int, null: bool = False,
               too_long: str = 'error', question_weight: float = 0.0, keep: int = 500_000):
    """Tokenises everything once.

    Args:
      sources: conversations with image codes, by split name.
      layout: of the model.
      length: T; a longer document cannot be packed.
      null: also tokenise the documents of NULLABLE splits without their questions.
      too_long: 'error', or 'drop' to leave such records out.
      question_weight: of the words of questions in the loss; those of answers, and their pictures, have 1.
      keep: largest number of documents kept in memory.

    Raises:
      UserError: an image without codes or one to be read as features, a record that is too long, a split without usable
        records.
    """
    if too_long not in ('error', 'drop'):
      raise UserError(f'too_long is {too_long!r}; set it to error or drop')
    self._sources, self._layout, self._question_weight = sources, layout, question_weight
    self.has_null = null
    self.ranges: dict[str, range] = {}
    self.dropped: list[str] = []
    self._where: list[tuple[str, int, bool]] = []  # split, number in it, without question
    lengths: list[int] = []
    kept: list[TokenBatch] | None = []
    parts: list[dict[str, np.ndarray]] = []
    null_of: dict[int, int] = {}
    plain = [(split, i, False) for split, source in sources.items() for i in range(len(source))]
    for split, number, drop in self._walk(plain, null):
      document = self._tokenise(split, number, drop)
      if len(document.text) > length:
        if too_long == 'error':
          name = sources[split][number].id
          raise UserError(f'record {name} of split {split} has {len(document.text)} positions, a row has {length}; '
                          'make rows longer, or set too_long to drop')
        self.dropped.append(sources[split][number].id)
        continue
      index = len(lengths)
      if drop:
        null_of[self._numbers[split, number]] = index
      else:
        self._numbers[split, number] = index
        self.ranges[split] = range(self.ranges[split].start if split in self.ranges else index, index + 1)
      self._where.append((split, number, drop))
      lengths.append(len(document.text))
      if kept is not None:
        kept.append(document)
        if len(kept) == 4096:  # many small arrays take several times their content
          parts.append(_flatten(kept))
          kept = []
        if len(lengths) > keep:
          kept = None
    for split in sources:
      if split not in self.ranges:
        raise UserError(f'split {split} has no usable record; build it with more records or longer rows')
    self.lengths = np.asarray(lengths, np.int32)
    self.null = np.full(len(lengths), -1, np.int32)
    self.null[list(null_of)] = list(null_of.values())
    self._flat = None if kept is None else _padded([*parts, _flatten(kept, layout.block.depth)])
    self._starts = np.concatenate([[1], 1 + np.cumsum(self.lengths[:-1], dtype=np.int64)])

  def _walk(self, plain: list[tuple[str, int, bool]], null: bool) -> Iterator[tuple[str, int, bool]]:
    """All documents as they are, then those of NULLABLE splits without question, so that ranges stay whole."""
    self._numbers: dict[tuple[str, int], int] = {}
    yield from plain
    if null:
      yield from ((split, i, True) for split, i, _ in plain if split in NULLABLE and (split, i) in self._numbers)

  def _tokenise(self, split: str, number: int, drop: bool) -> TokenBatch:
    record = self._sources[split][number]
    document = tokenise(record, self._layout, drop_question=drop)
    if (document.modality == FEATURES).any():
      raise UserError(f'record {record.id} of split {split} has a picture in a question, which this family reads as features; '
                      'training batches carry codes alone: leave such records out')
    if not self._question_weight:
      return document
    asked = (document.loss == 0) & (document.modality == TEXT) & ~document.forced & (document.position > 0)
    return document.replace(loss=np.where(asked, np.float32(self._question_weight), document.loss))

  def rows(self, rows: Sequence[Sequence[int]], length: int) -> TokenBatch:
    """Fills rows with documents.

    Args:
      rows: B lists of document numbers; their lengths add up to at most T.
      length: T.

    Returns:
      TokenBatch of numpy arrays [B,T], codes [B,T,D].
    """
    if self._flat is None:
      numbers = [number for row in rows for number in row]
      flat = _padded([_flatten([self._tokenise(*self._where[number]) for number in numbers], self._layout.block.depth)])
      ends = 1 + np.cumsum([self.lengths[number] for number in numbers], dtype=np.int64)
      starts = iter(np.concatenate([[1], ends[:-1]]) if numbers else [])
      places = [[(next(starts), self.lengths[number]) for number in row] for row in rows]
    else:
      flat = self._flat
      places = [[(self._starts[number], self.lengths[number]) for number in row] for row in rows]
    source = np.zeros((len(rows), length), np.int64)  # place 0 of `flat` is padding
    document = np.zeros((len(rows), length), np.int32)
    position = np.zeros((len(rows), length), np.int32)
    for r, row in enumerate(places):
      column = 0
      for k, (start, size) in enumerate(row, start=1):
        part = slice(column, column + size)
        source[r, part] = np.arange(start, start + size)
        document[r, part] = k
        position[r, part] = np.arange(size)
        column += size
    fields = {name: np.take(array, source, axis=0) for name, array in flat.items()}
    for name in _STORED:
      fields[name] = fields[name].astype(np.int32)
    return TokenBatch(**fields, document=document, position=position)


def _flatten(documents: Sequence[TokenBatch], depth: int = 1) -> dict[str, np.ndarray]:
  """Fields of all documents end to end."""
  kinds = {'text': np.int32, 'codes': np.int32, 'modality': np.int8, 'loss': np.float32, 'forced': np.bool_} | _STORED
  flat = {}
  for name, kind in kinds.items():
    empty = np.zeros((0, depth) if name == 'codes' else (0,), kind)
    flat[name] = np.concatenate([getattr(document, name) for document in documents] or [empty]).astype(kind, copy=False)
  return flat


def _padded(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """All parts end to end, after one place of padding."""
  padding = {name: np.full((1, *array.shape[1:]), FILL.get(name, 0), array.dtype) for name, array in parts[-1].items()}
  return {name: np.concatenate([place, *(part[name] for part in parts)]) for name, place in padding.items()}


class _Epochs(Sequence[int]):
  """Document numbers, epoch after epoch, each in another order.

  Grain's `shuffle` finds one place at a time and takes milliseconds for it when a set is small; a permutation of an epoch
  is made once and kept while it is in use.
  """

  def __init__(self, numbers: np.ndarray, key: Sequence[int], epochs: int, shuffle: bool):
    self._numbers, self._key, self._epochs, self._shuffle = numbers, tuple(key), epochs, shuffle
    self._current: tuple[int, np.ndarray] = (-1, numbers)

  def __len__(self) -> int:
    return len(self._numbers) * self._epochs

  def __getitem__(self, index):
    epoch, place = divmod(index, len(self._numbers))
    if not self._shuffle:
      return int(self._numbers[place])
    current = self._current
    if current[0] != epoch:
      rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((*self._key, epoch))))
      current = self._current = (epoch, rng.permutation(self._numbers))
    return int(current[1][place])


class Plan(Sequence[list[int]]):
  """Which documents stand in which row, for all rows of the run.

  Windows of WINDOW documents in mixed order are packed first-fit. A plan may be endless: only the row counts of the
  windows passed are remembered, and the rows of a window are worked out again when needed. `anchor` spares a resumed run
  the windows before its place.
  """

  def __init__(self, order: grain.MapDataset, documents: Documents, length: int, *, seed: int, null_rate: float):
    self._order, self._documents, self._length = order, documents, length
    self._seed, self._null_rate = seed, null_rate
    self._first, self._starts = 0, [0]  # first row of window `_first` and of those after it, as far as planned
    self._recent: collections.OrderedDict[int, list[list[int]]] = collections.OrderedDict()
    self._lock = threading.Lock()  # Grain reads from its prefetch threads

  def __len__(self) -> int:
    """Number of rows; of a finite plan only."""
    with self._lock:
      while self._extend():
        pass
      return self._starts[-1]

  def __getitem__(self, row):
    with self._lock:
      window = self._find(row)
      return self._pack(window)[row - self._starts[window - self._first]]

  def place(self, row: int) -> tuple[int, int]:
    """The window that holds a row (the last one for rows past the end), and its first row: what `anchor` takes."""
    with self._lock:
      try:
        window = self._find(row)
      except IndexError:
        window = self._first + len(self._starts) - 2
      return window, self._starts[window - self._first]

  def anchor(self, window: int, row: int) -> None:
    """Takes for granted that `window` begins with `row`, as `place` said in an earlier run."""
    with self._lock:
      self._first, self._starts = window, [row]

  def _find(self, row: int) -> int:
    if row < self._starts[0]:
      self._first, self._starts = 0, [0]
    while self._starts[-1] <= row:
      if not self._extend():
        raise IndexError(row)
    return self._first + bisect.bisect_right(self._starts, row) - 1

  def _extend(self) -> bool:
    """Plans one window more; False at the end of a finite plan."""
    window = self._first + len(self._starts) - 1
    if window * WINDOW >= len(self._order):
      return False
    self._starts.append(self._starts[-1] + len(self._pack(window)))
    return True

  def _pack(self, window: int) -> list[list[int]]:
    if window in self._recent:
      return self._recent[window]
    first = window * WINDOW
    numbers = [self._order[i] for i in range(first, min(first + WINDOW, len(self._order)))]
    if self._null_rate:
      # Keyed by the window, so that a draw belongs to one place of the order, whoever asks for it and when.
      draws = np.random.Generator(np.random.Philox(key=[self._seed % 2**63, window])).random(WINDOW)
      null = self._documents.null
      numbers = [int(null[n]) if draw < self._null_rate and null[n] >= 0 else n
                 for n, draw in zip(numbers, draws[:len(numbers)], strict=True)]
    rows = self._recent[window] = _first_fit(numbers, self._documents.lengths, self._length)
    if len(self._recent) > 8:
      self._recent.popitem(last=False)
    return rows


def _first_fit(numbers: Sequence[int], lengths: np.ndarray, length: int) -> list[list[int]]:
  """Puts each document into the first row that has room for it."""
  free = np.full(len(numbers), length)
  rows: list[list[int]] = []
  for number in numbers:
    row = int(np.argmax(free >= lengths[number]))
    if row == len(rows):
      rows.append([])
    rows[row].append(number)
    free[row] -= lengths[number]
  return rows


class _Batches(Sequence[TokenBatch]):
  """Random access to this process's slice of every global batch."""

  def __init__(self, plan: Plan, documents: Documents, length: int, rows: int, process: range, endless: bool):
    self._plan, self._documents, self._length = plan, documents, length
    self._rows, self._process = rows, process
    self._count = ENDLESS if endless else -(-len(plan) // rows)

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, batch):
    rows = []
    for row in range(batch * self._rows + self._process.start, batch * self._rows + self._process.stop):
      try:
        rows.append(self._plan[row])
      except IndexError:  # the last batch of a finite plan is filled up with empty rows
        rows.append([])
    return self._documents.rows(rows, self._length)


class BatchIterator(grain.DatasetIterator[TokenBatch]):
  """Grain's iterator over batches, whose state also says where the plan stands; `grain.checkpoint` takes it."""

  def __init__(self, inner: grain.DatasetIterator[TokenBatch], plan: Plan, rows: int, fingerprint: int):
    super().__init__(inner)
    self._inner, self._plan, self._rows, self._fingerprint = inner, plan, rows, fingerprint

  def __next__(self) -> TokenBatch:
    return next(self._inner)

  def get_state(self) -> dict[str, Any]:
    """State of a few numbers, the same on all processes: it may be restored with another number of them."""
    state = self._inner.get_state()
    window, row = self._plan.place(state['next_index'] * self._rows - 1) if state['next_index'] else (0, 0)
    return state | {'window': window, 'row': row, 'fingerprint': self._fingerprint}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on where `get_state` was called.

    Raises:
      UserError: the state belongs to other data, or to another order of them.
    """
    if state.get('fingerprint') != self._fingerprint:
      raise UserError('the checkpoint was made with other data, batch size, weights or seed than this run reads; '
                      'set them back, or start the stage in another work folder')
    self._plan.anchor(state['window'], state['row'])
    self._inner.set_state({k: v for k, v in state.items() if k not in ('window', 'row', 'fingerprint')})


class Pipeline:
  """An endless or finite run of batches; `iter` gives a `BatchIterator`.

  Attributes:
    documents: what it reads.
    dataset: the Grain IterDataset of TokenBatch with numpy arrays [B / processes, T].
  """

  def __init__(self, documents: Documents, *, rows: int, length: int, seed: int,
               weights: Mapping[str, float] | None = None, epochs: int | None = None, shuffle: bool = True,
               null_prompt_rate: float = 0.0, process_index: int = 0, process_count: int = 1, threads: int = 1,
               prefetch: int = 8):
    """Plans the order.

    Args:
      documents: tokenised with at least this `length`, and with `null` if `null_prompt_rate` is not 0.
      rows: B of the global batch, over all processes.
      length: T.
      seed: of order and null prompts.
      weights: share of documents from each split in an endless run, normalised; all splits alike if None. A weight of 0
        leaves a split out.
      epochs: None for an endless run; else every document of every split comes exactly this often and `weights` must
        be None. The last batch is filled up with empty rows.
      shuffle: anew in every epoch.
      null_prompt_rate: share of text-to-image documents that lose their question, drawn anew each time.
      process_index, process_count: this process fills rows [B * i / n, B * (i + 1) / n) of each batch.
      threads, prefetch: of Grain's reader; they do not change the data. 0 threads reads in the caller's.

    Raises:
      UserError: rows that do not divide by processes, weights of unknown splits or without a positive sum.
    """
    if rows < 1 or rows % process_count:
      raise UserError(f'batch of {rows} rows does not divide among {process_count} processes; change the batch size')
    if not 0 <= null_prompt_rate <= 1:
      raise UserError(f'null_prompt_rate is {null_prompt_rate}; set it between 0 and 1')
    if null_prompt_rate and not documents.has_null:
      raise ValueError('null_prompt_rate needs Documents(..., null=True)')
    shares = _shares(documents, weights, epochs)
    numbers = [np.asarray(documents.ranges[split]) for split in shares]
    if epochs is not None:
      order = grain.MapDataset.source(_Epochs(np.concatenate(numbers), [seed % 2**63, 0], epochs, shuffle))
    else:
      parts = [grain.MapDataset.source(_Epochs(part, [seed % 2**63, i], ENDLESS // len(part), shuffle))
               for i, part in enumerate(numbers)]
      order = grain.MapDataset.mix(parts, list(shares.values())) if len(parts) > 1 else parts[0]
    self._plan = Plan(order, documents, length, seed=seed, null_rate=null_prompt_rate)
    mine = range(rows * process_index // process_count, rows * (process_index + 1) // process_count)
    self.documents = documents
    self.batches = _Batches(self._plan, documents, length, rows, mine, endless=epochs is None)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch if threads else 0)
    self.dataset = grain.MapDataset.source(self.batches).to_iter_dataset(options)

    described = json.dumps([rows, length, seed, shares, epochs, shuffle, null_prompt_rate, WINDOW])
    self._fingerprint = zlib.crc32(documents.lengths.tobytes(), zlib.crc32(described.encode()))
    self._rows = rows

  def __iter__(self) -> BatchIterator:
    return BatchIterator(iter(self.dataset), self._plan, self._rows, self._fingerprint)

  def __len__(self) -> int:
    """Number of batches; of a finite run."""
    return len(self.batches)


def _shares(documents: Documents, weights: Mapping[str, float] | None, epochs: int | None) -> dict[str, float]:
  splits = list(documents.ranges)
  if weights is None:
    return dict.fromkeys(splits, 1.0)
  if epochs is not None:
    raise UserError('weights and epochs exclude each other: an epoch holds every document once; leave out one of them')
  if unknown := set(weights) - set(splits):
    raise UserError(f'weights name split {min(unknown)!r}, there are: {", ".join(splits)}; mend the weights')
  shares = {split: float(weights[split]) for split in splits if weights.get(split, 0)}
  if not shares or min(shares.values()) < 0:
    raise UserError(f'weights {dict(weights)} have no positive sum or a negative entry; mend the weights')
  return shares
