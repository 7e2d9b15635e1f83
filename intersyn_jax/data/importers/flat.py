"""Importer of the flat columns of InterSyn's dataset card, as parquet (papers/intersyn.md, section 2, record formats).

    id, topic, human1..5, gpt1..5, caption1..5: text     image1..5: {bytes, path}, the Image feature of `datasets`

Needs the extra `parquet`. Rows are read a few at a time, row group by row group.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from intersyn_jax.data import images, manifest, parquet
from intersyn_jax.data.importers import rows
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Image, Segment, Text, Turn

TURNS = 5
"""The most turns that a row has room for."""

_KINDS = ('human', 'gpt', 'caption', 'image')
_NEEDED = ('id', 'human1', 'gpt1')


def columns(turns: int) -> list[str]:
  """The names of the columns."""
  return ['id', 'topic', *(f'{kind}{turn}' for kind in _KINDS for turn in range(1, turns + 1))]


def files(path: str | os.PathLike[str], field: str = 'data.path') -> list[pathlib.Path]:
  """The parquet files that a path names: one, or those of a folder and of its folder `data`, in order of name.

  Raises:
    UserError: there is none; `field` is the configuration's that names it.
  """
  path = pathlib.Path(path)
  found = sorted(path.glob('*.parquet')) or sorted(path.glob('data/*.parquet')) if path.is_dir() else [path]
  if not found or not all(file.is_file() for file in found):
    raise UserError(f'{path} is neither a parquet file nor a folder of them; set {field} to one')
  return found


def conversations(path: str | os.PathLike[str], reject: rows.Reject, *, pixels: int,
                  folder: str | os.PathLike[str] | None = None, encoding: str = 'PNG') -> Iterator[Conversation]:
  """Yields the usable rows as conversations; the others go to `reject` with their reason.

  Args:
    path: parquet file, or a folder of them.
    reject: takes a row that is left out, or a row group that is damaged.
    pixels: side of the stored pictures.
    folder: not used, as pictures lie in the rows. One that has only a path is left out with its row.
    encoding: of the stored pictures, 'PNG' or 'JPEG'.

  Raises:
    UserError: no such file, no parquet file, or a column that is needed is missing or of the wrong type.
  """
  del folder
  seen: dict[str, str] = {}
  with tempfile.TemporaryDirectory() as scratch:
    for where, row in itertools.chain.from_iterable(_rows(file, reject) for file in files(path)):
      name = row['id'] if isinstance(row['id'], str) else ''
      try:
        conversation = _conversation(row, pathlib.Path(scratch), pixels, encoding)
        if conversation.id in seen:
          raise rows.BadRow(f'its id stands already at {seen[conversation.id]}')
      except ValueError as error:
        reject(manifest.Rejected(where, ascii(name)[1:-1], str(error)))
        continue
      seen[conversation.id] = where
      yield conversation


def _rows(path: pathlib.Path, reject: rows.Reject) -> Iterator[tuple[str, dict[str, Any]]]:
  """(where, row) for each row of a file; what the file has no column for is None."""
  reader = parquet.Reader(path)
  wanted = columns(TURNS)
  there = [name for name in wanted if name in reader.fields]
  if missing := [name for name in _NEEDED if name not in there]:
    raise UserError(f'{path} has no column {missing[0]}; it must have {", ".join(_NEEDED)} and may have topic, caption1, '
                    f'image1, human2 and so on up to {TURNS}')
  for group in range(reader.groups):
    number = reader.start(group)
    try:
      for row in reader.rows(group, there):
        number += 1
        where = f'{path.name} row {number}'
        if row is None:
          reject(manifest.Rejected(where, '', 'holds a value that cannot be read, such as text that is no UTF-8'))
        else:
          yield where, dict.fromkeys(wanted) | row
    except parquet.Damaged as error:
      reject(manifest.Rejected(f'{path.name} row group {group}', '', f'{error}; its rows from {number + 1} on are left out'))
  reader.close()


def _conversation(row: dict[str, Any], scratch: pathlib.Path, pixels: int, encoding: str) -> Conversation:
  name = rows.string(row, 'id')
  turns = []
  for turn in range(1, TURNS + 1):
    columns = {kind: f'{kind}{turn}' for kind in _KINDS}
    if all(row[column] in (None, '') for column in columns.values()):
      continue
    if len(turns) < turn - 1:
      raise rows.BadRow(f'turn {turn} is there but turn {len(turns) + 1} is not')
    question, answer = Text(rows.string(row, columns['human'])), Text(rows.string(row, columns['gpt']))
    segments: list[Segment] = [answer]
    if row[columns['image']] is not None:
      caption = rows.string(row, columns['caption']) if row[columns['caption']] else ''
      try:
        data = _picture(row[columns['image']], scratch / columns['image'], pixels, encoding)
      except ValueError as error:
        raise rows.BadRow(f'turn {turn}: {error}') from error
      segments.append(Image(data, None, caption))
    turns.append(Turn((question,), tuple(segments)))
  if not turns:
    raise rows.BadRow('it has no turn')
  topic = rows.string(row, 'topic') if row['topic'] else ''
  return Conversation(id=name, topic=topic, turns=tuple(turns), generator='intersyn')


def _picture(value: Any, file: pathlib.Path, pixels: int, encoding: str) -> bytes:
  """The picture as it is stored. It goes through a file, since `images.load` knows what to distrust in a picture."""
  data = value.get('bytes') if isinstance(value, dict) else value
  if not isinstance(data, bytes) or not data:
    raise rows.BadRow(f'column {file.name} holds no bytes of a picture; only pictures inside the parquet file are read')
  file.write_bytes(data)
  return images.load(file.name, file.parent, pixels, encoding=encoding)
