"""Splits that are written from a source row by row: an import that was killed goes on where it stopped.

Beside the finished shards (`.SPLIT-00000.part`) lies a journal, an SQLite file `.SPLIT.journal`: how many rows of the source the
finished shards have used up, which rows were left out, and all ids so far, so that none need be in memory. A shard and what its
rows left in the journal count from one moment on. An import that goes on gives the same bytes as one that was never disturbed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from intersyn_jax.data import manifest, shards
from intersyn_jax.data.conversion import Outcome
from intersyn_jax.data.importers import rows
from intersyn_jax.errors import UserError

LISTED = 10_000
"""The most rows left out that the manifest itself lists."""

WAIT = 5.0
"""Seconds until a folder counts as somebody else's."""

_TABLES = ('CREATE TABLE IF NOT EXISTS header (text TEXT, ended INTEGER)',
           'CREATE TABLE IF NOT EXISTS shard (number INTEGER PRIMARY KEY, records, bytes, sha256, used INTEGER)',
           'CREATE TABLE IF NOT EXISTS rejected (used INTEGER, text TEXT)',
           'CREATE TABLE IF NOT EXISTS id (digest BLOB PRIMARY KEY, place BLOB, used INTEGER) WITHOUT ROWID')


def write_split(folder: str | os.PathLike[str], split: str, outcomes: Callable[[int], Iterator[Outcome]], *,
                settings: Mapping[str, Any], records_per_shard: int = shards.RECORDS_PER_SHARD) -> manifest.Split:
  """Writes a split, or goes on with it where an earlier call with the same settings stopped.

  Args:
    folder: made if it is not there.
    split: name of the split; an earlier split of this name is replaced.
    outcomes: given a number, what became of the rows of the source after so many; always the same rows.
    settings: everything that the content depends on, for the manifest, and to know whether what is there can be used.
    records_per_shard: at most this many records a file.

  Returns:
    The entry of the manifest. When it is saved, `forget` may be called.
  """
  base = pathlib.Path(folder)
  base.mkdir(parents=True, exist_ok=True)
  with _Journal(base, split, json.dumps([settings, manifest.versions()], sort_keys=True)) as journal:
    if not journal.ended:
      _write(base, split, journal, outcomes(journal.used), records_per_shard)
    written = journal.shards()
    paths = shards.publish(base, split, len(written))
    found = tuple(dataclasses.replace(shard, file=path.name) for shard, path in zip(written, paths, strict=True))
    listed, more = listed_rows(base, split, journal.rejected())
    return manifest.Split(found, listed, dict(settings), more)


def forget(folder: str | os.PathLike[str], split: str) -> None:
  """Removes the journal of a split that is complete and in the manifest."""
  _path(folder, split).unlink(missing_ok=True)


def _path(folder: str | os.PathLike[str], split: str) -> pathlib.Path:
  return pathlib.Path(folder) / f'.{split}.journal'


def _write(base: pathlib.Path, split: str, journal: _Journal, outcomes: Iterator[Outcome], records_per_shard: int) -> None:
  records = _records(journal, outcomes)
  number = len(journal.shards())
  while count := shards.write_part(path := shards.part(base, split, number), records, records_per_shard):
    journal.finish(number, shards.described(path, count))
    number += 1
  journal.end()


def _records(journal: _Journal, outcomes: Iterator[Outcome]) -> Iterator[bytes]:
  for outcome in outcomes:
    journal.used += 1
    reason = outcome.reason
    if not reason and outcome.key and (place := journal.place(outcome.id, outcome.where)):
      reason = rows.repeated(outcome.key, place)
    if reason:
      journal.reject(manifest.Rejected(outcome.where, outcome.name, reason))
    else:
      yield outcome.data


def listed_rows(folder: str | os.PathLike[str], split: str,
                rejected: Iterable[manifest.Rejected]) -> tuple[tuple[manifest.Rejected, ...], int]:
  """The rows left out that the manifest lists, and how many there are beyond them; if any, a file of its own lists all."""
  listed, more = [], 0
  path = pathlib.Path(folder) / f'{split}.{manifest.REJECTED}'
  part = path.with_name(f'.{path.name}.part')
  with open(part, 'w') as file:
    for row in rejected:
      if len(listed) < LISTED:
        listed.append(row)
      else:
        more += 1
      file.write(json.dumps(dataclasses.asdict(row)) + '\n')
  if more:
    manifest.flush(part)
    part.replace(path)
  else:
    part.unlink()
    path.unlink(missing_ok=True)
  return tuple(listed), more


class _Journal:
  """The journal of a split, open.

  Attributes:
    used: how many outcomes have been used up; when it is opened, by the finished shards.
    ended: the source has ended: all shards are finished.
  """

  def __init__(self, base: pathlib.Path, split: str, header: str):
    self._base, self._split, self._header = base, split, header
    self.used, self.ended = 0, False

  def __enter__(self) -> _Journal:
    path = _path(self._base, self._split)
    try:
      self._open(path)
    except sqlite3.OperationalError as error:
      self._db.close()
      raise UserError(f'{path} cannot be used ({error}); another process writes to this folder, or its disk cannot lock files: '
                      'wait for the other, or name another work folder') from error
    except sqlite3.DatabaseError:  # no journal of ours, or a damaged one
      self._db.close()
      for left in (path, path.with_name(f'{path.name}-journal')):
        left.unlink(missing_ok=True)
      self._open(path)
    return self

  def __exit__(self, *error: object) -> None:
    self._db.close()  # without a commit, so that what no finished shard stands for is gone

  def _open(self, path: pathlib.Path) -> None:
    self._db = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
    self._db.execute('PRAGMA locking_mode = EXCLUSIVE')
    self._db.execute('BEGIN EXCLUSIVE')
    for table in _TABLES:
      self._db.execute(table)
    found = self._db.execute('SELECT text, ended FROM header').fetchone()
    if found is None or found[0] != self._header:
      shards.clear(self._base, self._split)
      for table in ('header', 'shard', 'rejected', 'id'):
        self._db.execute(f'DELETE FROM {table}')
      self._db.execute('INSERT INTO header VALUES (?, 0)', (self._header,))
    elif self._sound():
      self.ended = bool(found[1])
    self._commit()

  def _sound(self) -> bool:
    """Compares the finished shards with their files. From the first that is not as it was, all are made again."""
    known = self.shards()
    for number, shard in enumerate(known):
      path = shards.part(self._base, self._split, number)
      path = path if path.exists() else shards.final(self._base, self._split, number, len(known))
      if not path.exists() or shards.described(path, shard.records) != dataclasses.replace(shard, file=path.name):
        break
      self.used = self._db.execute('SELECT used FROM shard WHERE number = ?', (number,)).fetchone()[0]
    else:
      return True
    self._db.execute('DELETE FROM shard WHERE number >= ?', (number,))
    for table in ('rejected', 'id'):
      self._db.execute(f'DELETE FROM {table} WHERE used > ?', (self.used,))
    self._db.execute('UPDATE header SET ended = 0')
    return False

  def _commit(self) -> None:
    self._db.execute('COMMIT')
    self._db.execute('BEGIN EXCLUSIVE')

  def shards(self) -> list[manifest.Shard]:
    """The finished shards, without their names."""
    found = self._db.execute('SELECT records, bytes, sha256 FROM shard ORDER BY number')
    return [manifest.Shard('', *row) for row in found]

  def place(self, name: str, where: str) -> str:
    """Where an id stands already; '' if it is new, and then it stands at `where`."""
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    found = self._db.execute('SELECT place FROM id WHERE digest = ?', (digest,)).fetchone()
    if found is None:
      self._db.execute('INSERT INTO id VALUES (?, ?, ?)', (digest, os.fsencode(where), self.used))
    return os.fsdecode(found[0]) if found else ''

  def reject(self, row: manifest.Rejected) -> None:
    self._db.execute('INSERT INTO rejected VALUES (?, ?)', (self.used, json.dumps(dataclasses.astuple(row))))

  def rejected(self) -> Iterator[manifest.Rejected]:
    """The rows left out, in their order."""
    for (text,) in self._db.execute('SELECT text FROM rejected ORDER BY rowid'):
      yield manifest.Rejected(*json.loads(text))

  def finish(self, number: int, shard: manifest.Shard) -> None:
    """Lets a shard, and what its rows left here, count."""
    manifest.flush(self._base)
    self._db.execute('INSERT INTO shard VALUES (?, ?, ?, ?, ?)', (number, shard.records, shard.bytes, shard.sha256, self.used))
    self._commit()

  def end(self) -> None:
    """Notes that the source has ended."""
    self._db.execute('UPDATE header SET ended = 1')
    self._commit()
