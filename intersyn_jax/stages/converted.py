"""A public checkpoint in a work folder: what `convert` leaves, and what other stages and `export` read there.

    WORKDIR/convert/checkpoints         parameters of the unified model: the policy `convert`
    WORKDIR/convert/image/checkpoints   of the image tokenizer; features/checkpoints of an encoder of questions' pictures
    WORKDIR/convert/files               config.json, tokenizer and templates, as they were downloaded
    WORKDIR/convert/unused              tensors that no parameter needs, for `export`
    WORKDIR/convert/tensors.json        name -> [type, shape, file without shard number, name in it] of every tensor
    WORKDIR/convert/family.json         the family, and the type of the parameters; written last
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
from etils import epath

from intersyn_jax.errors import UserError
from intersyn_jax.interleave.checkpoint_tokenizer import CheckpointTokenizer
from intersyn_jax.interleave.layout import Layout
from intersyn_jax.models import unified
from intersyn_jax.models.families import entries, folder, table
from intersyn_jax.models.families.family import Family
from intersyn_jax.models.families.folder import Part
from intersyn_jax.models.vision.codec import Codec, FeatureEncoder
from intersyn_jax.stages import imports
from intersyn_jax.stages.common import read_json

MODEL, IMAGE, FEATURES = 'model', 'image', 'features'
"""The parts of a checkpoint that have parameters."""


def folder_of(workdir: epath.PathLike, part: str = MODEL) -> epath.Path:
  """Where the checkpoints of a converted part lie."""
  here = epath.Path(workdir) / 'convert'
  return here / 'checkpoints' if part == MODEL else here / part / 'checkpoints'


def known(config: ml_collections.ConfigDict) -> dict[str, Family]:
  """The families of the table, and the user's own where `config.family` names one by import path."""
  own = imports.resolve(config.get('family', ''), 'family')
  if own and not isinstance(own, (str, Family)):
    raise UserError(f'config.family is {config.family}, which is a {type(own).__name__}; it must be a Family')
  return table.FAMILIES | ({own.name: own} if isinstance(own, Family) else {})


def wanted(config: ml_collections.ConfigDict) -> str:
  """The name of the family that a configuration is for, '' where it trains a model of its own."""
  own = imports.resolve(config.get('family', ''), 'family')
  return own.name if isinstance(own, Family) else own


class Checkpoint:
  """A family's checkpoint as its config.json and tokenizer tell it; weights are another matter.

  Attributes:
    family: it belongs to.
    root: the folder with these files.
    hf: config.json, with the fields of `config.hf` in place of its own.
  """

  def __init__(self, family: Family, root: pathlib.Path, config: ml_collections.ConfigDict):
    self.family, self.root, self._config = family, root, config
    own = config.get('hf')
    self.hf: Mapping[str, Any] = table.read_config(root) | (own.to_dict() if own else {})

  @functools.cached_property
  def layout(self) -> Layout:
    codes = self.family.code_rows(self.hf) if self.family.code_rows else ()
    tokenizer = CheckpointTokenizer.read(self.root / self.family.text_folder, rows=self.original.vocabulary + len(codes),
                                         images=codes)
    return self.family.layout(tokenizer, self.original, self._config.get('template', 'chat'))

  @functools.cached_property
  def new_rows(self) -> list[tuple[int, ...]]:
    """For each token that the layout adds to the checkpoint's, the ids whose mean its rows start as."""
    return [tuple(ids) for ids in self.layout.tokenizer.appended.values()]

  @functools.cached_property
  def original(self) -> unified.ModelConfig:
    """The model as the checkpoint has it."""
    return self.family.model(self.hf)

  def model_config(self, dtype: str) -> unified.ModelConfig:
    """The model as it runs here: with rows for new tokens, and with parameters of this type."""
    model = self._config.model
    trunk = dataclasses.replace(self.original.trunk, dtype=model.dtype, remat=model.remat)
    return dataclasses.replace(self.original, trunk=trunk, param_dtype=dtype, head_remat=model.get('head_remat', ''),
                               vocabulary=self.original.vocabulary + len(self.new_rows))

  @functools.cached_property
  def codec(self) -> Codec:
    return self.family.codec(self.hf)

  @functools.cached_property
  def features(self) -> FeatureEncoder | None:
    return self.family.features(self.hf) if self.family.features else None

  def model_part(self, dtype: str) -> Part:
    """The unified model and where its parameters lie."""
    shapes = folder.flat(unified.define(self.model_config(dtype)).shapes)
    found = self.family.entries(self.hf)
    for path, axis in (('backbone/text_embedding', 0), ('text_head', 1)):
      if self.new_rows and path in shapes:
        found = [entries.grown(e, path, self.new_rows, axis=axis) if path in e.ours else e for e in found]
    return Part(shapes, found)

  def features_part(self) -> Part | None:
    """The encoder of pictures to understand, and where its parameters lie."""
    vision = self.features
    return vision and Part(folder.flat(vision.definition.shapes), entries.prefixed(vision.entries, theirs=vision.prefix))


class Converted(Checkpoint):
  """The checkpoint that a work folder holds.

  Attributes:
    dtype: of the model's parameters.
    tensors: name -> [type, shape, file, name there] of every tensor of the downloaded folder.
  """

  def __init__(self, workdir: epath.PathLike, config: ml_collections.ConfigDict):
    here = epath.Path(workdir) / 'convert'
    if not (here / 'family.json').exists():
      raise UserError(f'{workdir} holds no converted checkpoint: run the stage convert with --from=FOLDER first')
    facts = read_json(here / 'family.json')
    if facts['family'] != wanted(config):
      raise UserError(f'{here} is of family {facts["family"]}, but config.family is {wanted(config)!r}: use the configuration '
                      'it was converted with')
    super().__init__(table.named(facts['family'], known(config)), pathlib.Path(here / 'files'), config)
    self.folder = here
    self.dtype: str = facts['dtype']

  @functools.cached_property
  def tensors(self) -> dict[str, list]:
    return read_json(self.folder / 'tensors.json')
