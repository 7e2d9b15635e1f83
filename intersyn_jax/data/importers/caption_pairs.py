"""Importer of pictures with captions, as JourneyDB has them: a caption is the question, its picture the answer.

    {"img_path": file, "prompt": text, "Task2": {"Caption": text}, ...}       JourneyDB
    {"image": file, "caption": text}                                          ours

Of JourneyDB the caption is taken, which says in a sentence what is seen; where a row has none, the prompt without the settings of
the generator at its end (`--ar 16:9 --v 4`).
"""

from __future__ import annotations

import os
import re
from typing import Any

from intersyn_jax.data.importers import rows, segments
from intersyn_jax.interleave.types import Conversation, Turn

_SETTINGS = re.compile(r'(^|\s)--[a-z]+\b')


def conversations(path: str | os.PathLike[str], reject: rows.Reject, *, pixels: int,
                  folder: str | os.PathLike[str] | None = None, encoding: str = 'PNG',
                  fit: str = 'crop') -> rows.Conversations:
  """The usable rows as conversations; the others go to `reject`. Arguments as in `importers.intersyn`.

  The id is file and row, since a picture may have several captions; the trace is the name of the picture.
  """
  importer = segments.Importer(path, folder, pixels=pixels, encoding=encoding, fit=fit)
  return importer.conversations(segments.numbered(rows.read(path, reject)), _conversation, reject)


def _conversation(importer: segments.Importer, numbered: tuple[str, dict[str, Any]]) -> Conversation:
  name, row = numbered
  field = 'img_path' if 'img_path' in row else 'image'
  file, caption = segments.identity(row, field), _caption(row)
  turn = Turn(tuple(importer.text(caption, 'caption')), tuple(importer.picture(file, field, caption=caption)))
  return Conversation(id=name, topic='', turns=(turn,), generator='caption_pairs', trace=file)


def _caption(row: dict[str, Any]) -> str:
  told = row.get('Task2')
  for holder, field in ((row, 'caption'), (told if isinstance(told, dict) else {}, 'Caption')):
    if holder.get(field) not in (None, ''):
      return rows.string(holder, field)
  prompt = rows.string(row, 'prompt')
  settings = _SETTINGS.search(prompt)
  caption = prompt[:settings.start()].strip() if settings else prompt
  if not caption:
    raise rows.BadRow('field prompt holds settings alone')
  return caption
