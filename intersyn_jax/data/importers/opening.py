"""Importer of OpenING (JSON Lines; papers/intersyn.md, section 6): real questions and photographs.

    {"total_uid", "meta_task_name", "subtask_name", ...,
     "conversations": [{"input": [{"image": null, "text": "<BEGIN> ..."}]},
                       {"output": [{"image": path, "text": "... <image>"}, ...]}]}
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any

from intersyn_jax.data import images, manifest
from intersyn_jax.data.importers import rows
from intersyn_jax.interleave.types import Conversation, Image, Segment, Text, Turn

BEGIN, IMAGE = '<BEGIN>', '<image>'


def conversations(path: str | os.PathLike[str], reject: rows.Reject, *, pixels: int,
                  folder: str | os.PathLike[str] | None = None, encoding: str = 'PNG') -> Iterator[Conversation]:
  """Yields the usable rows as conversations; the others go to `reject`. Arguments as in `importers.intersyn`.

  A picture stands where the `<image>` marker of its text is, after the text if it has none. A row is left out if any of
  its pictures is missing: an answer about a picture that nobody sees teaches nothing.
  """
  folder = pathlib.Path(path).parent if folder is None else folder
  seen: dict[str, str] = {}
  for where, row in rows.read(path, reject):
    name = row.get('total_uid') if isinstance(row.get('total_uid'), str) else ''
    try:
      conversation = _conversation(row, folder, pixels, encoding)
      if conversation.id in seen:
        raise rows.BadRow(f'its total_uid stands already at {seen[conversation.id]}')
    except ValueError as error:
      reject(manifest.Rejected(where, ascii(name)[1:-1], str(error)))
      continue
    seen[conversation.id] = where
    yield conversation


def _conversation(row: dict[str, Any], folder: str | os.PathLike[str], pixels: int, encoding: str) -> Conversation:
  name = rows.string(row, 'total_uid')
  messages = row.get('conversations')
  if not isinstance(messages, list) or not messages:
    raise rows.BadRow('field conversations is missing or no list')
  kinds = [next(iter(m)) if isinstance(m, dict) and len(m) == 1 else None for m in messages]
  if kinds != ['input', 'output'] * (len(messages) // 2):
    raise rows.BadRow(f'field conversations does not alternate input and output: {kinds[:6]}')
  halves = [_segments(message[kind], folder, pixels, encoding, f'{kind} {place // 2}')
            for place, (kind, message) in enumerate(zip(kinds, messages, strict=True))]
  topic = '/'.join(rows.string(row, key) for key in ('meta_task_name', 'subtask_name') if row.get(key))
  turns = tuple(Turn(question, answer) for question, answer in zip(halves[::2], halves[1::2], strict=True))
  return Conversation(id=name, topic=topic, turns=turns, generator='opening')


def _segments(items: Any, folder: str | os.PathLike[str], pixels: int, encoding: str,
              where: str) -> tuple[Segment, ...]:
  if not isinstance(items, list):
    raise rows.BadRow(f'{where} is no list')
  segments: list[Segment] = []
  for item in items:
    if not isinstance(item, dict):
      raise rows.BadRow(f'{where} holds an entry that is no object')
    text = rows.string(item, 'text') if item.get('text') else ''
    before, _, after = text.replace(BEGIN, '').partition(IMAGE)
    segments += _text(before)
    if item.get('image'):
      try:
        segments.append(Image(images.load(rows.string(item, 'image'), folder, pixels, encoding=encoding)))
      except ValueError as error:
        raise rows.BadRow(f'{where}: {error}') from error
    segments += _text(after.replace(IMAGE, ''))
  if not segments:
    raise rows.BadRow(f'{where} holds neither text nor image')
  return tuple(segments)


def _text(text: str) -> list[Segment]:
  return [Text(text.strip())] if text.strip() else []
