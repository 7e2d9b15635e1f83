"""Importer of OBELICS, web documents as parquet (docs/importing.md).

    images: list of addresses     texts: list of texts     of one length; at each place one is there, the other null
    general_metadata: JSON object with the `url` of the page     metadata: not read

`images` may also hold the pictures themselves, as bytes or as the Image feature of `datasets` (`{bytes, path}`). A picture
that has only an address is taken from a local image store (`image_store`); nothing is fetched. Needs the extra `parquet`.
Rows are read a few at a time.

A document is a turn with an empty question and all of itself as the answer. Only answers are trained, and every text and
picture of a page is to be learnt. An empty question is what the null context of guidance holds too (DESIGN 6), so documents
teach the model what pages look like when nobody has asked for anything; an instruction that is the same in all of them would
teach no more than that and take its positions from each row. Where a page is several documents, with the mark END between
them, each is a turn, which the end token closes.
"""

from __future__ import annotations

import itertools
import json
import os
from typing import Any

from intersyn_jax.data.importers import flat, rows, segments
from intersyn_jax.interleave.types import Conversation, Segment, Turn

END = 'END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED'
"""A paragraph of its own, between documents of one page."""

files = flat.files


def conversations(path: str | os.PathLike[str], reject: rows.Reject, *, pixels: int,
                  folder: str | os.PathLike[str] | None = None, encoding: str = 'PNG',
                  fit: str = 'crop') -> rows.Conversations:
  """The usable rows as conversations; the others go to `reject` with their reason.

  The id is file and row, the trace the address of the page. A row is left out if any of its pictures is missing.

  Args:
    path: parquet file, or a folder of them.
    reject: takes a row that is left out, or a row group that is damaged.
    pixels: side of the stored pictures.
    folder: the image store; the folder of `path` if None.
    encoding: of the stored pictures, 'PNG' or 'JPEG'.
    fit: how they become square, a name of `images.FITS`.

  Raises:
    UserError: no such file, no parquet file, or no column `images` or `texts`.
  """
  importer = segments.Importer(path, folder, pixels=pixels, encoding=encoding, fit=fit)
  found = itertools.chain.from_iterable(
      segments.parquet_rows(file, ('images', 'texts'), ('general_metadata',), reject) for file in files(path))
  return importer.conversations(segments.numbered(found), _conversation, reject)


def _conversation(importer: segments.Importer, item: tuple[str, dict[str, Any]]) -> Conversation:
  name, row = item
  texts, pictures = (segments.entries(row[field], field) for field in ('texts', 'images'))
  if len(texts) != len(pictures):
    raise rows.BadRow(f'field texts has {len(texts)} entries, field images has {len(pictures)}')
  documents: list[list[Segment]] = [[]]
  for place, (text, picture) in enumerate(zip(texts, pictures, strict=True)):
    if (text in (None, '')) == (picture in (None, '')):
      raise rows.BadRow(f'place {place} has {"neither text nor picture" if text in (None, "") else "a text and a picture"}')
    if text in (None, ''):
      documents[-1] += _picture(importer, picture)
      continue
    first, *others = [part.strip('\n') for part in text.split(END)] if isinstance(text, str) else [text]
    documents[-1] += importer.text(first, 'texts')
    documents += [importer.text(other, 'texts') for other in others]
  turns = tuple(Turn((), segments.joined(document, '\n\n')) for document in documents if document)
  if not turns:
    raise rows.BadRow('it has neither text nor picture')
  return Conversation(id=name, topic='', turns=turns, generator='obelics', trace=_page(row))


def _picture(importer: segments.Importer, value: Any) -> list[Segment]:
  data = value.get('bytes') if isinstance(value, dict) else value
  if isinstance(data, bytes):
    return importer.held(data, 'images')
  return importer.picture(value.get('path') if isinstance(value, dict) else value, 'images')


def _page(row: dict[str, Any]) -> str:
  """The address of the page, '' where the row does not tell."""
  text = row.get('general_metadata')
  if text in (None, ''):
    return ''
  try:
    content = json.loads(text) if isinstance(text, str) else None
  except (ValueError, RecursionError):
    content = None
  if not isinstance(content, dict):
    raise rows.BadRow('field general_metadata is no JSON object')
  return segments.optional(content, 'url')
