"""A work folder in a bucket of Google Cloud Storage: `--workdir=gs://BUCKET/FOLDER`.

Checkpoints, large and written by all machines at once, lie in the bucket alone (`durable`). The other files are small, and
written by code that wants a disk: it appends, renames, locks. Each process has a copy of them (`local_copy`) in the user's cache
folder and sends what it has written there (`push`) in the order in which it was written, a `summary.json` last. So the bucket
always holds what a disk could have held at some moment; each start begins with that, whatever an earlier one left in the cache.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import re
import time
import types
from collections.abc import Iterator
from typing import Any

from etils import epath

from intersyn_jax.errors import UserError

_DIRECT = ('checkpoints', 'resume')
"""Folders of checkpoints (`training.tuning`): these never come to the copy."""
_LOGS = 'launch'
"""Where launch/worker.py keeps logs in the work folder: no concern of a stage."""
_LAST = 'summary.json'
PATIENCE = 120.0
"""Seconds in which a bucket must answer: requests that fail in a way that passes are sent again so long."""
_COMMITTED = 'commit_success.txt'
"""With this file orbax marks a complete checkpoint in a bucket, where no folder can be renamed."""

_ADDRESS = re.compile(r'gs://([a-z0-9][a-z0-9._-]+)/(.+)')


class Unreachable(Exception):
  """The bucket does not answer; the same command goes on when it does. One line."""


def local_copy(workdir: epath.PathLike) -> epath.Path:
  """Where this process finds the files of a work folder: in itself, or in the copy of one in a bucket, made as that is now.

  Raises:
    UserError: no such bucket, no right to it, no way to it, or a name in it that cannot be a file here.
  """
  address = os.fspath(workdir).rstrip('/')
  if '://' not in address:
    return epath.Path(workdir)
  known = next((copy for copy in _COPIES if copy.address == address), None)
  if known is None:
    try:
      known = _Copy(address)
    except Unreachable as e:
      raise UserError(str(e)) from e
    _COPIES.append(known)
  return epath.Path(known.folder)


def durable(path: epath.PathLike) -> epath.Path:
  """Where a folder of checkpoints lies: in the bucket for one below a copy, else where it says."""
  path = epath.Path(path)
  for copy in _COPIES:
    if path.is_relative_to(copy.folder):
      path = epath.Path(copy.address, *path.relative_to(copy.folder).parts)
  if holds(path):
    _client()
  return path


def push(every: float = 0.0) -> None:
  """Sends what this process has changed, unless it did so in the last `every` seconds.

  Raises:
    UserError: no right to write.
    Unreachable: no answer in `PATIENCE`.
  """
  for copy in _COPIES:
    copy.push(every)


def pull() -> None:
  """Fetches what other processes have sent."""
  for copy in _COPIES:
    copy.pull()


@contextlib.contextmanager
def kept() -> Iterator[None]:
  """Sends what was changed when the block has ended, however it ends."""
  try:
    yield
  except Unreachable:
    raise
  except BaseException:
    with contextlib.suppress(UserError, Unreachable):  # what ended the block is told instead
      push()
    raise
  push()


def named(text: str) -> str:
  """A message with the bucket's address where it has the folder of the copy."""
  for copy in _COPIES:
    text = text.replace(str(copy.folder), copy.address)
  return text


def holds(path: epath.PathLike) -> bool:
  """Whether a path lies in a bucket."""
  return os.fspath(path).startswith('gs://')


@contextlib.contextmanager
def written(checkpoint: epath.Path) -> Iterator[None]:
  """Around orbax writing a checkpoint: what fails with a bucket there is worth another start, as it was reached before."""
  try:
    yield
  except Exception as e:
    if not holds(checkpoint):
      raise
    raise Unreachable(f'{checkpoint} cannot be written ({_short(e)}); the checkpoint before it is whole, and the same command '
                      'goes on from there') from e


def unanswered(error: Exception) -> bool:
  """Whether an error of tensorstore tells of the network, and not of what it read."""
  return any(word in str(error) for word in ('UNAVAILABLE', 'DEADLINE_EXCEEDED', 'ABORTED', 'UNAUTHENTICATED'))


def steps(folder: epath.Path) -> list[int]:
  """The complete checkpoints in a folder of a bucket, in order."""
  names = (name.split('/') for name in sizes(folder))
  return sorted(int(step) for step, *rest in names if step.isdigit() and rest == [_COMMITTED])


def sizes(folder: epath.Path) -> dict[str, int]:
  """Bytes of all files below a folder, by name from there."""
  if not holds(folder):
    return {path.relative_to(folder).as_posix(): path.stat().length for path in _below(folder)}
  name, prefix = _parts(os.fspath(folder))
  with _told(os.fspath(folder)):
    return {blob.name.removeprefix(prefix): blob.size for blob in _client().list_blobs(name, prefix=prefix, retry=_retry())
            if not blob.name.endswith('/')}


def read_text(path: epath.Path) -> str:
  """As `path.read_text`, but that a bucket which does not answer is `Unreachable`, and no missing or damaged file."""
  if not holds(path):
    return path.read_text()
  name, prefix = _parts(os.fspath(path))
  with _told(os.fspath(path)):
    try:
      data = _client().bucket(name).blob(prefix[:-1]).download_as_bytes(retry=_retry())
    except _cloud().exceptions.NotFound:
      data = None
  if data is None:
    raise FileNotFoundError(path)
  return data.decode()


def write_text(path: epath.Path, text: str) -> None:
  """Writes a file, whole or not at all; an object in a bucket is never seen in part."""
  part = path if holds(path) else path.with_suffix('.part')
  part.write_text(text)
  if part != path:
    part.replace(path)


def rename(step: epath.Path, target: epath.Path) -> None:
  """Gives a checkpoint another name: in a bucket file by file, so that it counts as incomplete from the first one on."""
  if not holds(step):
    step.rename(target)
    return
  (name, source), (_, prefix) = _parts(os.fspath(step)), _parts(os.fspath(target))
  with _told(os.fspath(step)):
    blobs = _client().list_blobs(name, prefix=source, retry=_retry())
    for blob in sorted(blobs, key=lambda blob: blob.name != source + _COMMITTED):
      blob.bucket.rename_blob(blob, prefix + blob.name.removeprefix(source), retry=_retry())


def _below(folder: epath.Path) -> Iterator[epath.Path]:
  for path in sorted(folder.iterdir()):
    if path.is_dir():
      yield from _below(path)
    else:
      yield path


class _Copy:
  """This process's copy of a work folder in a bucket.

  Attributes:
    address: `gs://BUCKET/FOLDER`.
    folder: the copy.
  """

  def __init__(self, address: str):
    self.address = address
    name, self._prefix = _parts(address)
    with _told(address):
      self._bucket = _client().get_bucket(name, retry=_retry())
      cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache')
      base = cache / 'intersyn_jax' / 'buckets' / hashlib.sha256(address.encode()).hexdigest()[:16]
      base.mkdir(parents=True, exist_ok=True)
      slot, self._lock = _first_free(base)
      self.folder = base / str(slot) / address.rsplit('/', 1)[-1]
      self._notes = base / f'{slot}.json'
      self._known: dict[str, list[Any]] = {}  # [bytes, nanoseconds, tag in the bucket] of files that are as in the bucket
      self._pushed = time.monotonic()
      self._forget_unsent()
    self.pull()

  def _forget_unsent(self) -> None:
    """Removes what an earlier process wrote and did not send: it may be newer than what it was made with."""
    try:
      known = json.loads(self._notes.read_text())
    except (OSError, ValueError):
      known = {}
    for directory, _, files in os.walk(self.folder, topdown=False):
      for file in files:
        path = pathlib.Path(directory, file)
        name = path.relative_to(self.folder).as_posix()
        if name in known and _stat(path) == known[name][:2]:
          self._known[name] = known[name]
        else:
          path.unlink()
      with contextlib.suppress(OSError):  # not empty
        os.rmdir(directory)
    self.folder.mkdir(parents=True, exist_ok=True)

  def pull(self) -> None:
    """Makes the copy as the bucket is, but for what has not been sent yet."""
    with _told(self.address):
      blobs = {self._checked(blob.name.removeprefix(self._prefix)): blob
               for blob in self._bucket.list_blobs(prefix=self._prefix, retry=_retry()) if not blob.name.endswith('/')}
      there = {name: blob for name, blob in blobs.items() if _travels(name)}
      for name in self._known.keys() - there.keys():
        (self.folder / name).unlink(missing_ok=True)
        del self._known[name]
      new = [name for name, blob in there.items() if name not in self._known or self._known[name][2] != _tag(blob)]
      try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
          list(pool.map(lambda name: self._fetch(name, there[name]), new))
      finally:
        self._note()

  def _checked(self, name: str) -> str:
    if any(part in ('', '.', '..') or not part.isprintable() or '\\' in part for part in name.split('/')):
      raise UserError(f'{self.address} holds an object {name!r}, which cannot be a file of a work folder: remove it')
    return name

  def _fetch(self, name: str, blob: Any) -> None:
    target = self.folder / name
    part = target.with_name(f'.{target.name}.part')
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(_cloud().exceptions.NotFound):  # another process has removed it since
      blob.download_to_filename(part, retry=_retry())
      part.replace(target)
      self._known[name] = [*_stat(target), _tag(blob)]

  def push(self, every: float) -> None:
    """Sends what is new or changed, and removes in the bucket what was removed here."""
    if every and time.monotonic() - self._pushed < every:
      return
    self._pushed = time.monotonic()
    here = {name: stat for name, stat in self._files() if _travels(name)}
    gone = self._known.keys() - here.keys()
    new = [name for name, stat in here.items() if name not in self._known or self._known[name][:2] != stat]
    if not (gone or new):
      return
    is_last = lambda name: name.rsplit('/', 1)[-1] == _LAST
    with _told(self.address):
      try:
        for name in sorted(gone, key=lambda name: (not is_last(name), name)):
          with contextlib.suppress(_cloud().exceptions.NotFound):
            self._bucket.blob(self._prefix + name).delete(retry=_retry())
          del self._known[name]
        for name in sorted(new, key=lambda name: (is_last(name), here[name][1])):
          blob = self._bucket.blob(self._prefix + name)
          with contextlib.suppress(FileNotFoundError):  # a thread has just renamed it
            blob.upload_from_filename(self.folder / name, retry=_retry())
            self._known[name] = [*here[name], _tag(blob)]
      finally:
        self._note()

  def _files(self) -> Iterator[tuple[str, list[int]]]:
    for directory, _, files in os.walk(self.folder):
      for file in files:
        path = pathlib.Path(directory, file)
        with contextlib.suppress(FileNotFoundError):
          yield path.relative_to(self.folder).as_posix(), _stat(path)

  def _note(self) -> None:
    part = self._notes.with_suffix('.part')
    part.write_text(json.dumps(self._known))
    part.replace(self._notes)


_COPIES: list[_Copy] = []
"""Of this process; more than one where a program opens several work folders."""


def _travels(name: str) -> bool:
  """Whether a file is in both, the bucket and the copy: no checkpoint, no log of a launcher, and not half-written."""
  parts = name.split('/')
  return (parts[0] != _LOGS and not any(part in _DIRECT for part in parts[:-1])
          and not any(part.startswith('.') or part.endswith('.part') for part in parts))


def _parts(address: str) -> tuple[str, str]:
  """Bucket and prefix of an address."""
  match = _ADDRESS.fullmatch(address)
  if not match or any(part in ('', '.', '..') for part in match[2].split('/')):
    raise UserError(f'{address} is no folder in a bucket: write --workdir=gs://BUCKET/FOLDER, or name a folder on this machine')
  return match[1], match[2] + '/'


def _first_free(base: pathlib.Path) -> tuple[int, Any]:
  """The first number that no living process holds here, and what holds it until this process ends."""
  slot = 0
  while True:
    lock = (base / f'{slot}.lock').open('w')
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return slot, lock
    except BlockingIOError:
      lock.close()
      slot += 1


def _stat(path: pathlib.Path) -> list[int]:
  found = path.stat()
  return [found.st_size, found.st_mtime_ns]


def _tag(blob: Any) -> str:
  """What changes with the content of an object."""
  return blob.md5_hash or f'generation {blob.generation}'


# The library.


@functools.cache
def _cloud() -> Any:
  """Google's client library: `exceptions`, `auth`, `requests`, `storage`, `retry`."""
  try:
    import fsspec.config
    import gcsfs  # noqa: F401  by which epath reads buckets
    import google.auth.exceptions as auth
    import requests
    from google.api_core import exceptions
    from google.cloud import storage
    from google.cloud.storage.retry import DEFAULT_RETRY
  except ImportError as e:
    raise UserError(f"a work folder on gs:// needs the extra gcs ({e}): pip install 'intersyn_jax[gcs]'") from None
  # Listings that epath remembers would hide what other processes and tensorstore have written since.
  for scheme in ('gcs', 'gs'):
    fsspec.config.conf.setdefault(scheme, {})['use_listings_cache'] = False
  return types.SimpleNamespace(auth=auth, requests=requests, exceptions=exceptions, storage=storage, retry=DEFAULT_RETRY)


def _retry() -> Any:
  return _cloud().retry.with_timeout(PATIENCE)


@functools.cache
def _client() -> Any:
  storage = _cloud().storage
  with _told('gs://'):
    return storage.Client()


@contextlib.contextmanager
def _told(address: str) -> Iterator[None]:
  """Turns errors of cloud and disk into one line."""
  cloud = _cloud()
  bucket = address.removeprefix('gs://').split('/')[0]
  try:
    yield
  except (cloud.auth.DefaultCredentialsError, cloud.auth.RefreshError) as e:
    raise UserError(f'{address}: no login to Google Cloud ({_short(e)}): gcloud auth application-default login, or a machine '
                    'with a service account') from e
  except (cloud.exceptions.Forbidden, cloud.exceptions.Unauthorized) as e:
    raise UserError(f'{address}: no right to the bucket ({_short(e)}): give the account roles/storage.objectUser and '
                    'roles/storage.legacyBucketReader on it') from e
  except cloud.exceptions.NotFound as e:
    raise UserError(f'{address}: there is no bucket {bucket}: gcloud storage buckets create gs://{bucket}, or name another '
                    '--workdir') from e
  except cloud.exceptions.ClientError as e:
    raise UserError(f'{address}: Google Cloud refuses this ({_short(e)}): name another --workdir') from e
  except (cloud.exceptions.GoogleAPICallError, cloud.exceptions.RetryError, cloud.auth.TransportError,
          cloud.requests.RequestException) as e:
    raise Unreachable(f'{address}: the bucket does not answer ({_short(e)}): look at the network; the same command goes on '
                      'from here') from e
  except OSError as e:
    raise UserError(f'{address}: {_short(e)}; the copy of the work folder lies below XDG_CACHE_HOME, or ~/.cache') from e


def _short(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0][:200]
