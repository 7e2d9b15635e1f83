"""Optimizer: which parameter gets what, schedules, clipping, decay, frozen parameters."""

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.training.optimizer import (
  MATRIX,
  TABLE,
  VECTOR,
  OptimizerConfig,
  apply_updates,
  kind_of,
  make_optimizer,
  make_schedule,
  matrix_axes,
)
from intersyn_jax.training.trees import abstract, flat, nested, unflat


def params():
  draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
  return {
      'text_embedding': draw(0, 7, 4),
      'trunk': {'layers': {'query_kernel': draw(1, 3, 4, 6), 'norm': {'scale': jnp.ones((3, 4))}}},
      'image_head': {'hidden_kernel': draw(2, 4, 5), 'head': draw(3, 5, 9)},
  }


@pytest.mark.parametrize('path, ndim, kind', [
    ('text_embedding', 2, TABLE), ('text_head', 2, TABLE), ('image_head/head', 2, TABLE), ('head/kernel', 2, TABLE),
    ('codebook', 2, TABLE), ('image_head/hidden_kernel', 2, MATRIX), ('trunk/layers/query_kernel', 3, MATRIX),
    ('image_head/depth_trunk/layers/down_kernel', 3, MATRIX), ('encoder/0/conv_kernel', 4, MATRIX),
    ('trunk/layers/kernel', 2, VECTOR), ('trunk/norm/scale', 1, VECTOR), ('encoder/0/conv_bias', 1, VECTOR)])
def test_kind_follows_from_the_path(path, ndim, kind):
  assert kind_of(path, ndim) == kind


def test_layer_axis_is_batch_and_convolution_contracts_all_but_the_last():
  assert tuple(matrix_axes('trunk/layers/query_kernel', 3)) == ((1,), (2,))
  assert tuple(matrix_axes('mlp/up_kernel', 2)) == ((0,), (1,))
  assert tuple(matrix_axes('encoder/0/conv_kernel', 4)) == ((0, 1, 2), (3,))
  with pytest.raises(UserError, match='odd/kernel has 3 axes'):
    matrix_axes('odd/kernel', 3)


def test_muon_orthogonalises_each_layer_on_its_own_and_adam_moves_tables():
  p = params()
  config = OptimizerConfig(name='muon', learning_rate=0.1, adam_learning_rate=0.01, clip=0.0)
  optimizer = make_optimizer(config, 10)
  g = jax.tree.map(lambda x: jax.random.normal(jax.random.key(9), x.shape), p)
  updates, _ = optimizer.update(g, optimizer.init(p), p)
  for layer in range(3):
    singular = np.linalg.svd(updates['trunk']['layers']['query_kernel'][layer], compute_uv=False)
    assert singular.min() > 0.4 * singular.max()  # of a random matrix the spread is far larger
  single = {'trunk': {'mlp': {'query_kernel': g['trunk']['layers']['query_kernel'][1]}}}
  alone, _ = optimizer.update(single, optimizer.init(single), single)
  np.testing.assert_allclose(
      updates['trunk']['layers']['query_kernel'][1], alone['trunk']['mlp']['query_kernel'], rtol=1e-4, atol=1e-6)
  # Adam's first step is the rate times the sign of the gradient.
  np.testing.assert_allclose(updates['text_embedding'], -0.01 * np.sign(g['text_embedding']), rtol=1e-3)
  np.testing.assert_allclose(updates['image_head']['head'], -0.01 * np.sign(g['image_head']['head']), rtol=1e-3)


@pytest.mark.parametrize('name', ['muon', 'adamw'])
def test_decay_reaches_matrices_only(name):
  p = params()
  optimizer = make_optimizer(OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.5), 10)
  zero = jax.tree.map(jnp.zeros_like, p)
  updates, _ = optimizer.update(zero, optimizer.init(p), p)
  np.testing.assert_allclose(updates['image_head']['hidden_kernel'], -0.05 * p['image_head']['hidden_kernel'], rtol=1e-5)
  np.testing.assert_allclose(updates['trunk']['layers']['query_kernel'], -0.05 * p['trunk']['layers']['query_kernel'],
                             rtol=1e-5)
  for still in (updates['text_embedding'], updates['image_head']['head'], updates['trunk']['layers']['norm']['scale']):
    assert not np.any(still)


def test_frozen_parameters_stay_cost_no_state_and_no_share_of_the_clip():
  p = params()
  optimizer = make_optimizer(OptimizerConfig(name='muon', frozen=('^trunk/', 'text_embedding'), clip=1.0), 10)
  state = optimizer.init(p)
  assert not [path for path in flat(state) if 'trunk' in path or 'text_embedding' in path]
  assert optimizer.trains('image_head/head') and not optimizer.trains('trunk/norm/scale')
  g = jax.tree.map(jnp.ones_like, p)
  g['trunk']['layers']['query_kernel'] *= 1e6
  updates, _ = optimizer.update(g, state, p)
  new = apply_updates(p, updates)
  np.testing.assert_array_equal(new['trunk']['layers']['query_kernel'], p['trunk']['layers']['query_kernel'])
  assert np.all(new['image_head']['head'] != p['image_head']['head'])


@pytest.mark.parametrize('frozen, message', [
    (('trnk/',), 'finds no parameter'), (('',), 'leaves no parameter'), (('(',), 'no regular expression'),
    ('trunk', 'is a string')])
def test_frozen_mistakes_are_told(frozen, message):
  with pytest.raises(UserError, match=message):
    make_optimizer(OptimizerConfig(frozen=frozen), 10).init(params())


def test_unknown_names_are_told():
  with pytest.raises(UserError, match='optimizer.name'):
    OptimizerConfig(name='sgd')
  with pytest.raises(UserError, match='optimizer.schedule'):
    OptimizerConfig(schedule='step')


def test_clip_bounds_the_global_norm():
  p = {'scale': jnp.zeros(3), 'bias': jnp.zeros(3)}
  moved = {}
  for size in (1.0, 100.0):  # the first moment shows the size that Adam's step hides
    optimizer = make_optimizer(OptimizerConfig(clip=0.5), 10)
    _, state = optimizer.update(jax.tree.map(lambda x, size=size: x + size, p), optimizer.init(p), p)
    moved[size] = [leaf for path, leaf in flat(state).items() if '/mu/' in path]
  norm = np.sqrt(sum(float(jnp.sum(m ** 2)) for m in moved[100.0])) / (1 - 0.9)
  np.testing.assert_allclose(norm, 0.5, rtol=1e-5)
  for a, b in zip(moved[1.0], moved[100.0], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize('name, middle, last', [('constant', 2.0, 2.0), ('linear', 1.1, 0.2), ('cosine', 1.1, 0.2)])
def test_schedules(name, middle, last):
  schedule = make_schedule(OptimizerConfig(schedule=name, warmup=10, floor=0.1), 2.0, 110)
  np.testing.assert_allclose([schedule(i) for i in (0, 9, 10, 60, 110)], [0.2, 2.0, 2.0, middle, last], rtol=1e-5)
  share = make_schedule(OptimizerConfig(schedule=name, warmup=0.1, floor=0.1), 2.0, 100)
  assert share(0) == pytest.approx(0.2) and share(9) == pytest.approx(2.0)


@pytest.mark.parametrize('name', ['muon', 'adamw'])
def test_modules_and_states_learn_like_dictionaries(name):
  class Model(nnx.Module):
    def __init__(self, rngs):
      self.up = nnx.Linear(4, 8, rngs=rngs)
      self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
      return self.head(jnp.tanh(self.up(x)))

  model = Model(nnx.Rngs(0))
  graph, state = nnx.split(model)
  x = jax.random.normal(jax.random.key(0), (16, 4))
  loss = lambda make: lambda p: jnp.mean((make(p)(x) - x[:, :2]) ** 2)
  found = []
  for tree, make in ((model, lambda p: p), (state, lambda p: nnx.merge(graph, p)),
                     (nnx.to_pure_dict(state), lambda p: nnx.merge(graph, p))):
    optimizer = make_optimizer(OptimizerConfig(name=name, learning_rate=0.02), 30)

    @jax.jit
    def step(p, s, optimizer=optimizer, make=make):
      updates, s = optimizer.update(jax.grad(loss(make))(p), s, p)
      return apply_updates(p, updates), s

    moments, first = optimizer.init(tree), loss(make)(tree)
    for _ in range(30):
      tree, moments = step(tree, moments)
    assert loss(make)(tree) < 0.6 * first
    found.append(flat(tree))
  assert list(found[0]) == list(found[2]) == ['head/bias', 'head/kernel', 'up/bias', 'up/kernel']
  for path in found[0]:
    np.testing.assert_allclose(found[0][path], found[2][path], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[1][path], found[2][path], rtol=1e-4, atol=1e-6)


def test_adamw_is_optax_adamw():
  p = {'a_kernel': jnp.arange(6.0).reshape(2, 3), 'bias': jnp.ones(3)}
  optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, clip=0.0, weight_decay=0.1), 10)
  peer = optax.adamw(0.1, b1=0.9, b2=0.95, weight_decay=0.1, mask={'a_kernel': True, 'bias': False})
  ours, theirs, s, t = p, p, optimizer.init(p), peer.init(p)
  for i in range(3):
    g = jax.tree.map(lambda x, i=i: jnp.sin(x + i), ours)
    u, s = optimizer.update(g, s, ours)
    v, t = peer.update(g, t, theirs)
    ours, theirs = apply_updates(ours, u), optax.apply_updates(theirs, v)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_array_equal(a, b)


def test_tree_paths_round_trip():
  p = params()
  assert jax.tree.structure(unflat(p, flat(p))) == jax.tree.structure(p)
  assert flat(nested(flat(p))).keys() == flat(p).keys()
  assert abstract(p)['text_embedding'].shape == (7, 4)
