"""Importer of the InterSyn generator's JSON or JSON Lines (InterSyn, released data).

    {"id": ..., "topic": ..., "conversations": [{"from": "human", "value": question},
                                                {"from": "gpt", "value": answer, "caption": ..., "image": file}, ...]}
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from intersyn_jax.data.importers import rows, segments
from intersyn_jax.interleave.types import Conversation, Segment, Text, Turn


def conversations(path: str | os.PathLike[str], reject: rows.Reject, *, pixels: int,
                  folder: str | os.PathLike[str] | None = None, encoding: str = 'PNG',
                  fit: str = 'crop') -> rows.Conversations:
  """The usable rows of a file as conversations; the others go to `reject` with their reason.

  Args:
    path: JSON or JSON Lines file.
    reject: takes a row that is left out.
    pixels: side of the stored pictures.
    folder: where the pictures lie; the folder of `path` if None. Nothing outside it is read.
    encoding: of the stored pictures, 'PNG' or 'JPEG'.
    fit: how they become square, a name of `images.FITS`.
  """
  importer = segments.Importer(path, folder, pixels=pixels, encoding=encoding, fit=fit)
  return importer.conversations(rows.read(path, reject), _conversation, reject, key='id')


def _conversation(importer: segments.Importer, row: dict[str, Any]) -> Conversation:
  name = segments.identity(row, 'id')
  if name == 'id' or str(row.get('question', '')).startswith('The question from'):
    raise rows.BadRow('placeholder row: its fields describe the format instead of holding data')
  messages = row.get('conversations')
  if not isinstance(messages, list) or not messages:
    raise rows.BadRow('field conversations is missing or no list')
  turns = []
  for number, (human, gpt) in enumerate(_pairs(messages)):
    try:
      question = (Text(rows.string(human, 'value')),)
      answer: list[Segment] = [Text(rows.string(gpt, 'value'))]
      if gpt.get('image') not in (None, ''):
        caption = rows.string(gpt, 'caption') if gpt.get('caption') else ''
        answer += importer.picture(gpt['image'], 'image', caption=caption)
    except ValueError as error:
      raise rows.BadRow(f'turn {number}: {error}') from error
    turns.append(Turn(question, tuple(answer)))
  topic = rows.string(row, 'topic') if row.get('topic') else ''
  return Conversation(id=name, topic=topic, turns=tuple(turns), generator='intersyn')


def _pairs(messages: list[Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
  """Question and answer of each turn; BadRow unless human and gpt take turns and gpt has the last word."""
  speakers = [message.get('from') if isinstance(message, dict) else None for message in messages]
  if speakers != ['human', 'gpt'] * (len(messages) // 2):
    raise rows.BadRow(f'field conversations does not alternate human and gpt, ending with gpt: {speakers[:6]}')
  return zip(messages[::2], messages[1::2], strict=True)
