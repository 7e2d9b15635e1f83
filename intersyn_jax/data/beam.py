"""Imports on many machines: TFDS's Apache Beam path. Needs the extra `beam`, and a folder that all machines see.

One machine reads the rows, all make conversations of them, and TFDS's writer puts them in shards, in the order of the rows. The
records and the rows left out are those of an import on one machine; where one shard ends and the next begins is TFDS's choice.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import shlex
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from intersyn_jax.data import conversion, manifest, records, resume, shards
from intersyn_jax.data.conversion import Outcome
from intersyn_jax.data.importers import rows
from intersyn_jax.data.sources import ConversationBuilder
from intersyn_jax.errors import UserError

_NONE = 'The total number of generated examples is 0'
"""What TFDS says when there is nothing to write."""


def package() -> Any:
  """The package apache_beam. Raises UserError where it is not installed."""
  try:
    import apache_beam
    import apache_beam.options.pipeline_options
  except ImportError as error:
    raise UserError("data.beam needs the extra beam: pip install 'intersyn_jax[beam]'") from error
  return apache_beam


def write_split(start: Callable[[], ConversationBuilder], split: str, folder: str | os.PathLike[str], *,
                settings: Mapping[str, Any], options: str) -> manifest.Split | None:
  """Writes a split as `resume.write_split` does, by a pipeline. One that is interrupted begins anew.

  Args:
    start: makes the data source, here and where its rows are read.
    split: its name; an earlier split of this name is replaced.
    folder: all machines must see it under this name.
    settings: everything that the content depends on, for the manifest.
    options: of the pipeline, as on a command line: `--runner=DirectRunner --direct_num_workers=4`.

  Returns:
    The entry of the manifest; None if no row could be used, of which the pipeline then keeps nothing.
  """
  flags = _options(options)
  base = pathlib.Path(folder).absolute()
  scratch = base / f'.beam-{split}'
  shutil.rmtree(scratch, ignore_errors=True)
  scratch.mkdir(parents=True)
  shards.clear(base, split)
  writer = _Writer(start, split, scratch / 'rejected', data_dir=os.fspath(scratch))
  try:
    writer.download_and_prepare(download_config=tfds.download.DownloadConfig(beam_options=flags))
  except Exception as error:
    if _NONE in str(error):
      shutil.rmtree(scratch)
      return None
    raise
  info = writer.info.splits[split]
  written = []
  for index, (path, count) in enumerate(zip(info.filepaths, info.shard_lengths, strict=True)):
    target = shards.final(base, split, index, len(info.shard_lengths))
    pathlib.Path(path).rename(target)
    manifest.flush(target)
    written.append(shards.described(target, count))
  manifest.flush(base)
  listed, more = resume.listed_rows(base, split, _sorted(scratch))
  shutil.rmtree(scratch)
  return manifest.Split(tuple(written), listed, dict(settings), more)


def _options(text: str) -> Any:
  """Pipeline options. Raises UserError where a runner or a value is none."""
  beam = package()
  module = beam.options.pipeline_options
  try:
    flags = module.PipelineOptions(shlex.split(text))
    beam.runners.create_runner(flags.view_as(module.StandardOptions).runner or 'DirectRunner')
    flags.get_all_options()  # converts the values
  except (ValueError, ImportError, AttributeError, SystemExit) as error:
    raise UserError(f'data.beam is {text!r}, which are no options of a pipeline ({str(error)[:200]}); give for instance '
                    '--runner=DirectRunner --direct_num_workers=4') from error
  return flags


class _Writer(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Another builder's split as a pipeline."""

  VERSION = ConversationBuilder.VERSION
  url_infos = ConversationBuilder.url_infos

  def __init__(self, start: Callable[[], ConversationBuilder], split: str, rejected: pathlib.Path, **kwargs):
    self._start, self._split, self._rejected = start, split, rejected
    self._made = start()
    self.name = self._made.name
    super().__init__(file_format='array_record', **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(builder=self, features=records.FEATURES, disable_shuffling=True)

  def _split_generators(self, dl_manager: tfds.download.DownloadManager, pipeline: Any) -> dict[str, Any]:
    del dl_manager
    return {self._split: self._generate_examples(pipeline)}

  def _generate_examples(self, pipeline: Any) -> Any:
    """PCollection of (number of the row, example)."""
    beam = package()
    made, split = self._made, self._split
    source = rows.source(made.conversations(split), made.rejected[split].append)
    outcomes = (pipeline
                | 'Start' >> beam.Create([None])
                | 'Read' >> beam.FlatMap(functools.partial(_read, self._start, split))
                | 'ShareOut' >> beam.Reshuffle()
                | 'Convert' >> beam.MapTuple(functools.partial(_convert, source.make, source.strict, source.key)))
    if source.key:
      outcomes = (outcomes
                  | 'ById' >> beam.Map(lambda pair: (pair[1].id or f' {pair[0]}', pair))  # no id begins with a blank
                  | 'SameId' >> beam.GroupByKey()
                  | 'OnlyFirst' >> beam.FlatMapTuple(_only_first))
    _ = (outcomes
         | 'LeftOut' >> beam.Filter(lambda pair: bool(pair[1].reason))
         | 'AsLine' >> beam.MapTuple(lambda number, row: json.dumps([number, row.where, row.name, row.reason]))
         | 'List' >> beam.io.WriteToText(os.fspath(self._rejected)))
    return (outcomes
            | 'Kept' >> beam.Filter(lambda pair: not pair[1].reason)
            | 'AsExample' >> beam.MapTuple(lambda number, row: (number, records.example(records.decode(row.data)))))


def _read(start: Callable[[], ConversationBuilder], split: str,
          nothing: None) -> Iterator[tuple[int, Outcome | tuple[str, str, Any]]]:
  """(number, (where, id, row)) of every row, and (number, Outcome) of those that the reader left out."""
  del nothing
  made = start()
  source = rows.source(made.conversations(split), made.rejected[split].append)
  for number, item in enumerate(conversion.items(source, made.rejected[split])):
    yield number, item if isinstance(item, Outcome) else (item[0], source.name(item[1]), item[1])


def _convert(make: rows.Make, strict: bool, key: str, number: int, item: Outcome | tuple[str, str, Any]) -> tuple[int, Outcome]:
  if isinstance(item, Outcome):
    return number, item
  where, name, row = item
  data, text = conversion.convert(make, strict, where, row)
  return number, Outcome(where, name, data, '' if data else text, text if data else '', key)


def _only_first(name: str, pairs: Iterable[tuple[int, Outcome]]) -> Iterator[tuple[int, Outcome]]:
  """Of the rows with the same id the first, and why the others are left out."""
  del name
  first, *others = sorted(pairs, key=lambda pair: pair[0])
  yield first
  for number, outcome in others:
    yield number, outcome._replace(data=b'', reason=rows.repeated(outcome.key, first[1].where))


def _sorted(scratch: pathlib.Path) -> Iterator[manifest.Rejected]:
  """The rows left out, in the order of the source; they need not fit in memory."""
  with sqlite3.connect(scratch / 'sorted') as table:
    table.execute('CREATE TABLE rejected (number INTEGER PRIMARY KEY, text TEXT)')
    for path in scratch.glob('rejected-*'):
      with open(path) as file:
        table.executemany('INSERT INTO rejected VALUES (?, ?)', ((json.loads(line)[0], line) for line in file))
    for (line,) in table.execute('SELECT text FROM rejected ORDER BY number'):
      yield manifest.Rejected(*json.loads(line)[1:])
