"""Mesh and axis rules: models speak logical axis names, this table maps them to machines (DESIGN 10)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from intersyn_jax.errors import UserError

AXES = ('replica', 'fsdp', 'tensor')

RULES: dict[str, str | tuple[str, ...] | None] = {
    'batch': ('replica', 'fsdp'),
    'length': None,
    'layers': None,
    'embed': 'fsdp',
    'mlp': 'tensor',
    'heads': 'tensor',
    'kv_heads': 'tensor',
    'vocab': 'tensor',
    'codes': 'tensor',
    'places': None,
    'rank': None,
    'width': None,
}
"""Logical axis to mesh axes; a name that is not here is an error, so nothing is left unsharded by a slip."""


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Builds the mesh; one axis of `shape` may be -1, which takes what the machine has left.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = [int(shape.get(axis, 1)) for axis in AXES]
  unknown = set(shape) - set(AXES)
  if unknown or sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
    raise UserError(f'mesh {dict(shape)}: use positive sizes for {AXES}, one of them at most -1')
  fixed = math.prod(s for s in sizes if s != -1)
  if len(devices) % fixed or (-1 not in sizes and fixed != len(devices)):
    raise UserError(f'mesh {dict(shape)} does not fit {len(devices)} devices; set one axis to -1')
  sizes = [len(devices) // fixed if s == -1 else s for s in sizes]
  return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def spec(mesh: Mesh, names: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
  """Partition of an array whose axes have logical `names`.

  An axis that its mesh axes do not divide stays whole; mesh axes of size 1 are left out.

  Raises:
    ValueError: a name without a rule, or two axes of one array on the same mesh axis.
  """
  taken: set[str] = set()
  entries: list[tuple[str, ...] | None] = []
  for name, size in zip(names, shape, strict=True):
    if name is not None and name not in RULES:
      raise ValueError(f'logical axis {name!r} has no rule in sharding.RULES')
    rule = None if name is None else RULES[name]
    axes = tuple(a for a in ((rule,) if isinstance(rule, str) else rule or ()) if mesh.shape[a] > 1)
    if set(axes) & taken:
      raise ValueError(f'axes {names}: mesh axis {set(axes) & taken} would be used twice')
    if not axes or size % math.prod(mesh.shape[a] for a in axes):
      entries.append(None)
      continue
    taken.update(axes)
    entries.append(axes)
  return PartitionSpec(*entries)


def shardings(mesh: Mesh, axes: Any, shapes: Any) -> Any:
  """Tree of NamedShardings for a tree of logical axes (tuples) and the tree of shapes beside it."""
  return jax.tree.map(lambda s, names: NamedSharding(mesh, spec(mesh, names, s.shape)), shapes, axes)


def rows(mesh: Mesh) -> NamedSharding:
  """Sharding of anything whose first axis is the batch."""
  return NamedSharding(mesh, PartitionSpec(RULES['batch']))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def row_multiple(mesh: Mesh) -> int:
  """The number of rows of a batch must be a multiple of this."""
  return mesh.shape['replica'] * mesh.shape['fsdp']


def check_rows(mesh: Mesh, rows_: int, field: str) -> None:
  """Raises UserError where a batch of `rows_` rows, from config `field`, does not divide among the devices."""
  if rows_ % row_multiple(mesh):
    raise UserError(f'config.{field} is {rows_}; the rows divide among {row_multiple(mesh)} devices, make it a multiple')
