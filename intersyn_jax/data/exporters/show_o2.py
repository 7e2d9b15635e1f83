"""Show-o2's annotations for mixed-modality tuning: pictures, and before each its text (docs/datasets.md)."""

from __future__ import annotations

import io

import PIL.Image

from intersyn_jax.data import images
from intersyn_jax.data.exporters import shared
from intersyn_jax.interleave.types import Conversation, Image


def carry(conversation: Conversation) -> shared.Carried:
  """One row. A caption is all that was said since the picture before, questions too: the format knows no speakers.

  Pictures become JPEG: the loader adds `.jpg` to any other name.
  """
  row: dict[str, list[str]] = {'images': [], 'captions': []}
  pictures = {}
  for drawn in shared.drawn(conversation):
    data = _jpeg(drawn.image, conversation.id)
    name = shared.picture_name(conversation.id, drawn.turn, data, drawn.step)
    pictures[name] = data
    row['images'].append(f'{shared.FOLDER}/{name}')
    row['captions'].append('\n'.join(drawn.said))
  return shared.Carried([row], pictures)


def _jpeg(image: Image, name: str) -> bytes:
  if images.sniff(image.data) == 'JPEG':
    return image.data
  out = io.BytesIO()
  PIL.Image.fromarray(images.pixels(image.data, f'record {name}')).save(out, 'JPEG', quality=95, subsampling=0)
  return out.getvalue()
