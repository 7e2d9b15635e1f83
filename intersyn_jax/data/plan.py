"""The order of documents: mixed, shuffled, packed into rows, all of it a function of seed and lengths alone.

Document numbers of several splits are mixed in fixed shares and shuffled anew every epoch; windows of them are packed into
rows. Any row can be asked for at any time, by any process, with the same answer.

Grain mixes and packs too, but it looks up a document at a time, which took three quarters of the time of a batch, and its
packers (first-fit, best-fit) work on a stream: after slicing by process, rows would depend on the number of processes. Best
fit with the longest document first fills 2 to 4 % more than either (docs/performance.md).

Letters: N documents, S splits.
"""

from __future__ import annotations

import bisect
import collections
import threading
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

WINDOW = 256
"""Documents that are packed together."""
ENDLESS = 2**48


class Documents(Protocol):
  """What a plan asks of documents.

  Attributes:
    lengths: int32[N], positions of each.
    splits: int16[N], number of each document's split in `ranges`.
    ranges: numbers of the documents of each split, without those that have lost their question.
    null: int32[N], number of the same document without its question, -1 where there is none.
  """

  lengths: np.ndarray
  splits: np.ndarray
  ranges: dict[str, range]
  null: np.ndarray


class Epochs:
  """Document numbers, epoch after epoch, each in another order. The permutation of an epoch is kept while it is in use."""

  def __init__(self, numbers: np.ndarray, key: Sequence[int], shuffle: bool):
    self._numbers, self._key, self._shuffle = numbers, tuple(key), shuffle
    self._current: tuple[int, np.ndarray] = (-1, numbers)

  def __len__(self) -> int:
    """Documents of one epoch."""
    return len(self._numbers)

  def at(self, places: np.ndarray) -> np.ndarray:
    """The numbers at these places, int64[n], of an endless row of epochs; places go up."""
    if not len(places):
      return places
    epochs, inside = np.divmod(places, len(self._numbers))
    return np.concatenate([self._epoch(epoch)[inside[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)])

  def _epoch(self, epoch: int) -> np.ndarray:
    if self._shuffle and self._current[0] != epoch:
      rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((*self._key, epoch))))
      self._current = (epoch, rng.permutation(self._numbers))
    return self._current[1]


class Order:
  """The documents of a run, one after another: splits in fixed shares, as evenly spread as whole numbers allow."""

  def __init__(self, parts: Sequence[Epochs], shares: Sequence[float], count: int):
    """
    Args:
      parts: of each split.
      shares: of each split, in any unit; taken to a hundredth of the smallest, as Grain's `mix` does.
      count: documents in all; ENDLESS if there is no end.
    """
    self._parts, self.count = parts, count
    self._shares = [int(share * 100 / min(shares)) for share in shares]

  def numbers(self, start: int, stop: int) -> np.ndarray:
    """Document numbers at places start to stop, int64[n]; fewer at the end of a finite run."""
    out = np.zeros(max(0, min(stop, self.count) - start), np.int64)
    # Of the first k places, `before` are left to this split and those after it, which hands `after` of them on.
    left, before = sum(self._shares), start + np.arange(len(out) + 1)
    for part, share in zip(self._parts, self._shares, strict=True):
      after = before * (left - share) // left
      taken = before - after
      out[np.diff(taken) > 0] = part.at(np.arange(taken[0], taken[-1]))
      left, before = left - share, after
    return out


class Plan:
  """Which documents stand in which row, for all rows of the run.

  Windows of WINDOW documents in mixed order are packed by best fit, the longest first. A plan may be endless: only the row
  counts of the windows passed are remembered, with what they took of each split, and the rows of a window are worked out
  again when needed. `anchor` spares a resumed run the windows before its place.
  """

  def __init__(self, order: Order, documents: Documents, length: int, *, seed: int, null_rate: float):
    self._order, self._documents, self._length = order, documents, length
    self._seed, self._null_rate = seed, null_rate
    self._recent: collections.OrderedDict[int, list[list[int]]] = collections.OrderedDict()
    self._lock = threading.Lock()  # a dataset may be read in threads
    self._begin(0, 0, np.zeros((len(documents.ranges), 2), np.int64))

  def __len__(self) -> int:
    """Number of rows; of a finite plan only."""
    with self._lock:
      while self._extend():
        pass
      return self._starts[-1]

  def rows(self, numbers: Iterable[int]) -> list[list[int]]:
    """The rows of these numbers, which go up; an empty one for each past the end."""
    out: list[list[int]] = []
    with self._lock:
      first, packed = 0, []
      for row in numbers:
        if row - first >= len(packed):
          try:
            window = self._find(row)
          except IndexError:
            out.append([])
            continue
          first, packed = self._starts[window - self._first], self._pack(window)
        out.append(packed[row - first])
    return out

  def place(self, row: int) -> tuple[int, int, np.ndarray]:
    """The window that holds a row (the last one for rows past the end), its first row, and what lies before that (see
    `taken`): what `anchor` takes."""
    with self._lock:
      try:
        window = self._find(row)
      except IndexError:
        window = self._first + len(self._starts) - 2
      return window, self._starts[window - self._first], self._taken[window - self._first]

  def anchor(self, window: int, row: int, taken: np.ndarray) -> None:
    """Takes for granted that `window` begins with `row`, as `place` said in an earlier run."""
    with self._lock:
      self._begin(window, row, taken)

  def taken(self, rows: int) -> np.ndarray:
    """Documents and positions of each split in the first `rows` rows, int64[S,2]."""
    window, first, before = self.place(rows - 1)
    with self._lock:
      return before + self._count(self._pack(window)[:rows - first])

  def _begin(self, window: int, row: int, taken: np.ndarray) -> None:
    self._first = window
    self._starts, self._taken = [row], [taken]  # of window `_first` and of those after it, as far as planned

  def _find(self, row: int) -> int:
    if row < self._starts[0]:
      self._begin(0, 0, np.zeros_like(self._taken[0]))
    while self._starts[-1] <= row:
      if not self._extend():
        raise IndexError(row)
    return self._first + bisect.bisect_right(self._starts, row) - 1

  def _extend(self) -> bool:
    """Plans one window more; False at the end of a finite plan."""
    window = self._first + len(self._starts) - 1
    if window * WINDOW >= self._order.count:
      return False
    rows = self._pack(window)
    self._starts.append(self._starts[-1] + len(rows))
    self._taken.append(self._taken[-1] + self._count(rows))
    return True

  def _count(self, rows: list[list[int]]) -> np.ndarray:
    numbers = np.asarray([number for row in rows for number in row], np.int64)
    splits, lengths = self._documents.splits[numbers], self._documents.lengths[numbers]
    count = len(self._documents.ranges)
    return np.stack([np.bincount(splits, weight, count).astype(np.int64) for weight in (None, lengths)], axis=1)

  def _pack(self, window: int) -> list[list[int]]:
    if window in self._recent:
      return self._recent[window]
    numbers = self._order.numbers(window * WINDOW, (window + 1) * WINDOW)
    # Keyed by the window, so that a draw belongs to one place of the order, whoever asks for it and when.
    rng = np.random.Generator(np.random.Philox(key=[self._seed % 2**63, window]))
    if self._null_rate:
      null = self._documents.null[numbers]
      numbers = np.where((rng.random(WINDOW)[:len(numbers)] < self._null_rate) & (null >= 0), null, numbers)
    rows = best_fit(numbers, self._documents.lengths[numbers], self._length)
    rows = self._recent[window] = [rows[i] for i in rng.permutation(len(rows))]  # rows of long documents came first
    if len(self._recent) > 8:
      self._recent.popitem(last=False)
    return rows


def best_fit(numbers: np.ndarray, lengths: np.ndarray, length: int) -> list[list[int]]:
  """Puts each document, the longest first, into the fullest row that has room for it."""
  rows: list[list[int]] = []
  free: list[int] = []  # places left in a row, and the row, as one number that sorts; such numbers are quicker than pairs
  count = len(numbers) or 1
  order = np.argsort(-lengths, kind='stable')
  for number, size in zip(numbers[order].tolist(), lengths[order].tolist(), strict=True):
    fullest = bisect.bisect_left(free, size * count)
    if fullest == len(free):
      rows.append([])
      left, row = length, len(rows) - 1
    else:
      left, row = divmod(free.pop(fullest), count)
    rows[row].append(number)
    bisect.insort(free, (left - size) * count + row)
  return rows
