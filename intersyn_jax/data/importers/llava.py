"""Importer of conversations about pictures in the format of LLaVA (a JSON list, or JSON Lines).

    {"id": text, "image": file or [file, ...], "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                                                 {"from": "gpt", "value": "A cat."}, ...]}

Each `<image>` takes the next picture; with no mark at all, the pictures stand before the first question. `image` may be missing:
the conversation is then text alone. `gpt` has the last word, and no marks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from intersyn_jax.data.importers import rows, segments
from intersyn_jax.interleave.types import Conversation, Segment, Turn

IMAGE = '<image>'


def conversations(path: str | os.PathLike[str], reject: rows.Reject, *, pixels: int,
                  folder: str | os.PathLike[str] | None = None, encoding: str = 'PNG',
                  fit: str = 'crop') -> rows.Conversations:
  """The usable rows as conversations; the others go to `reject`. Arguments as in `importers.intersyn`.

  The id is file and row, since the ids of the release, which are those of the pictures, repeat; the trace is the row's id.
  """
  importer = segments.Importer(path, folder, pixels=pixels, encoding=encoding, fit=fit)
  return importer.conversations(segments.numbered(rows.read(path, reject)), _conversation, reject)


def _conversation(importer: segments.Importer, numbered: tuple[str, dict[str, Any]]) -> Conversation:
  name, row = numbered
  messages = segments.objects(row.get('conversations'), 'conversations')
  speakers = [message.get('from') for message in messages]
  if not messages or speakers != ['human', 'gpt'] * (len(messages) // 2):
    raise rows.BadRow('field conversations does not alternate human and gpt, ending with gpt')
  texts = [rows.string(message, 'value') for message in messages]
  if any(IMAGE in text for text in texts[1::2]):
    raise rows.BadRow(f'gpt has a mark {IMAGE}')
  given = row.get('image')
  pictures = [] if given in (None, '') else segments.entries([given] if isinstance(given, str) else given, 'image')
  marks = sum(text.count(IMAGE) for text in texts[::2])
  if not marks and pictures:
    texts[0] = IMAGE * len(pictures) + texts[0]
  elif marks != len(pictures):
    raise rows.BadRow(f'human has {marks} marks {IMAGE}, field image has {len(pictures)} pictures')
  rest = iter(pictures)
  turns = tuple(Turn(tuple(_question(importer, question, rest)), tuple(importer.text(answer, 'value')))
                for question, answer in zip(texts[::2], texts[1::2], strict=True))
  given = segments.optional({'id': str(row['id'])}, 'id') if isinstance(row.get('id'), str | int) else ''
  return Conversation(id=name, topic='', turns=turns, generator='llava', trace=given)


def _question(importer: segments.Importer, text: str, pictures: Iterator[Any]) -> Iterator[Segment]:
  first, *others = text.split(IMAGE)
  yield from importer.text(first, 'value')
  for part in others:
    yield from importer.picture(next(pictures), 'image')
    yield from importer.text(part, 'value')
