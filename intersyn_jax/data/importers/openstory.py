"""Importer of stories in key frames with captions, as OpenStory++ has them.

The release is parquet with a key frame a row, frames of one story one after the other and no pictures; the same rows may be JSON
or JSON Lines:

    video_id: text     time_stamp: text (hours-minutes-seconds-milliseconds)     json: {"caption": text, ...}, or such JSON text

The picture is `image` where a row names one, else `VIDEO_ID/VIDEO_ID_keyframe_TIME_STAMP.jpg`, as the official script cuts it
from the video. Up to FRAMES rows of the same video that follow one another are a story, as when the data was made. A row of JSON
may also hold a story of any length:

    {"id": text, "frames": [{"image": file, "caption": text}, ...]}

The first frame is the question, the others are the steps of the answer. Parquet needs the extra `parquet`.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from intersyn_jax.data import manifest
from intersyn_jax.data.importers import flat, questions, rows, segments
from intersyn_jax.interleave.types import Conversation, Turn

FRAMES = 5
"""The most key frames of a story of the release."""

_Row = tuple[str, dict[str, Any]]


def files(path: str | os.PathLike[str], field: str = 'data.path') -> list[pathlib.Path]:
  """The files that a path names: one of JSON or parquet, or the parquet files of a folder. Raises UserError: there is none."""
  return flat.files(path, field)


def conversations(path: str | os.PathLike[str], reject: rows.Reject, *, pixels: int,
                  folder: str | os.PathLike[str] | None = None, encoding: str = 'PNG',
                  fit: str = 'crop') -> rows.Conversations:
  """The usable stories as conversations; the others go to `reject`. Arguments as in `importers.intersyn`, and `path` may be a
  parquet file or a folder of them: pictures then lie in `folder`, or beside the (first) file."""
  path = pathlib.Path(path)
  importer = segments.Importer(path, folder, pixels=pixels, encoding=encoding, fit=fit)
  found = itertools.chain.from_iterable(_stories(_frames(file, reject), file.name, reject) for file in files(path))
  return importer.conversations(found, _conversation, reject, key='id')


def _frames(path: pathlib.Path, reject: rows.Reject) -> Iterator[_Row]:
  if path.suffix == '.parquet':
    return segments.parquet_rows(path, ('video_id', 'time_stamp', 'json'), ('image',), reject)
  return rows.read(path, reject)


def _stories(frames: Iterable[_Row], file: str, reject: rows.Reject) -> Iterator[_Row]:
  """Rows that are stories as they are, and key frames put together. A key frame that belongs to no video is rejected."""
  for video, run in itertools.groupby(frames, lambda frame: frame[1].get('video_id')):
    known = isinstance(video, str) and bool(video)
    while group := list(itertools.islice(run, FRAMES if known else 1)):
      where, first = group[0]
      if any('frames' in row for _, row in group):
        yield from group
      elif not known:
        reject(manifest.Rejected(where, '', 'has neither frames nor the video_id of a key frame'))
      else:
        if len(group) > 1:
          kind, number = where.removeprefix(f'{file} ').split(' ')
          where = f'{file} {kind}s {number}-{group[-1][0].rsplit(" ", 1)[1]}'
        story = [frame for frame, _ in itertools.groupby(_frame(row) for _, row in group)]  # the release repeats some
        yield where, {'id': f'{video}/{first.get("time_stamp")}', 'frames': story}


def _frame(row: dict[str, Any]) -> dict[str, Any]:
  """A key frame of the release as an entry of `frames`."""
  told = row.get('json')
  if isinstance(told, str):
    try:
      told = json.loads(told)
    except (ValueError, RecursionError):
      told = None
  caption = told.get('caption') if isinstance(told, dict) else None
  video, time = row['video_id'], row.get('time_stamp')
  return {'image': row.get('image') or f'{video}/{video}_keyframe_{time}.jpg', 'caption': caption}


def _conversation(importer: segments.Importer, row: dict[str, Any]) -> Conversation:
  name = segments.identity(row, 'id')
  frames = segments.objects(row.get('frames'), 'frames')
  if len(frames) < 2:
    raise rows.BadRow(f'it has {len(frames)} key frames; two are needed, to begin and to go on')
  first, *rest = ((rows.string(frame, 'caption'), frame.get('image')) for frame in frames)
  question = questions.ask(questions.CONTINUE, name, first[0], steps=len(rest))
  told = lambda caption, file: (*importer.text(caption, 'caption'), *importer.picture(file, 'image', caption=caption))
  turn = Turn((*importer.text(question, 'caption'), *importer.picture(first[1], 'image', caption=first[0])),
              tuple(itertools.chain.from_iterable(itertools.starmap(told, rest))))
  return Conversation(id=name, topic='', turns=(turn,), generator='openstory')
