"""Importer of the flat columns of InterSyn's dataset card, as parquet (InterSyn, released data).

    id, topic, human1..5, gpt1..5, caption1..5: text     image1..5: {bytes, path}, the Image feature of `datasets`

Needs the extra `parquet`. Rows are read a few at a time, row group by row group.
"""

from __future__ import annotations

import itertools
import os
import pathlib
from typing import Any

from intersyn_jax.data.importers import rows, segments
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Segment, Text, Turn

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
                  folder: str | os.PathLike[str] | None = None, encoding: str = 'PNG',
                  fit: str = 'crop') -> rows.Conversations:
  """The usable rows as conversations; the others go to `reject` with their reason.

  Args:
    path: parquet file, or a folder of them.
    reject: takes a row that is left out, or a row group that is damaged.
    pixels: side of the stored pictures.
    folder: not used, as pictures lie in the rows. One that has only a path is left out with its row.
    encoding: of the stored pictures, 'PNG' or 'JPEG'.
    fit: how they become square, a name of `images.FITS`.

  Raises:
    UserError: no such file, no parquet file, or a column that is needed is missing or of the wrong type.
  """
  importer = segments.Importer(path, folder, pixels=pixels, encoding=encoding, fit=fit)
  more = [name for name in columns(TURNS) if name not in _NEEDED]
  found = itertools.chain.from_iterable(segments.parquet_rows(file, _NEEDED, more, reject) for file in files(path))
  return importer.conversations(found, _conversation, reject, key='id')


def _conversation(importer: segments.Importer, row: dict[str, Any]) -> Conversation:
  name = segments.identity(row, 'id')
  turns = []
  for turn in range(1, TURNS + 1):
    columns = {kind: f'{kind}{turn}' for kind in _KINDS}
    if all(row[column] in (None, '') for column in columns.values()):
      continue
    if len(turns) < turn - 1:
      raise rows.BadRow(f'turn {turn} is there but turn {len(turns) + 1} is not')
    question, answer = Text(rows.string(row, columns['human'])), Text(rows.string(row, columns['gpt']))
    said: list[Segment] = [answer]
    if row[columns['image']] is not None:
      caption = rows.string(row, columns['caption']) if row[columns['caption']] else ''
      picture = row[columns['image']]
      data = picture.get('bytes') if isinstance(picture, dict) else picture
      try:
        if not isinstance(data, bytes) or not data:
          raise rows.BadRow(f'column {columns["image"]} holds no bytes of a picture; only pictures inside the file are read')
        said += importer.held(data, columns['image'], caption=caption)
      except ValueError as error:
        raise rows.BadRow(f'turn {turn}: {error}') from error
    turns.append(Turn((question,), tuple(said)))
  if not turns:
    raise rows.BadRow('it has no turn')
  topic = rows.string(row, 'topic') if row['topic'] else ''
  return Conversation(id=name, topic=topic, turns=tuple(turns), generator='intersyn')
