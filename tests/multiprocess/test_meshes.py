"""A model spread over eight devices computes what it computes on one: forward pass, warm-up step, decoding, GRPO iteration."""

import functools

import jax
import numpy as np
import pytest

from intersyn_jax import sharding
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import Decoder
from intersyn_jax.interleave import layout
from intersyn_jax.models.unified import position_log_probs
from intersyn_jax.training import loop
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer
from intersyn_jax.training.supervised import next_token_loss
from tests import small_model
from tests.grpo import test_trainer as grpo

MESHES = {
    '1x8': {'tensor': 8}, '2x4': {'fsdp': 2, 'tensor': 4}, '8x1': {'fsdp': 8}, '2x2x2': {'replica': 2, 'fsdp': 2, 'tensor': 2}}
"""fsdp x tensor; the last one replica x fsdp x tensor."""

ROWS = 8

both_heads = pytest.mark.parametrize('depth', [pytest.param(1, marks=pytest.mark.slow), 4])
"""One code a position from a flat head, and four from a residual one."""

every_mesh = pytest.mark.parametrize('name', [
    pytest.param(name, marks=() if name == '2x2x2' else pytest.mark.slow) for name in MESHES])


def mesh_of(name):
  return sharding.make_mesh(MESHES[name]) if name else small_model.one_device()


@functools.cache
def parts(depth):
  """Layout, definition, and parameters that often begin pictures, on the host; heads divide by 8, so that each axis is spread."""
  place = small_model.plain(depth)
  definition = small_model.definition(place, layers=1, heads=8, kv_heads=8)
  params = small_model.eager(definition.init(jax.random.key(0), small_model.one_device()), place)
  return place, definition, jax.device_get(params)


def spread(depth, mesh):
  place, definition, params = parts(depth)
  return place, definition, jax.device_put(params, definition.shardings(mesh))


@functools.cache
def trained(depth, name):
  """Log-probs of text and codes in eight rows, and parameters and metrics after two updates on them."""
  mesh = mesh_of(name)
  place, definition, params = spread(depth, mesh)
  documents = [layout.tokenise(small_model.conversation(place, seed), place) for seed in range(ROWS)]
  batch = loop.put(layout.stack(documents, 64), sharding.rows(mesh))

  def forward(params, batch):
    model = definition.bind(params)
    return position_log_probs(model, model(batch), batch)[:2]

  log_probs = jax.device_get(jax.jit(forward)(params, batch))
  optimizer = make_optimizer(OptimizerConfig(name='adamw', learning_rate=1e-3), 10)
  state = loop.init_state(params, optimizer)
  step = loop.make_step(next_token_loss(definition), optimizer)
  state, metrics = loop.fit(step, state, loop.Indexed(lambda number: layout.stack(documents, 64)), steps=2, seed=0,
                            metrics_every=1, batch_sharding=sharding.rows(mesh))
  return log_probs, jax.device_get(state['params']), {k: v for k, v in metrics.items() if 'second' not in k}


def close(one, other, **tolerance):
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(b, a, err_msg=jax.tree_util.keystr(path), **tolerance)


@both_heads
@every_mesh
def test_forward_pass_and_warm_up_step(depth, name):
  alone, many = trained(depth, ''), trained(depth, name)
  close(alone[0], many[0], rtol=1e-4, atol=1e-4)
  assert alone[2]['gradient_norm'] > 0.1
  close(alone[2], many[2], rtol=1e-4, atol=1e-5)
  before = parts(depth)[2]
  moved = max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(alone[1]), strict=True))
  assert moved > 1e-3
  close(alone[1], many[1], atol=0.02 * moved)


@functools.cache
def written(depth, name):
  mesh = mesh_of(name)
  place, definition, params = spread(depth, mesh)
  decoder = Decoder(definition, place, mesh, DecodeConfig(max_positions=24, bucket=8, max_images=2, guidance=2.0))
  prompts = [layout.prompt(small_model.question(text), place) for text in ('a red circle', 'move the blue square')]
  return jax.device_get(decoder.decode(params, prompts, group=4, seed=3))


@pytest.mark.slow
@both_heads
@every_mesh
def test_decoding(depth, name):
  alone, many = written(depth, ''), written(depth, name)
  assert (alone.tokens.modality == layout.CODES).any()
  # The same draws; where a rounding error decides a token, all behind it differs, which does not happen with this seed.
  close(alone.tokens, many.tokens)
  close((alone.log_prob, alone.plain_log_prob), (many.log_prob, many.plain_log_prob), rtol=1e-4, atol=1e-4)


@functools.cache
def iterated(depth, name):
  made, state = grpo.trainer(depth, group=4, mesh=mesh_of(name), rate=1e-3)
  found = []
  for _ in range(2):
    state, metrics = made.iteration(state, functools.partial(grpo.draw, depth=depth))
    found.append([metrics[key] for key in ('loss', 'reward', 'entropy.text', 'entropy.image', 'gradient_norm', 'kl.text')])
  return np.array(found)


@pytest.mark.slow
@both_heads
@pytest.mark.parametrize('name', MESHES)
def test_grpo_iterations(depth, name):
  alone = iterated(depth, '')
  assert (np.abs(alone[1]) > 0).all()
  np.testing.assert_allclose(iterated(depth, name), alone, rtol=1e-4, atol=1e-5)
