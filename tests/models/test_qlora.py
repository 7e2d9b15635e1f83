"""Quantised kernels: how near they are, the same in forward pass and decoding, and never at full width all at once."""

from __future__ import annotations

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from intersyn_jax import sharding
from intersyn_jax.errors import UserError
from intersyn_jax.models import lora, quantised
from intersyn_jax.models.definition import Definition
from intersyn_jax.models.trunk import KERNELS, LayerCache, Trunk, TrunkConfig, rotation
from intersyn_jax.training.trees import flat, unflat
from tests import small_model as small

pytest.importorskip('qwix')

ALPHA = 3.0
NEAR = {'int8': 0.012, 'int4': 0.12, 'nf4': 0.1}
"""Root-mean-square error of normal weights at most, as a share of their own."""


class Holder(nnx.Module):
  """A trunk where a model has it."""

  def __init__(self, config: TrunkConfig, rngs: nnx.Rngs):
    self.trunk = Trunk(config, rngs)
    self.norm_kernel = self.trunk.norm.scale  # a kernel, but none of the trunk's


def held_by(rank: int = 0, width: int = 32, layers: int = 2, remat: str = 'none') -> Definition:
  """All kernels have one shape, which saves compilations."""
  config = TrunkConfig(width, layers, 2, 2, width // 2, width, lora_rank=rank, lora_alpha=ALPHA, remat=remat)
  return Definition(lambda rngs: Holder(config, rngs))


def drawn(definition: Definition):
  """Parameters without the compilation that `init` costs."""
  rng = np.random.default_rng(0)
  draw = lambda path, s: float(path.endswith('scale')) + 0.2 * rng.standard_normal(s.shape).astype(s.dtype)
  return unflat(definition.shapes, {path: draw(path, s) for path, s in flat(definition.shapes).items()})


@functools.cache
def quantise(kind: str, rank: int = 0):
  """Plain definition and parameters, and the same quantised."""
  definition = held_by(rank)
  params, low = drawn(definition), quantised.define(definition, kind)
  return definition, params, low, quantised.quantise(jax.tree.map(jnp.array, params), kind, low.shardings(small.one_device()))


def widened(params):
  """The same numbers as plain parameters."""
  wide = lambda a: quantised.dequantise(a, jnp.float32) if quantised.is_quantised(a) else a
  return jax.tree.map(wide, params, is_leaf=quantised.is_quantised)


ROWS = (2, 12)
POSITION = jnp.broadcast_to(jnp.arange(ROWS[1]), ROWS)
CAUSAL = jnp.broadcast_to(jnp.tril(jnp.ones((ROWS[1],) * 2, bool)), (ROWS[0], ROWS[1], ROWS[1]))
X = np.random.default_rng(1).standard_normal((*ROWS, 32)).astype(np.float32)


def forward(definition):
  return jax.jit(lambda params, x: definition.bind(params).trunk(x, POSITION, CAUSAL))


@pytest.mark.parametrize('kind', quantised.KINDS)
def test_kernels_are_near_and_all_else_is_as_it_was(kind):
  _, params, low, held = quantise(kind)
  assert jax.tree.map(lambda s: (s.shape, s.dtype), low.shapes) == jax.tree.map(lambda a: (a.shape, a.dtype), held)
  for name in KERNELS:
    was, kernel = params['trunk']['layers'][f'{name}_kernel'], held['trunk']['layers'][f'{name}_kernel']
    assert kernel.qvalue.dtype == {'nf4': 'uint4'}.get(kind, kind) and kernel.scale.dtype == jnp.float32
    wide = np.asarray(quantised.dequantise(kernel, jnp.float32))
    for layer in range(2):
      assert 1e-3 < np.sqrt(np.mean((was[layer] - wide[layer]) ** 2) / np.mean(was[layer] ** 2)) < NEAR[kind]
  for path in flat(params).keys() - {f'trunk/layers/{name}_kernel' for name in KERNELS}:
    np.testing.assert_array_equal(flat(held)[path], flat(params)[path], err_msg=path)


def test_scales_are_of_an_output_or_of_64_inputs_and_heads_stay():
  definition = small.definition(small.plain(depth=2), width=32, mlp_width=256)
  for kind, blocks in (('int8', 1), ('nf4', 4)):
    shapes = quantised.define(definition, kind).shapes
    assert shapes['backbone']['trunk']['layers']['down_kernel'].scale.shape == (2, blocks, 32)
    quantised_paths = {path.rsplit('/', 1)[0] for path in flat(shapes) if path.endswith('/qvalue')}
    assert quantised_paths == {f'backbone/trunk/layers/{name}_kernel' for name in KERNELS}, 'those of the image head stay'


@pytest.mark.parametrize('kind', ['int8', 'nf4'])
def test_forward_and_decoding_compute_with_the_numbers_that_are_held(kind):
  definition, params, low, held = quantise(kind, 2)
  run = forward(definition)
  plain, same = run(params, X), run(widened(held), X)
  found = np.asarray(forward(low)(held, X))
  np.testing.assert_allclose(found, same, atol=5e-5)
  # The error of the weights goes through two layers and comes out no larger than four times itself.
  assert 1e-4 < np.sqrt(np.mean((found - plain) ** 2) / np.mean(plain ** 2)) < 4 * NEAR[kind]
  cut = 4

  @jax.jit
  def step_by_step(params, x):
    trunk = low.bind(params).trunk
    first, caches = trunk.prefill(x[:, :cut], POSITION[:, :cut], CAUSAL[:, :cut, :cut])
    room = ((0, 0), (0, 0), (0, ROWS[1] - cut), (0, 0))
    caches = [LayerCache(jnp.pad(c.keys, room), jnp.pad(c.values, room)) for c in caches]
    layers = trunk.unstack()

    def step(caches, t):
      y, new = jax.lax.dynamic_slice_in_dim(x, t, 1, 1), []
      by = rotation(jnp.full((ROWS[0], 1), t), trunk.config)
      for layer, cache in zip(layers, caches, strict=True):
        y, cache = layer(y, by, jax.lax.dynamic_slice_in_dim(CAUSAL, t, 1, 1), cache, t)
        new.append(cache)
      return new, trunk.norm(y)[:, 0]

    rest = jax.lax.scan(step, caches, jnp.arange(cut, ROWS[1]))[1]
    return jnp.concatenate([first, rest.swapaxes(0, 1)], axis=1)

  np.testing.assert_allclose(step_by_step(held, X), found, atol=5e-5)
  if kind == 'int8':
    # What the loop over positions is given: kernels in their few bits, none of them at full width.
    text = step_by_step.lower(held, X).compile().as_text()
    loops = [line for line in text.splitlines() if ' while(' in line]
    assert any('s8[32,32]' in line for line in loops), loops
    assert not any('f32[32,32]' in line for line in loops), loops


@pytest.mark.parametrize('remat', ['none', 'dots', 'full'])
def test_the_backward_pass_keeps_no_kernel_at_full_width(remat):
  definition = held_by(width=64, layers=32, remat=remat)
  low = quantised.define(definition, 'int8')
  kernels = sum(a.size * 4 for path, a in flat(definition.shapes).items() if path.endswith('_kernel'))
  out = lambda params, x: jnp.sum(low.bind(params).trunk(x, POSITION[:1, :2], CAUSAL[:1, :2, :2]) ** 2)
  x = jax.ShapeDtypeStruct((1, 2, 64), jnp.float32)
  used = jax.jit(jax.grad(out, argnums=1)).lower(low.shapes, x).compile().memory_analysis()
  assert used.argument_size_in_bytes < 0.3 * kernels
  assert used.temp_size_in_bytes < 0.3 * kernels


def test_a_merged_base_is_dequantised_plus_the_update():
  definition, _, _, held = quantise('nf4', 2)
  config = definition.bind(held).trunk.config
  merged, base = jax.jit(lambda params: lora.merge(params, config))(held), widened(held)
  assert jax.tree.structure(merged) == jax.tree.structure(held_by().shapes)
  for name in KERNELS:
    kernel, into, out = (np.asarray(base['trunk']['layers'][f'{name}_{part}']) for part in ('kernel', 'lora_in', 'lora_out'))
    np.testing.assert_allclose(merged['trunk']['layers'][f'{name}_kernel'], kernel + ALPHA / 2 * into @ out, atol=1e-5)


def test_a_sharded_quantised_model_gives_the_same():
  definition, params, low, held = quantise('int8', 2)
  mesh = sharding.make_mesh({'fsdp': 2, 'tensor': 2}, jax.devices()[:4])
  spread = quantised.quantise(jax.device_put(params, definition.shardings(mesh)), 'int8', low.shardings(mesh))
  kernel = spread['trunk']['layers']['up_kernel']
  assert [a.addressable_shards[0].data.shape for a in (kernel.qvalue, kernel.scale)] == [(2, 16, 16), (2, 1, 16)]
  run = forward(low)
  np.testing.assert_allclose(run(held, X), run(spread, jax.device_put(X, sharding.rows(mesh))), atol=5e-5)


def test_what_is_missing_or_unknown_is_named(monkeypatch):
  with pytest.raises(UserError, match="quantise is 'int2': choose one of int8, int4, nf4"):
    quantised.define(held_by(), 'int2')
  monkeypatch.setitem(sys.modules, 'qwix', None)
  with pytest.raises(UserError, match=r'intersyn_jax\[qlora\]'):
    quantised.define(held_by(), 'int8')
