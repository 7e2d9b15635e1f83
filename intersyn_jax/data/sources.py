"""Data sources as TFDS builders: what all of them share, one import, and several imports in one data set."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from intersyn_jax.data import images, manifest, records, shards
from intersyn_jax.data.importers import SOURCES, rows
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation

SPLITS = ('interleaved', 'understanding', 'text_to_image', 'test')
"""What imports become, in the order in which they are written."""


class ConversationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """What the builders share: the flat features, one example a conversation, rejected rows listed by split.

  A data source of one's own is a class like those below: `__init__` takes by name the fields of the config section `data` that
  it needs, and `sizes`, `settings` and `conversations` say the rest (docs/extending.md).

  Attributes:
    rejected: rows left out while a split was generated, by split.
  """

  VERSION = tfds.core.Version('1.0.0')
  description = ''
  # Nothing is downloaded. Without this TFDS looks for a file of checksums, with a package that is not installed.
  url_infos: ClassVar[dict] = {}

  def __init__(self, *, file_format: str = 'array_record', **kwargs):
    self.rejected: dict[str, list[manifest.Rejected]] = collections.defaultdict(list)
    super().__init__(file_format=file_format, **kwargs)

  def sizes(self) -> dict[str, int | None]:
    """The splits and how many records each will have, None where only reading the source tells."""
    raise NotImplementedError

  def settings(self, split: str) -> dict[str, Any]:
    """Everything that the content of a split depends on, as JSON values."""
    raise NotImplementedError

  def conversations(self, split: str) -> Iterable[Conversation]:
    """Generates a split; adds to `rejected[split]` on the way. As `rows.Conversations` it can be shared out to processes."""
    raise NotImplementedError

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(builder=self, features=records.FEATURES, description=self.description,
                                 disable_shuffling=True)

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    del dl_manager  # nothing is ever downloaded
    return {split: self._generate_examples(split) for split in self.sizes()}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
    for number, conversation in enumerate(self.conversations(split)):
      yield number, records.example(conversation)


@dataclasses.dataclass(frozen=True)
class Import:
  """A published data set on the disk, and how its pictures are stored.

  Attributes:
    source: a name of SOURCES.
    path: see `kind` of the source.
    pixels: side of the stored pictures.
    images: folder of the pictures; the folder of `path` if ''.
    encoding: of the stored pictures, 'PNG' or 'JPEG'.
    fit: how they become square, a name of `images.FITS`.
    field: of the configuration, which names `path`.
  """

  source: str
  path: str | os.PathLike[str]
  pixels: int
  images: str | os.PathLike[str] = ''
  encoding: str = 'PNG'
  fit: str = 'crop'
  field: str = 'data.path'

  def __post_init__(self):
    if self.encoding not in ('PNG', 'JPEG'):
      raise UserError(f'data.encoding is {self.encoding!r}; set it to PNG or JPEG')
    if self.fit not in images.FITS:
      raise UserError(f'data.fit is {self.fit!r}; set it to one of {", ".join(images.FITS)}')
    self.files()

  @property
  def split(self) -> str:
    return SOURCES[self.source].split

  def files(self) -> list[pathlib.Path]:
    """The files that are read. Raises UserError where there are none."""
    known = SOURCES[self.source]
    if not os.fspath(self.path) or not os.path.exists(self.path):
      raise UserError(f'{self.field} {os.fspath(self.path)!r} is not there; set it to the {known.kind} to import')
    if list_files := getattr(known.load(), 'files', None):
      return list_files(self.path, self.field)
    if not os.path.isfile(self.path):
      raise UserError(f'{self.field} {os.fspath(self.path)!r} is no file; set it to the {known.kind} to import')
    return [pathlib.Path(self.path)]

  def settings(self) -> dict[str, Any]:
    """Everything that the conversations depend on, save the pictures outside the files."""
    if hasattr(SOURCES[self.source].load(), 'files'):
      content = {'files': {file.name: shards.sha256(file) for file in self.files()}}
    else:
      content = {'sha256': shards.sha256(self.path)}
    fit = {} if self.fit == 'crop' else {'fit': self.fit}
    return {'path': pathlib.Path(self.path).name} | content | {'pixels': self.pixels, 'encoding': self.encoding} | fit

  def conversations(self, reject: rows.Reject) -> Iterable[Conversation]:
    return SOURCES[self.source].load().conversations(self.path, reject, pixels=self.pixels, folder=self.images or None,
                                                     encoding=self.encoding, fit=self.fit)


class Imported(ConversationBuilder, skip_registration=True):
  """A published data set, imported from local files."""

  def __init__(self, *, source: str, path: str | os.PathLike[str], pixels: int, images: str | os.PathLike[str] = '',
               encoding: str = 'PNG', fit: str = 'crop', **kwargs):
    """Takes what an `Import` takes."""
    self._import = Import(source, path, pixels, images, encoding, fit)
    self.name, self.description = source, f'{SOURCES[source].description}, imported from local files.'
    super().__init__(**kwargs)

  def sizes(self) -> dict[str, int | None]:
    return {self._import.split: None}

  def settings(self, split: str) -> dict[str, Any]:
    return self._import.settings()

  def conversations(self, split: str) -> Iterable[Conversation]:
    self.rejected[split] = []
    return self._import.conversations(self.rejected[split].append)


class Mixed(ConversationBuilder, skip_registration=True):
  """Several published data sets in one, each in the split that it is for. Ids get the name of their source in front."""

  name = 'mixed'
  description = 'Several data sets, imported from local files.'

  def __init__(self, *, sources: Mapping[str, Mapping[str, Any]], pixels: int, encoding: str = 'PNG', fit: str = 'crop',
               **kwargs):
    """
    Args:
      sources: by a name of one's own, in the order of their rows: `path`, `images` if the pictures lie elsewhere, and `source`
        where the name is none of SOURCES. One whose path is '' is left out.
      pixels, encoding, fit: as in `Import`, for all of them.
    """
    self._imports: dict[str, Import] = {}
    for name, entry in sources.items():
      field = f'data.sources.{name}'
      if (source := entry.get('source') or name) not in SOURCES:
        raise UserError(f'{field}.source is {source!r}; there are {", ".join(SOURCES)}')
      if strange := sorted(set(entry) - {'source', 'path', 'images'}):
        raise UserError(f'{field}.{strange[0]} is no field of a source; there are path, images and source')
      if entry.get('path'):
        self._imports[name] = Import(source, entry['path'], pixels, entry.get('images', ''), encoding, fit, f'{field}.path')
    if not self._imports:
      raise UserError(f'data.sources names no file; set data.sources.{next(iter(sources), "NAME")}.path, or one of '
                      f'{", ".join(SOURCES)}')
    super().__init__(**kwargs)

  def sizes(self) -> dict[str, int | None]:
    found = {part.split for part in self._imports.values()}
    return {split: None for split in SPLITS if split in found}

  def settings(self, split: str) -> dict[str, Any]:
    return {'sources': {name: {'source': part.source} | part.settings() for name, part in self._of(split).items()}}

  def conversations(self, split: str) -> Iterable[Conversation]:
    self.rejected[split] = []
    reject = self.rejected[split].append
    return rows.several([rows.named(name, part.conversations, reject) for name, part in self._of(split).items()], reject)

  def _of(self, split: str) -> dict[str, Import]:
    return {name: part for name, part in self._imports.items() if part.split == split}
