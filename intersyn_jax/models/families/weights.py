"""Tensors of a downloaded folder: known from the headers of its files, read one at a time, trusted in nothing.

A tensor goes by the name that its file gives it; one in a folder below has the folder in front, `llm/model.norm.weight`. Files
are safetensors, alone or as shards with an index, or PyTorch's own (`.bin`, `.pt`, `.ckpt`), which are opened only as plain
weights: a pickle that wants to run anything is refused by torch before it can.
"""

from __future__ import annotations

import functools
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from intersyn_jax.errors import UserError

WEIGHTS = ('F32', 'F16', 'BF16')
"""What weights may be stored as, by the names of safetensors."""

KINDS = {
    'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16, 'I64': np.int64, 'I32': np.int32,
    'I16': np.int16, 'I8': np.int8, 'U8': np.uint8, 'BOOL': np.bool_,
}
"""What any tensor may be stored as; those that are no weights are only passed on."""

SHARD_BYTES = 5 * 10**9
"""Files that are written hold at most this much, as is usual on the Hub."""

_INDEX_BYTES = 64 << 20  # of a real index: about 0.1 MiB
_SHARD = re.compile(r'(.+)-\d{5}-of-\d{5}\.(safetensors|bin)')
_TORCH = ('.bin', '.pt', '.pth', '.ckpt')


class Tensor(NamedTuple):
  """One tensor of a file.

  Attributes:
    file: that holds it.
    name: in that file.
    dtype: its name in safetensors.
    shape: as stored.
    load: gives the array; see `read`.
  """

  file: pathlib.Path
  name: str
  dtype: str
  shape: tuple[int, ...]
  load: Callable[[], np.ndarray]


class Spec(NamedTuple):
  """A tensor that is to be written."""

  dtype: str
  shape: tuple[int, ...]

  @property
  def nbytes(self) -> int:
    return np.dtype(KINDS[self.dtype]).itemsize * math.prod(self.shape)


def read(tensor: Tensor) -> np.ndarray:
  """The array of a tensor.

  Raises:
    UserError: it is stored as a kind that is not known, or its file has changed since it was opened.
  """
  if tensor.dtype not in KINDS:
    raise UserError(f'{tensor.file}: tensor {tensor.name} is stored as {tensor.dtype}, which is not read; take a checkpoint in '
                    f'{", ".join(WEIGHTS)}')
  array = tensor.load()
  if array.shape != tensor.shape:
    raise UserError(f'{tensor.file}: tensor {tensor.name} could not be read whole; the file has changed meanwhile, start again')
  return array


def read_json(path: pathlib.Path, root: pathlib.Path) -> dict[str, Any]:
  """A JSON object from a downloaded folder.

  Raises:
    UserError: missing, led out of `root` by a link, huge, or no JSON object.
  """
  inside(path, root)
  try:
    if path.stat().st_size > _INDEX_BYTES:
      raise UserError(f'{path} has {path.stat().st_size} bytes, far more than such a file needs; download it again')
    value = json.loads(path.read_bytes())
  except FileNotFoundError:
    raise UserError(f'{path} is missing: name a downloaded folder, complete with its config.json') from None
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f'{path}: not JSON ({_brief(error)}); download it again') from None
  if not isinstance(value, dict):
    raise UserError(f'{path}: holds a {type(value).__name__}, not a JSON object; download it again')
  return value


def inside(path: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
  """The path, where no link leads out of `root` on its way; UserError otherwise."""
  if not path.resolve().is_relative_to(root.resolve()):
    raise UserError(f'{path} is a link that leads out of {root}; links are not followed: make a folder of real files, '
                    'for example with `cp -rL`, or download with --local-dir')
  return path


def open_tensors(root: pathlib.Path, folders: Iterable[str] = ('',), files: Iterable[str] = (),
                 older: Iterable[tuple[str, str]] = ()) -> dict[str, Tensor]:
  """All tensors of a downloaded folder; nothing but headers is read.

  Args:
    root: the folder.
    folders: below it, each with weights of its own, '' for itself.
    files: stems of further files in `root` that are opened where they exist; `vqgan` puts `vqgan/` before the tensors of
      `vqgan.ckpt`.
    older: regular expressions and what they become, one after the other, in names of earlier releases of a checkpoint.

  Raises:
    UserError: no weights, a file that is cut short or no weights file, an index and shards that do not belong together, a
      tensor in two files, a link that leads out of `root`.
  """
  root = pathlib.Path(root)
  alone = [path for stem in files for path in sorted(root.glob(f'{stem}.*')) if path.suffix in ('.safetensors', *_TORCH)]
  found: dict[str, Tensor] = {}
  groups = [(f'{folder}/' if folder else '', _weight_files(root / folder, root, alone)) for folder in folders]
  for prefix, paths in [*groups, *((f'{path.stem}/', [path]) for path in alone)]:
    for path in paths:
      for tensor in _open_file(inside(path, root)).values():
        name = functools.reduce(lambda name, change: re.sub(*change, name), older, prefix + tensor.name)
        if twin := found.get(name):
          raise UserError(f'tensor {name} lies in both {twin.file} and {path}; remove the file that does not belong')
        found[name] = tensor
  return found


def _weight_files(folder: pathlib.Path, root: pathlib.Path, alone: Sequence[pathlib.Path]) -> list[pathlib.Path]:
  """The files with the weights of one folder: safetensors before torch, an index before single files."""
  inside(folder, root)
  for suffix in ('.safetensors', '.bin'):
    indices = sorted(folder.glob(f'*{suffix}.index.json'))
    if len(indices) > 1:
      raise UserError(f'{folder} has {len(indices)} indices ({", ".join(p.name for p in indices[:3])}); leave one')
    if indices:
      return _indexed(indices[0], root)
    paths = [path for path in sorted(folder.glob(f'*{suffix}')) if path not in alone]
    sharded = [path for path in paths if _SHARD.fullmatch(path.name)]
    if sharded:
      raise UserError(f'{folder} has {sharded[0].name} but no index {_SHARD.fullmatch(sharded[0].name)[1]}{suffix}.index.json; '
                      'download the index too')
    if paths:
      return paths
  raise UserError(f'{folder} holds no weights (*.safetensors, or *.bin); name a downloaded folder, complete with them')


def _indexed(index: pathlib.Path, root: pathlib.Path) -> list[pathlib.Path]:
  """The shards that an index names; they and it must tell the same."""
  folder = index.parent
  names = read_json(index, root).get('weight_map')
  if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
    raise UserError(f'{index}: has no weight_map from tensors to files; download it again')
  shards: dict[str, set[str]] = {}
  for name, file in names.items():
    if pathlib.PurePath(file).name != file or '\\' in file or file in ('', '.', '..'):
      raise UserError(f'{index}: tensor {name} is said to lie in {file!r}, which is no plain file name; download the folder '
                      'again, from a source you trust')
    shards.setdefault(file, set()).add(name)
  for file, wanted in shards.items():
    if not (folder / file).exists():
      raise UserError(f'{folder / file} is missing, {index.name} names it; download it too')
    if absent := sorted(wanted - _open_file(inside(folder / file, root)).keys()):
      raise UserError(f'{folder / file} has no tensor {absent[0]}, {index.name} says it has; download both again')
  for path in sorted(folder.iterdir()):
    match = _SHARD.fullmatch(path.name)
    if match and path.name not in shards and any((m := _SHARD.fullmatch(s)) and m[1] == match[1] for s in shards):
      raise UserError(f'{path} is not named by {index.name}; download both again, or remove the file that does not belong')
  return [folder / file for file in sorted(shards)]


def file_without_shard(root: pathlib.Path, file: pathlib.Path) -> str:
  """Which files belong together: the path below `root`, without number and suffix; PyTorch's usual name becomes the usual one."""
  match = _SHARD.fullmatch(file.name)
  stem = match[1] if match else file.stem
  return (file.parent.relative_to(root) / ('model' if stem == 'pytorch_model' else stem)).as_posix()


def _open_file(path: pathlib.Path) -> dict[str, Tensor]:
  if not path.is_file():
    raise UserError(f'{path} is no regular file; download it again')
  return _open_torch(path) if path.suffix in _TORCH else _open_safetensors(path)


def _open_safetensors(path: pathlib.Path) -> dict[str, Tensor]:
  """The library checks the header: its length, that tensors cover the file without gap or overlap, their shapes and sizes.

  Data are read by plain file reads rather than its memory map: pages of a map count as memory of the process.
  """
  try:
    with safetensors.safe_open(path, 'numpy'):
      pass
    with path.open('rb') as file:
      length = int.from_bytes(file.read(8), 'little')
      header = json.loads(file.read(length))
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise UserError(f'{path}: no complete safetensors file ({_brief(error)}); download it again') from None
  header.pop('__metadata__', None)

  def tensor(name: str, dtype: str, shape: Sequence[int], offset: int) -> Tensor:
    def load() -> np.ndarray:
      flat = np.fromfile(path, KINDS[dtype], math.prod(shape), offset=8 + length + offset)
      return flat.reshape(shape) if flat.size == math.prod(shape) else flat
    return Tensor(path, name, dtype, tuple(shape), load)

  return {name: tensor(name, t['dtype'], t['shape'], t['data_offsets'][0]) for name, t in header.items()}


def _open_torch(path: pathlib.Path) -> dict[str, Tensor]:
  try:
    import torch
  except ImportError:
    raise UserError(f'{path} is a PyTorch file, which needs torch: install the extra peers, or convert it to '
                    'safetensors') from None
  try:
    # Mapped, not read; of the pickle, only tensors and plain containers are allowed.
    held = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
  except Exception as error:  # torch raises what the damage happens to break: pickle, zip, runtime and key errors
    raise UserError(f'{path}: holds more than weights, or is damaged ({_brief(error)}); it is not opened any other way: '
                    'take a safetensors version of it') from None
  held = held.get('state_dict', held) if isinstance(held, dict) else held
  if not isinstance(held, dict):
    raise UserError(f'{path}: holds a {type(held).__name__}, not tensors by name; take a safetensors version of it')
  names = {getattr(torch, np.dtype(kind).name): name for name, kind in KINDS.items()}

  def tensor(name: str, value: torch.Tensor) -> Tensor:
    dtype = names.get(value.dtype, str(value.dtype).removeprefix('torch.'))

    def load() -> np.ndarray:
      bits = value.contiguous().view(torch.int16) if dtype == 'BF16' else value  # numpy has no bfloat16 of its own
      return np.array(bits.numpy()).view(KINDS[dtype])  # a copy, no view into the mapped file
    return Tensor(path, name, dtype, tuple(value.shape), load)

  return {name: tensor(name, value) for name, value in held.items() if isinstance(value, torch.Tensor)}


def write_tensors(folder: pathlib.Path, specs: Mapping[str, Spec], arrays: Iterator[tuple[str, np.ndarray]], *,
                  stem: str = 'model', shard_bytes: int = SHARD_BYTES) -> None:
  """Writes safetensors files, with an index where there are several; one array is held at a time.

  Args:
    folder: that exists.
    specs: all tensors, in the order in which `arrays` gives them.
    arrays: their names and values, drawn one by one.
    stem: of the file names.
    shard_bytes: of data in a file, at most (a larger tensor has a file of its own).
  """
  shards: list[dict[str, Spec]] = [{}]
  for name, spec in specs.items():
    if shards[-1] and sum(s.nbytes for s in shards[-1].values()) + spec.nbytes > shard_bytes:
      shards.append({})
    shards[-1][name] = spec
  count = len(shards)
  files = [f'{stem}.safetensors'] if count == 1 else [f'{stem}-{i + 1:05}-of-{count:05}.safetensors' for i in range(count)]
  for file, shard in zip(files, shards, strict=True):
    with (folder / file).open('wb') as out:
      out.write(_header(shard))
      for name, spec in shard.items():
        given, array = next(arrays)
        if given != name or array.shape != spec.shape or array.dtype != KINDS[spec.dtype]:
          raise ValueError(f'{name}: {given} {array.dtype}{array.shape} was given, {spec} announced')
        np.ascontiguousarray(array).tofile(out)
  if next(arrays, None) is not None:
    raise ValueError('more tensors were given than announced')
  if count > 1:
    total = sum(spec.nbytes for spec in specs.values())
    places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    (folder / f'{stem}.safetensors.index.json').write_text(
        json.dumps({'metadata': {'total_size': total}, 'weight_map': dict(sorted(places.items()))}, indent=2))


def _header(specs: Mapping[str, Spec]) -> bytes:
  """Length and header of a safetensors file whose tensors follow in this order."""
  entries: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  offset = 0
  for name, (dtype, shape) in specs.items():
    end = offset + specs[name].nbytes
    entries[name] = {'dtype': dtype, 'shape': list(shape), 'data_offsets': [offset, end]}
    offset = end
  text = json.dumps(entries, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # data begin at a multiple of 8
  return len(text).to_bytes(8, 'little') + text


def _brief(error: Exception) -> str:
  """The first line of a message, or the kind of error."""
  lines = str(error).strip().splitlines()
  return lines[0][:160] if lines else type(error).__name__
