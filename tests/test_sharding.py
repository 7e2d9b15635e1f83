"""Mesh and axis rules."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from intersyn_jax import sharding
from intersyn_jax.errors import UserError


def test_one_axis_takes_what_is_left():
  assert dict(sharding.make_mesh({'fsdp': -1}).shape) == {'replica': 1, 'fsdp': 8, 'tensor': 1}
  assert dict(sharding.make_mesh({'replica': 2, 'fsdp': -1, 'tensor': 2}).shape) == {'replica': 2, 'fsdp': 2, 'tensor': 2}
  assert dict(sharding.make_mesh({}, jax.devices()[:1]).shape) == {'replica': 1, 'fsdp': 1, 'tensor': 1}
  assert set(sharding.make_mesh({'tensor': -1}).axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize('shape', [
    {'fsdp': 3}, {'fsdp': 2}, {'fsdp': -1, 'tensor': -1}, {'fsdp': 0}, {'data': 8}, {'fsdp': -1, 'tensor': 16}])
def test_a_mesh_that_does_not_fit_is_named(shape):
  with pytest.raises(UserError, match='mesh'):
    sharding.make_mesh(shape)


def test_specs_follow_the_table():
  mesh = sharding.make_mesh({'fsdp': 2, 'tensor': 4})
  assert sharding.spec(mesh, ('embed', 'heads'), (16, 16)) == PartitionSpec(('fsdp',), ('tensor',))
  assert sharding.spec(mesh, ('embed', 'heads'), (16, 6)) == PartitionSpec(('fsdp',), None), 'what does not divide stays whole'
  assert sharding.spec(mesh, ('batch', None), (4, 3)) == PartitionSpec(('fsdp',), None)
  both = sharding.make_mesh({'replica': 2, 'fsdp': 4})
  assert sharding.spec(both, ('batch', 'heads'), (8, 3)) == PartitionSpec(('replica', 'fsdp'), None)
  with pytest.raises(ValueError, match='no rule'):
    sharding.spec(mesh, ('breadth',), (4,))
  with pytest.raises(ValueError, match='twice'):
    sharding.spec(mesh, ('heads', 'mlp'), (8, 8))


def test_rows_are_spread_over_replica_and_fsdp():
  mesh = sharding.make_mesh({'replica': 2, 'fsdp': 2, 'tensor': 2})
  assert sharding.row_multiple(mesh) == 4
  tree = jax.device_put({'a': np.arange(8).reshape(8, 1), 'b': np.arange(4)}, sharding.rows(mesh))
  assert {s.data.shape for s in tree['a'].addressable_shards} == {(2, 1)}
  np.testing.assert_array_equal(tree['a'][:, 0], np.arange(8))
  assert sharding.replicated(mesh).is_fully_replicated


def test_a_large_parameter_that_stays_whole_is_named():
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, 'float32')
  shapes = {'head': {'kernel': shape(2**13 + 1, 2**13 + 1)}, 'norm': shape(3)}
  axes = {'head': {'kernel': ('embed', 'vocab')}, 'norm': ('width',)}
  with pytest.raises(UserError, match=r'head/kernel \(8193, 8193\) would be whole'):
    sharding.shardings(sharding.make_mesh({'fsdp': 2, 'tensor': 4}), axes, shapes)
  alone = sharding.shardings(sharding.make_mesh({'replica': 8}), axes, shapes)
  assert alone['norm'].spec == PartitionSpec(None), 'a mesh that splits nothing is asked for copies'


def test_rows_stay_spread_where_the_parameters_are_not():
  mesh = sharding.make_mesh({'fsdp': 4, 'tensor': 2})
  kernel = jax.device_put(np.ones((16, 16), np.float32), jax.NamedSharding(mesh, PartitionSpec('fsdp', 'tensor')))
  x = jax.device_put(np.ones((8, 16), np.float32), sharding.rows(mesh))
  found = jax.jit(lambda x, kernel: sharding.spread({'y': x @ kernel})['y'])(x, kernel)
  assert found.sharding.shard_shape(found.shape)[0] == 2
  np.testing.assert_array_equal(found, np.full((8, 16), 16.0))
  odd = jax.jit(lambda x: sharding.spread(x[:3]))(x)
  np.testing.assert_array_equal(odd, np.ones((3, 16)))
  assert sharding.spread(x) is x, 'outside of a program nothing is moved'
