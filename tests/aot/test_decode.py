"""The decode loop of a 7B model, compiled for 16 chips of v5e that are not here: in place, without a second cache.

What is shown is compilation and memory, not speed. `make test-aot` runs it; it needs the extra `tpu` and no TPU.
"""

from __future__ import annotations

import os

os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding, PartitionSpec

from intersyn_jax import sharding
from intersyn_jax.benchmarks.decode import LARGE, prompts
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import Decoder

BATCH, CACHE, CHUNK = 128, 2048, 64
GB = 1e9


@pytest.fixture(scope='module')
def compiled():
  topology = topologies.get_topology_desc(platform='tpu', topology_name='v5e:4x4')
  mesh = sharding.make_mesh({'tensor': 16}, topology.devices)
  decoder = Decoder(LARGE.definition, LARGE.layout, mesh, DecodeConfig(max_positions=CACHE, max_images=1))
  half = lambda tree: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), tree)
  shapes, places = half(decoder.definition.shapes), decoder.definition.shardings(mesh)
  stacked = lambda params: decoder.definition.bind(params).backbone.trunk.layer_params()
  layers = jax.eval_shape(stacked, shapes)
  axes = decoder.definition.axes['backbone']['trunk']['layers']
  layer_places = [jax.tree.map(lambda a, names: NamedSharding(mesh, sharding.spec(mesh, names[1:], a.shape)), one, axes)
                  for one in layers]

  def begin(params, rows, requests):
    model = decoder.definition.bind(params)
    return decoder.resize(decoder.start(model, rows, requests, 1), CACHE - CHUNK, CHUNK)

  state = jax.eval_shape(begin, shapes, prompts(BATCH, 64, LARGE.vocabulary), jax.ShapeDtypeStruct((BATCH,), jnp.uint32))
  cached = lambda a: a.ndim == 4
  state_places = jax.tree.map(lambda a: NamedSharding(
      mesh, PartitionSpec(None, ('tensor',)) if cached(a) else PartitionSpec()), state)

  def advance(params, layers, state, seed):
    model = decoder.definition.bind(params)
    return decoder.advance(model, model.backbone.trunk.with_layers(layers), state, seed, CHUNK)

  free = lambda places: jax.tree.map(lambda place: Format(Layout.AUTO, place), places)
  program = jax.jit(advance, donate_argnums=2, in_shardings=(free(places), free(layer_places), free(state_places), None),
                    out_shardings=(free(state_places), None))
  found = program.lower(shapes, layers, state, jax.ShapeDtypeStruct((), jnp.int32)).compile()
  cache_bytes = sum(np.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(state) if cached(a))
  return found.memory_analysis(), cache_bytes / 16


def test_the_cache_is_updated_in_place(compiled):
  memory, cache = compiled
  assert cache / GB == pytest.approx(8.6, abs=0.3)
  assert memory.alias_size_in_bytes > 0.99 * cache, 'the donated cache should be the one that comes back'
  assert memory.temp_size_in_bytes < 0.05 * cache, f'{memory.temp_size_in_bytes / GB:.2f} GB beside a cache of {cache / GB:.2f}'


def test_it_fits_a_chip(compiled):
  memory, _ = compiled
  assert memory.argument_size_in_bytes + memory.temp_size_in_bytes < 16 * GB
