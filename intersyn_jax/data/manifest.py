"""`manifest.json`: what lies in a folder of shards, where it came from, and what was left out and why.

The entry of a split is written after its shards, so it is also the mark that the split is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
from typing import Any

from intersyn_jax.errors import UserError

FILE = 'manifest.json'
REJECTED = 'rejected.jsonl'
"""`SPLIT.rejected.jsonl` lists all rows that were left out of a split, where they are too many for the manifest."""
FORMAT = 1
_MEND = 'delete the folder and run the data stage again'
_PACKAGES = ('array_record', 'numpy', 'pillow', 'tensorflow-datasets')


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file: its name, how many records and bytes it has, and the digest of its content."""

  file: str
  records: int
  bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class Rejected:
  """A row that was not imported: where it stands (file and line), its id if it has one, and the reason."""

  where: str
  id: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Split:
  """One complete split.

  Attributes:
    shards: its files, in order.
    rejected: rows of the source that are not in it; the first ones, where there are very many.
    settings: everything its content depends on (source, sizes, seed); plain JSON values.
    unlisted: how many rows were left out beyond `rejected`; the file REJECTED lists them all.
  """

  shards: tuple[Shard, ...]
  rejected: tuple[Rejected, ...] = ()
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)
  unlisted: int = 0

  @property
  def records(self) -> int:
    return sum(shard.records for shard in self.shards)

  @property
  def left_out(self) -> int:
    return len(self.rejected) + self.unlisted


@dataclasses.dataclass(frozen=True)
class Manifest:
  """The content of `manifest.json`."""

  dataset: str
  splits: dict[str, Split] = dataclasses.field(default_factory=dict)
  versions: dict[str, str] = dataclasses.field(default_factory=dict)

  def with_split(self, name: str, split: Split) -> Manifest:
    return dataclasses.replace(self, splits=self.splits | {name: split}, versions=versions())


def versions() -> dict[str, str]:
  """Versions of what the bytes of a shard depend on."""
  return {'format': str(FORMAT), 'python': platform.python_version()} | {
      name: importlib.metadata.version(name) for name in _PACKAGES}


def load(folder: str | os.PathLike[str]) -> Manifest | None:
  """Reads the manifest of a folder; None where there is none.

  Raises:
    UserError: it is no manifest.
  """
  path = pathlib.Path(folder) / FILE
  if not path.exists():
    return None
  try:
    raw = json.loads(path.read_text())
    splits = {
        name: Split(tuple(Shard(**shard) for shard in split['shards']),
                    tuple(Rejected(**row) for row in split['rejected']), split['settings'], split.get('unlisted', 0))
        for name, split in raw['splits'].items()}
    return Manifest(raw['dataset'], splits, raw['versions'])
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f'{path} is no manifest of this program ({error!r}); {_MEND}') from error


def save(folder: str | os.PathLike[str], manifest: Manifest) -> None:
  """Writes the manifest; a reader sees the old one or the new one, never half of it."""
  base = pathlib.Path(folder)
  base.mkdir(parents=True, exist_ok=True)
  raw = dataclasses.asdict(manifest)
  for name, split in manifest.splits.items():
    raw['splits'][name] = {'records': split.records} | raw['splits'][name]
  part = base / f'.{FILE}.part'
  part.write_text(json.dumps(raw, indent=1, sort_keys=True))
  flush(part)
  part.replace(base / FILE)
  flush(base)


def flush(path: str | os.PathLike[str]) -> None:
  """Waits until a file, or the names in a folder, are on the disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def verify(folder: str | os.PathLike[str], *, contents: bool = True) -> Manifest:
  """Compares the files of a folder with its manifest.

  Args:
    folder: holds `manifest.json` and shards.
    contents: also compares the digests, which reads every byte; else only names and sizes.

  Raises:
    UserError: no manifest, or a file that is missing or differs, by name.
  """
  base = pathlib.Path(folder)
  manifest = load(base)
  if manifest is None:
    raise UserError(f'{base} has no {FILE}; {_MEND}')
  for split in manifest.splits.values():
    for shard in split.shards:
      path = base / shard.file
      if not path.is_file():
        raise UserError(f'{path} is missing although {FILE} lists it; {_MEND}')
      if path.stat().st_size != shard.bytes:
        raise UserError(f'{path} has {path.stat().st_size} bytes, {FILE} says {shard.bytes}; {_MEND}')
      if contents:
        with open(path, 'rb') as file:
          if hashlib.file_digest(file, 'sha256').hexdigest() != shard.sha256:
            raise UserError(f'{path} is not the file that {FILE} describes (its content changed); {_MEND}')
  return manifest
