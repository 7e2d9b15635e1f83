"""Rows become encoded records: in order, in this process or shared out to several, with the same result.

Reading rows is cheap and done here; decoding and resizing pictures is not, and is what other processes do. They are spawned, not
forked: jax may have started its threads already.
"""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

from intersyn_jax.data import manifest, records
from intersyn_jax.data.importers import rows
from intersyn_jax.errors import UserError

BATCH = 8
"""Rows that go to another process at once."""

LONGEST = 1000
"""Characters of a reason: what a row holds may be quoted in it, and is of any length."""


class Outcome(NamedTuple):
  """What became of a row.

  Attributes:
    where: its place in the source.
    name: its id in the source, as far as it has one.
    data: the record; b'' where the row is left out.
    reason: why it is left out.
    id: of the record.
    key: field of the source that holds the id, where it must be new.
  """

  where: str
  name: str
  data: bytes = b''
  reason: str = ''
  id: str = ''
  key: str = ''


Item = Outcome | tuple[str, Any]
"""(where, row), or the outcome of a row that the reader left out."""


def outcomes(source: rows.Conversations, left_out: list[manifest.Rejected], *, skip: int = 0, workers: int = 0,
             ) -> Iterator[Outcome]:
  """Yields what becomes of each row, in order. Whether an id is new, the caller must see.

  Args:
    source: the rows.
    left_out: where the reader of the source lists rows that it cannot read; emptied on the way.
    skip: so many outcomes at the start are not made; their rows are read.
    workers: processes that make conversations; 0: this one.

  Raises:
    UserError: one of these processes ended early, or the source says so.
  """
  found = itertools.islice(items(source, left_out), skip, None)
  if workers:
    yield from _shared_out(source, found, workers)
  else:
    for item in found:
      yield item if isinstance(item, Outcome) else _outcome(source, item, *convert(source.make, source.strict, *item))


def items(source: rows.Conversations, left_out: list[manifest.Rejected]) -> Iterator[Item]:
  """The rows of a source, in order, and in their places those that its reader left out."""
  for item in itertools.chain(source.found, (None,)):
    for row in left_out:
      yield Outcome(row.where, row.id, reason=row.reason)
    left_out.clear()
    if item is not None:
      yield item


def _outcome(source: rows.Conversations, item: tuple[str, Any], data: bytes, text: str) -> Outcome:
  where, row = item
  return Outcome(where, source.name(row), data, '' if data else text, text if data else '', source.key)


def convert(make: rows.Make, strict: bool, where: str, row: Any) -> tuple[bytes, str]:
  """The record of a row and its id, or b'' and the reason why there is none."""
  try:
    conversation = make(where, row)
    return records.encode(conversation), conversation.id
  except (ValueError, UserError) as error:
    if strict:
      raise
    return b'', str(error)[:LONGEST]


# Other processes.


def _shared_out(source: rows.Conversations, found: Iterator[Item], workers: int) -> Iterator[Outcome]:
  pool = futures.ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'), _begin, (source.make, source.strict))
  waiting: collections.deque[tuple[list[Item], futures.Future]] = collections.deque()
  try:
    while batch := list(itertools.islice(found, BATCH)):
      waiting.append((batch, pool.submit(_convert_all, [item for item in batch if not isinstance(item, Outcome)])))
      if len(waiting) > 2 * workers:
        yield from _gathered(source, *waiting.popleft())
    while waiting:
      yield from _gathered(source, *waiting.popleft())
  finally:
    pool.shutdown(cancel_futures=True)


def _gathered(source: rows.Conversations, batch: list[Item], future: futures.Future) -> Iterator[Outcome]:
  try:
    made = iter(future.result())
  except futures.process.BrokenProcessPool as error:
    places = [item[0] for item in batch]
    raise UserError(f'a process that made records of {places[0]} to {places[-1]} ended early (memory, or a picture that its '
                    'decoder dies of?); the same command goes on from the last finished shard: take fewer data.workers, or '
                    'leave these rows out') from error
  for item in batch:
    yield item if isinstance(item, Outcome) else _outcome(source, item, *next(made))


_task: tuple[rows.Make, bool]  # of a process that was spawned


def _begin(make: rows.Make, strict: bool) -> None:
  global _task
  _task = make, strict
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked for the work ends it
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """A process that was killed cannot tell those that it spawned, and they would wait for work for ever."""
  multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
  os._exit(1)


def _convert_all(items: Sequence[tuple[str, Any]]) -> list[tuple[bytes, str]]:
  return [convert(*_task, *item) for item in items]
