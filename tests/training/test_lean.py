"""Lean training: rounding is unbiased and repeatable, keeps updates that plain rounding loses, and nothing else is different."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from intersyn_jax import sharding
from intersyn_jax.errors import UserError
from intersyn_jax.training import precision
from intersyn_jax.training.checkpoints import Checkpoints
from intersyn_jax.training.loop import Indexed, fit, gradients_of, init_state, make_step
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer
from intersyn_jax.training.trees import flat


def lowered(params):
  return jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)


def same(a, b):
  return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize('value', [1.0 + 1e-3, -0.3, 3e-39, 1e-5, -70000.0])
def test_rounding_goes_to_one_of_the_two_neighbours_and_has_the_mean(value):
  count = 40_000
  found = precision.stochastic_round(jnp.full(count, value, jnp.float32), jnp.array([1, 2], jnp.uint32))
  found = np.asarray(found.astype(jnp.float32))
  exact = np.float32(value)
  below = (np.abs(exact).view(np.uint32) & np.uint32(0xffff0000)).view(np.float32)
  above = (below.view(np.uint32) + np.uint32(0x10000)).view(np.float32)
  assert set(np.unique(np.abs(found))) == {below, above} and (np.sign(found) == np.sign(exact)).all()
  gap = np.float64(above) - below
  share = (np.abs(np.float64(exact)) - below) / gap
  error = (np.mean(np.abs(found), dtype=np.float64) - np.abs(np.float64(exact))) / gap
  assert abs(error) < 5 * np.sqrt(share * (1 - share) / count)


def test_what_bfloat16_holds_stays_and_what_is_no_number_too():
  held = jnp.asarray([0.0, -0.0, 1.0, -2.5, 2.0 ** -130, jnp.inf, -jnp.inf, jnp.nan], jnp.bfloat16)
  for seed in range(5):
    found = precision.stochastic_round(held.astype(jnp.float32), jnp.array([seed, 7], jnp.uint32))
    np.testing.assert_array_equal(jnp.isnan(found), jnp.isnan(held))
    np.testing.assert_array_equal(found[:-1].view(jnp.uint16), held[:-1].view(jnp.uint16))


def problem():
  """Parameters must move from 1.05 to 1.3 in small steps: each is less than bfloat16 tells apart there."""
  x = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
  params = {'layers': {'mix_kernel': jnp.full((2, 1, 8), 1.05)}, 'bias': jnp.full(8, 1.05)}

  def loss(params, batch, key):
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    y = batch['x'] * wide['layers']['mix_kernel'][0] * wide['layers']['mix_kernel'][1] + wide['bias']
    error = (y - batch['y']) ** 2
    return {'loss': (jnp.sum(error), jnp.asarray(error.size, jnp.float32))}

  return params, loss, {'x': x, 'y': x * np.float32(1.3 ** 2) + np.float32(1.3)}


def trained(kind, steps=250, **options):
  params, loss, batch = problem()
  optimizer = make_optimizer(OptimizerConfig(learning_rate=2e-3, precision=kind, clip=0.0, b2=0.999), steps)
  state = init_state(lowered(params) if kind == 'lean' else params, optimizer)
  state, last = fit(make_step(loss, optimizer), state, Indexed(lambda i: batch), steps=steps, seed=3, **options)
  return state, last['loss']


def test_lean_training_comes_as_far_as_full_and_plain_rounding_stalls(monkeypatch):
  full, goal = trained('full')
  lean, reached = trained('lean')
  begun = trained('full', steps=1)[1]
  assert goal < 0.01 * begun
  assert reached < 0.01 * begun
  assert {a.dtype for a in jax.tree.leaves(lean['params'])} == {jnp.dtype('bfloat16')}
  moments = [a.dtype for path, a in flat(lean['opt_state']).items() if '/mu/' in path or '/nu/' in path]
  assert moments == [jnp.dtype('bfloat16')] * 4
  assert {a.dtype for a in jax.tree.leaves((full['params'], full['opt_state']))} == {jnp.dtype('float32'), jnp.dtype('int32')}
  monkeypatch.setattr(precision, 'stochastic_round', lambda x, seed: x.astype(jnp.bfloat16))
  assert trained('lean')[1] > 0.9 * begun


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_held_in_float32_a_lean_update_is_the_full_one(name):
  """What is different is the rounding alone; clipping and decay are not."""
  draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
  params = {'layers': {'up_kernel': draw(0, 3, 4, 6), 'scale': draw(1, 3, 4)}, 'embedding': draw(2, 5, 4), 'bias': draw(3, 4)}
  gradients = jax.tree.map(lambda a: 3.0 * jnp.cos(7 * a), params)
  found = {}
  for kind, begin in (('full', params), ('lean', params), ('held', lowered(params))):
    precision_ = 'full' if kind == 'full' else 'lean'
    optimizer = make_optimizer(
        OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.3, clip=0.7, precision=precision_), 10)
    new, state = begin, optimizer.init(begin)
    apply = jax.jit(optimizer.apply)
    for step in range(2):
      new, state = apply(gradients, state, new, jax.random.key(step))
    found[kind] = flat(new)
  assert not any(a.dtype == jnp.float32 and a.ndim > 1 for a in jax.tree.leaves(state)), 'moments are held in bfloat16'
  for path, value in found['full'].items():
    np.testing.assert_allclose(found['lean'][path], value, rtol=1e-5, atol=1e-6, err_msg=path)
    # Three roundings of the parameter, and moments that are off by as much.
    np.testing.assert_allclose(found['held'][path].astype(jnp.float32), value, rtol=0.03, atol=0.02, err_msg=path)


def test_draws_follow_from_key_and_path_and_place():
  values = {'layers': {'a': jnp.full((2, 64, 64), 1.001)}, 'b': jnp.full((64, 64), 1.001), 'c': jnp.full((64, 64), 1.001)}
  like = lowered(values)
  up = lambda key: {path: np.asarray(a > 1) for path, a in flat(precision.narrowed(values, like, jax.random.key(key))).items()}
  once, again, other = up(0), up(0), up(1)
  assert all(np.array_equal(once[path], again[path]) for path in once)
  mesh = sharding.make_mesh({'fsdp': 4, 'tensor': 2})
  spread = lambda a: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*(None, 'fsdp', 'tensor')[-a.ndim:])))
  rounded = jax.jit(precision.narrowed)(jax.tree.map(spread, values), jax.tree.map(spread, like), jax.random.key(0))
  assert all(np.array_equal(once[path], a > 1) for path, a in flat(rounded).items()), 'however it is spread over devices'
  draws = [once['b'], once['c'], other['b'], *once['layers/a'], once['b'].T, np.roll(once['b'], 1, 0), np.roll(once['b'], 1, 1)]
  share = 0.001 * 128
  for i, one in enumerate(draws):
    assert abs(one.mean() - share) < 5 * (share * (1 - share) / one.size) ** 0.5
    for another in draws[:i]:
      # Independent: both up as often as chance has it.
      assert abs((one & another).mean() - share ** 2) < 5 * (share ** 2 / one.size) ** 0.5


def test_updates_that_share_a_key_draw_anew():
  """The updates of one batch of rollouts do."""
  params = lowered({'w_kernel': jnp.full((32, 32), 1.1)})
  optimizer = make_optimizer(OptimizerConfig(precision='lean', learning_rate=1e-3, b1=0.0, b2=0.0), 10)
  loss = lambda params, batch, key: {'loss': (jnp.sum(params['w_kernel'].astype(jnp.float32)), jnp.float32(1))}
  step, key = jax.jit(make_step(loss, optimizer)), jax.random.key(0)
  first, _ = step(init_state(params, optimizer), np.zeros(1), key)
  second, _ = step(first | {'params': params}, np.zeros(1), key)
  assert not np.array_equal(first['params']['w_kernel'], second['params']['w_kernel'])


def test_a_lean_run_goes_on_with_the_same_bits(tmp_path):
  whole, _ = trained('lean', steps=30)
  trained('lean', steps=10, checkpoints=Checkpoints(tmp_path))
  assert same(whole, trained('lean', steps=30, checkpoints=Checkpoints(tmp_path))[0])


def test_gradients_are_added_up_in_bfloat16_and_stay_near():
  params, loss, batch = problem()
  exact = flat(gradients_of(loss, params, batch, jax.random.key(0), {'loss': 1.0})[0])
  lean = flat(gradients_of(loss, lowered(params), batch, jax.random.key(0), {'loss': 1.0}, 16, lean=True)[0])
  for path, value in exact.items():
    assert lean[path].dtype == jnp.bfloat16
    assert np.linalg.norm(lean[path].astype(jnp.float32) - value) < 0.02 * np.linalg.norm(value), path


def test_an_unknown_precision_is_named():
  with pytest.raises(UserError, match="optimizer.precision is 'half': choose one of full, lean"):
    OptimizerConfig(precision='half')
