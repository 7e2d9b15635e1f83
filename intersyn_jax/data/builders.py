"""All data sets by name, and `build`, which the data stage calls.

The builders are ordinary `GeneratorBasedBuilder`s and also work alone (`Storyworld(...).download_and_prepare()`).
`build` takes their conversations but writes the shards itself: TFDS finishes all splits at once or none, so an
interrupted import would start again from nothing, and serialises ten times slower. Records, features and the metadata
beside the shards are TFDS's: `tfds.builder_from_directory(folder)` opens what `build` wrote.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from intersyn_jax.data import conversion, manifest, records, resume, shards
from intersyn_jax.data.importers import SOURCES, rows
from intersyn_jax.data.sources import ConversationBuilder, Imported, Mixed
from intersyn_jax.data.storyworld.builder import Storyworld
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Image, Text

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how many records are done, and how many there will be (None: not known)."""

TEMPLATE = '{SPLIT}-{SHARD_X_OF_Y}.{FILEFORMAT}'


def silent(label: str, done: int, total: int | None) -> None:
  """Shows nothing."""


def counted(items: Iterable, label: str, total: int | None, progress: Progress, before: int = 0) -> Iterator:
  """Passes items on and reports every hundredth; `before` is how many were done already."""
  done = before
  for done, item in enumerate(items, start=before + 1):
    yield item
    if done % 100 == 0:
      progress(label, done, total)
  progress(label, done, total)


BUILDERS: dict[str, type[ConversationBuilder]] = {'storyworld': Storyworld, 'mixed': Mixed}
"""What `data.source` may name beside SOURCES, the data sets that are imported."""


def builder(data: Mapping[str, Any], *, seed: int = 0, **kwargs: Any) -> ConversationBuilder:
  """The builder that a `data` section describes.

  Args:
    data: `source` (a name of SOURCES or BUILDERS, or a ConversationBuilder class) and the arguments of that class; fields
      of other classes are not looked at.
    seed: of generated data.
    **kwargs: for TFDS (`data_dir`).

  Raises:
    UserError: an unknown data set, or one of its fields is missing or wrong.
  """
  options = _plain(data) | {'seed': seed}
  source = options.get('source')
  made = (Imported if source in SOURCES else BUILDERS.get(source)) if isinstance(source, str) else source
  if not (isinstance(made, type) and issubclass(made, ConversationBuilder)):
    raise UserError(f'data.source is {source!r}; there are {", ".join((*BUILDERS, *SOURCES))}, or name a class of '
                    'ConversationBuilder as module:attribute')
  wanted = _arguments(made)
  if missing := sorted(name for name, needed in wanted.items() if needed and name not in options):
    raise UserError(f'data.{missing[0]} is not set; {made.__name__} needs {", ".join(wanted)}')
  return made(**{key: value for key, value in options.items() if key in wanted}, **kwargs)


def build(data: Mapping[str, Any], folder: str | os.PathLike[str], progress: Progress = silent, *,
          seed: int = 0) -> manifest.Manifest:
  """Writes all splits of a data set as ArrayRecord shards with TFDS metadata and a manifest.

  A split whose shards are complete and were made with the same settings is not made again. One that was interrupted goes on
  after its last finished shard; nothing of it is seen before it is complete.

  Args:
    data: see `builder`; `shard_records` is the size of a shard, `workers` how many processes make the records (0: this one),
      `beam` the options of an Apache Beam pipeline that makes them instead ('': none). The records do not depend on the two.
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
  for split, size in made.sizes().items():
    per_shard = data.get('shard_records', shards.RECORDS_PER_SHARD)
    settings = json.loads(json.dumps(made.settings(split) | {'shard_records': per_shard}))
    if not is_complete(base, done, split, settings):
      done = done.with_split(split, _written(made, split, size, base, settings, data, seed, progress))
      save(base, done)
    resume.forget(base, split)
    if not done.splits[split].records:
      rejected = done.splits[split].rejected
      reason = f'{rejected[0].where}: {rejected[0].reason}' if rejected else 'the source is empty'
      raise UserError(f'no row of the source could be used for split {split} ({reason}); '
                      f'{manifest.FILE} in {base} lists them all, mend the source or its paths')
  return done


def _written(made: ConversationBuilder, split: str, size: int | None, base: pathlib.Path, settings: Mapping[str, Any],
             data: Mapping[str, Any], seed: int, progress: Progress) -> manifest.Split:
  """Writes a split, or what is missing of it."""

  def outcomes(done: int) -> Iterator[conversion.Outcome]:
    items = _checked(made, split)
    shared = workers if isinstance(items, rows.Conversations) else 0  # others make their conversations themselves
    source = rows.source(items, made.rejected[split].append)
    found = conversion.outcomes(source, made.rejected[split], skip=done, workers=shared)
    return counted(found, f'split {split}', size, progress, done)

  workers = data.get('workers', 0)
  if data.get('beam'):
    from intersyn_jax.data import beam
    start = functools.partial(builder, _plain(data), seed=seed, data_dir=os.fspath(base / '.tfds'))
    if entry := beam.write_split(start, split, base, settings=settings, options=data['beam']):
      return entry  # None where no row could be used; the ordinary way then finds out why
  if not isinstance(workers, int) or workers < 0:
    raise UserError(f'data.workers is {workers!r}; give how many processes make the records, 0 for none but this one')
  return resume.write_split(base, split, outcomes, settings=settings, records_per_shard=settings['shard_records'])


def _checked(made: ConversationBuilder, split: str) -> Iterable[Conversation]:
  """A split; raises UserError where something in it is no conversation."""
  items = made.conversations(split)
  if isinstance(items, rows.Conversations):
    return items
  if not isinstance(items, Iterable):
    raise _wrong(made, items, f'for split {split}')
  return _conversations(made, split, items)


def _conversations(made: ConversationBuilder, split: str, items: Iterable) -> Iterator[Conversation]:
  for number, item in enumerate(items):
    if not isinstance(item, Conversation):
      raise _wrong(made, item, f'as record {number} of split {split}')
    for segment in (s for turn in item.turns for s in (*turn.question, *turn.answer)):
      if not isinstance(segment, Text | Image):
        raise _wrong(made, segment, f'as a segment of record {number} of split {split}')
    yield item


def _wrong(made: ConversationBuilder, what: Any, place: str) -> UserError:
  return UserError(f'data.source: {type(made).__name__}.conversations gave {type(what).__name__} {place}; it must give '
                   'Conversations of Turns whose questions and answers are tuples of Text and Image '
                   '(intersyn_jax.interleave.types)')


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
