"""The unified model: decoding equals the forward, rows do not leak, and sharding changes nothing."""

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
from intersyn_jax.interleave.layout import CODES, TokenBatch
from intersyn_jax.models.definition import Definition
from intersyn_jax.models.trunk import LayerCache, Trunk, TrunkConfig, same_document
from intersyn_jax.models.unified import Cache, ModelConfig, define, places_of, position_log_probs
from tests import small_model

KINDS = {'flat': small_model.plain(1), 'residual': small_model.plain(4), 'lined': small_model.lined(1)}


@functools.cache
def setting(name: str):
  layout_ = KINDS[name]
  definition = small_model.definition(layout_)
  params = definition.init(jax.random.key(0), small_model.one_device())
  return layout_, definition, params


def batch_of(layout_, length: int = 72, left: bool = True) -> TokenBatch:
  documents = [layout.tokenise(small_model.conversation(layout_, s), layout_) for s in (0, 5, 9, 12)]
  documents[1] = jax.tree.map(lambda a: a[:20], documents[1])
  return layout.stack(documents, length, left=left)


def forward(definition):
  return jax.jit(lambda params, batch: definition.bind(params)(batch))


def packed(layout_) -> tuple[TokenBatch, list[int]]:
  """Two documents in one row, and their lengths."""
  documents = [layout.tokenise(small_model.conversation(layout_, s), layout_) for s in (0, 5)]
  documents[1] = documents[1].replace(document=documents[1].document + 1)
  row = jax.tree.map(lambda *a: np.concatenate(a), *documents)
  return layout.stack([row], len(row.text) + 6), [len(d.text) for d in documents]


@pytest.mark.parametrize('name', KINDS)
def test_prefill_and_decode_equal_the_forward(name):
  layout_, definition, params = setting(name)
  batch = batch_of(layout_)
  length, cut = 72, 24
  hidden = forward(definition)(params, batch)

  @jax.jit
  def step_by_step(params, batch):
    backbone = definition.bind(params).backbone
    first, cache = backbone.prefill(jax.tree.map(lambda a: a[:, :cut], batch))
    room = ((0, 0), (0, 0), (0, length - cut), (0, 0))
    cache = Cache([LayerCache(jnp.pad(c.keys, room), jnp.pad(c.values, room)) for c in cache.layers], cache.recent)
    layers, place = backbone.trunk.unstack(), places_of(batch.modality)

    def step(cache, t):
      visible = (batch.document > 0) & (jnp.arange(length) <= t)
      at = lambda a: jax.lax.dynamic_index_in_dim(a, t, 1, keepdims=False)
      hidden, cache = backbone.decode(layers, at(batch.text), at(batch.codes), at(batch.modality), at(place),
                                      at(batch.position), cache, t, visible)
      return cache, hidden

    rest = jax.lax.scan(step, cache, jnp.arange(cut, length))[1]
    return jnp.concatenate([first, rest.swapaxes(0, 1)], axis=1)

  real = np.asarray(batch.document > 0)
  np.testing.assert_allclose(np.asarray(step_by_step(params, batch))[real], np.asarray(hidden)[real], atol=2e-5)


@pytest.mark.parametrize('name', KINDS)
def test_packing_and_padding_do_not_leak(name):
  layout_, definition, params = setting(name)
  run = forward(definition)
  row, lengths = packed(layout_)
  hidden = np.asarray(run(params, row))[0]
  alone = [layout.tokenise(small_model.conversation(layout_, s), layout_) for s in (0, 5)]
  for start, document in zip((0, lengths[0]), alone, strict=True):
    for left in (False, True):
      single = np.asarray(run(params, layout.stack([document], row.text.shape[1], left=left)))[0]
      own = single[-len(document.text):] if left else single[:len(document.text)]
      np.testing.assert_allclose(hidden[start:start + len(document.text)], own, atol=2e-5)
  # Changing the first document changes nothing of the second, to the bit.
  changed = jax.tree.map(lambda a: a.copy(), row)
  changed.text[0, :lengths[0]] = 20
  changed.codes[0, :lengths[0]] = 3
  other = np.asarray(run(params, changed))[0]
  np.testing.assert_array_equal(hidden[lengths[0]:sum(lengths)], other[lengths[0]:sum(lengths)])
  assert np.abs(hidden[:lengths[0]] - other[:lengths[0]]).max() > 0.1


@pytest.mark.parametrize('change', [dict(layers=1), dict(layers=3), dict(swin_norm=True, remat='full'), dict(qk_norm=True)])
def test_some_positions_are_those_of_all(change):
  """Of packed rows with padding; so is the gradient."""
  config = TrunkConfig(**dict(width=32, layers=2, heads=4, kv_heads=2, head_width=8, mlp_width=64) | change)
  definition = Definition(lambda rngs: Trunk(config, rngs))
  params = definition.init(jax.random.key(0), small_model.one_device())
  batch, lengths = packed(KINDS['flat'])
  x = jax.random.normal(jax.random.key(1), (*batch.text.shape, config.width))
  places = jnp.asarray([[0, lengths[0] - 1, 3, lengths[0], sum(lengths) - 1]])
  documents = same_document(jnp.asarray(batch.document))

  def some(params, x):
    return definition.bind(params).at(x, batch.position, documents, places)

  def all_of_them(params, x):
    hidden = definition.bind(params)(x, batch.position, documents)
    return jnp.take_along_axis(hidden, places[..., None], axis=1)

  np.testing.assert_allclose(some(params, x), all_of_them(params, x), atol=1e-5)
  ours, theirs = (jax.grad(lambda p, x, f=f: jnp.sum(jnp.sin(f(p, x))), argnums=(0, 1))(params, x) for f in (some, all_of_them))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), ours, theirs)


def test_nothing_sees_the_future():
  layout_, definition, params = setting('residual')
  batch = batch_of(layout_, left=False)
  hidden = np.asarray(forward(definition)(params, batch))
  changed = jax.tree.map(lambda a: a.copy(), batch)
  changed.text[:, 30:], changed.codes[:, 30:] = 20, 3
  early = (batch.document > 0) & (np.arange(72) < 30)
  np.testing.assert_array_equal(hidden[early], np.asarray(forward(definition)(params, changed))[early])


@pytest.mark.parametrize('name', ['flat', 'residual'])
def test_log_probs_by_hand_and_in_chunks(name):
  layout_, definition, params = setting(name)
  batch = batch_of(layout_)

  @jax.jit
  def both(params, batch):
    model = definition.bind(params)
    hidden = model(batch)
    whole = position_log_probs(model, hidden, batch, temperature=(0.7, 1.3))
    chunks = position_log_probs(model, hidden, batch, chunk=13, temperature=(0.7, 1.3))
    before = hidden[:, :-1]
    return whole, chunks, model.text_logits(before) / 0.7, model.code_logits(before, batch.codes[:, 1:]) / 1.3

  whole, chunks, words, pictures = jax.device_get(both(params, batch))
  for a, b in zip(whole, chunks, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  text, codes, entropy = whole
  softmax = lambda z: np.exp(z - z.max(-1, keepdims=True)) / np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)
  p, q = softmax(words.astype(np.float64)), softmax(pictures.astype(np.float64))
  for row in range(4):
    for t in range(1, 72):
      if batch.modality[row, t] == CODES:
        expected = [np.log(q[row, t - 1, d, c]) for d, c in enumerate(batch.codes[row, t])]
        np.testing.assert_allclose(codes[row, t], expected, atol=1e-4)
        assert text[row, t] == 0
        np.testing.assert_allclose(entropy[row, t], -(q[row, t - 1] * np.log(q[row, t - 1])).sum(), atol=1e-3)
      else:
        np.testing.assert_allclose(text[row, t], np.log(p[row, t - 1, batch.text[row, t]]), atol=1e-4)
        assert (codes[row, t] == 0).all()
        np.testing.assert_allclose(entropy[row, t], -(p[row, t - 1] * np.log(p[row, t - 1])).sum(), atol=1e-3)
  assert not any(a[:, 0].any() for a in whole)


def test_residual_head_reads_the_codes_before_only():
  _, definition, params = setting('residual')
  model = definition.bind(params)
  hidden = jax.random.normal(jax.random.key(1), (5, 32))
  codes = jax.random.randint(jax.random.key(2), (5, 4), 0, 16)
  logits = jax.jit(model.code_logits)
  whole = logits(hidden, codes)
  for number in range(4):
    unknown = codes.at[:, number:].set(0)
    following = jax.jit(model.next_code_logits, static_argnums=2)(hidden, unknown, number)
    np.testing.assert_allclose(following, whole[:, number], atol=1e-5)
  other = logits(hidden, codes.at[:, 1].add(1))
  np.testing.assert_allclose(other[:, :2], whole[:, :2], atol=1e-6)
  assert np.abs(other[:, 2] - whole[:, 2]).max() > 1e-3


def test_sharded_equals_unsharded():
  layout_, definition, params = setting('residual')
  batch = batch_of(layout_)

  def loss(params, batch):
    model = definition.bind(params)
    text, codes, _ = position_log_probs(model, model(batch), batch)
    return jnp.sum(batch.loss[..., None] * jnp.concatenate([text[..., None], codes], -1))

  run = jax.jit(jax.value_and_grad(loss))
  one, gradient = jax.device_get(run(params, batch))
  mesh = sharding.make_mesh({'fsdp': 2, 'tensor': 4})
  spread = jax.device_put(jax.device_get(params), definition.shardings(mesh))
  eight, other = run(spread, jax.device_put(batch, sharding.rows(mesh)))
  np.testing.assert_allclose(one, eight, rtol=1e-5)
  for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(jax.device_get(other)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4 * max(1, np.abs(a).max()))


def test_parameters_are_born_in_their_sharding_and_do_not_depend_on_it():
  definition = small_model.definition(small_model.plain(4))
  mesh = sharding.make_mesh({'fsdp': 2, 'tensor': 4})
  spread = definition.init(jax.random.key(0), mesh)
  for array, expected in zip(jax.tree.leaves(spread), jax.tree.leaves(definition.shardings(mesh)), strict=True):
    assert array.sharding.is_equivalent_to(expected, array.ndim)
  whole = definition.init(jax.random.key(0), small_model.one_device())
  for a, b in zip(jax.tree.leaves(spread), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6)
  up = spread['backbone']['trunk']['layers']['up_kernel']
  assert up.addressable_shards[0].data.size == up.size // 8


def test_remat_keeps_the_gradient():
  layout_, definition, params = setting('flat')
  other = small_model.definition(layout_, remat='full')
  batch = batch_of(layout_)
  gradient = lambda d: jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(d.bind(p)(batch)))))(params)
  for a, b in zip(jax.tree.leaves(gradient(definition)), jax.tree.leaves(gradient(other)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize('head, embedding', [('residual', 'places'), ('depth', 'projected')])
def test_deep_heads_keep_as_little_for_the_backward_pass_as_the_trunk(head, embedding):
  trunk = TrunkConfig(width=32, layers=8, heads=4, kv_heads=4, head_width=8, mlp_width=64)
  definitions = [define(ModelConfig(dataclasses.replace(trunk, remat=remat), 300, 4, 4, 16, image_head=head,
                                    image_embedding=embedding)) for remat in ('none', 'full')]
  params = definitions[0].init(jax.random.key(0), small_model.one_device())
  hidden, codes = jax.random.normal(jax.random.key(1), (3, 5, 32)), jax.random.randint(jax.random.key(2), (3, 5, 4), 0, 16)
  gradients, kept = [], []
  for definition in definitions:
    score = lambda p, d=definition: jnp.sum(jnp.sin(d.bind(p).code_logits(hidden, codes)))
    _, back = jax.vjp(score, params)
    kept.append(sum(a.nbytes for a in jax.tree.leaves(back)))
    gradients.append(back(jnp.float32(1))[0])
  for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)
  weights = sum(a.nbytes for a in jax.tree.leaves(params['image_head']))
  assert kept[1] - weights < 0.5 * (kept[0] - weights)


def test_a_head_from_outside_takes_its_place():
  """DESIGN 9: a config may pass the constructor itself."""
  from intersyn_jax.models.image_heads import FlatHead

  class Loud(FlatHead):
    def logits(self, hidden, codes, embedding):
      return 2 * super().logits(hidden, codes, embedding)

  layout_, definition, params = setting('flat')
  config = definition.bind(params).config
  loud = define(dataclasses.replace(config, image_head=Loud))
  batch = batch_of(layout_)
  hidden = forward(loud)(params, batch)
  np.testing.assert_allclose(loud.bind(params).code_logits(hidden, batch.codes),
                             2 * definition.bind(params).code_logits(hidden, batch.codes))


def test_bad_sizes_are_named():
  with pytest.raises(UserError, match=r'model\.heads'):
    TrunkConfig(32, 1, 4, 3, 8, 64)
  with pytest.raises(UserError, match=r'model\.remat'):
    TrunkConfig(32, 1, 4, 2, 8, 64, remat='some')
  with pytest.raises(UserError, match=r'model\.head_remat'):
    ModelConfig(TrunkConfig(32, 1, 4, 2, 8, 64), 300, 4, 4, 16, head_remat='some')
  with pytest.raises(UserError, match=r'model\.image_head'):
    define(ModelConfig(TrunkConfig(32, 1, 4, 2, 8, 64), 300, 4, 4, 16))
