"""What the importers share: rows of JSON or JSON Lines, lists of topics and templates, reasons to leave things out."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from intersyn_jax.data import manifest
from intersyn_jax.errors import UserError

Reject = Callable[[manifest.Rejected], None]
"""Takes a row that is left out."""


class BadRow(ValueError):
  """A row that cannot be imported; the message is the reason for the manifest."""


def read(path: str | os.PathLike[str], reject: Reject, field: str = 'data.path') -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (where, row) for every JSON object of a file.

  A file that starts with `[` is one list; anything else is JSON Lines. A line that is no JSON object is rejected with
  its number; so is an entry of a list that is no object. `field` is the configuration's that names the file.

  Raises:
    UserError: no such file, no UTF-8, or a list that is no JSON (with its line).
  """
  path = pathlib.Path(path)
  try:
    text = path.read_text('utf-8-sig')
  except OSError as error:
    raise UserError(f'{path} cannot be read ({error.strerror}); set {field} to the file of the data set') from error
  except UnicodeDecodeError as error:
    raise UserError(f'{path} is no UTF-8 text (byte {error.start}); set {field} to a JSON file') from error
  if text.lstrip().startswith('['):
    entries = enumerate(_parse(path, text), start=1)
    kind = 'entry'
  else:
    entries = ((number, line) for number, line in enumerate(text.split('\n'), start=1) if line.strip())
    kind = 'line'
  for number, entry in entries:
    where = f'{path.name} {kind} {number}'
    if kind == 'line':
      try:
        entry = json.loads(entry)
      except (json.JSONDecodeError, RecursionError) as error:
        reject(manifest.Rejected(where, '', f'is no JSON ({error})'))
        continue
    if isinstance(entry, dict):
      yield where, entry
    else:
      reject(manifest.Rejected(where, '', 'is no JSON object'))


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
