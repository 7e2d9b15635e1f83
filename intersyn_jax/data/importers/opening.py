"""Importer of OpenING (JSON Lines; docs/importing.md): real questions and photographs.

    {"total_uid", "meta_task_name", "subtask_name", ...,
     "conversations": [{"input": [{"image": null, "text": "<BEGIN> ..."}]},
                       {"output": [{"image": path, "text": "... <image>"}, ...]}]}
"""

from __future__ import annotations

import os
from typing import Any

from intersyn_jax.data.importers import rows, segments
from intersyn_jax.interleave.types import Conversation, Segment, Turn

BEGIN, IMAGE = '<BEGIN>', '<image>'


def conversations(path: str | os.PathLike[str], reject: rows.Reject, *, pixels: int,
                  folder: str | os.PathLike[str] | None = None, encoding: str = 'PNG',
                  fit: str = 'crop') -> rows.Conversations:
  """The usable rows as conversations; the others go to `reject`. Arguments as in `importers.intersyn`.

  A picture stands where the `<image>` marker of its text is, after the text if it has none. A row is left out if any of
  its pictures is missing: an answer about a picture that nobody sees teaches nothing.
  """
  importer = segments.Importer(path, folder, pixels=pixels, encoding=encoding, fit=fit)
  return importer.conversations(rows.read(path, reject), _conversation, reject, key='total_uid')


def _conversation(importer: segments.Importer, row: dict[str, Any]) -> Conversation:
  name = segments.identity(row, 'total_uid')
  messages = row.get('conversations')
  if not isinstance(messages, list) or not messages:
    raise rows.BadRow('field conversations is missing or no list')
  kinds = [next(iter(m)) if isinstance(m, dict) and len(m) == 1 else None for m in messages]
  if kinds != ['input', 'output'] * (len(messages) // 2):
    raise rows.BadRow(f'field conversations does not alternate input and output: {kinds[:6]}')
  halves = [_segments(importer, message[kind], f'{kind} {place // 2}')
            for place, (kind, message) in enumerate(zip(kinds, messages, strict=True))]
  topic = '/'.join(rows.string(row, key) for key in ('meta_task_name', 'subtask_name') if row.get(key))
  turns = tuple(Turn(question, answer) for question, answer in zip(halves[::2], halves[1::2], strict=True))
  return Conversation(id=name, topic=topic, turns=turns, generator='opening')


def _segments(importer: segments.Importer, items: Any, where: str) -> tuple[Segment, ...]:
  if not isinstance(items, list):
    raise rows.BadRow(f'{where} is no list')
  found: list[Segment] = []
  for item in items:
    if not isinstance(item, dict):
      raise rows.BadRow(f'{where} holds an entry that is no object')
    text = rows.string(item, 'text') if item.get('text') else ''
    before, _, after = text.replace(BEGIN, '').partition(IMAGE)
    found += importer.text(before, 'text')
    if item.get('image'):
      try:
        found += importer.picture(item['image'], 'image')
      except ValueError as error:
        raise rows.BadRow(f'{where}: {error}') from error
    found += importer.text(after.replace(IMAGE, ''), 'text')
  if not found:
    raise rows.BadRow(f'{where} holds neither text nor image')
  return tuple(found)
