"""Importer of Multimodal C4, web documents as JSON Lines (docs/importing.md).

    {"url", "text_list": [sentence, ...],
     "image_info": [{"image_name", "matched_text_index", "matched_sim", "raw_url", ...}, ...],
     "similarity_matrix", "could_have_url_duplicate"}

A picture stands before the sentence that it was matched to, and of several at one sentence the most similar first. Sentences
with no picture between them are one text. A document is a turn with an empty question, for the reasons given in
`importers.obelics`. Rows are read line by line.
"""

from __future__ import annotations

import itertools
import math
import os
import pathlib
from typing import Any

from intersyn_jax.data.importers import rows, segments
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Segment, Turn


def files(path: str | os.PathLike[str], field: str = 'data.path') -> list[pathlib.Path]:
  """The JSON Lines files that a path names: one, or those of a folder, in order of name.

  Raises:
    UserError: there is none; `field` is the configuration's that names it.
  """
  path = pathlib.Path(path)
  found = sorted(path.glob('*.jsonl')) if path.is_dir() else [path]
  if not found or not all(file.is_file() for file in found):
    raise UserError(f'{path} is neither a JSON Lines file nor a folder of them (*.jsonl); unpack the shards and set {field} '
                    'to one')
  return found


def conversations(path: str | os.PathLike[str], reject: rows.Reject, *, pixels: int,
                  folder: str | os.PathLike[str] | None = None, encoding: str = 'PNG',
                  fit: str = 'crop') -> rows.Conversations:
  """The usable rows as conversations; the others go to `reject` with their reason.

  The id is file and line, the trace the address of the page. A row is left out if any of its pictures is missing.

  Args:
    path: JSON Lines file, or a folder of them.
    reject: takes a row that is left out.
    pixels: side of the stored pictures.
    folder: where the pictures lie, or the folders `SHARD_images` that the official script writes for each `SHARD.jsonl`; the
      folder of the shard if None.
    encoding: of the stored pictures, 'PNG' or 'JPEG'.
    fit: how they become square, a name of `images.FITS`.

  Raises:
    UserError: no such file.
  """
  importer = segments.Importer(path, folder, pixels=pixels, encoding=encoding, fit=fit)
  found = itertools.chain.from_iterable(rows.read(file, reject) for file in files(path))
  return importer.conversations(segments.numbered(found), _conversation, reject)


def _conversation(importer: segments.Importer, item: tuple[str, dict[str, Any]]) -> Conversation:
  name, row = item
  place = f'{pathlib.Path(name.rpartition("-")[0]).stem}_images'
  texts = segments.entries(row.get('text_list'), 'text_list')
  matched: list[list[tuple[float, int, Any]]] = [[] for _ in texts]
  for number, picture in enumerate(segments.objects(row.get('image_info'), 'image_info')):
    index, similarity = picture.get('matched_text_index'), picture.get('matched_sim')
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(texts):
      raise rows.BadRow(f'picture {number}: field matched_text_index is no number of a sentence, 0 to {len(texts) - 1}')
    if not isinstance(similarity, int | float) or isinstance(similarity, bool) or not abs(similarity) < math.inf:
      raise rows.BadRow(f'picture {number}: field matched_sim is missing or no number')
    matched[index].append((-similarity, number, picture.get('image_name')))
  document: list[Segment] = []
  for text, pictures in zip(texts, matched, strict=True):
    for _, _, file in sorted(pictures, key=lambda picture: picture[:2]):
      document += importer.picture(file, 'image_name', place=place)
    document += importer.text(text, 'text_list')
  if not document:
    raise rows.BadRow('it has neither text nor picture')
  turn = Turn((), segments.joined(document, ' '))
  page = segments.optional(row, 'url')
  return Conversation(id=name, topic='', turns=(turn,), generator='mmc4', trace=page)
