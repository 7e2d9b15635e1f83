"""What the importers share: rows of JSON or JSON Lines, read one at a time, what makes conversations of them, lists of topics."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import yaml

from intersyn_jax.data import manifest
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation

Reject = Callable[[manifest.Rejected], None]
"""Takes a row that is left out."""

Make = Callable[[str, Any], Conversation]
"""(where, row) -> Conversation. A ValueError is the reason why the row is left out."""

MAX_ROW = 32 << 20
"""The most bytes of a line, or characters of an entry of a list: a row is in memory as a whole."""

CHUNK = 1 << 18
"""What is read at once, in bytes or characters."""

_BLANK = re.compile(r'[ \t\n\r]*')
_MARK = b'\xef\xbb\xbf'
_DECODER = json.JSONDecoder()


class BadRow(ValueError):
  """A row that cannot be imported; the message is the reason for the manifest."""


@dataclasses.dataclass(frozen=True)
class Conversations:
  """The conversations of a source, one for each row that can be used: iterate them, or share the rows out (`data.conversion`).

  The rows are read while this goes on, so it can be done once.

  Attributes:
    found: (where, row) of each row, in order.
    make: makes the conversation of a row, from nothing but that row. It can be pickled, so that other processes can do it.
    reject: takes a row that is left out.
    key: field of the rows that holds the id, which must be new. '' where ids cannot repeat, as they are made from file and row:
      none is remembered then.
    strict: every row must become a conversation, and an error is the caller's.
    label: gives the id of a row, as far as it has one, where `key` does not tell.
  """

  found: Iterable[tuple[str, Any]]
  make: Make
  reject: Reject
  key: str = 'id'
  strict: bool = False
  label: Callable[[Any], str] | None = None

  def name(self, row: Any) -> str:
    """The id of a row for the list of rows left out, as far as it has one."""
    if self.label is not None:
      return self.label(row)
    name = row.get(self.key) if isinstance(row, dict) else None
    return ascii(name[:200])[1:-1] if isinstance(name, str) else ''

  def __iter__(self) -> Iterator[Conversation]:
    seen: dict[str, str] = {}
    for where, row in self.found:
      try:
        conversation = self.make(where, row)
        if self.key and seen.setdefault(conversation.id, where) != where:
          raise BadRow(repeated(self.key, seen[conversation.id]))
      except ValueError as error:
        if self.strict:
          raise
        self.reject(manifest.Rejected(where, self.name(row), str(error)))
        continue
      yield conversation


def repeated(key: str, place: str) -> str:
  """Why a row is left out whose id, the field `key`, stands at `place` already."""
  return f'its {key} stands already at {place}'


def several(parts: Sequence[Conversations], reject: Reject) -> Conversations:
  """The conversations of several sources, one source after the other, as those of one."""
  return Conversations(
      ((where, (number, row)) for number, part in enumerate(parts) for where, row in part.found),
      functools.partial(_make_of, [part.make for part in parts]), reject, 'id' if any(part.key for part in parts) else '',
      label=lambda row: parts[row[0]].name(row[1]))


def _make_of(makes: Sequence[Make], where: str, row: tuple[int, Any]) -> Conversation:
  number, inner = row
  return makes[number](where, inner)


def named(name: str, start: Callable[[Reject], Iterable[Conversation]], reject: Reject) -> Conversations:
  """The conversations of a source with its name in front of their ids and places."""
  renamed = lambda row: reject(dataclasses.replace(row, where=f'{name}: {row.where}'))
  given = source(start(renamed), renamed)
  return dataclasses.replace(given, found=((f'{name}: {where}', row) for where, row in given.found),
                             make=functools.partial(_make_named, given.make, name), reject=reject)


def _make_named(make: Make, name: str, where: str, row: Any) -> Conversation:
  conversation = make(where, row)
  return dataclasses.replace(conversation, id=f'{name}/{conversation.id}')


def source(items: Iterable[Conversation], reject: Reject) -> Conversations:
  """What a source gives as `Conversations`: if it gives conversations as they are, these are its rows."""
  if isinstance(items, Conversations):
    return items
  found = ((f'record {number}', conversation) for number, conversation in enumerate(items))
  return Conversations(found, _given, reject, key='', strict=True)


def _given(where: str, conversation: Conversation) -> Conversation:
  del where
  return conversation


# JSON, of which one row at a time is in memory.


def read(path: str | os.PathLike[str], reject: Reject, field: str = 'data.path') -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (where, row) for every JSON object of a file.

  A file that starts with `[` is one list; anything else is JSON Lines. A line that is no JSON object, no UTF-8 or longer than
  MAX_ROW is rejected with its number; so is an entry of a list that is no object. `field` is the configuration's that names the
  file.

  Raises:
    UserError: no such file, UTF-16, or a list that is no JSON (with the line; the entries before it have been given by then).
  """
  path = pathlib.Path(path)
  with _opened(path, field) as file:
    if _first(path, file, field) == b'[':
      entries = ((f'{path.name} entry {number}', value, '') for number, _, value in _Window(path, file, field).entries('[]'))
    else:
      entries = _lines(path, file)
    for where, entry, problem in entries:
      if isinstance(entry, dict):
        yield where, entry
      else:
        reject(manifest.Rejected(where, '', problem or 'is no JSON object'))


def read_members(path: str | os.PathLike[str], field: str = 'data.path') -> Iterator[tuple[str, str, Any]]:
  """Yields (where, name, value) for every member of a file that is one JSON object. Raises UserError as `read`."""
  path = pathlib.Path(path)
  with _opened(path, field) as file:
    _first(path, file, field)
    for number, name, value in _Window(path, file, field).entries('{}'):
      yield f'{path.name} entry {number}', name, value


def _opened(path: pathlib.Path, field: str) -> BinaryIO:
  try:
    return open(path, 'rb')
  except OSError as error:
    raise UserError(f'{path} cannot be read ({error.strerror}); set {field} to the file of the data set') from error


def _first(path: pathlib.Path, file: BinaryIO, field: str) -> bytes:
  """The first byte of a file that is no white space, b'' where there is none; the file is at its start again."""
  start = file.read(CHUNK)
  if start[:2] in (b'\xff\xfe', b'\xfe\xff'):
    raise UserError(f'{path} is no UTF-8 text but UTF-16; set {field} to a JSON file in UTF-8')
  found = start.removeprefix(_MARK).lstrip()
  while not found and (more := file.read(CHUNK)):
    found = more.lstrip()
  file.seek(0)
  return found[:1]


def _lines(path: pathlib.Path, file: BinaryIO) -> Iterator[tuple[str, Any, str]]:
  """(where, value, why there is none) of every line that is not blank."""
  number = 0
  while line := file.readline(MAX_ROW + 1):
    number += 1
    where = f'{path.name} line {number}'
    if len(line) > MAX_ROW:
      while line and not line.endswith(b'\n'):
        line = file.readline(MAX_ROW)
      yield where, None, f'is longer than {MAX_ROW >> 20} MiB'
      continue
    line = line.removeprefix(_MARK) if number == 1 else line
    if not line.strip():
      continue
    try:
      yield where, json.loads(line.decode()), ''
    except UnicodeDecodeError as error:
      yield where, None, f'is no UTF-8 text (byte {error.start})'
    except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
      yield where, None, f'is no JSON ({error})'


class _Window:
  """A JSON text of any length, of which the entry at hand is in memory."""

  def __init__(self, path: pathlib.Path, file: BinaryIO, field: str):
    self._path, self._field = path, field
    self._file = io.TextIOWrapper(file, 'utf-8-sig', newline='\n')
    self._text, self._at, self._line = '', 0, 1

  def entries(self, brackets: str) -> Iterator[tuple[int, str, Any]]:
    """(number from 1, name or '', value) of the entries of the one list or object that the text must be."""
    self._take(brackets[0])
    empty = self._next() == brackets[1]
    number = 0
    while not empty:
      number, name = number + 1, ''
      if brackets == '{}':
        if self._next() != '"':
          raise self._wrong('a name in double quotes must stand here')
        name = self._value()
        self._take(':')
      yield number, name, self._value()
      if self._take(',', brackets[1]) == brackets[1]:
        break
    if empty:
      self._take(brackets[1])
    if self._next():
      raise self._wrong('something follows the end')

  def _more(self) -> bool:
    """Reads on, and forgets what was used up; False at the end of the file."""
    rest = len(self._text) - self._at
    try:
      more = self._file.read(max(CHUNK, rest))
    except UnicodeDecodeError as error:
      raise UserError(f'{self._path} is no UTF-8 text after line {self._line}; set {self._field} to a JSON file') from error
    if more:
      self._line += self._text.count('\n', 0, self._at)
      self._text, self._at = self._text[self._at:] + more, 0
    return bool(more)

  def _next(self) -> str:
    """The next character that is no white space, '' at the end."""
    while True:
      self._at = _BLANK.match(self._text, self._at).end()
      if self._at < len(self._text) or not self._more():
        return self._text[self._at:self._at + 1]

  def _take(self, *wanted: str) -> str:
    found = self._next()
    if found not in wanted:
      raise self._wrong(f'{" or ".join(wanted)} must stand here')
    self._at += 1
    return found

  def _value(self) -> Any:
    self._next()
    while True:
      room = len(self._text) - self._at <= MAX_ROW
      try:
        value, end = _DECODER.raw_decode(self._text, self._at)
      except json.JSONDecodeError as error:
        if room and self._more():
          continue
        raise self._wrong(error.msg, error.pos) from error
      except ValueError as error:
        raise self._wrong(str(error)) from error
      except RecursionError as error:
        raise self._wrong('nested too deeply to read; of JSON Lines such a row alone would be left out') from error
      if self._text[end:end + 1] in ('', '.', 'e', 'E') and room and self._more():  # a number may go on
        continue
      self._at = end
      return value

  def _wrong(self, what: str, at: int | None = None) -> UserError:
    line = self._line + self._text.count('\n', 0, self._at if at is None else at)
    return UserError(f'{self._path} is no JSON at line {line} ({what}); mend that line')


# Fields.


def string(row: dict[str, Any], field: str) -> str:
  """A text field without surrounding blanks; BadRow if it is missing or no text."""
  value = row.get(field)
  if not isinstance(value, str) or not value.strip():
    raise BadRow(f'field {field} is missing or no text')
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise BadRow(f'field {field} holds half a Unicode character') from error
  return value.strip()


def load_topics(path: str | os.PathLike[str]) -> tuple[list[str], list[manifest.Rejected]]:
  """Reads topics: a list of strings, or nested objects of such lists, whose leaves become `domain/category/topic`. The file is
  JSON, or YAML where its name ends with .yaml or .yml.

  Returns:
    Topics in file order, and what was dropped: empty entries, placeholders, repetitions (case does not count).

  Raises:
    UserError: the file is missing, empty, no JSON, or holds no topic.
  """
  return _entries(path, 'topics')


def load_templates(path: str | os.PathLike[str]) -> tuple[list[str], list[manifest.Rejected]]:
  """Reads question templates (with `***` or `**` where the topic goes) like `load_topics`, without their groups."""
  return _entries(path, 'templates')


def _entries(path: str | os.PathLike[str], what: str) -> tuple[list[str], list[manifest.Rejected]]:
  path = pathlib.Path(path)
  try:
    text = path.read_text('utf-8-sig')
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{what} file {path} cannot be read ({error}); give a JSON or YAML file with a list of {what}') from error
  if not text.strip():
    raise UserError(f'{what} file {path} is empty; give a JSON list of {what}')
  kept: dict[str, str] = {}
  dropped = []
  parse = _parse_yaml if path.suffix in ('.yaml', '.yml') else _parse
  for number, (group, entry) in enumerate(_leaves(parse(path, text), ()), start=1):
    where = f'{path.name} entry {number}'
    entry = ' '.join(entry.split()) if isinstance(entry, str) else entry
    if not isinstance(entry, str):
      dropped.append(manifest.Rejected(where, '', f'is {type(entry).__name__}, not text'))
    elif not entry.strip('.*_ '):
      dropped.append(manifest.Rejected(where, entry, 'is a placeholder'))
    else:
      full = '/'.join((*group, entry)) if what == 'topics' else entry
      if full.casefold() in kept:
        dropped.append(manifest.Rejected(where, full, f'repeats {kept[full.casefold()]!r}'))
      else:
        kept[full.casefold()] = full
  if not kept:
    raise UserError(f'{what} file {path} holds no usable entry; give a JSON list of {what}')
  return list(kept.values()), dropped


def _leaves(node: Any, group: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
  if isinstance(node, dict):
    for key, value in node.items():
      yield from _leaves(value, (*group, ' '.join(str(key).split())))
  elif isinstance(node, list):
    for value in node:
      yield from _leaves(value, group)
  else:
    yield group, node


def _parse(path: pathlib.Path, text: str) -> Any:
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    raise UserError(f'{path} is no JSON at line {error.lineno} ({error.msg}); mend that line') from error
  except ValueError as error:  # a number of thousands of digits
    raise UserError(f'{path} cannot be read as JSON ({error}); mend that entry') from error
  except RecursionError as error:
    raise UserError(f'{path} is nested too deeply to read; give a flat JSON list') from error


class _Plain(yaml.SafeLoader):
  """YAML without references: a few lines of them can stand for more than fits in memory, or for themselves."""

  def compose_node(self, parent: Any, index: Any) -> Any:
    if self.check_event(yaml.AliasEvent):
      raise yaml.composer.ComposerError(None, None, 'references (*name) are not read', self.peek_event().start_mark)
    return super().compose_node(parent, index)


def _parse_yaml(path: pathlib.Path, text: str) -> Any:
  try:
    return yaml.load(text, _Plain)
  except yaml.YAMLError as error:
    mark = getattr(error, 'problem_mark', None)
    where = f' at line {mark.line + 1}' if mark else ''
    raise UserError(f'{path} is no YAML{where} ({getattr(error, "problem", None) or "bad text"}); mend that line') from error
  except RecursionError as error:
    raise UserError(f'{path} is nested too deeply to read; give a flat list') from error
