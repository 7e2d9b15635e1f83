"""Importer of videos told event by event, as ActivityNet Captions has them, with a key frame for each event.

One JSON object of all videos, as it is released, or the same as JSON Lines (or a list), a video a row:

    {"v_QOlSCBRmfWY": {"duration": 82.7, "timestamps": [[0.8, 19.9], ...], "sentences": ["A woman is ...", ...]}, ...}
    {"id": "v_QOlSCBRmfWY", "timestamps": [...], "sentences": [...], "frames": [file, ...]}

`frames` has the picture of each sentence; without it these are `ID/0.jpg`, `ID/1.jpg` and so on. Events are put in the order in
which they begin. The first is the question, with a picture, and the others are the steps of the answer.
"""

from __future__ import annotations

import itertools
import math
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from intersyn_jax.data import manifest
from intersyn_jax.data.importers import questions, rows, segments
from intersyn_jax.interleave.types import Conversation, Turn

_OBJECT = re.compile(rb'(\xef\xbb\xbf)?\s*\{\s*"(?:[^"\\]|\\.){0,4000}"\s*:\s*\{\s*"(duration|timestamps|sentences|frames)"')
"""How a file begins that is one object of all videos."""


def conversations(path: str | os.PathLike[str], reject: rows.Reject, *, pixels: int,
                  folder: str | os.PathLike[str] | None = None, encoding: str = 'PNG',
                  fit: str = 'crop') -> rows.Conversations:
  """The usable rows as conversations; the others go to `reject`. Arguments as in `importers.intersyn`."""
  importer = segments.Importer(path, folder, pixels=pixels, encoding=encoding, fit=fit)
  return importer.conversations(_read(pathlib.Path(path), reject), _conversation, reject, key='id')


def _read(path: pathlib.Path, reject: rows.Reject) -> Iterator[tuple[str, dict[str, Any]]]:
  if not path.is_file() or not _OBJECT.match(_start(path)):
    yield from rows.read(path, reject)
    return
  for where, name, row in rows.read_members(path):
    if isinstance(row, dict):
      yield where, row | {'id': name}
    else:
      reject(manifest.Rejected(where, ascii(name[:200])[1:-1], 'is no JSON object'))


def _start(path: pathlib.Path) -> bytes:
  with open(path, 'rb') as file:
    return file.read(rows.CHUNK)


def _conversation(importer: segments.Importer, row: dict[str, Any]) -> Conversation:
  name = segments.identity(row, 'id')
  sentences = segments.entries(row.get('sentences'), 'sentences')
  frames = row.get('frames')
  frames = [f'{name}/{i}.jpg' for i in range(len(sentences))] if frames is None else segments.entries(frames, 'frames')
  if len(frames) != len(sentences):
    raise rows.BadRow(f'field frames has {len(frames)} entries, field sentences has {len(sentences)}')
  if len(sentences) < 2:
    raise rows.BadRow(f'it has {len(sentences)} events; two are needed, to begin and to go on')
  first, *rest = _in_time(row.get('timestamps'), len(sentences))
  told = lambda event: rows.string({'sentences': sentences[event]}, 'sentences')
  shown = lambda event: importer.picture(frames[event], 'frames', caption=told(event))
  question = questions.ask(questions.CONTINUE, name, told(first), steps=len(rest))
  answer = itertools.chain.from_iterable((*importer.text(told(event), 'sentences'), *shown(event)) for event in rest)
  turn = Turn((*importer.text(question, 'sentences'), *shown(first)), tuple(answer))
  return Conversation(id=name, topic='', turns=(turn,), generator='dense_captions')


def _in_time(stamps: Any, count: int) -> list[int]:
  """The numbers of the events in the order in which they begin; as they stand where no times are given."""
  if stamps is None:
    return list(range(count))
  times = segments.entries(stamps, 'timestamps')
  number = lambda value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
  if len(times) != count:
    raise rows.BadRow(f'field timestamps has {len(times)} entries, field sentences has {count}')
  for place, pair in enumerate(times):
    if not isinstance(pair, list) or len(pair) != 2 or not all(map(number, pair)):
      raise rows.BadRow(f'entry {place} of field timestamps is no pair of seconds')
  return sorted(range(count), key=lambda event: (times[event], event))
