"""Anole's raw fine-tuning rows: one text and the one picture after it (docs/datasets.md)."""

from __future__ import annotations

import statistics

from intersyn_jax.data.exporters import shared
from intersyn_jax.interleave.types import Conversation, images_of


def carry(conversation: Conversation) -> shared.Carried:
  """A row for each picture. `text` is all that was said before it: what to draw may have been said in an earlier step."""
  rows, pictures = [], {}
  said: list[str] = []
  for drawn in shared.drawn(conversation):
    said += drawn.said
    name = shared.picture_name(conversation.id, drawn.turn, drawn.image.data, drawn.step)
    pictures[name] = drawn.image.data
    rows.append({'text': '\n'.join(said), 'image': f'{shared.FOLDER}/{name}',
                 'aesthetic': _quality(conversation, drawn.turn, drawn.step)})
  return shared.Carried(rows, pictures)


def _quality(conversation: Conversation, turn: int, step: int) -> float | None:
  """Mean IQ that the picture was given; that of the whole answer where it is the only one; None where there is none."""
  given = {place: [s.iq for s in conversation.scores if (s.turn, s.step) == (turn, place)] for place in (step, -1)}
  alone = len(images_of(conversation.turns[turn].answer)) == 1
  values = given[step] or (given[-1] if alone else [])
  return round(statistics.fmean(values), 6) if values else None
