"""Mesh and axis rules: models speak logical axis names, this table maps them to machines (DESIGN 10)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
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
  return Mesh(_arranged(devices, sizes), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def _arranged(devices: Sequence[jax.Device], sizes: Sequence[int]) -> np.ndarray:
  """Devices in the shape of a mesh; those of a TPU such that mesh axes lie along the axes of its torus."""
  if devices[0].platform == 'tpu':
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  return np.asarray(devices).reshape(sizes)


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


LARGE = 2**26
"""Elements of a parameter that no device of a mesh that splits parameters may hold whole: 256 MiB of float32, and moments."""


def shardings(mesh: Mesh, axes: Any, shapes: Any) -> Any:
  """Tree of NamedShardings for a tree of logical axes (tuples) and the tree of shapes beside it.

  Raises:
    UserError: a large parameter would stay whole on a mesh that splits parameters, because its sizes do not divide.
  """
  splits = mesh.shape['fsdp'] * mesh.shape['tensor'] > 1

  def place(path: tuple[Any, ...], a: Any, names: tuple[str | None, ...]) -> NamedSharding:
    found = spec(mesh, names, a.shape)
    if splits and math.prod(a.shape) > LARGE and not any(found):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      raise UserError(f'mesh {dict(mesh.shape)}: parameter {name} {tuple(a.shape)} would be whole on every device, as its axes '
                      f'{names} do not divide; choose another mesh.fsdp or mesh.tensor')
    return NamedSharding(mesh, found)

  return jax.tree_util.tree_map_with_path(place, shapes, axes)


def rows(mesh: Mesh) -> NamedSharding:
  """Sharding of anything whose first axis is the batch."""
  return NamedSharding(mesh, PartitionSpec(RULES['batch']))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def process_rows(mesh: Mesh, count: int) -> np.ndarray:
  """Which of the `count` rows of a global batch this process's devices hold, int[n] in rising order.

  Processes whose devices differ along `tensor` alone hold the same rows.
  """
  held = rows(mesh).addressable_devices_indices_map((count,)).values()
  return np.unique(np.concatenate([np.arange(count)[index] for index in held]))


def host(tree: Any) -> Any:
  """A tree of arrays as numpy arrays on this host, whole, also where other processes hold parts of them.

  All processes must call it together, with arrays of the same programs; what no device of another process holds stays as it is.
  """
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils
    apart = lambda x: isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
    tree = jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True) if apart(x) else x, tree)
  return jax.device_get(tree)


def row_multiple(mesh: Mesh) -> int:
  """The number of rows of a batch must be a multiple of this."""
  return mesh.shape['replica'] * mesh.shape['fsdp']


def check_rows(mesh: Mesh, rows_: int, field: str) -> None:
  """Raises UserError where a batch of `rows_` rows, from config `field`, does not divide among the devices."""
  if rows_ % row_multiple(mesh):
    raise UserError(f'config.{field} is {rows_}; the rows divide among {row_multiple(mesh)} devices, make it a multiple')


def spread(tree: Any) -> Any:
  """Arrays whose first axis stays spread over the mesh as rows are, the other axes as the compiler likes.

  Left alone, the compiler may follow the sharding of the parameters, and have every device read all rows. The mesh is that
  of the arrays themselves; where there is none, or rows do not divide, nothing is done.
  """
  def pin(a: jax.Array) -> jax.Array:
    mesh = jax.typeof(a).sharding.mesh
    axes = tuple(axis for axis in RULES['batch'] if mesh.shape.get(axis, 1) > 1)
    if not axes or not isinstance(a, jax.core.Tracer) or a.shape[0] % math.prod(mesh.shape[axis] for axis in axes):
      return a
    free = (PartitionSpec.UNCONSTRAINED,) * (a.ndim - 1)
    return jax.lax.with_sharding_constraint(a, NamedSharding(mesh, PartitionSpec(axes, *free)))

  return jax.tree.map(pin, tree)
