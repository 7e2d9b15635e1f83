"""Stage `export` with `--data`: a split of conversations in a format of others (docs/datasets.md).

    python -m intersyn_jax export --config=... --workdir=runs/tiny --data=flat --split=refined --out=FOLDER

The split is looked for in WORKDIR/synthesize/data, then in WORKDIR/data. The folder is written under another name and
renamed at the end. Its `manifest.json` says which shards it was made of and which conversations the format could not carry.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator

from intersyn_jax import __version__
from intersyn_jax.data import exporters, manifest, shards
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation
from intersyn_jax.stages.common import Run

FOLDERS = ('synthesize/data', 'data')
"""Where a split is looked for, in this order."""

VERSION = 1
"""Of what the formats hold and of the manifest."""


def empty_folder(out: str | os.PathLike[str]) -> pathlib.Path:
  """The folder to write. Raises UserError where it is there already with something in it."""
  out = pathlib.Path(out)
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f'--out={out} is there already and not empty; name another folder')
  return out


def export_data(run: Run, name: str, split: str, out: str | os.PathLike[str]) -> pathlib.Path:
  """Writes a split in a format, whole or not at all, and gives the folder.

  Args:
    run: whose work folder has the split.
    name: of the format, see `exporters.FORMATS`.
    split: e.g. `refined`.
    out: folder to write.

  Raises:
    UserError: no such format or split, shards that are not those of their manifest, `out` is not empty, or the format can
      carry no conversation of the split.
  """
  if name not in exporters.FORMATS:
    raise UserError(f'--data={name} is no format; there are {", ".join(exporters.FORMATS)}')
  out = empty_folder(out)
  source, content = _find(run, split)
  opened = _open(source, split, content.splits[split])
  part = out.with_name(f'.{out.name}.part')  # of an export that was cut
  shutil.rmtree(part, ignore_errors=True)
  progress = run.progress('export', len(opened), unit='conversation')
  left_out: list[manifest.Rejected] = []
  try:
    counts = exporters.write(name, part, split, _located(opened, progress.update), left_out.append)
    progress.close()
    if not counts['conversations']:
      first = left_out[0]
      raise UserError(f'format {name} can carry no conversation of split {split} ({first.where}: {first.reason}); '
                      'docs/datasets.md says what each format holds')
    told = {
        'format': name, 'format_version': VERSION, 'split': split, 'counts': counts | {'left_out': len(left_out)},
        'left_out': [dataclasses.asdict(row) for row in left_out],
        'source': {'dataset': content.dataset, 'versions': content.versions, 'records': content.splits[split].records}
                  | dataclasses.asdict(content.splits[split]),
        'files': {path.relative_to(part).as_posix(): shards.sha256(path) for path in _files(part)},
        'versions': manifest.versions() | {'intersyn_jax': __version__}}
    (part / manifest.FILE).write_text(json.dumps(told, indent=1, sort_keys=True))
    part.rename(out)
  except BaseException:
    shutil.rmtree(part, ignore_errors=True)
    raise
  _say(run, out, counts, left_out)
  return out


def _find(run: Run, split: str) -> tuple[pathlib.Path, manifest.Manifest]:
  """The folder that has the split, and its manifest."""
  there: list[str] = []
  for folder in FOLDERS:
    path = pathlib.Path(run.workdir / folder)
    content = manifest.load(path)
    if content is not None and split in content.splits:
      return path, content
    there += content.splits if content else []
  raise UserError(f'{run.workdir} has no split {split!r} (it has: {", ".join(there) or "none"}); name one of these with '
                  '--split, or run the stage synthesize or data first')


def _open(folder: pathlib.Path, split: str, entry: manifest.Split) -> shards.Split:
  """The split, once its shards are known to be those of the manifest."""
  if not entry.records:
    raise UserError(f'split {split} of {folder} holds no conversation; {folder / manifest.FILE} says why')
  for shard in entry.shards:
    path = folder / shard.file
    if not path.is_file() or shards.sha256(path) != shard.sha256:
      raise UserError(f'{path} is missing or not the file that {folder / manifest.FILE} describes; run the stage that wrote '
                      'it again')
  return shards.Split([folder / shard.file for shard in entry.shards])


def _located(split: shards.Split, report: Callable[[int], None]) -> Iterator[tuple[str, Conversation]]:
  for number, conversation in enumerate(split):
    yield f'record {number}', conversation
    report(number + 1)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  """All files but the pictures, which may be very many."""
  return sorted(path for path in folder.rglob('*')
                if path.is_file() and path.parent.name != exporters.shared.FOLDER)


def _say(run: Run, out: pathlib.Path, counts: dict[str, int], left_out: list[manifest.Rejected]) -> None:
  run.say(f'export: {counts["conversations"]} conversations, {counts["rows"]} rows, {counts["pictures"]} pictures')
  reasons = collections.Counter(re.sub(r'^turn \d+: ', '', row.reason) for row in left_out)
  for reason, count in reasons.most_common(5):
    run.say(f'export: {count} conversations left out: {reason}')
  run.say(f'files: {out}')
