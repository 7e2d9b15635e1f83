"""TFDS builder `intersyn`: shards that are finished (of `synthesize`, of `data`, or sent by somebody), read back.

    import intersyn_jax.data.seir_builder
    tfds.builder('intersyn', path='runs/tiny/synthesize/data').download_and_prepare()

copies them to where TFDS keeps its data sets; from then on `tfds.builder('intersyn')` and `tfds.data_source('intersyn')`
find them. To read them where they lie, `tfds.builder_from_directory('runs/tiny/synthesize/data')` is enough. As
`data.source=intersyn_jax.data.seir_builder:InterSyn` with `data.path` they are the data of another work folder.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from intersyn_jax.data import manifest, records, shards
from intersyn_jax.data.builders import ConversationBuilder
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation


class InterSyn(ConversationBuilder):
  """Finished shards with their manifest; the splits are those of the folder, record for record."""

  name = 'intersyn'
  description = 'InterSyn: interleaved conversations written by SEIR, with captions and scores.'

  def __init__(self, *, path: str | os.PathLike[str] = '', **kwargs):
    """
    Args:
      path: folder of the shards; not needed where the data set is prepared already.
    """
    self._path = path
    super().__init__(**kwargs)

  def sizes(self) -> dict[str, int | None]:
    return {name: split.records for name, split in self._splits().items() if split.records}

  def settings(self, split: str) -> dict[str, Any]:
    return {'shards': {shard.file: shard.sha256 for shard in self._splits()[split].shards}}

  def conversations(self, split: str) -> Iterator[Conversation]:
    self.rejected[split] = []
    return iter(shards.open_split(self._path, split))

  def _splits(self) -> dict[str, manifest.Split]:
    found = manifest.load(self._path) if os.fspath(self._path) else None
    if found is None:
      raise UserError(f'data.path {os.fspath(self._path)!r} has no {manifest.FILE}; set it to a folder of finished shards, '
                      'e.g. runs/tiny/synthesize/data')
    return found.splits


def read(builder: tfds.core.DatasetBuilder, split: str) -> Iterator[Conversation]:
  """The conversations of a split, from any TFDS builder of such records. Raises UserError for a damaged record."""
  raw = builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
  where = pathlib.Path(builder.data_path).name
  return (records.decode(raw[i], f'{where} {split} record {i}') for i in range(len(raw)))
