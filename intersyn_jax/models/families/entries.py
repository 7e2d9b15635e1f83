"""Where each of our parameters lies in a checkpoint of others: names, and the two directions of every change of form.

A change of form only moves values (transpose, stack, slice), so that what is written back is what was read, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Arrays = list[np.ndarray]


class Entry(NamedTuple):
  """Some of our parameters and the tensors that hold the same values.

  Attributes:
    ours: paths in our tree, keys joined by '/'.
    theirs: names of tensors in the checkpoint.
    read: their arrays to ours, in the order of the names.
    write: the inverse.
  """

  ours: tuple[str, ...]
  theirs: tuple[str, ...]
  read: Callable[[Arrays], Arrays]
  write: Callable[[Arrays], Arrays]


def same(ours: str, theirs: str) -> Entry:
  """A tensor that both sides keep alike: vectors, tables of rows."""
  return _each(ours, theirs, lambda a: a, lambda a: a)


def linear(ours: str, theirs: str) -> Entry:
  """Our kernel [in,out] is their weight [out,in]."""
  return _each(ours, theirs, np.transpose, np.transpose)


def conv(ours: str, theirs: str) -> Entry:
  """Our kernel [k...,in,out] is their weight [out,in,k...]; of two or three axes of space, or one."""
  return _each(ours, theirs, lambda a: np.moveaxis(a, (1, 0), (-2, -1)), lambda a: np.moveaxis(a, (-2, -1), (1, 0)))


def stacked(make: Callable[[str, str], Entry], ours: str, theirs: str, count: int) -> Entry:
  """Our array with a leading layer axis is `count` of their tensors; `{}` in their name is the layer's number."""
  one = make(ours, theirs)
  return Entry(one.ours, tuple(theirs.format(i) for i in range(count)),
               lambda arrays: [np.stack([one.read([a])[0] for a in arrays])],
               lambda arrays: [one.write([a])[0] for a in arrays[0]])


def rows(ours: Mapping[str, np.ndarray | slice], theirs: str, size: int, *, transpose: bool = False) -> Entry:
  """Several of our tables are rows of one table of theirs, which has `size` rows; together they must be all of them.

  Args:
    ours: the rows, in order, of each of our paths.
    transpose: ours are kernels [d,rows].
  """
  turn = (lambda a: a.T) if transpose else (lambda a: a)
  indices = {path: np.arange(size)[which] for path, which in ours.items()}
  if not np.array_equal(np.sort(np.concatenate(list(indices.values()))), np.arange(size)):
    raise ValueError(f'{theirs}: the parts are not exactly its {size} rows')

  def write(arrays: Arrays) -> Arrays:
    whole = np.empty((size, turn(arrays[0]).shape[1]), arrays[0].dtype)
    for index, part in zip(indices.values(), arrays, strict=True):
      whole[index] = turn(part)
    return [whole]

  return Entry(tuple(ours), (theirs,), lambda arrays: [turn(arrays[0][which]) for which in ours.values()], write)


def grown(entry: Entry, path: str, rows: Sequence[Sequence[int]], *, axis: int = 0) -> Entry:
  """The same entry where our table `path` has rows more than theirs, at its end; they are not written.

  Args:
    rows: for each new row, the old ones whose mean it starts as.
    axis: 1 where the rows are columns of a kernel [d,rows].
  """
  number = entry.ours.index(path)

  def read(arrays: Arrays) -> Arrays:
    found = list(entry.read(arrays))
    table = found[number]
    means = [table.take(ids, axis).astype(np.float32).mean(axis, keepdims=True).astype(table.dtype) for ids in rows]
    found[number] = np.concatenate([table, *means], axis)
    return found

  def write(arrays: Arrays) -> Arrays:
    table = arrays[number]
    old = table[:len(table) - len(rows)] if axis == 0 else table[:, :table.shape[1] - len(rows)]
    return entry.write([*arrays[:number], old, *arrays[number + 1:]])

  return entry._replace(read=read, write=write)


def prefixed(entries: Sequence[Entry], ours: str = '', theirs: str = '') -> list[Entry]:
  """The same entries further down: prefixes of our paths and of their names."""
  return [e._replace(ours=tuple(ours + path for path in e.ours), theirs=tuple(theirs + name for name in e.theirs))
          for e in entries]


def _each(ours: str, theirs: str, read: Callable[[np.ndarray], np.ndarray], write: Callable[[np.ndarray], np.ndarray]) -> Entry:
  return Entry((ours,), (theirs,), lambda arrays: [read(a) for a in arrays], lambda arrays: [write(a) for a in arrays])
