"""A folder of pictures that were downloaded elsewhere, found by the address they came from. Nothing is ever fetched.

Web documents name their pictures by address. A picture counts as that of an address if its file is named after it:

    STORE/3f/3f0a...e1.jpg              SHA-256 of the address in hex, in a folder of its first two letters or in none
    STORE/cdn.example.org/a/b.jpg       host and path, as `wget --force-directories` writes them

The last part of an address alone (`b.jpg`) is no name for it: many pages have an `image.jpg` of their own.

What img2dataset wrote (`--output_format=files`: a picture and a `.json` with its address side by side) becomes a store with

    python -m intersyn_jax.data.importers.image_store DOWNLOADED STORE
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import sys
import urllib.parse
from collections.abc import Iterator

from intersyn_jax.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '')
MAX_NOTE = 1 << 20
"""Largest `.json` that is read, in bytes."""


def find(address: str, folder: str | os.PathLike[str]) -> str:
  """The name, relative to the folder, of the picture that came from an address.

  Raises:
    ValueError: no file is named after it; the message is the reason for the manifest.
  """
  for name in _names(address):
    if os.path.isfile(os.path.join(folder, name)):
      return name
  raise ValueError(f'image {address[:200]!r} is an address, and the image store has no file named after it; nothing is '
                   'fetched')


def _names(address: str) -> Iterator[str]:
  digest = _digest(address)
  for suffix in SUFFIXES:
    yield f'{digest[:2]}/{digest}{suffix}'
    yield f'{digest}{suffix}'
  try:
    parts = urllib.parse.urlsplit(address)
  except ValueError:  # as in `http://[`
    return
  path = parts.path.strip('/').split('/')
  if parts.netloc and all(part not in ('', '.', '..') for part in (parts.netloc, *path)):
    name = '/'.join((parts.netloc, *path))
    yield f'{name}?{parts.query}' if parts.query else name


def _digest(address: str) -> str:
  return hashlib.sha256(address.encode()).hexdigest()


def link(downloaded: str | os.PathLike[str], store: str | os.PathLike[str]) -> tuple[int, int]:
  """Names the pictures that img2dataset wrote after their addresses; hard links, or copies where the disk is another one.

  Args:
    downloaded: folder with pictures and, beside each, a `.json` with the field `url`.
    store: folder of the image store; made if it is not there. Pictures that are in it stay.

  Returns:
    How many `.json` have their picture in the store now, and how many have no picture or no address.

  Raises:
    UserError: no such folder.
  """
  if not os.path.isdir(downloaded):
    raise UserError(f'{os.fspath(downloaded)} is no folder; name the folder that img2dataset wrote')
  named = left = 0
  for base, folders, files in os.walk(downloaded):
    folders.sort()
    for note in sorted(file for file in files if file.endswith('.json')):
      beside = (pathlib.Path(base, note).with_suffix(suffix) for suffix in SUFFIXES[:-1])
      picture = next((path for path in beside if path.is_file()), None)
      address = _address(pathlib.Path(base, note)) if picture else ''
      if not picture or not address:
        left += 1
        continue
      digest = _digest(address)
      target = pathlib.Path(store, digest[:2], digest + picture.suffix)
      target.parent.mkdir(parents=True, exist_ok=True)
      if not target.exists():
        _place(picture, target)
      named += 1
  return named, left


def _address(note: pathlib.Path) -> str:
  """The address that a `.json` of img2dataset names, '' if it names none."""
  try:
    content = json.loads(note.read_bytes()) if note.stat().st_size <= MAX_NOTE else None
    address = content.get('url') if isinstance(content, dict) else None
    return address if isinstance(address, str) and address.encode() else ''
  except (OSError, ValueError, RecursionError):
    return ''


def _place(picture: pathlib.Path, target: pathlib.Path) -> None:
  try:
    os.link(picture, target)
  except OSError:
    part = target.with_name(f'.{target.name}.part')
    shutil.copyfile(picture, part)
    part.replace(target)


def main(arguments: list[str]) -> int:
  if len(arguments) != 2:
    raise UserError('give two folders: python -m intersyn_jax.data.importers.image_store DOWNLOADED STORE')
  named, left = link(*arguments)
  print(f'{named} pictures in {arguments[1]}, {left} without picture or address left out')
  return 0


if __name__ == '__main__':
  try:
    sys.exit(main(sys.argv[1:]))
  except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
