"""What the importers of documents and benchmarks share: the texts and pictures of a row as segments, within limits.

A row is distrusted until it is a conversation: a name may lead out of the folder, a list or text may be of any length. What
does not fit is a BadRow (or a ValueError of `data.images`), with a reason short enough for the manifest.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from intersyn_jax.data import images, manifest, parquet
from intersyn_jax.data.importers import image_store, rows
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Image, Segment, Text

MAX_PICTURES, MAX_TEXT, MAX_NAME = 256, 1_000_000, 4000
"""The most pictures and characters of a row, and characters of a name: a row is in memory as a whole."""


class Importer:
  """One import: where its pictures lie and how they are stored, and how much the row at hand has used of its limits."""

  def __init__(self, path: str | os.PathLike[str], folder: str | os.PathLike[str] | None, *, pixels: int, encoding: str,
               fit: str, places: Sequence[str] = ()):
    """
    Args:
      path: of the data; its folder holds the pictures where `folder` is None.
      folder: of the pictures.
      pixels, encoding, fit: of the stored pictures, see `images.load`.
      places: folders in the folder of the pictures, where one is looked for that is not in it.
    """
    path = pathlib.Path(path)
    self._folder = pathlib.Path(folder) if folder is not None else path if path.is_dir() else path.parent
    self._places = tuple(places)
    self._size, self._options = pixels, {'encoding': encoding, 'fit': fit}
    self._pictures = self._characters = 0

  def conversations(self, found: Iterable[tuple[str, Any]], convert: Callable[[Importer, Any], Conversation],
                    reject: rows.Reject, key: str = '') -> rows.Conversations:
    """The conversations that `convert` makes of rows; the rest as in `rows.Conversations`."""
    return rows.Conversations(found, functools.partial(_make, self, convert), reject, key)

  def begin(self) -> None:
    """Forgets the row before."""
    self._pictures = self._characters = 0

  def text(self, value: Any, field: str) -> list[Segment]:
    """One text without surrounding blanks; none if it is null or blank. BadRow if it is no text, or too long."""
    if value is None or (isinstance(value, str) and not value.strip()):
      return []
    self._characters += len(value) if isinstance(value, str) else 0
    if self._characters > MAX_TEXT:
      raise rows.BadRow(f'the row has more than {MAX_TEXT} characters')
    return [Text(rows.string({field: value}, field))]

  def picture(self, value: Any, field: str, *, caption: str = '', place: str = '') -> list[Segment]:
    """One picture by its file name, or by its address from an image store (see `image_store`). Raises ValueError.

    Args:
      value: the name, or what stands in its place.
      field: that holds it, for an error.
      caption: of the picture.
      place: one more folder where it may be.
    """
    name = short(rows.string({field: value}, field), field)
    self._count()
    if '://' in name:
      name = image_store.find(name, self._folder)
    stem, suffix = os.path.splitext(name)
    names = (name, stem + suffix.lower())  # what is .JPG in a row may be .jpg on the disk
    roots = [self._folder, *(self._folder / part for part in (*self._places, place) if part)]
    there = ((found, root) for found in names for root in roots if os.path.isfile(root / found))
    name, root = next(there, (name, self._folder))
    return [Image(images.load(name, root, self._size, **self._options), None, caption)]

  def held(self, data: bytes, field: str, *, caption: str = '') -> list[Segment]:
    """One picture by its bytes. Raises ValueError."""
    if not data:
      raise rows.BadRow(f'field {field} holds an empty picture')
    self._count()
    return [Image(images.square(data, self._size, where=f'a picture of field {field}', **self._options), None, caption)]

  def _count(self) -> None:
    self._pictures += 1
    if self._pictures > MAX_PICTURES:
      raise rows.BadRow(f'the row has more than {MAX_PICTURES} pictures')


def _make(importer: Importer, convert: Callable[[Importer, Any], Conversation], where: str, row: Any) -> Conversation:
  del where  # may have the name of a source in front
  importer.begin()
  return convert(importer, row)


def numbered(found: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
  """(where, (id, row)) for data sets without ids of their own: the id is made of file and row, `FILE-7` for `FILE row 7`."""
  for where, row in found:
    name, _, number = where.rsplit(' ', 2)
    yield where, (f'{name}-{number}', row)


def parquet_rows(path: pathlib.Path, needed: Sequence[str], others: Sequence[str],
                 reject: rows.Reject) -> Iterator[tuple[str, dict[str, Any]]]:
  """(where, row) for each row of a parquet file, a few in memory at once; what the file has no column for is None.

  A row with a value that cannot be read is rejected, and so is what is left of a row group from where it is damaged.

  Raises:
    UserError: no parquet file, or one of the `needed` columns is missing.
  """
  reader = parquet.Reader(path)
  if missing := [name for name in needed if name not in reader.fields]:
    raise UserError(f'{path} has no column {missing[0]}; it must have {", ".join(needed)} and may have {", ".join(others)}')
  wanted = [*needed, *others]
  there = [name for name in wanted if name in reader.fields]
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


def short(name: str, field: str) -> str:
  """A name, id or address; BadRow if it is longer than any is."""
  if len(name) > MAX_NAME:
    raise rows.BadRow(f'field {field} has {len(name)} characters; at most {MAX_NAME} are read')
  return name


def identity(row: dict[str, Any], field: str) -> str:
  """The id of a row."""
  return short(rows.string(row, field), field)


def optional(row: dict[str, Any], field: str) -> str:
  """A short text field, '' where it is missing or null."""
  return short(rows.string(row, field), field) if row.get(field) not in (None, '') else ''


def entries(value: Any, field: str) -> list[Any]:
  """A field that must be a list."""
  if not isinstance(value, list):
    raise rows.BadRow(f'field {field} is missing or no list')
  return value


def objects(value: Any, field: str) -> list[dict[str, Any]]:
  """A field that must be a list of objects."""
  for number, entry in enumerate(entries(value, field)):
    if not isinstance(entry, dict):
      raise rows.BadRow(f'entry {number} of field {field} is no object')
  return value


def joined(segments: Iterable[Segment], mark: str) -> tuple[Segment, ...]:
  """The segments, texts that follow one another made one with `mark` between: a step is a text and the picture after it."""
  whole: list[Segment] = []
  run: list[str] = []
  for segment in segments:
    if isinstance(segment, Text):
      run.append(segment.text)
      continue
    if run:
      whole.append(Text(mark.join(run)))
      run = []
    whole.append(segment)
  return (*whole, Text(mark.join(run))) if run else tuple(whole)
