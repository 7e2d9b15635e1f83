"""BAGEL's parquet rows: pictures, instructions between them, and the whole sequence with losses (docs/datasets.md)."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

from intersyn_jax.data import parquet
from intersyn_jax.data.exporters import shared
from intersyn_jax.interleave.types import Conversation, Text


@functools.cache
def schema():
  """`image_list` and `instruction_list` as the released reader wants them, and `sequence` with what these two lack."""
  pa = parquet.arrow()
  item = pa.struct([('type', pa.string()), ('text', pa.string()), ('image', pa.int32()),
                    ('need_loss', pa.bool_()), ('need_vae', pa.bool_()), ('need_vit', pa.bool_())])
  return pa.schema([('id', pa.string()), ('image_list', pa.list_(pa.binary())),
                    ('instruction_list', pa.list_(pa.list_(pa.string()))), ('sequence', pa.list_(item))])


def sink(folder: pathlib.Path, split: str) -> parquet.Writer:
  return parquet.Writer(folder, split, schema(), index='parquet_info.json')


def carry(conversation: Conversation) -> shared.Carried:
  """One row.

  Text and pictures of answers have a loss. A picture is shown to what follows: through the vision encoder always, and
  through the VAE where a picture is still to be drawn.
  """
  images: list[bytes] = []
  between: list[list[str]] = []  # texts after each picture
  sequence: list[dict[str, Any]] = []
  for turn in conversation.turns:
    for answers, segments in ((False, turn.question), (True, turn.answer)):
      for segment in segments:
        is_text = isinstance(segment, Text)
        sequence.append({'type': 'text' if is_text else 'image', 'text': segment.text if is_text else None,
                         'image': None if is_text else len(images), 'need_loss': answers})
        if not is_text:
          images.append(segment.data)
          between.append([])
        elif between:
          between[-1].append(segment.text)
  follows = draws = False
  for item in reversed(sequence):
    is_image = item['type'] == 'image'
    item |= {'need_vae': is_image and draws, 'need_vit': is_image and follows}
    follows, draws = True, draws or (is_image and item['need_loss'])
  # Each entry is a list of wordings to choose from; ours has one.
  instructions = [['\n'.join(texts)] for texts in between[:-1]]
  return shared.Carried([{'id': conversation.id, 'image_list': images, 'instruction_list': instructions,
                          'sequence': sequence}])
