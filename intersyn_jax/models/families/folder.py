"""A downloaded folder against what its config.json describes: checked both ways before anything is read, then read in pieces.

Our parameters lie in several *parts* (the unified model, the image tokenizer, an encoder of features), each a tree of shapes
and the entries that say where its parameters lie.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from intersyn_jax.errors import UserError
from intersyn_jax.models.definition import Params
from intersyn_jax.models.families import weights
from intersyn_jax.models.families.entries import Entry, prefixed
from intersyn_jax.models.families.family import Family
from intersyn_jax.models.families.weights import Spec, Tensor
from intersyn_jax.models.vision.codec import Codec, FeatureEncoder

_FEW = 4


@dataclasses.dataclass(frozen=True)
class Part:
  """Some of our parameters and where they lie.

  Attributes:
    shapes: by path.
    entries: all paths, each once.
  """

  shapes: Mapping[str, jax.ShapeDtypeStruct]
  entries: Sequence[Entry]

  def __post_init__(self):
    paths = [path for entry in self.entries for path in entry.ours]
    if sorted(paths) != sorted(self.shapes):
      odd = sorted(set(paths) ^ set(self.shapes)) or sorted({path for path in paths if paths.count(path) > 1})
      raise ValueError(f'entries and parameters differ: {odd[:_FEW]}')

  def theirs(self) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors that hold these parameters, by name."""
    found = {}
    for entry in self.entries:
      # One truth value stands for all: most changes of form are views of it, which cost nothing.
      arrays = entry.write([np.broadcast_to(False, self.shapes[path].shape) for path in entry.ours])
      if arrays:  # an entry that writes nothing reads what another one owns
        found |= {name: array.shape for name, array in zip(entry.theirs, arrays, strict=True)}
    return found


def flat(shapes: Params) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes of a definition by path."""
  return {jax.tree_util.keystr(keys, simple=True, separator='/'): shape
          for keys, shape in jax.tree_util.tree_leaves_with_path(shapes)}


class Source(NamedTuple):
  """A parameter that has not been read yet."""

  shape: tuple[int, ...]
  dtype: np.dtype
  make: Callable[[], np.ndarray]


def check(root: pathlib.Path, parts: Iterable[Part], tensors: Mapping[str, Tensor], unused: Callable[[str], bool]) -> None:
  """Compares names, shapes and types of a folder with what is wanted of it, all at once.

  Args:
    root: for errors.
    unused: of a name: whether such a tensor may lie there with no parameter for it.

  Raises:
    UserError: something is missing, unexpected, of another shape or no weights; tells a few of each, and how many.
  """
  wanted: dict[str, tuple[int, ...]] = {}
  for part in parts:
    for name, shape in part.theirs().items():
      if wanted.setdefault(name, shape) != shape:
        raise ValueError(f'{name}: two parts want {shape} and {wanted[name]}')
  here = {name: tensor for name, tensor in tensors.items() if name in wanted}
  complaints = {
      'missing': [name for name in wanted if name not in tensors],
      'unexpected': [name for name in tensors if name not in wanted and not unused(name)],
      'of another shape': [f'{name} is {list(t.shape)} and should be {list(wanted[name])}'
                           for name, t in here.items() if t.shape != wanted[name]],
      f'not of type {", ".join(weights.WEIGHTS)}': [f'{name} is {t.dtype}' for name, t in here.items()
                                                    if t.dtype not in weights.WEIGHTS]}
  if any(complaints.values()):
    told = [f'{len(names)} {what} ({", ".join(names[:_FEW])}{", ..." if len(names) > _FEW else ""})'
            for what, names in complaints.items() if names]
    raise UserError(f'{root}: the weights are not those that its config.json describes: tensors {"; ".join(told)}. '
                    'Download the folder again, or name another --family')


def dtype_of(part: Part, tensors: Mapping[str, Tensor], where: str) -> str:
  """The one type that all tensors of a part are stored as.

  Raises:
    UserError: there are several.
  """
  found: dict[str, str] = {}
  for name in part.theirs():
    found.setdefault(tensors[name].dtype, name)
  if len(found) > 1:
    told = ', '.join(f'{name} as {dtype}' for dtype, name in found.items())
    raise UserError(f'{where}: weights are stored in several types ({told}); choose one for all with --dtype=float32')
  return next(iter(found))


def sources(part: Part, tensors: Mapping[str, Tensor]) -> dict[str, Source]:
  """The parameters of a part, of the types in its shapes. Each is read when it is made, with the tensors of its entry alone."""
  def make(entry: Entry, number: int, like: jax.ShapeDtypeStruct) -> np.ndarray:
    array = entry.read([weights.read(tensors[name]) for name in entry.theirs])[number]
    if array.shape != like.shape:
      raise ValueError(f'{entry.ours[number]}: read {array.shape}, declared {like.shape}')
    return array.astype(like.dtype, copy=False)

  return {path: Source(part.shapes[path].shape, np.dtype(part.shapes[path].dtype),
                       lambda e=entry, i=i, like=part.shapes[path]: make(e, i, like))
          for entry in part.entries for i, path in enumerate(entry.ours)}


def written(entries: Iterable[Entry], values: Iterator[np.ndarray],
            specs: Mapping[str, Spec]) -> Iterator[tuple[str, np.ndarray]]:
  """The tensors of some entries, one after the other, as `specs` has them; `values` are their parameters, in order."""
  for entry in entries:
    arrays = entry.write([next(values) for _ in entry.ours])
    for i, name in enumerate(entry.theirs[:len(arrays)]):
      yield name, arrays[i].astype(weights.KINDS[specs[name].dtype], copy=False)
      arrays[i] = None  # written: the next ones need the room


def codec_part(root: pathlib.Path, family: Family, codec: Codec, tensors: Container[str]) -> Part:
  """The image tokenizer, from the checkpoint itself or from a file of its own beside it, whichever has all of it.

  Raises:
    UserError: neither has, and the family's checkpoints are known to come without.
  """
  shapes = flat(codec.definition.shapes)
  parts = [Part(shapes, prefixed(codec.entries, theirs=place)) for place in _places(family, codec)]
  for part in parts:
    if all(name in tensors for entry in part.entries for name in entry.theirs):
      return part
  absent = [name for entry in parts[0].entries for name in entry.theirs if name not in tensors]
  if family.codec_files:
    stem = family.codec_files[0]
    whole = 'no image tokenizer' if len(absent) == len(parts[0].theirs()) else 'only a part of the image tokenizer'
    raise UserError(f'{root} holds {whole} ({len(absent)} tensors are missing, such as {absent[0]}): put {stem}.ckpt or '
                    f'{stem}.safetensors of the original release into it')
  return parts[0]


def _places(family: Family, codec: Codec) -> list[str]:
  """What the names of an image tokenizer may have in front."""
  return [codec.prefix, *(f'{stem}/' for stem in family.codec_files)]


def unused_by(family: Family, codec: Codec, features: FeatureEncoder | None) -> Callable[[str], bool]:
  """Whether a name is one of those that the family is known to have and that no parameter needs."""
  names = {vision.prefix + name for vision in (codec, features) if vision for name in vision.unused}
  names |= {place + name for place in _places(family, codec) for entry in codec.entries for name in entry.theirs}  # a second one
  patterns = [re.compile(pattern) for pattern in family.unused]
  return lambda name: name in names or name in family.copies or any(pattern.fullmatch(name) for pattern in patterns)
