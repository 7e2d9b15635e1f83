"""How much a program computes: products of its jaxpr counted, loops as often as they go round."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax


class Work(NamedTuple):
  """Of all chips together.

  Attributes:
    flops: of all matrix products and convolutions, a multiplication and an addition being two.
    traffic: bytes of what these products read and write, each array once a product.
  """

  flops: float = 0.0
  traffic: float = 0.0

  def plus(self, other: Work, times: float = 1.0) -> Work:
    return Work(self.flops + times * other.flops, self.traffic + times * other.traffic)


def count(jaxpr: Any, rounds: int = 0) -> Work:
  """The work of a (closed) jaxpr.

  Args:
    rounds: of its loops that end by a condition on data, all together; each is taken to go round equally often.
  """
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  free = _loops(jaxpr)
  return _count(jaxpr, rounds / free if free else 1.0)


def _loops(jaxpr: Any) -> int:
  return sum((eqn.primitive.name == 'while') + sum(map(_loops, _inner(eqn))) for eqn in jaxpr.eqns)


def _count(jaxpr: Any, each: float) -> Work:
  total = Work()
  for eqn in jaxpr.eqns:
    name, inner = eqn.primitive.name, _inner(eqn)
    if name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      shape = eqn.invars[0].aval.shape
      total = total.plus(Work(2.0 * _size(eqn.outvars[0]) * math.prod(shape[axis] for axis in contracted), _traffic(eqn)))
    elif name == 'conv_general_dilated':
      kernel = eqn.invars[1].aval.shape
      outputs = kernel[eqn.params['dimension_numbers'].rhs_spec[0]]
      total = total.plus(Work(2.0 * _size(eqn.outvars[0]) * math.prod(kernel) / outputs, _traffic(eqn)))
    elif name == 'cond':  # the dearest branch
      total = total.plus(max((_count(one, each) for one in inner), key=lambda work: work.flops))
    elif inner:
      times = {'scan': lambda p: p['length'], 'while': lambda p: each, 'pallas_call': lambda p: math.prod(p['grid_mapping'].grid),
               'shard_map': lambda p: math.prod(p['mesh'].shape.values())}.get(name, lambda p: 1)(eqn.params)
      for one in inner:
        total = total.plus(_count(one, each), times)
  return total


def _inner(eqn: Any) -> list[Any]:
  """The jaxprs that an equation holds."""
  found = []
  for value in eqn.params.values():
    for one in value if isinstance(value, (tuple, list)) else (value,):
      one = getattr(one, 'jaxpr', one)
      if hasattr(one, 'eqns'):
        found.append(one)
  return found


def _size(variable: Any) -> int:
  return math.prod(variable.aval.shape)


def _traffic(eqn: Any) -> float:
  return float(sum(_size(v) * v.aval.dtype.itemsize for v in (*eqn.invars[:2], *eqn.outvars)))


def held(tree: Any) -> float:
  """Bytes of a tree of shapes in their shardings on one chip."""
  def one(a: Any) -> float:
    shape = a.sharding.shard_shape(a.shape) if a.sharding is not None else a.shape
    return math.prod(shape) * (4 if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else a.dtype.itemsize)

  return float(sum(map(one, jax.tree.leaves(tree))))
