"""A module split into its structure and a nested dictionary of parameters.

Training, decoding and checkpoints handle the dictionary; `bind` turns it back into a module inside any jax transform.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from intersyn_jax import sharding

Params = dict[str, Any]
Initializer = Callable[[jax.Array, Sequence[int]], jax.Array]


def normal(scale: float) -> Initializer:
  """Normal initialiser of the given standard deviation."""
  return lambda key, shape: scale * jax.random.normal(key, shape, jnp.float32)


def constant(value: float) -> Initializer:
  return lambda key, shape: jnp.full(shape, value, jnp.float32)


def param(rngs: nnx.Rngs, shape: Sequence[int], axes: Sequence[str], init: Initializer | None = None, *,
          held: str | None = None) -> nnx.Param:
  """Declares a parameter with its logical axes; a matrix starts as normal(1 / sqrt(inputs)).

  `held` is the type it is held in where that is not the one of the whole `Definition`.
  """
  init = init or normal(shape[0] ** -0.5)
  return nnx.Param(init(rngs.params(), tuple(shape)), axes=tuple(axes), **({'held': held} if held else {}))


def stacked(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
  """`count` modules of one kind as one module whose parameters have a leading axis `layers`."""
  return nnx.vmap(lambda key: make(nnx.Rngs(params=key)))(jax.random.split(rngs.params(), count))


def picked(params: Params, which: Callable[[str], bool], above: str = '') -> Params:
  """The parameters whose paths (`backbone/trunk/norm/scale`) are wanted, in dictionaries nested as before."""
  out = {}
  for name, value in params.items():
    if isinstance(value, dict):
      if inner := picked(value, which, f'{above}{name}/'):
        out[name] = inner
    elif which(above + name):
      out[name] = value
  return out


def joined(one: Params, other: Params) -> Params:
  """Two parts of the parameters of one model as a whole; arrays are shared, not copied."""
  out = one | other
  return out | {name: joined(one[name], other[name]) for name in one.keys() & other.keys()}


class Definition:
  """What there is to know of a module before it has parameters.

  Args:
    make: builds the module.
    dtype: of parameters where they are held, on devices and in checkpoints, unless they name their own; the module casts to
      what it computes in.

  Attributes:
    shapes: nested dictionary of ShapeDtypeStruct.
    axes: the same dictionary with the logical axes of each parameter.
  """

  def __init__(self, make: Callable[[nnx.Rngs], nnx.Module], dtype: str = 'float32'):
    self._make = make
    self._graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(params=0))))
    each = lambda tell: nnx.to_pure_dict(jax.tree.map(tell, state, is_leaf=lambda v: isinstance(v, nnx.Variable)))
    self.shapes: Params = each(lambda variable: _shape(variable, dtype))
    self.axes: Params = each(_axes)

  def bind(self, params: Params) -> Any:
    """The module with these parameters."""
    return nnx.merge(self._graph, params)

  def shardings(self, mesh: Mesh) -> Params:
    return sharding.shardings(mesh, self.axes, self.shapes)

  def like(self, shapes: Params, axes: Params) -> Definition:
    """The same module whose parameters are held in another form; the module must know it (`trunk.project`)."""
    other = copy.copy(self)
    other.shapes, other.axes = shapes, axes
    return other

  def init(self, key: jax.Array, mesh: Mesh) -> Params:
    """Fresh parameters, each born in its own sharding."""
    make = lambda key: jax.tree.map(lambda a, shape: a.astype(shape.dtype),
                                    nnx.to_pure_dict(nnx.state(self._make(nnx.Rngs(params=key)))), self.shapes)
    return jax.jit(make, out_shardings=self.shardings(mesh))(key)


def _shape(variable: nnx.Variable, dtype: str) -> nnx.Variable:
  held = variable.get_metadata().get('held', dtype)
  return variable.replace(jax.ShapeDtypeStruct(variable.get_value().shape, held))


def _axes(variable: nnx.Variable) -> nnx.Variable:
  names = variable.get_metadata()['axes']
  return variable.replace(('layers', *names) if variable.get_value().ndim > len(names) else names)
