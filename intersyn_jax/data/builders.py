"""TFDS builders of every data set, and `build`, which the data stage calls.

The builders are ordinary `GeneratorBasedBuilder`s and also work alone (`Storyworld(...).download_and_prepare()`).
`build` takes their generators but writes the shards itself: TFDS finishes all splits at once or none, so an
interrupted import would start again from nothing, and serialises ten times slower. Records, features and the metadata
beside the shards are TFDS's: `tfds.builder_from_directory(folder)` opens what `build` wrote.
"""

from __future__ import annotations

import collections
import dataclasses
import inspect
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from intersyn_jax.data import manifest, records, shards
from intersyn_jax.data.importers import flat, intersyn, opening, rows
from intersyn_jax.data.storyworld import role_examples, story
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how many records are done, and how many there will be (None: not known)."""

TEMPLATE = '{SPLIT}-{SHARD_X_OF_Y}.{FILEFORMAT}'


def silent(label: str, done: int, total: int | None) -> None:
  """Shows nothing."""


def counted(items: Iterable, label: str, total: int | None, progress: Progress) -> Iterator:
  """Passes items on and reports every hundredth."""
  done = 0
  for done, item in enumerate(items, start=1):
    yield item
    if done % 100 == 0:
      progress(label, done, total)
  progress(label, done, total)


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

  def conversations(self, split: str) -> Iterator[Conversation]:
    """Generates a split; adds to `rejected[split]` on the way."""
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
class Recipe:
  """How a split of Storyworld is made.

  Attributes:
    generate: (seed, index, topics, *, pixels, jitter, ...) -> Conversation.
    topics: the split of the topics it draws from (DESIGN 4: 1 roles, 2 policy, 3 validation, 4 test).
    first: first index; two splits of one generator and the same topics stay apart by it.
    options: names of the further fields that `generate` takes.
  """

  generate: Callable[..., Conversation]
  topics: str
  first: int = 0
  options: tuple[str, ...] = ()


def question(*args, **options) -> Conversation:
  """The first question of a story, its answer left out: all that a prompt of GRPO may hold."""
  whole = story.conversation(*args, **options)
  return dataclasses.replace(whole, turns=(Turn(whole.turns[0].question),))


_STORY = ('objects', 'steps', 'turns')

RECIPES: dict[str, Recipe] = {
    'interleaved': Recipe(story.conversation, 'policy', options=_STORY),
    'understanding': Recipe(story.understanding, 'policy'),
    'text_to_image': Recipe(story.text_to_image, 'policy'),
    'roles': Recipe(role_examples.role_example, 'roles', options=_STORY),
    'roles_interleaved': Recipe(story.conversation, 'roles', options=_STORY),
    'gold': Recipe(story.conversation, 'policy', first=10_000_000, options=_STORY),
    'questions': Recipe(question, 'policy', first=20_000_000, options=_STORY),
    'validation': Recipe(story.conversation, 'validation', options=_STORY),
    'test': Recipe(story.conversation, 'test', options=_STORY),
}
"""The splits that `data.counts` can name; `gold` and `questions` hold other stories than `interleaved`."""


class Storyworld(ConversationBuilder, skip_registration=True):
  """The procedural corpus (DESIGN 4)."""

  description = 'Storyworld: procedural interleaved stories on a grid, whose answers can be checked exactly.'

  def __init__(self, *, counts: Mapping[str, int], seed: int, pixels: int = 32, jitter: int = 0,
               objects: int | Sequence[int] = 2, steps: int | Sequence[int] = (1, 2, 3), turns: int | Sequence[int] = 1,
               **kwargs):
    """
    Args:
      counts: records of each split; see RECIPES. A split of 0 records is not made.
      seed: of everything.
      pixels, jitter, objects, steps, turns: see `storyworld.story`.
    """
    self._counts = {split: count for split, count in counts.items() if count}
    self._seed = seed
    self._fields = {'pixels': pixels, 'jitter': jitter, 'objects': objects, 'steps': steps, 'turns': turns}
    for split, count in self._counts.items():
      if split not in RECIPES:
        raise UserError(f'data.counts.{split} is no split of Storyworld; there are {", ".join(RECIPES)}')
      if not isinstance(count, int) or count < 0:
        raise UserError(f'data.counts.{split} is {count!r}; give a whole number, 0 to leave the split out')
    if not self._counts:
      raise UserError('data.counts asks for no record at all; give at least one split a number')
    super().__init__(**kwargs)

  def sizes(self) -> dict[str, int | None]:
    return dict(self._counts)

  def _options(self, split: str) -> dict[str, Any]:
    return {name: self._fields[name] for name in ('pixels', 'jitter', *RECIPES[split].options)}

  def settings(self, split: str) -> dict[str, Any]:
    recipe = RECIPES[split]
    made = {'seed': self._seed, 'records': self._counts[split], 'topics': recipe.topics, 'first': recipe.first}
    return self._options(split) | made

  def conversations(self, split: str) -> Iterator[Conversation]:
    self.rejected[split] = []
    recipe, options = RECIPES[split], self._options(split)
    return (recipe.generate(self._seed, index, recipe.topics, **options)
            for index in range(recipe.first, recipe.first + self._counts[split]))


class _Imported(ConversationBuilder, skip_registration=True):
  """A data set read from local files; its one split is `interleaved`. `kind` says what `data.path` must name."""

  kind = 'JSON or JSON Lines file'

  def __init__(self, *, path: str | os.PathLike[str], pixels: int, images: str | os.PathLike[str] = '',
               encoding: str = 'PNG', **kwargs):
    """
    Args:
      path: see `kind`.
      pixels: side of the stored pictures.
      images: folder of the pictures; the folder of `path` if ''.
      encoding: of the stored pictures, 'PNG' or 'JPEG'.
    """
    if not os.fspath(path) or not self._is_source(pathlib.Path(path)):
      raise UserError(f'data.path {os.fspath(path)!r} is no file; set it to the {self.kind} to import')
    if encoding not in ('PNG', 'JPEG'):
      raise UserError(f'data.encoding is {encoding!r}; set it to PNG or JPEG')
    self._path = pathlib.Path(path)
    self._images = pathlib.Path(images) if os.fspath(images) else self._path.parent
    self._pixels, self._encoding = pixels, encoding
    super().__init__(**kwargs)

  def sizes(self) -> dict[str, int | None]:
    return {'interleaved': None}

  def settings(self, split: str) -> dict[str, Any]:
    return {'path': self._path.name, 'sha256': shards.sha256(self._path), 'pixels': self._pixels,
            'encoding': self._encoding}

  def conversations(self, split: str) -> Iterator[Conversation]:
    self.rejected[split] = []
    return self._read(self._path, self.rejected[split].append, pixels=self._pixels, folder=self._images,
                      encoding=self._encoding)

  def _is_source(self, path: pathlib.Path) -> bool:
    return path.is_file()

  def _read(self, path: pathlib.Path, reject: rows.Reject, **options: Any) -> Iterator[Conversation]:
    raise NotImplementedError


class InterSynRelease(_Imported, skip_registration=True):
  """Rows of the InterSyn generator, single- or multi-turn."""

  description = 'InterSyn: rows of the released generator, imported from local files.'

  def _read(self, path, reject, **options):
    return intersyn.conversations(path, reject, **options)


class InterSynFlat(_Imported, skip_registration=True):
  """Rows of InterSyn's dataset card, as parquet."""

  description = 'InterSyn: flat rows of the released data set, imported from local parquet files.'
  kind = 'parquet file, or folder of parquet files,'

  def settings(self, split: str) -> dict[str, Any]:
    digests = {file.name: shards.sha256(file) for file in flat.files(self._path)}
    return {'path': self._path.name, 'files': digests, 'pixels': self._pixels, 'encoding': self._encoding}

  def _is_source(self, path: pathlib.Path) -> bool:
    return path.exists()

  def _read(self, path, reject, **options):
    return flat.conversations(path, reject, **options)


class OpenING(_Imported, skip_registration=True):
  """Rows of OpenING with their photographs."""

  description = 'OpenING: questions and interleaved answers with photographs, imported from local files.'

  def _read(self, path, reject, **options):
    return opening.conversations(path, reject, **options)


DATASETS = {'storyworld': Storyworld, 'intersyn_release': InterSynRelease, 'intersyn_flat': InterSynFlat, 'opening': OpenING}


def builder(data: Mapping[str, Any], *, seed: int = 0, **kwargs: Any) -> ConversationBuilder:
  """The builder that a `data` section describes.

  Args:
    data: `source` (a name of DATASETS, or a ConversationBuilder class) and the arguments of that class; fields of
      other classes are not looked at.
    seed: of generated data.
    **kwargs: for TFDS (`data_dir`).

  Raises:
    UserError: an unknown data set, or one of its fields is missing or wrong.
  """
  options = _plain(data) | {'seed': seed}
  source = options.pop('source', None)
  made = DATASETS.get(source) if isinstance(source, str) else source
  if not (isinstance(made, type) and issubclass(made, ConversationBuilder)):
    raise UserError(f'data.source is {source!r}; there are {", ".join(DATASETS)}, or name a class of ConversationBuilder as '
                    'module:attribute')
  wanted = _arguments(made)
  if missing := sorted(name for name, needed in wanted.items() if needed and name not in options):
    raise UserError(f'data.{missing[0]} is not set; {made.__name__} needs {", ".join(wanted)}')
  return made(**{key: value for key, value in options.items() if key in wanted}, **kwargs)


def build(data: Mapping[str, Any], folder: str | os.PathLike[str], progress: Progress = silent, *,
          seed: int = 0) -> manifest.Manifest:
  """Writes all splits of a data set as ArrayRecord shards with TFDS metadata and a manifest.

  A split whose shards are complete and were made with the same settings is not made again. A split that was interrupted
  is made again from its start; nothing of it is seen before it is complete.

  Args:
    data: see `builder`; `shard_records` is the size of a shard.
    folder: where to; made if it is not there.
    progress: see `Progress`.
    seed: of generated data.

  Returns:
    The manifest.

  Raises:
    UserError: mistakes in `data`, or no row of the source could be used (the manifest then lists why).
  """
  base = pathlib.Path(folder)
  made = builder(data, seed=seed, data_dir=os.fspath(base / '.tfds'))
  done = manifest.load(base) or manifest.Manifest(made.name)
  if done.dataset != made.name:
    raise UserError(f'{base} holds {done.dataset}, not {made.name}; name another work folder')
  per_shard = data.get('shard_records', shards.RECORDS_PER_SHARD)
  for split, size in made.sizes().items():
    settings = json.loads(json.dumps(made.settings(split) | {'shard_records': per_shard}))
    if not is_complete(base, done, split, settings):
      written = shards.write_split(base, split, counted(_generated(made, split), f'split {split}', size, progress),
                                   records_per_shard=per_shard)
      done = done.with_split(split, manifest.Split(tuple(written), tuple(made.rejected[split]), settings))
      save(base, done)
    if not done.splits[split].records:
      rejected = done.splits[split].rejected
      reason = f'{rejected[0].where}: {rejected[0].reason}' if rejected else 'the source is empty'
      raise UserError(f'no row of the source could be used for split {split} ({reason}); '
                      f'{manifest.FILE} in {base} lists them all, mend the source or its paths')
  return done


def _generated(made: ConversationBuilder, split: str) -> Iterator[Conversation]:
  """A split; raises UserError where something in it is no conversation."""
  wrong = lambda what, place: UserError(
      f'data.source: {type(made).__name__}.conversations gave {type(what).__name__} {place} split {split}; it must give '
      'Conversations of Turns whose questions and answers are tuples of Text and Image (intersyn_jax.interleave.types)')
  items = made.conversations(split)
  if not isinstance(items, Iterable):
    raise wrong(items, 'for')
  for number, item in enumerate(items):
    if not isinstance(item, Conversation):
      raise wrong(item, f'as record {number} of')
    for segment in (s for turn in item.turns for s in (*turn.question, *turn.answer)):
      if not isinstance(segment, Text | Image):
        raise wrong(segment, f'as a segment of record {number} of')
    yield item


def save(folder: str | os.PathLike[str], content: manifest.Manifest) -> None:
  """Writes TFDS's metadata for all splits so far, then the manifest, whose new entry makes the last split count."""
  base = pathlib.Path(folder)
  template = tfds.core.ShardedFileTemplate(data_dir=base, template=TEMPLATE, dataset_name=content.dataset,
                                           filetype_suffix='array_record')
  infos = [tfds.core.SplitInfo(name=name, shard_lengths=[shard.records for shard in split.shards],
                               num_bytes=sum(shard.bytes for shard in split.shards),
                               filename_template=template.replace(split=name))
           for name, split in content.splits.items() if split.shards]
  if infos:
    tfds.folder_dataset.write_metadata(data_dir=base, features=records.FEATURES, split_infos=infos, check_data=False,
                                       filename_template=template)
  manifest.save(base, content)


def is_complete(folder: str | os.PathLike[str], content: manifest.Manifest, split: str,
                settings: Mapping[str, Any]) -> bool:
  """Whether a split is there, whole, and made with these settings (compared as JSON)."""
  entry = content.splits.get(split)
  if entry is None or entry.settings != json.loads(json.dumps(settings)):
    return False
  return all((path := pathlib.Path(folder) / shard.file).is_file() and path.stat().st_size == shard.bytes
             for shard in entry.shards)


def _arguments(made: type) -> dict[str, bool]:
  """Named arguments of a builder class of ours, and whether each must be given."""
  parameters = inspect.signature(made.__init__).parameters.values()
  return {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != 'file_format'}


def _plain(value: Any) -> Any:
  """ConfigDicts as dictionaries, tuples as lists."""
  if isinstance(value, Mapping) or hasattr(value, 'to_dict'):
    return {key: _plain(inner) for key, inner in value.items()}
  return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
