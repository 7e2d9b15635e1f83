"""Importer of ISG-Bench (JSON Lines; docs/importing.md): questions and golden answers of texts and pictures.

    {"id", "Category", "Query": [{"type": "text" or "image", "content"}, ...], "Golden": [...], "predict": {...}}

`predict` holds the questions that ISG's own judge asks, which no conversation has a place for; it is not read.
"""

from __future__ import annotations

import os
from typing import Any

from intersyn_jax.data.importers import rows, segments
from intersyn_jax.interleave.types import Conversation, Segment, Turn


def conversations(path: str | os.PathLike[str], reject: rows.Reject, *, pixels: int,
                  folder: str | os.PathLike[str] | None = None, encoding: str = 'PNG',
                  fit: str = 'crop') -> rows.Conversations:
  """The usable rows as conversations; the others go to `reject`. Arguments as in `importers.intersyn`.

  The topic is `Category` as it stands. Texts of a question that follow one another are one, a line each; the golden answer
  keeps its entries one by one, as its structure is compared. A row without `Golden` is a prompt: its answer is empty.
  """
  importer = segments.Importer(path, folder, pixels=pixels, encoding=encoding, fit=fit)
  return importer.conversations(rows.read(path, reject), _conversation, reject, key='id')


def _conversation(importer: segments.Importer, row: dict[str, Any]) -> Conversation:
  name = segments.identity(row, 'id')
  question = segments.joined(_segments(importer, row.get('Query'), 'Query'), '\n')
  answer = _segments(importer, row['Golden'], 'Golden') if row.get('Golden') is not None else ()
  if not question:
    raise rows.BadRow('field Query holds neither text nor picture')
  turn = Turn(question, tuple(answer))
  return Conversation(id=name, topic=segments.optional(row, 'Category'), turns=(turn,), generator='isg')


def _segments(importer: segments.Importer, items: Any, field: str) -> list[Segment]:
  found: list[Segment] = []
  for number, item in enumerate(segments.objects(items, field)):
    try:
      if item.get('type') == 'text':
        found += importer.text(item.get('content'), 'content')
      elif item.get('type') == 'image':
        found += importer.picture(item.get('content'), 'content', caption=segments.optional(item, 'caption'))
      else:
        raise rows.BadRow('field type is neither text nor image')
    except ValueError as error:
      raise rows.BadRow(f'{field} {number}: {error}') from error
  return found
