"""The parts of a run as shapes alone, from a configuration and the published sizes of its family."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh, NamedSharding

from intersyn_jax import sharding
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import TAGS, Layout, TokenBatch, plain_layout
from intersyn_jax.judge.model import SynJudge
from intersyn_jax.models.definition import Definition, Params
from intersyn_jax.models.families import table
from intersyn_jax.stages import converted
from intersyn_jax.stages.common import Run
from intersyn_jax.stages.parts import Parts


class Ids:
  """A text tokenizer of which only the number of ids is known: every name but the tags is a token, every word is one id.

  Attributes:
    size, specials, spaced, spare, appended: as of a `CheckpointTokenizer`.
  """

  spaced = False
  spare = ()

  def __init__(self, rows: int, appended: Sequence[str] = ()):
    self._rows, self.appended = rows, {name: () for name in appended}
    self.size = rows + len(appended)
    self._named: dict[str, int] = {name: rows + number for number, name in enumerate(appended)}

  @property
  def specials(self) -> frozenset[int]:
    return frozenset(self._named.values())

  def special(self, name: str) -> int:
    return self._named.setdefault(name, len(self._named))

  def __contains__(self, name: str) -> bool:
    return name in self._named or name not in TAGS

  def encode(self, text: str) -> list[int]:
    return [self._rows - 1] * max(1, len(text.split()))

  def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
    return [self.encode(text) for text in texts]

  spell = encode

  def with_rows(self, names: Sequence[str]) -> Ids:
    return Ids(self._rows, names)


class Published(converted.Checkpoint):
  """A family's checkpoint of a public size, without its files.

  Attributes:
    dtype: of the model's parameters.
  """

  dtype = 'bfloat16'

  def __init__(self, config: ml_collections.ConfigDict):
    self.family, self._config = table.named(converted.wanted(config), converted.known(config)), config
    size = config.get('size', '')
    if size not in self.family.sizes:
      raise UserError(f'config.size is {size!r}; the sizes of family {self.family.name} are {", ".join(self.family.sizes)}')
    own = config.get('hf')
    self.hf: Mapping[str, Any] = {**self.family.sizes[size], **(own.to_dict() if own else {})}

  @functools.cached_property
  def layout(self) -> Layout:
    return self.family.layout(Ids(self.original.vocabulary), self.original, 'chat')


class Shapes(Parts):
  """`Parts` whose arrays are `jax.ShapeDtypeStruct`s in their shardings.

  Args:
    config: of a run.
    devices: of the pod.
  """

  def __init__(self, config: ml_collections.ConfigDict, devices: Sequence[jax.Device]):
    super().__init__(Run(config, '.'), devices)

  @functools.cached_property
  def checkpoint(self) -> Published | None:
    return Published(self.config) if converted.wanted(self.config) else None

  @functools.cached_property
  def layout(self) -> Layout:
    if self.checkpoint:
      return self.checkpoint.layout
    image = self.image_config
    return plain_layout(Ids(self.config.text.size), places=image.places, depth=image.depth, codebook=image.codebook)

  def load(self, definition: Definition, folder: Any = None) -> Params:
    return placed(definition.shapes, definition.shardings(self.mesh))

  def judge(self) -> tuple[SynJudge, Params]:
    judge = SynJudge.of(self.model_config, self.layout, self.config.judge)
    return judge, self.load(judge.definition)

  def tokens(self, rows: int, length: int) -> TokenBatch:
    """A batch [rows, length] spread over the mesh by its rows."""
    kinds = dict(text='int32', codes='int32', modality='int8', loss='float32', forced='bool', document='int32',
                 position='int32', turn='int32', step='int32')
    depth = self.layout.block.depth
    shape = lambda name: (rows, length, depth) if name == 'codes' else (rows, length)
    return by_rows(TokenBatch(**{name: jax.ShapeDtypeStruct(shape(name), kind) for name, kind in kinds.items()}), self.mesh)


def placed(shapes: Any, places: Any) -> Any:
  """Shapes in their shardings."""
  return jax.tree.map(lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes, places)


def by_rows(tree: Any, mesh: Mesh) -> Any:
  """Shapes whose first axis is spread over the mesh as rows are, where it divides."""
  place = lambda a: NamedSharding(mesh, sharding.spec(mesh, ('batch', *(None,) * (a.ndim - 1)), a.shape))
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place(a)), tree)


def alone(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
  """An array that every device has whole."""
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.replicated(mesh))
