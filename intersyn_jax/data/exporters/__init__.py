"""Conversations in the formats of others: the released ones of InterSyn, and what the target models are trained on.

A format says what becomes of one conversation and which file its rows go to. It carries a conversation whole or not at all:
`CannotCarry` has the reason, and nothing is ever cut to fit (docs/datasets.md).
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable

from intersyn_jax.data import manifest
from intersyn_jax.data.exporters import anole, bagel, files, flat, intersyn, shared, show_o2
from intersyn_jax.interleave.types import DIMENSIONS, Conversation, images_of

PROVENANCE = 'provenance.jsonl'
"""In every export: who wrote each conversation, its seed, trace and scores, which no format has fields for."""


@dataclasses.dataclass(frozen=True)
class Format:
  """One format.

  Attributes:
    carry: what becomes of a conversation; raises CannotCarry.
    sink: opens the file of the rows in a folder, for a split.
  """

  carry: Callable[[Conversation], shared.Carried]
  sink: Callable[[pathlib.Path, str], files.Sink]


FORMATS = {
    'intersyn': Format(intersyn.carry, files.JsonList),
    'flat': Format(flat.carry, flat.sink),
    'anole': Format(anole.carry, files.JsonLines),
    'show_o2': Format(show_o2.carry, files.JsonList),
    'bagel': Format(bagel.carry, bagel.sink),
}
"""What `export --data=` can name."""


def write(name: str, folder: str | os.PathLike[str], split: str, items: Iterable[tuple[str, Conversation]],
          leave_out: Callable[[manifest.Rejected], None]) -> dict[str, int]:
  """Writes conversations in the format `name`.

  Args:
    name: of FORMATS.
    folder: where to; made if it is not there.
    split: names the files.
    items: conversations, each with where it stands.
    leave_out: takes each conversation that the format cannot carry.

  Returns:
    How many conversations, rows and pictures were written.

  Raises:
    UserError: the format needs a package that is not installed.
  """
  form, base = FORMATS[name], pathlib.Path(folder)
  base.mkdir(parents=True, exist_ok=True)
  seen: dict[str, str] = {}
  counts = collections.Counter(conversations=0, rows=0, pictures=0)
  told, sink = (base / PROVENANCE).open('w'), form.sink(base, split)
  with told:
    for where, conversation in items:
      try:
        shared.check(conversation)
        if conversation.id in seen:
          raise shared.CannotCarry(f'its id stands already at {seen[conversation.id]}')
        carried = form.carry(conversation)
        _write_pictures(base / shared.FOLDER, carried.pictures)
      except shared.CannotCarry as reason:
        leave_out(manifest.Rejected(where, conversation.id, str(reason)))
        continue
      seen[conversation.id] = where
      pictures = [image for turn in conversation.turns for image in images_of((*turn.question, *turn.answer))]
      for row in carried.rows:
        sink.write(row, sum(len(image.data) for image in pictures))
      told.write(json.dumps(_provenance(conversation)) + '\n')
      counts.update(conversations=1, rows=len(carried.rows), pictures=len(pictures))
  sink.close()
  return dict(counts)


def _write_pictures(folder: pathlib.Path, pictures: dict[str, bytes]) -> None:
  if pictures:
    folder.mkdir(exist_ok=True)
  for name, data in pictures.items():
    try:
      with (folder / name).open('xb') as file:
        file.write(data)
    except FileExistsError as error:
      raise shared.CannotCarry(f'a picture of another record has the file name {name!r} already') from error


def _provenance(conversation: Conversation) -> dict:
  scores = [{'turn': s.turn, 'step': s.step} | {name: getattr(s, name) for name in DIMENSIONS} for s in conversation.scores]
  return {key: getattr(conversation, key) for key in ('id', 'topic', 'generator', 'seed', 'trace')} | {'scores': scores}
