"""Documents to batches: mixed, shuffled, packed, sliced by process; resumes exactly (DESIGN 10).

    documents = Documents({'interleaved': conversations}, layout, length=512)
    for batch in Pipeline(documents, rows=64, length=512, seed=0): ...

The order of documents is one global plan (`data.plan`), a function of seed and lengths alone. Its rows are cut into batches
of which every process fills its own rows. So the number of processes never changes the data, and the iterator's whole state is
a place in the plan, which Grain keeps.

Letters: B rows of a global batch, T positions.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from intersyn_jax.data.documents import Documents
from intersyn_jax.data.plan import ENDLESS, WINDOW, Epochs, Order, Plan
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import TokenBatch


class _Batches(Sequence[TokenBatch]):
  """Random access to this process's rows of every global batch."""

  def __init__(self, plan: Plan, documents: Documents, length: int, rows: int, mine: Sequence[int], endless: bool):
    self._plan, self._documents, self._length = plan, documents, length
    self._rows, self._mine = rows, mine
    self._count = ENDLESS if endless else -(-len(plan) // rows)

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, batch):
    rows = self._plan.rows(batch * self._rows + row for row in self._mine)
    return self._documents.rows(rows, self._length)


class BatchIterator(grain.DatasetIterator[TokenBatch]):
  """Grain's iterator over batches, whose state also says where the plan stands; `grain.checkpoint` takes it."""

  def __init__(self, inner: grain.DatasetIterator[TokenBatch], plan: Plan, rows: int, splits: Sequence[str],
               fingerprint: int):
    super().__init__(inner)
    self._inner, self._plan, self._rows, self._splits, self._fingerprint = inner, plan, rows, tuple(splits), fingerprint

  def __next__(self) -> TokenBatch:
    return next(self._inner)

  def get_state(self) -> dict[str, Any]:
    """State of a few numbers, the same on all processes: it may be restored with another number of them."""
    state = self._inner.get_state()
    window, row, taken = self._plan.place(max(0, state['next_index'] * self._rows - 1))
    return state | {'window': window, 'row': row, 'taken': taken.tolist(), 'fingerprint': self._fingerprint}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on where `get_state` was called.

    Raises:
      UserError: the state belongs to other data, or to another order of them.
    """
    if state.get('fingerprint') != self._fingerprint:
      raise UserError('the checkpoint was made with other data, batch size, weights or seed than this run reads, or by '
                      'another version; set them back, or start the stage in another work folder')
    self._plan.anchor(state['window'], state['row'], np.asarray(state['taken'], np.int64))
    self._inner.set_state({k: v for k, v in state.items() if k not in ('window', 'row', 'taken', 'fingerprint')})

  def counts(self) -> dict[str, int]:
    """What all processes together have read of each split: `documents_read.SPLIT` and `positions_read.SPLIT`.

    They follow from the plan and the place in it, so that a resumed run has the numbers of one that was never cut.
    """
    read = self._inner.get_state()['next_index'] * self._rows
    taken = self._plan.taken(read) if read else np.zeros((len(self._splits), 2), np.int64)
    return {f'{name}_read.{split}': int(n) for split, row in zip(self._splits, taken, strict=True)
            for name, n in zip(('documents', 'positions'), row, strict=True)}


class Pipeline:
  """An endless or finite run of batches; `iter` gives a `BatchIterator`.

  Attributes:
    documents: what it reads.
    dataset: the Grain IterDataset of TokenBatch with numpy arrays [n, T], n of the B rows being this process's.
  """

  def __init__(self, documents: Documents, *, rows: int, length: int, seed: int,
               weights: Mapping[str, float] | None = None, epochs: int | None = None, shuffle: bool = True,
               null_prompt_rate: float = 0.0, mine: Sequence[int] | None = None):
    """Plans the order.

    Args:
      documents: tokenised with at most this `length`, and with `null` if `null_prompt_rate` is not 0.
      rows: B of the global batch, over all processes.
      length: T.
      seed: of order and null prompts.
      weights: share of documents from each split in an endless run, normalised; all splits alike if None. A weight of 0
        leaves a split out.
      epochs: None for an endless run; else every document of every split comes exactly this often and `weights` must
        be None. The last batch is filled up with empty rows.
      shuffle: anew in every epoch.
      null_prompt_rate: share of text-to-image documents that lose their question, drawn anew each time.
      mine: the rows of each batch that this process fills, of 0 to B - 1 (`sharding.process_rows`); None for all.

    Raises:
      UserError: no rows, weights of unknown splits or without a positive sum.
    """
    if rows < 1:
      raise UserError(f'a batch of {rows} rows holds nothing; set at least 1')
    if not 0 <= null_prompt_rate <= 1:
      raise UserError(f'null_prompt_rate is {null_prompt_rate}; set it between 0 and 1')
    if null_prompt_rate and not documents.has_null:
      raise ValueError('null_prompt_rate needs Documents(..., null=True)')
    if documents.lengths.max() > length:
      raise ValueError(f'a document has {documents.lengths.max()} positions, a row {length}')
    shares = _shares(documents, weights, epochs)
    numbers = [np.asarray(documents.ranges[split]) for split in shares]
    if epochs is not None:
      numbers = [np.concatenate(numbers)]
    parts = [Epochs(part, [seed % 2**63, i], shuffle) for i, part in enumerate(numbers)]
    order = Order(parts, list(shares.values()) if epochs is None else [1.0],
                   ENDLESS if epochs is None else len(numbers[0]) * epochs)
    self._plan = Plan(order, documents, length, seed=seed, null_rate=null_prompt_rate)
    self.documents = documents
    self.batches = _Batches(self._plan, documents, length, rows, range(rows) if mine is None else [int(row) for row in mine],
                            endless=epochs is None)
    # A batch takes half a millisecond, while the devices compute. A thread that read ahead took longer: it and the loop share
    # the interpreter's lock.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    self.dataset = grain.MapDataset.source(self.batches).to_iter_dataset(options)

    described = json.dumps([rows, length, seed, shares, epochs, shuffle, null_prompt_rate, WINDOW, 'best fit'])
    self._fingerprint = zlib.crc32(documents.lengths.tobytes(), zlib.crc32(described.encode()))
    self._rows = rows

  def __iter__(self) -> BatchIterator:
    return BatchIterator(iter(self.dataset), self._plan, self._rows, list(self.documents.ranges), self._fingerprint)

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
