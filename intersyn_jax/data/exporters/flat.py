"""The flat columns of InterSyn's dataset card as parquet (InterSyn, released data), as `importers.flat` reads them."""

from __future__ import annotations

import functools
import json
import pathlib

from intersyn_jax.data import parquet
from intersyn_jax.data.exporters import shared
from intersyn_jax.data.importers.flat import TURNS, columns
from intersyn_jax.interleave.types import Conversation


@functools.cache
def schema():
  """Pictures are structs of bytes and path. The metadata tells `datasets` that they are its feature Image."""
  pa = parquet.arrow()
  names = columns(TURNS)
  is_image = {name: name.startswith('image') for name in names}
  picture = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
  features = {name: {'_type': 'Image'} if is_image[name] else {'dtype': 'string', '_type': 'Value'} for name in names}
  return pa.schema([(name, picture if is_image[name] else pa.string()) for name in names],
                   metadata={'huggingface': json.dumps({'info': {'features': features}})})


def sink(folder: pathlib.Path, split: str) -> parquet.Writer:
  return parquet.Writer(folder, split, schema())


def carry(conversation: Conversation) -> shared.Carried:
  """One row; columns of turns that are not there, and of pictures that an answer lacks, are null."""
  turns = shared.single_turns(conversation)
  if len(turns) > TURNS:
    raise shared.CannotCarry(f'it has {len(turns)} turns; the format has at most {TURNS}')
  row = dict.fromkeys(columns(TURNS)) | {'id': conversation.id, 'topic': conversation.topic}
  for number, (question, answer, image) in enumerate(turns):
    row |= {f'human{number + 1}': question, f'gpt{number + 1}': answer}
    if image:
      name = shared.picture_name(conversation.id, number, image.data)
      row |= {f'caption{number + 1}': image.caption, f'image{number + 1}': {'bytes': image.data, 'path': name}}
  return shared.Carried([row])
