"""Importer of InterleavedBench (JSON; docs/importing.md): instructions with context, some with gold answers.

    {"id", "task_name", "image": [file, ...], "conversations": [{"from": "human", "value": "... <image> ..."},
                                                                {"from": "gpt", "value": "..."}], ...}

`image` lists the pictures of the context and then those of the gold answer. Each `<image>` takes the next; what is left when
the texts end stands after the last text of the gold answer.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

from intersyn_jax.data.importers import rows, segments
from intersyn_jax.interleave.types import Conversation, Segment, Turn

BEGIN, IMAGE = '<BEGIN>', '<image>'
PLACES = ('zipped_images', 'images')
"""Where the archives of the release are unpacked."""


def conversations(path: str | os.PathLike[str], reject: rows.Reject, *, pixels: int,
                  folder: str | os.PathLike[str] | None = None, encoding: str = 'PNG',
                  fit: str = 'crop') -> rows.Conversations:
  """The usable rows as conversations; the others go to `reject`. Arguments as in `importers.intersyn`.

  The topic is `task_name` as it stands, since the score leaves aspects out by it. A row without gold answer is a prompt: its
  answer is empty.
  """
  importer = segments.Importer(path, folder, pixels=pixels, encoding=encoding, fit=fit, places=PLACES)
  return importer.conversations(rows.read(path, reject), _conversation, reject, key='id')


def _conversation(importer: segments.Importer, row: dict[str, Any]) -> Conversation:
  name = segments.identity(row, 'id')
  pictures = row.get('image')
  pictures = [] if pictures is None else segments.entries([pictures] if isinstance(pictures, str) else pictures, 'image')
  messages = segments.objects(row.get('conversations'), 'conversations')
  if [message.get('from') for message in messages] not in (['human'], ['human', 'gpt']):
    raise rows.BadRow('field conversations is not one human, or one human and one gpt')
  texts = [_parts(message.get('value'), message['from']) for message in messages]
  marks = sum(len(parts) - 1 for parts in texts)
  if marks > len(pictures):
    raise rows.BadRow(f'its texts have {marks} marks {IMAGE}, but field image lists {len(pictures)} pictures')
  if len(texts) == 1 and marks < len(pictures):
    raise rows.BadRow(f'field image lists {len(pictures)} pictures, but its only text has {marks} marks {IMAGE}')
  rest = iter(pictures)
  halves: list[list[Segment]] = []
  for parts in texts:
    half = importer.text(parts[0], 'value')
    for part, picture in zip(parts[1:], itertools.islice(rest, len(parts) - 1), strict=True):
      half += importer.picture(picture, 'image')
      half += importer.text(part, 'value')
    halves.append(half)
  for picture in rest:
    halves[-1] += importer.picture(picture, 'image')
  question, answer = halves if len(halves) == 2 else (halves[0], [])
  if not question:
    raise rows.BadRow('human says nothing')
  turn = Turn(segments.joined(question, '\n'), tuple(answer))
  return Conversation(id=name, topic=segments.optional(row, 'task_name'), turns=(turn,), generator='interleaved_bench')


def _parts(value: Any, speaker: str) -> list[str]:
  """The texts before, between and after the marks of pictures."""
  if value is None:
    return ['']
  if not isinstance(value, str):
    raise rows.BadRow(f'field value of {speaker} is no text')
  return value.replace(BEGIN, '').split(IMAGE)
