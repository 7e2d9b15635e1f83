"""ArrayRecord shards: written whole or not at all, read through Grain with errors that name the file.

A split is the files `SPLIT-00000-of-000NN.array_record`, every record its own group (`group_size:1`), so that a global
shuffle reads single records.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import grain
from array_record.python import array_record_module

from intersyn_jax.data import manifest, records
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation

RECORDS_PER_SHARD = 4096
_SUFFIX = '.array_record'
_NAME = re.compile(r'(?P<split>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.array_record')
_CORRUPT = (RuntimeError, ValueError, IndexError, OSError)  # what array_record raises on a file that is no shard


def write_split(folder: str | os.PathLike[str], split: str, items: Iterable[Conversation | bytes], *,
                records_per_shard: int = RECORDS_PER_SHARD) -> list[manifest.Shard]:
  """Writes one split as shards of `records_per_shard` records.

  Every shard is written under a temporary name, flushed to the disk and closed; only when all are there do they get
  their names. So a run that is cut short leaves no file that looks like a shard, but at most temporary ones, which the
  next run removes.

  Args:
    folder: made if it is not there.
    split: name of the split; an earlier split of this name is replaced.
    items: conversations, or records that are encoded already.
    records_per_shard: at most this many records a file.

  Returns:
    One entry a shard, for the manifest; empty if there were no records.
  """
  base = pathlib.Path(folder)
  base.mkdir(parents=True, exist_ok=True)
  clear(base, split)
  counts: list[int] = []
  iterator = iter(items)
  while count := write_part(part(base, split, len(counts)), iterator, records_per_shard):
    counts.append(count)
  paths = publish(base, split, len(counts))
  return [described(path, count) for path, count in zip(paths, counts, strict=True)]


def part(folder: str | os.PathLike[str], split: str, number: int) -> pathlib.Path:
  """Where a shard is written before the split is complete."""
  return pathlib.Path(folder) / f'.{split}-{number:05d}.part'


def write_part(path: pathlib.Path, items: Iterator[Conversation | bytes], most: int) -> int:
  """Writes the next records, at most so many, to a file that is on the disk afterwards; gives their number, 0 for no file."""
  path.unlink(missing_ok=True)
  first = next(items, None)
  if first is None:
    return 0
  count = 0
  writer = array_record_module.ArrayRecordWriter(os.fspath(path), 'group_size:1')
  try:
    for item in itertools.chain([first], itertools.islice(items, most - 1)):
      writer.write(item if isinstance(item, bytes) else records.encode(item))
      count += 1
  finally:
    writer.close()
  manifest.flush(path)
  return count


def clear(folder: str | os.PathLike[str], split: str) -> None:
  """Removes the shards of a split, and what a write that was cut short left of it."""
  base = pathlib.Path(folder)
  for left in itertools.chain(base.glob(f'.{split}-*.part'), _files(base, split)):
    left.unlink()


def publish(folder: str | os.PathLike[str], split: str, count: int) -> list[pathlib.Path]:
  """Gives all parts of a split their names; those that have theirs already keep them."""
  paths = [final(folder, split, index, count) for index in range(count)]
  for index, path in enumerate(paths):
    if (written := part(folder, split, index)).exists():
      written.rename(path)
  manifest.flush(folder)
  return paths


def final(folder: str | os.PathLike[str], split: str, index: int, count: int) -> pathlib.Path:
  """The name of a shard of a complete split."""
  return pathlib.Path(folder) / f'{split}-{index:05d}-of-{count:05d}{_SUFFIX}'


def described(path: pathlib.Path, count: int) -> manifest.Shard:
  """What the manifest says of a file with so many records."""
  return manifest.Shard(file=path.name, records=count, bytes=path.stat().st_size, sha256=sha256(path))


def sha256(path: str | os.PathLike[str]) -> str:
  """Hex digest of a file."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def splits(folder: str | os.PathLike[str]) -> list[str]:
  """Names of the splits of which the folder has shards, sorted."""
  matches = (_NAME.fullmatch(path.name) for path in pathlib.Path(folder).glob(f'*{_SUFFIX}'))
  return sorted({match['split'] for match in matches if match})


def open_split(folder: str | os.PathLike[str], split: str) -> Split:
  """Opens a split for random access.

  Raises:
    UserError: no such split, a shard of it missing, or a file that is no ArrayRecord shard.
  """
  base = pathlib.Path(folder)
  paths = sorted(_files(base, split))
  if not paths:
    raise UserError(f'{base} has no split {split!r} (it has: {", ".join(splits(base)) or "no shards"}); '
                    'run the data stage, or name a split that is there')
  wanted = {final(base, split, i, len(paths)).name for i in range(len(paths))}
  if wrong := sorted({path.name for path in paths} ^ wanted):
    raise UserError(f'{base}: shards of split {split!r} are missing or mixed ({wrong[0]}); '
                    'delete the folder and run the data stage again')
  return Split(paths)


class Split(Sequence[Conversation]):
  """The conversations of some shards, decoded when they are asked for."""

  def __init__(self, paths: Sequence[str | os.PathLike[str]]):
    self.paths = tuple(os.fspath(path) for path in paths)
    lengths = []
    for path in self.paths:  # one by one, so that an error can name the file
      try:
        lengths.append(len(grain.sources.ArrayRecordDataSource([path])))
      except _CORRUPT as error:
        raise _corrupt(path, error) from error
    self._starts = list(itertools.accumulate(lengths, initial=0))
    self._source = grain.sources.ArrayRecordDataSource(list(self.paths))

  def __len__(self) -> int:
    return self._starts[-1]

  @overload
  def __getitem__(self, index: int) -> Conversation: ...
  @overload
  def __getitem__(self, index: slice) -> list[Conversation]: ...
  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    index = range(len(self))[index]
    path, number = self._file(index)
    return records.decode(self.raw(index), f'{path} record {number}')

  def __iter__(self) -> Iterator[Conversation]:
    return (self[i] for i in range(len(self)))

  def raw(self, index: int) -> bytes:
    """The bytes of record `index`."""
    try:
      return self._source[index]
    except _CORRUPT as error:
      raise _corrupt(self._file(index)[0], error) from error

  def _file(self, index: int) -> tuple[str, int]:
    """Path of the shard that holds a record, and the record's number in it."""
    shard = bisect.bisect_right(self._starts, index) - 1
    return self.paths[shard], index - self._starts[shard]


def _files(base: pathlib.Path, split: str) -> list[pathlib.Path]:
  return [path for path in base.glob(f'{split}-*{_SUFFIX}')
          if (match := _NAME.fullmatch(path.name)) and match['split'] == split]


def _corrupt(path: str, error: Exception) -> UserError:
  reason = str(error).splitlines()[0][:160] if str(error) else 'cut short'
  return UserError(f'{path} is no readable ArrayRecord shard ({reason}); '
                   'delete its folder and run the stage that wrote it again')
