"""The text files that rows are written to, one row a line. Letters beyond ASCII are escaped: any locale reads them."""

from __future__ import annotations

import json
import pathlib
from typing import Any, Protocol


class Sink(Protocol):
  """Where the rows of an export go."""

  def write(self, row: dict[str, Any], size: int) -> None:
    """Adds a row; `size` is what the pictures of its conversation have in bytes."""

  def close(self) -> None:
    """Ends the files."""


class JsonLines:
  """`SPLIT.jsonl`."""

  def __init__(self, folder: pathlib.Path, split: str):
    self._file = (folder / f'{split}.jsonl').open('w')

  def write(self, row: dict[str, Any], size: int = 0) -> None:
    self._file.write(json.dumps(row) + '\n')

  def close(self) -> None:
    self._file.close()


class JsonList:
  """`SPLIT.json`: one list of all rows."""

  def __init__(self, folder: pathlib.Path, split: str):
    self._file = (folder / f'{split}.json').open('w')
    self._before = '[\n'

  def write(self, row: dict[str, Any], size: int = 0) -> None:
    self._file.write(self._before + json.dumps(row))
    self._before = ',\n'

  def close(self) -> None:
    self._file.write('\n]\n' if self._before.startswith(',') else '[]\n')
    self._file.close()
