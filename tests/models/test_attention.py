"""Attention by kernels against the matrix form: the same numbers, wherever a position means something."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax import sharding
from intersyn_jax.interleave.layout import TEXT, TokenBatch
from intersyn_jax.models import attention, trunk
from intersyn_jax.models.attention import Documents
from tests import small_model

ROWS, HEAD = 2, 128


def documents(rng: np.random.Generator, length: int, prefix: int) -> Documents:
  """Rows of several documents, the first with padding on the left, the last with padding on the right."""
  cuts = np.sort(rng.integers(0, 5, (ROWS, length)), axis=1)
  cuts[-1] = np.where(cuts[-1] == 4, 0, cuts[-1] + 1)
  return Documents(jnp.asarray(cuts[:, prefix:], jnp.int32), jnp.asarray(cuts, jnp.int32))


def inputs(heads: int, kv_heads: int, length: int, prefix: int = 0):
  rng = np.random.default_rng(length + heads)
  draw = lambda count, size: jnp.asarray(rng.normal(size=(ROWS, count, size, HEAD)), jnp.float32)
  return draw(heads, length - prefix), draw(kv_heads, length), draw(kv_heads, length), documents(rng, length, prefix)


@pytest.mark.parametrize('heads,kv_heads,length,prefix', [(4, 2, 200, 0), (2, 2, 300, 130)])
def test_splash_gives_the_numbers_of_the_matrix(monkeypatch, heads, kv_heads, length, prefix):
  monkeypatch.setattr(attention, 'BLOCK', 128)  # several blocks in short rows
  queries, keys, values, seen = inputs(heads, kv_heads, length, prefix)
  weight = (seen.queries > 0)[:, None, :, None] * jnp.asarray(np.random.default_rng(1).normal(size=queries.shape), jnp.float32)

  def total(how, *arrays):
    return jnp.sum(how(*arrays, seen) * weight)

  ours = jax.value_and_grad(functools.partial(total, functools.partial(attention.splashed, interpret=True)), (0, 1, 2))
  reference = jax.value_and_grad(functools.partial(total, lambda *a: trunk.attend(*a[:3], a[3].matrix())), (0, 1, 2))
  (value, slopes), (wanted, wanted_slopes) = (jax.jit(how)(queries, keys, values) for how in (ours, reference))
  np.testing.assert_allclose(value, wanted, rtol=1e-4)
  for slope, right in zip(slopes, wanted_slopes, strict=True):
    np.testing.assert_allclose(slope, right, atol=2e-4)


def test_a_query_sees_its_document_up_to_itself():
  document = jnp.asarray([[0, 1, 1, 2, 2]])
  wanted = [[0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
  seen = Documents(document, document)
  np.testing.assert_array_equal(seen.matrix()[0], np.asarray(wanted, bool))
  np.testing.assert_array_equal(Documents(document[:, 3:], document).matrix(), seen.matrix()[:, 3:])


def test_answers_behind_a_shared_prompt_by_the_kernel(monkeypatch):
  prompt, share = 5, 2
  layout_ = small_model.plain()
  definition = small_model.definition(layout_, head_width=HEAD, layers=1)
  mesh = sharding.make_mesh({'fsdp': 2}, jax.devices()[:2])
  params = definition.init(jax.random.key(0), mesh)
  rng = np.random.default_rng(0)
  text, lead = rng.integers(5, 60, (8, prompt + 20)), np.repeat([0, 2, 0, 1], share)
  text[:, :prompt] = np.repeat(text[::share, :prompt], share, axis=0)
  real = np.arange(prompt + 20) >= lead[:, None]
  nothing = np.zeros_like(text)
  batch = TokenBatch(text=text, codes=nothing[..., None], modality=real * TEXT, loss=nothing, forced=nothing, document=real * 1,
                     position=np.maximum(np.arange(prompt + 20) - lead[:, None], 0), turn=nothing, step=nothing)
  batch = jax.device_put(batch, sharding.rows(mesh))
  read = lambda: jax.jit(lambda params, batch: definition.bind(params).backbone.answers(batch, prompt, share))(params, batch)
  laid_out = read()
  taken = []
  by_kernel = functools.partial(attention.splashed, interpret=True)
  monkeypatch.setattr(attention, 'platform_of', lambda mesh: 'tpu')
  monkeypatch.setattr(attention, 'splashed', lambda *a: taken.append(a[0].shape) or by_kernel(*a))
  np.testing.assert_allclose(read(), laid_out, atol=2e-5)
  assert [shape[2] for shape in taken] == [prompt, 20]


def test_the_cpu_keeps_the_matrix_bit_for_bit():
  config = trunk.TrunkConfig(width=32, layers=2, heads=2, kv_heads=1, head_width=16, mlp_width=48)
  from intersyn_jax.models.definition import Definition
  definition = Definition(lambda rngs: trunk.Trunk(config, rngs))
  mesh = sharding.make_mesh({'fsdp': 2}, jax.devices()[:2])
  params = definition.init(jax.random.key(0), mesh)
  document = jnp.asarray([[1, 1, 1, 2, 2, 0], [0, 1, 1, 1, 1, 1]])
  x = jax.device_put(jax.random.normal(jax.random.key(1), (2, 6, 32)), sharding.rows(mesh))
  read = jax.jit(lambda params, x, seen: definition.bind(params)(x, jnp.zeros((2, 6), jnp.int32), seen))
  told, laid_out = (read(params, x, seen) for seen in (Documents(document, document), trunk.same_document(document).matrix()))
  np.testing.assert_array_equal(told, laid_out)


@pytest.mark.parametrize('platform,dtype,width,rows,wanted', [
    ('tpu', 'float32', 128, 8, True), ('tpu', 'bfloat16', 128, 8, True), ('tpu', 'bfloat16', 64, 8, False),
    ('tpu', 'bfloat16', 128, 3, False), ('cpu', 'bfloat16', 128, 8, False), ('gpu', 'bfloat16', 128, 8, False)])
def test_the_kernel_follows_the_devices_of_the_mesh(monkeypatch, platform, dtype, width, rows, wanted):
  mesh = sharding.make_mesh({'replica': 2, 'fsdp': 4})
  found = []

  def look(x):
    monkeypatch.setattr(attention, 'platform_of', lambda mesh: platform)
    found.append(attention.has_kernel(x, width))
    return x

  shape = jax.ShapeDtypeStruct((rows, 4), dtype, sharding=sharding.replicated(mesh))
  jax.jit(look).lower(shape)
  assert found == [wanted]


def test_there_is_no_kernel_without_a_mesh():
  assert not attention.has_kernel(jnp.zeros((8, 4)), 128)
