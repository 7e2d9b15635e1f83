"""Parquet files, written and read a row group at a time. Needs the extra `parquet` (pyarrow)."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from intersyn_jax.errors import UserError

GROUP_ROWS, GROUP_BYTES = 100, 64 << 20
"""A row group ends at so many rows, or so many bytes of pictures. BAGEL deals row groups out to its workers."""
FILE_BYTES = 512 << 20
"""A file is closed when it has so many bytes of pictures."""
MAX_GROUP_BYTES = 8 << 30
"""Row groups that say they unfold to more are not read."""


def arrow() -> Any:
  """The package pyarrow with its module `parquet`. Raises UserError where it is not installed."""
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise UserError("parquet files need the extra parquet: pip install 'intersyn_jax[parquet]'") from error
  return pyarrow


class Damaged(ValueError):
  """A row group that cannot be read; the message is the reason for the manifest."""


class Writer:
  """Writes `data/SPLIT-00000-of-000NN.parquet` below a folder, the names that `datasets.load_dataset(FOLDER)` looks for."""

  def __init__(self, folder: pathlib.Path, split: str, schema: Any, index: str = ''):
    """
    Args:
      folder: of the whole export.
      split: its name.
      schema: of the rows, as pyarrow has it.
      index: name of a JSON file in the folder that tells how many row groups each file has; '' for none.
    """
    self._pa, self._schema, self._index = arrow(), schema, index
    self._base, self._split = folder, split
    self._rows: list[dict[str, Any]] = []
    self._group_bytes = self._file_bytes = 0
    self._groups: list[int] = []  # of each file
    self._file: Any = None
    (folder / 'data').mkdir(parents=True, exist_ok=True)

  def write(self, row: dict[str, Any], size: int) -> None:
    """Adds a row whose pictures have `size` bytes."""
    self._rows.append(row)
    self._group_bytes += size
    if len(self._rows) >= GROUP_ROWS or self._group_bytes >= GROUP_BYTES:
      self._end_group()

  def close(self) -> None:
    """Ends the last file and gives all of them their names."""
    if self._rows:
      self._end_group()
    self._end_file()
    names = [f'data/{self._split}-{i:05d}-of-{len(self._groups):05d}.parquet' for i in range(len(self._groups))]
    for number, name in enumerate(names):
      self._part(number).rename(self._base / name)
    if self._index:
      told = {name: {'num_row_groups': groups} for name, groups in zip(names, self._groups, strict=True)}
      (self._base / self._index).write_text(json.dumps(told, indent=1))

  def _part(self, number: int) -> pathlib.Path:
    return self._base / 'data' / f'.{number:05d}.part'

  def _end_group(self) -> None:
    if self._file is None:
      # Without dictionaries: pictures and sentences hardly ever repeat.
      self._file = self._pa.parquet.ParquetWriter(self._part(len(self._groups)), self._schema, use_dictionary=False)
      self._groups.append(0)
    self._file.write_table(self._pa.Table.from_pylist(self._rows, self._schema), row_group_size=len(self._rows))
    self._groups[-1] += 1
    self._file_bytes += self._group_bytes
    self._rows, self._group_bytes = [], 0
    if self._file_bytes >= FILE_BYTES:
      self._end_file()

  def _end_file(self) -> None:
    if self._file is not None:
      self._file.close()
    self._file, self._file_bytes = None, 0


class Reader:
  """A parquet file of whatever origin.

  Attributes:
    fields: type of each column, by name.
    groups: how many row groups it has.
  """

  def __init__(self, path: str | os.PathLike[str], field: str = 'data.path'):
    """Raises UserError where the file is missing or no parquet file; `field` is the configuration's that names it."""
    self._pa, self._path = arrow(), pathlib.Path(path)
    try:
      self._file = self._pa.parquet.ParquetFile(self._path)
      schema = self._file.schema_arrow
    except (self._pa.ArrowException, OSError, ValueError) as error:
      raise UserError(f'{path} cannot be read as parquet ({_line(error)}); set {field} to a parquet file') from error
    self.fields = dict(zip(schema.names, schema.types, strict=True))
    self.groups = self._file.num_row_groups

  def start(self, group: int) -> int:
    """How many rows come before a row group."""
    return sum(self._file.metadata.row_group(i).num_rows for i in range(group))

  def rows(self, group: int, columns: Sequence[str], batch: int = 16) -> Iterator[dict[str, Any] | None]:
    """The rows of a row group as plain values, `batch` of them in memory at once; None for one with a bad value.

    Raises:
      Damaged: the rest of the row group cannot be read.
    """
    size = self._file.metadata.row_group(group).total_byte_size
    if size > MAX_GROUP_BYTES:
      raise Damaged(f'unfolds to {size} bytes, more than {MAX_GROUP_BYTES >> 30} GiB')
    batches = self._file.iter_batches(batch, row_groups=[group], columns=list(columns), use_threads=False)
    while True:
      try:
        found = next(batches, None)
      except (self._pa.ArrowException, OSError, ValueError) as error:
        raise Damaged(f'cannot be read ({_line(error)})') from error
      if found is None:
        return
      for place in range(found.num_rows):  # one by one, so that a bad value takes only its own row along
        try:
          row = found.slice(place, 1).to_pylist()[0]
        except (self._pa.ArrowException, ValueError, ArithmeticError):  # text that is no UTF-8, a date beyond all years
          row = None
        yield row

  def close(self) -> None:
    self._file.close()


def _line(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0][:160]
