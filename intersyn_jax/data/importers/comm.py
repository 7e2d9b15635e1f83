"""Importer of CoMM, instructions and stories in steps (docs/importing.md).

    {"data_id", "dataset_type", "title", "summary_info": [item, ...], "step_info": [[item, ...], ...]}
    item: {"type": "text", "content"} or {"type": "image", "image_path", "url"}

The release keeps these rows in files of `torch.save`, which are pickles. They are never unpickled: `plain_pickle` reads
them, and refuses whatever is not plain lists, objects and texts. The same rows as JSON or JSON Lines are read too.

The question is the title, the answer the steps, as in the fourth task of the official training code; like there,
`summary_info` is not used. A row without title is a document with an empty question (see `importers.obelics`).
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any

from intersyn_jax.data import manifest
from intersyn_jax.data.importers import plain_pickle, rows, segments
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Segment, Turn

PICKLES = ('.pth', '.pt', '.bin', '.pkl')


def conversations(path: str | os.PathLike[str], reject: rows.Reject, *, pixels: int,
                  folder: str | os.PathLike[str] | None = None, encoding: str = 'PNG',
                  fit: str = 'crop') -> rows.Conversations:
  """The usable rows as conversations; the others go to `reject` with their reason.

  The topic is `dataset_type`. Texts that follow one another are one, a line each: a step is a text and the picture after it.

  Args:
    path: file of `torch.save`, JSON or JSON Lines file.
    reject: takes a row that is left out.
    pixels: side of the stored pictures.
    folder: where the pictures lie, or their folder `images`, as the official script writes; the folder of `path` if None.
    encoding: of the stored pictures, 'PNG' or 'JPEG'.
    fit: how they become square, a name of `images.FITS`.

  Raises:
    UserError: no such file, or a pickle of more than plain rows.
  """
  importer = segments.Importer(path, folder, pixels=pixels, encoding=encoding, fit=fit, places=('images',))
  return importer.conversations(_rows(path, reject), _conversation, reject, key='data_id')


def _rows(path: str | os.PathLike[str], reject: rows.Reject) -> Iterator[tuple[str, dict[str, Any]]]:
  path = pathlib.Path(path)
  if not plain_pickle.is_torch(path):
    if path.suffix in PICKLES and path.is_file():
      raise UserError(f'{path} is no zip of torch.save; write its rows as JSON Lines (docs/importing.md)')
    yield from rows.read(path, reject)
    return
  for number, row in enumerate(plain_pickle.entries(path), start=1):
    where = f'{path.name} entry {number}'
    if isinstance(row, dict):
      yield where, row
    else:
      reject(manifest.Rejected(where, '', 'is no object'))


def _conversation(importer: segments.Importer, row: dict[str, Any]) -> Conversation:
  name = segments.identity(row, 'data_id')
  question = importer.text(row.get('title'), 'title')
  answer: list[Segment] = []
  for number, step in enumerate(segments.entries(row.get('step_info'), 'step_info')):
    try:
      for item in segments.objects(step, 'step'):
        answer += _item(importer, item)
    except ValueError as error:
      raise rows.BadRow(f'step {number}: {error}') from error
  if not answer:
    raise rows.BadRow('its steps hold neither text nor picture')
  turn = Turn(tuple(question), segments.joined(answer, '\n'))
  return Conversation(id=name, topic=segments.optional(row, 'dataset_type'), turns=(turn,), generator='comm')


def _item(importer: segments.Importer, item: dict[str, Any]) -> list[Segment]:
  if item.get('type') == 'text':
    return importer.text(item.get('content'), 'content')
  if item.get('type') == 'image':
    return importer.picture(item.get('image_path'), 'image_path')
  raise rows.BadRow('field type is neither text nor image')
