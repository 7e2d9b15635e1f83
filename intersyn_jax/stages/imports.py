"""Code that a configuration names, and what may name it (DESIGN 9; docs/extending.md has an example of each).

    --config.model.image_head=residual                         a short name of ours
    --config.model.image_head=my_package.heads:CosineHead      module:attribute
    --config.model.image_head=mine/cosine.py:CosineHead        path/to/file.py:attribute, from the working folder

A configuration file may also hold the constructor itself. A configuration that was read back from a work folder may name
code of this package alone: a folder that somebody sends must not decide what is run here.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Mapping
from typing import Any

from intersyn_jax.errors import UserError

FIELDS = ('family', 'data.source', 'model.image_head', 'synthesize.critic', 'grpo.rewards')
"""The fields that may name code, in the order of the stages that use it."""

_OURS = re.compile(r'intersyn_jax(\.(?!py:)\w+)+:\w+')


class ReadBack(str):
  """Text of a configuration that a work folder keeps, not of one that the user named."""


def read_back(value: Any) -> Any:
  """A plain configuration with all its texts marked as `ReadBack`."""
  if isinstance(value, dict):
    return {key: read_back(inner) for key, inner in value.items()}
  if isinstance(value, list):
    return [read_back(inner) for inner in value]
  return ReadBack(value) if isinstance(value, str) else value


def check(value: Any, field: str) -> None:
  """Raises UserError where a work folder names code outside this package."""
  if isinstance(value, ReadBack) and ':' in value and not _OURS.fullmatch(value):
    raise UserError(f'config.{field} is {value} in the config.json of a work folder, and code named there is loaded from '
                    'intersyn_jax alone: build Parts from your own configuration and use Generator.of')


def check_all(config: Mapping[str, Any]) -> None:
  """Looks up every name in a configuration; raises UserError as `resolve` does."""
  for field in FIELDS:
    *sections, name = field.split('.')
    value = functools.reduce(lambda inner, section: inner.get(section, {}), sections, config).get(name)
    for named in value if isinstance(value, list | tuple) else [value]:
      resolve(named, field)


def resolve(value: Any, field: str) -> Any:
  """What a field of the configuration names.

  Args:
    value: an import path, or already what it would name, which is given back; so are short names, for those who know
      what they stand for.
    field: dotted name of the field, for errors.

  Raises:
    UserError: no such file, module or attribute, a file that fails when it is read, or a name that `check` refuses.
  """
  if not isinstance(value, str) or ':' not in value:
    return value
  check(value, field)
  place, _, attribute = value.rpartition(':')
  try:
    module = _load_file(pathlib.Path(place)) if place.endswith('.py') else importlib.import_module(place)
  except Exception as error:  # whatever a user's file raises while it is read is a mistake in that file
    raise UserError(f'config.{field} is {value}, which cannot be imported ({_reason(error, place)}); write '
                    'module:attribute, or path/to/file.py:attribute from the working folder') from error
  if not hasattr(module, attribute):
    there = [name for name, found in vars(module).items() if getattr(found, '__module__', None) == module.__name__]
    near = difflib.get_close_matches(attribute, there, n=1) or there
    raise UserError(f'config.{field} is {value}, but {place} has no {attribute or "such attribute"}'
                    + (f'; did you mean {" or ".join(near)}?' if near else ''))
  return getattr(module, attribute)


def construct(value: Any, field: str, kind: str, *arguments: Any) -> Any:
  """Calls the constructor that a field names.

  Raises:
    UserError: see `resolve`; or what is named cannot be called. `kind` says what is wanted there.
  """
  made = resolve(value, field)
  if not callable(made):
    raise UserError(f'config.{field} is {value}, which is no constructor of {kind}; write module:attribute, or '
                    'path/to/file.py:attribute from the working folder')
  return made(*arguments)


def name_of(value: Any) -> str:
  """What to call the thing that a field names: its attribute."""
  return value.rpartition(':')[2] if isinstance(value, str) else getattr(value, '__name__', type(value).__name__)


def _load_file(path: pathlib.Path) -> types.ModuleType:
  """The file as a module, read once a process. It may import what lies beside it."""
  if not path.is_file():
    raise FileNotFoundError(f'there is no file {path} in {pathlib.Path.cwd()}')
  path = path.resolve()
  name = f'own_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}'
  if name in sys.modules:
    return sys.modules[name]
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # dataclasses and TFDS look their module up
  sys.path.insert(0, str(path.parent))
  try:
    spec.loader.exec_module(module)
  except BaseException:
    del sys.modules[name]
    raise
  finally:
    sys.path.remove(str(path.parent))
  return module


def _reason(error: Exception, place: str) -> str:
  """One line that says what went wrong, and in which line of the file."""
  if isinstance(error, SyntaxError):
    return f'line {error.lineno}: {error.msg}'
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if pathlib.Path(frame.filename).name == pathlib.Path(place).name]
  text = str(error) if isinstance(error, ImportError | FileNotFoundError) else f'{type(error).__name__}: {error}'
  return (f'line {lines[-1]}: ' if lines else '') + text
