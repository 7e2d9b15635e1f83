"""Collectives of a compiled program, read from its text form: how many run, and what they send, loops counted.

A computation runs as often as what calls it says: the body of a loop so often as its condition compares its counter with, both
branches of a choice once. Asynchronous forms repeat a collective under the same channel; it counts once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

KINDS = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')

_BYTES = {'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 'f8e4m3fn': 1, 'f8e5m2': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2,
          's32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8}

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$')
_ARRAY = re.compile(r'\b([a-z]+[0-9]*(?:e\d+m\d+\w*)?)\[([\d,]*)\]')
_CALLED = re.compile(r'(?:calls|body|branch_computations|true_computation|false_computation|to_apply)=(\{[^}]*\}|%?[\w.\-]+)')


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective of a program.

  Attributes:
    kind: of `KINDS`.
    count: how often it runs in one call of the program.
    received: bytes that each chip gets from others each time.
    group: partitions that take part with the first one.
    where: the operation that it is for, as JAX names it.
  """

  kind: str
  count: int
  received: float
  group: frozenset[int]
  where: str


@dataclasses.dataclass
class _Instruction:
  name: str
  shape: str
  op: str
  rest: str


def collectives(text: str, open_loops: int = 0) -> list[Collective]:
  """All collectives of a program.

  Args:
    text: `compiled.as_text()`.
    open_loops: rounds of all loops together that end by a condition on data, as those of the decoder do.
  """
  computations, entry = _computations(text)
  loops = [one for body in computations.values() for one in body if one.op == 'while']
  trips = {one.name: _trip(computations[_condition(one)], computations[_body(one)]) for one in loops}
  free = [one for one in loops if trips[one.name] is None]
  each = max(1, round(open_loops / len(free))) if free else 1
  found: dict[str, Collective] = {}

  def visit(name: str, times: int) -> None:
    for one in computations[name]:
      kind = next((kind for kind in KINDS if one.op in (kind, f'{kind}-start')), None)
      if kind:
        _add(found, kind, one, times)
      if one.op == 'while':
        visit(_body(one), times * (trips[one.name] or each))
        continue
      for called in _called(one):
        if called in computations and one.op not in ('reduce', 'all-reduce', 'reduce-scatter', 'scatter', 'sort', 'map'):
          visit(called, times)

  visit(entry, 1)
  return list(found.values())


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
  computations: dict[str, list[_Instruction]] = {}
  entry = current = ''
  for line in text.splitlines():
    if head := _COMPUTATION.match(line):
      current = head[2]
      computations[current] = []
      entry = current if head[1] else entry
    elif current and (found := _INSTRUCTION.match(line)):
      computations[current].append(_Instruction(*found.groups()))
  return computations, entry


def _condition(one: _Instruction) -> str:
  return re.search(r'condition=%?([\w.\-]+)', one.rest)[1]


def _body(one: _Instruction) -> str:
  return re.search(r'body=%?([\w.\-]+)', one.rest)[1]


def _called(one: _Instruction) -> Iterator[str]:
  for names in _CALLED.findall(one.rest):
    yield from re.findall(r'[\w.\-]+', names)


def _trip(condition: list[_Instruction], body: list[_Instruction]) -> int | None:
  """Rounds of a loop that counts up from 0 to a constant; None where its condition is another one."""
  last = condition[-1] if condition else None
  if last is None or last.op != 'compare' or 'direction=LT' not in last.rest:
    return None
  limit, counter = _constant(condition, last), _place(condition, last)
  if limit is None or counter is None:
    return None
  # A ring that sends both ways does two steps a round.
  root = next((one for one in reversed(body) if one.op == 'tuple'), None)
  values = _operands(root) if root else []
  added = next((one for one in body if len(values) > counter and one.name == values[counter] and one.op == 'add'), None)
  step = _constant(body, added) if added else None
  return math.ceil(limit / (step or 1))


def _operands(one: _Instruction) -> list[str]:
  return [name for name in re.findall(r'%?([\w.\-]+)', re.sub(r'/\*.*?\*/', '', one.rest.split(')')[0]))]


def _constant(computation: list[_Instruction], one: _Instruction) -> int | None:
  """The constant among the operands of an instruction."""
  named = {other.name: other.rest for other in computation if other.op == 'constant'}
  text = next((named[name] for name in _operands(one) if name in named), '')
  return int(found[0]) if (found := re.match(r'\d+', text)) else None


def _place(computation: list[_Instruction], one: _Instruction) -> int | None:
  """Which element of the loop's state is among the operands of an instruction."""
  named = {other.name: other.rest for other in computation if other.op == 'get-tuple-element'}
  text = next((named[name] for name in _operands(one) if name in named), '')
  return int(found[1]) if (found := re.search(r'index=(\d+)', text)) else None


def _add(found: dict[str, Collective], kind: str, one: _Instruction, times: int) -> None:
  group = _group(one.rest)
  n = len(group)
  if kind != 'collective-permute' and n == 1:
    return
  arrays = [_size(*a) for a in _ARRAY.findall(one.shape)]
  if kind == 'collective-permute':
    received = arrays[0]
  elif one.op.endswith('-start') and kind == 'all-gather':
    received = max(arrays) * (n - 1) / n  # its shape holds the operand too
  else:
    received = sum(arrays) * {'all-gather': (n - 1) / n, 'reduce-scatter': n - 1, 'all-reduce': 2 * (n - 1) / n,
                              'all-to-all': (n - 1) / n}[kind]
  channel = re.search(r'channel_id=(\d+)', one.rest)
  key = channel[1] if channel else one.name
  where = re.search(r'op_name="([^"]*)"', one.rest)
  if key not in found or found[key].count < times:
    found[key] = Collective(kind, times, received, group, where[1] if where else '')


def _size(kind: str, dims: str) -> float:
  return _BYTES.get(kind, 0) * math.prod(int(n) for n in dims.split(',') if n)


def _group(rest: str) -> frozenset[int]:
  """The partitions in the group of partition 0, from any of the ways that groups are written in.

  Raises:
    ValueError: they are written in another way; taken for a group of one, they would count nothing.
  """
  if pairs := re.search(r'source_target_pairs=\{\{(.*?)\}\}', rest):
    return frozenset(int(n) for n in re.findall(r'\d+', pairs[1].split('},{')[0]))
  if named := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(([\d,\[\]()T<=]*)\))? \{([\w.',]*)\}", rest):
    axes = {name: int(size) for name, size in re.findall(r"'([\w.]+)'=(\d+)", named[1])}
    ids = np.arange(math.prod(axes.values())) if named[2] is None else _ids(named[2])
    taken = re.findall(r"'([\w.]+)'", named[3])
    place = tuple(slice(None) if name in taken else 0 for name in axes)
    return frozenset(ids.reshape(tuple(axes.values()))[place].reshape(-1).tolist())
  if listed := re.search(r'replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)', rest):
    return frozenset(_ids(listed[2]).reshape(_numbers(listed[1]))[0].tolist())
  if groups := re.search(r'replica_groups=\{\{(.*?)\}', rest):
    return frozenset(_numbers(groups[1]))
  if (written := re.search(r'replica_groups=\S+', rest)) and not written[0].startswith('replica_groups={}'):
    raise ValueError(f'groups of a collective are written in a way that is not known: {written[0]}')
  return frozenset({0})


def _ids(text: str) -> np.ndarray:
  """Partitions as `0,2,1,3`, or as `[2,2]T(1,0)`: counted over an array whose axes are then exchanged."""
  if not text.startswith('['):
    return np.asarray(_numbers(text))
  shape, _, order = text[1:].partition(']')
  ids = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
  return (ids.transpose(_numbers(order[2:-1])) if order else ids).reshape(-1)


def _numbers(text: str) -> list[int]:
  return [int(n) for n in text.split(',')]
