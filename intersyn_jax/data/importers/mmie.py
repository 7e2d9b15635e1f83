"""Importer of MMIE (JSON; docs/importing.md): questions and reference answers of texts and pictures.

    {"id", "catagory" (sic), "field", "conversations": [{"from": "human", "content": [{"text", "image"}, ...]},
                                                        {"from": "gpt", "content": [...]}]}

The judge of MMIE tells the three tasks apart by `SA`, `PBL` or `MSR` in the id, which is kept as it is.
"""

from __future__ import annotations

import os
from typing import Any

from intersyn_jax.data.importers import rows, segments
from intersyn_jax.interleave.types import Conversation, Segment, Turn

TOPIC = (('catagory', 'category'), ('field',), ('subfield',))
"""Fields that make the topic; of those written in two ways the first that is there."""


def conversations(path: str | os.PathLike[str], reject: rows.Reject, *, pixels: int,
                  folder: str | os.PathLike[str] | None = None, encoding: str = 'PNG',
                  fit: str = 'crop') -> rows.Conversations:
  """The usable rows as conversations; the others go to `reject`. Arguments as in `importers.intersyn`.

  The topic is `category/field`, with `/subfield` where a row has one. Texts of a question that follow one another are one, a
  line each; an answer keeps its entries one by one, since the judge reads the first alone. A row whose last `gpt` is missing
  or says nothing is a prompt: its answer is empty.
  """
  importer = segments.Importer(path, folder, pixels=pixels, encoding=encoding, fit=fit)
  return importer.conversations(rows.read(path, reject), _conversation, reject, key='id')


def _conversation(importer: segments.Importer, row: dict[str, Any]) -> Conversation:
  name = segments.identity(row, 'id')
  messages = segments.objects(row.get('conversations'), 'conversations')
  speakers = [message.get('from') for message in messages]
  if not speakers or speakers != (['human', 'gpt'] * len(speakers))[:len(speakers)]:
    raise rows.BadRow('field conversations does not alternate human and gpt, beginning with human')
  halves = [_segments(importer, message.get('content'), f'{message["from"]} {place // 2}')
            for place, message in enumerate(messages)]
  if len(halves) % 2:
    halves.append([])
  turns = tuple(Turn(segments.joined(question, '\n'), tuple(answer))
                for question, answer in zip(halves[::2], halves[1::2], strict=True))
  for place, turn in enumerate(turns):
    if not turn.question or (not turn.answer and place < len(turns) - 1):
      raise rows.BadRow(f'turn {place}: the {"answer" if turn.question else "question"} holds neither text nor picture')
  topic = '/'.join(filter(None, (next(filter(None, (segments.optional(row, key) for key in keys)), '') for keys in TOPIC)))
  return Conversation(id=name, topic=topic, turns=turns, generator='mmie')


def _segments(importer: segments.Importer, items: Any, where: str) -> list[Segment]:
  found: list[Segment] = []
  for item in segments.objects(items, f'content of {where}'):
    try:
      found += importer.text(item.get('text'), 'text')
      if item.get('image') not in (None, ''):
        found += importer.picture(item['image'], 'image')
    except ValueError as error:
      raise rows.BadRow(f'{where}: {error}') from error
  return found
