"""LoRA: it starts as nothing, computes the same merged or not and in decoding, and spreads over devices."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax import sharding
from intersyn_jax.errors import UserError
from intersyn_jax.interleave import layout
from intersyn_jax.models import lora
from intersyn_jax.models.definition import Definition
from intersyn_jax.models.trunk import KERNELS, LayerCache, Trunk, TrunkConfig
from intersyn_jax.models.unified import Cache, places_of
from intersyn_jax.training.trees import flat, unflat
from tests import small_model as small

RANK, LENGTH = 2, 40
FAMILIES = {'llama': {}, 'chameleon': dict(qk_norm=True, swin_norm=True)}


@functools.cache
def setting(family: str = 'llama'):
  """Layout, plain definition and parameters, and the same with LoRA whose factors are not 0."""
  written = small.plain()
  base = small.definition(written, **FAMILIES[family])
  tuned = small.definition(written, lora_rank=RANK, lora_alpha=3.0, **FAMILIES[family])
  rng = np.random.default_rng(0)  # not `init`, which takes long to compile
  draw = lambda path, s: float(path.endswith('scale')) + 0.2 * rng.standard_normal(s.shape).astype(s.dtype)
  params = unflat(tuned.shapes, {path: jnp.asarray(draw(path, s)) for path, s in flat(tuned.shapes).items()})
  plain = unflat(base.shapes, {path: flat(params)[path] for path in flat(base.shapes)})
  return written, base, plain, tuned, params


def batch_of(written):
  documents = [jax.tree.map(lambda a: a[:36], layout.tokenise(small.conversation(written, s), written)) for s in (0, 5)]
  return layout.stack(documents, LENGTH, left=True)


def forward(definition):
  return jax.jit(lambda params, batch: definition.bind(params)(batch))


def test_a_fresh_trunk_is_the_plain_one_to_the_bit_with_factors_in_float32():
  config = TrunkConfig(16, 2, 2, 1, 8, 16)
  base, tuned = (Definition(lambda rngs, c=c: Trunk(c, rngs), 'bfloat16') for c in (
      config, dataclasses.replace(config, lora_rank=RANK)))
  plain, params = (d.init(jax.random.key(3), small.one_device()) for d in (base, tuned))
  mine, theirs = flat(params), flat(plain)
  assert mine.keys() - theirs.keys() == {f'layers/{name}_lora_{side}' for name in KERNELS for side in ('in', 'out')}
  for path, value in theirs.items():
    np.testing.assert_array_equal(value, mine[path], err_msg=path)
  for path, value in mine.items():
    assert value.dtype == flat(tuned.shapes)[path].dtype == ('float32' if '_lora_' in path else 'bfloat16'), path
  x = jax.random.normal(jax.random.key(4), (1, 8, 16))
  run = lambda d: jax.jit(lambda p: d.bind(p)(x, jnp.arange(8)[None], jnp.tril(jnp.ones((1, 8, 8), bool))))
  np.testing.assert_array_equal(run(base)(plain), run(tuned)(params))
  merged = lora.merge(params, tuned.bind(params).config)
  jax.tree.map(np.testing.assert_array_equal, merged, plain)
  assert {a.dtype for a in jax.tree.leaves(merged)} == {jnp.dtype('bfloat16')}


@pytest.mark.parametrize('family', FAMILIES)
def test_forward_decoding_and_the_merged_model_agree(family):
  written, base, plain, tuned, params = setting(family)
  batch, cut = batch_of(written), 24

  @jax.jit
  def step_by_step(params, batch):
    backbone = tuned.bind(params).backbone
    first, cache = backbone.prefill(jax.tree.map(lambda a: a[:, :cut], batch))
    room = ((0, 0), (0, 0), (0, LENGTH - cut), (0, 0))
    cache = Cache([LayerCache(jnp.pad(c.keys, room), jnp.pad(c.values, room)) for c in cache.layers], cache.recent)
    layers, place = backbone.trunk.unstack(), places_of(batch.modality)

    def step(cache, t):
      visible = (batch.document > 0) & (jnp.arange(LENGTH) <= t)
      at = lambda a: jax.lax.dynamic_index_in_dim(a, t, 1, keepdims=False)
      hidden, cache = backbone.decode(layers, at(batch.text), at(batch.codes), at(batch.modality), at(place),
                                      at(batch.position), cache, t, visible)
      return cache, hidden

    rest = jax.lax.scan(step, cache, jnp.arange(cut, LENGTH))[1]
    return jnp.concatenate([first, rest.swapaxes(0, 1)], axis=1)

  real = np.asarray(batch.document > 0)
  hidden = np.asarray(forward(tuned)(params, batch))[real]
  assert np.abs(hidden - np.asarray(forward(base)(plain, batch))[real]).max() > 0.1
  np.testing.assert_allclose(np.asarray(step_by_step(params, batch))[real], hidden, atol=5e-5)
  merged = lora.merge(params, tuned.bind(params).config.trunk)
  assert jax.tree.structure(merged) == jax.tree.structure(plain)
  np.testing.assert_allclose(np.asarray(forward(base)(merged, batch))[real], hidden, atol=5e-5)


def test_the_update_is_alpha_over_rank_times_the_product():
  _, _, plain, tuned, params = setting()
  merged = flat(lora.merge(params, tuned.bind(params).config.trunk))
  layers = params['backbone']['trunk']['layers']
  for name in KERNELS:
    path = f'backbone/trunk/layers/{name}_kernel'
    for layer in range(2):
      product = np.asarray(layers[f'{name}_lora_in'][layer]) @ np.asarray(layers[f'{name}_lora_out'][layer])
      np.testing.assert_allclose(merged[path][layer] - flat(plain)[path][layer], 1.5 * product, atol=1e-6)


def test_gradients_reach_every_factor_and_a_sharded_model_has_the_same():
  """At the start only the out factors have a gradient, since those are 0."""
  written, _, _, tuned, params = setting()
  batch = batch_of(written)
  run = jax.jit(jax.value_and_grad(lambda params, batch: jnp.sum(jnp.sin(tuned.bind(params)(batch)) * batch.loss[..., None])))
  one, gradient = jax.device_get(run(params, batch))
  factors = {path: g for path, g in flat(gradient).items() if '_lora_' in path}
  assert len(factors) == 2 * len(KERNELS)
  assert all(np.abs(g).max() > 1e-4 for g in factors.values())
  # A factor sees the gradient of its kernel through the other one: an update of the factors is a full one, projected.
  held, found = (tree['backbone']['trunk']['layers'] for tree in (params, gradient))
  for name in KERNELS:
    full, into, out = (tree[f'{name}_{part}'] for tree, part in ((found, 'kernel'), (held, 'lora_in'), (held, 'lora_out')))
    for layer in range(2):
      through = np.asarray(into[layer]).T @ full[layer], full[layer] @ np.asarray(out[layer]).T
      for value, part in zip(through, ('lora_out', 'lora_in'), strict=True):
        np.testing.assert_allclose(found[f'{name}_{part}'][layer], 1.5 * value, rtol=1e-3, atol=1e-4 * np.abs(value).max())
  start = unflat(params, {p: jnp.zeros_like(a) if p.endswith('_lora_out') else a for p, a in flat(params).items()})
  for path, g in flat(jax.device_get(run(start, batch)[1])).items():
    assert '_lora_' not in path or np.any(g) == path.endswith('_lora_out'), path

  mesh = sharding.make_mesh({'fsdp': 2, 'tensor': 4})
  spread = jax.device_put(jax.device_get(params), tuned.shardings(mesh))
  layers = spread['backbone']['trunk']['layers']
  pieces = {name: layers[name].size // layers[name].addressable_shards[0].data.size for name in layers if '_lora_' in name}
  assert pieces['up_lora_in'] == pieces['down_lora_out'] == 2 and pieces['up_lora_out'] == pieces['down_lora_in'] == 4
  assert min(pieces.values()) > 1, 'every factor is spread'
  eight, other = run(spread, jax.device_put(batch, sharding.rows(mesh)))
  np.testing.assert_allclose(one, eight, rtol=1e-5, atol=1e-4)
  for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(jax.device_get(other)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4 * max(1, np.abs(a).max()))


def test_attach_takes_the_same_model_only():
  _, _, plain, _, params = setting()
  again = lora.attach(plain, params)
  assert jax.tree.structure(again) == jax.tree.structure(params)
  assert again['backbone']['trunk']['layers']['up_lora_out'] is params['backbone']['trunk']['layers']['up_lora_out']
  assert again['text_head'] is plain['text_head']
  with pytest.raises(UserError, match='up_lora_in.*merge'):
    lora.attach(params, params)
  with pytest.raises(UserError, match='lack.*text_head'):
    lora.attach({'backbone': plain['backbone']}, params)
  with pytest.raises(UserError, match='text_head of the weights is'):
    lora.attach(plain | {'text_head': plain['text_head'][:, 1:]}, params)


def test_bad_fields_are_named():
  for bad in (dict(lora_rank=-1), dict(lora_rank=4, lora_alpha=0.0)):
    with pytest.raises(UserError, match='lora_rank'):
      TrunkConfig(32, 1, 4, 2, 8, 64, **bad)
