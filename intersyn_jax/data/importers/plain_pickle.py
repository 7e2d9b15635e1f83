"""Rows out of a file of `torch.save`, without unpickling: a walk over its opcodes that can only build plain values.

`torch.save` writes a zip with the member `data.pkl`, a pickle. A pickle is a program, and loading it may run anything. The
opcodes that name classes or call them are few (GLOBAL, REDUCE, BUILD, ...), and a list of objects and texts needs none of
them. So the standard library's disassembler (`pickletools`, which runs nothing) reads the file twice. The first pass refuses
the whole file if it holds an opcode outside OPCODES, and notes which values are used again. The second pass builds the
entries of the list one at a time, and keeps of what is behind it only those values.
"""

from __future__ import annotations

import os
import pickletools
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from intersyn_jax.errors import UserError

OPCODES = frozenset((
    'PROTO', 'FRAME', 'MARK', 'STOP', 'NONE', 'NEWTRUE', 'NEWFALSE', 'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT',
    'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'EMPTY_LIST', 'APPEND', 'APPENDS', 'EMPTY_DICT', 'SETITEM', 'SETITEMS',
    'BINPUT', 'LONG_BINPUT', 'MEMOIZE', 'BINGET', 'LONG_BINGET'))
"""None of them names, makes or calls anything but None, truth values, numbers, texts, lists and dicts."""

_VALUES = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
_MARK = object()
_BROKEN = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError)
_MEND = 'write its rows as JSON Lines (docs/importing.md)'


def is_torch(path: str | os.PathLike[str]) -> bool:
  """Whether a file is a zip, as `torch.save` writes since version 1.6."""
  return zipfile.is_zipfile(path)


def entries(path: str | os.PathLike[str]) -> Iterator[Any]:
  """The entries of the list that a file of `torch.save` holds, one at a time.

  Raises:
    UserError: no such zip, a damaged one, an opcode outside OPCODES (before the first entry), or something else than a list.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      members = [info for info in archive.infolist() if info.filename.rpartition('/')[2] == 'data.pkl']
      if len(members) != 1 or members[0].compress_type != zipfile.ZIP_STORED:
        raise UserError(f'{path} is a zip, but none of torch.save (one member data.pkl, not compressed); {_MEND}')
      with archive.open(members[0]) as file:
        used = _check(path, file)
      with archive.open(members[0]) as file:
        yield from _walk(file, used)
  except _BROKEN as error:
    raise UserError(f'{path} is damaged, or no list in plain pickle ({str(error)[:160]}); {_MEND}') from error


def _check(path: str | os.PathLike[str], file: BinaryIO) -> frozenset[int]:
  """Numbers of the values that are used again. Raises UserError at the first opcode outside OPCODES."""
  used = set()
  for opcode, argument, place in pickletools.genops(file):
    if opcode.name not in OPCODES:
      raise UserError(f'{path} holds the pickle opcode {opcode.name} at byte {place}, which plain rows do not need and '
                      f'which may run a program; nothing of it was run. If you trust it, {_MEND}')
    if opcode.name in ('BINGET', 'LONG_BINGET'):
      used.add(argument)
  return frozenset(used)


def _walk(file: BinaryIO, used: frozenset[int]) -> Iterator[Any]:
  """Builds values; yields what is added to the first list instead of adding it."""
  stack: list[Any] = []
  memo: dict[int, Any] = {}
  noted = 0

  def top(kind: type) -> Any:
    if not stack or type(stack[-1]) is not kind:
      raise ValueError(f'an entry is added to what is no {kind.__name__}')
    return stack[-1]

  def since_mark() -> list[Any]:
    place = next((i for i in range(len(stack) - 1, -1, -1) if stack[i] is _MARK), None)
    if place is None:
      raise ValueError('a mark is missing')
    found = stack[place + 1:]
    del stack[place:]
    return found

  for opcode, argument, _ in pickletools.genops(file):
    name = opcode.name
    if name in ('PROTO', 'FRAME'):
      continue
    if name == 'STOP':
      break
    if name in ('BINPUT', 'LONG_BINPUT', 'MEMOIZE'):
      number = noted if name == 'MEMOIZE' else argument
      noted += 1
      if not stack or stack[-1] is _MARK:
        raise ValueError('there is nothing to note')
      if number in used:
        memo[number] = stack[-1]
    elif name in ('BINGET', 'LONG_BINGET'):
      if argument not in memo:
        raise ValueError(f'value {argument} is used before it is there')
      stack.append(memo[argument])
    elif name in ('APPEND', 'APPENDS'):
      items = [stack.pop()] if name == 'APPEND' and stack else since_mark()
      whole = top(list)
      if len(stack) == 1:
        yield from items
      else:
        whole += items
    elif name in ('SETITEM', 'SETITEMS'):
      items = [stack.pop(-2), stack.pop()] if name == 'SETITEM' and len(stack) > 2 else since_mark()
      whole = top(dict)
      keys = items[::2]
      if len(items) % 2 or not all(isinstance(key, str) for key in keys):
        raise ValueError('a dict has a key that is no text, or one without value')
      whole.update(zip(keys, items[1::2], strict=True))
    elif name == 'MARK':
      stack.append(_MARK)
    elif name == 'EMPTY_LIST':
      stack.append([])
    elif name == 'EMPTY_DICT':
      stack.append({})
    else:
      stack.append(_VALUES.get(name, argument))
  if len(stack) != 1 or type(stack[0]) is not list:
    raise ValueError('it does not end as one list')
