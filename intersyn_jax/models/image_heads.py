"""Image heads: from a hidden state to the D codes of the next image position.

A head is a module made from a `ModelConfig`, with two methods: `logits(hidden, codes, embedding)` for all depths at once with
the codes known, and `next_logits` for one depth while sampling. Both are given the model's image embedding, whose tables a
head may share. A user's own head needs only these (DESIGN 9).

Letters: d model width, D codes per position, C codebook, c width of a code's vector, w width of the depth transformer.
"""

from __future__ import annotations

import dataclasses
import typing

import jax
import jax.numpy as jnp
from flax import nnx

from intersyn_jax.errors import UserError
from intersyn_jax.models.definition import constant, normal, param, stacked
from intersyn_jax.models.image_embeddings import Projector
from intersyn_jax.models.trunk import LayerNorm, Trunk, attend, project, remade

if typing.TYPE_CHECKING:
  from intersyn_jax.models.unified import ModelConfig


class FlatHead(nnx.Module):
  """One code per image position (D = 1): a linear map, of its own or the image embedding's (`tied`)."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    _one_code(config, 'flat')
    self.tied = config.tied
    if not config.tied:
      self.head = param(rngs, (config.trunk.width, config.codebook), ('embed', 'codes'), normal(0.02))

  def logits(self, hidden: jax.Array, codes: jax.Array, embedding: nnx.Module) -> jax.Array:
    """hidden [...,d], codes int[...,1] -> [...,1,C] in float32."""
    del codes
    kernel = _table(embedding, 'code_embedding', 'flat').T if self.tied else self.head[...]
    return (hidden @ kernel.astype(hidden.dtype)).astype(jnp.float32)[..., None, :]

  def next_logits(self, hidden: jax.Array, codes: jax.Array, depth: int, embedding: nnx.Module) -> jax.Array:
    """Logits [...,C] of code number `depth`; `codes` is right before it."""
    return self.logits(hidden, codes, embedding)[..., depth, :]


class MLPHead(Projector):
  """One code per image position (D = 1): two linear maps with an exact GELU between them (Janus).

  Args:
    width: of the middle; d if not given.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, width: int | None = None):
    _one_code(config, 'mlp')
    d = config.trunk.width
    super().__init__((d, width or d, config.codebook), ('width', 'embed', 'codes'), rngs)

  def logits(self, hidden: jax.Array, codes: jax.Array, embedding: nnx.Module) -> jax.Array:
    """hidden [...,d], codes int[...,1] -> [...,1,C] in float32."""
    del codes, embedding
    return self.apply(hidden).astype(jnp.float32)[..., None, :]

  def next_logits(self, hidden: jax.Array, codes: jax.Array, depth: int, embedding: nnx.Module) -> jax.Array:
    """Logits [...,C] of code number `depth`; `codes` is right before it."""
    return self.logits(hidden, codes, embedding)[..., depth, :]


class _DeepHead(nnx.Module):
  """D residual codes by a small transformer over depths: depth 0 reads the hidden state, depth i > 0 codes 0..i-1.

  Subclasses say how those become the states [rows,D',w] of the first D' depths, and what their logits are.
  """

  def states(self, hidden: jax.Array, codes: jax.Array, embedding: nnx.Module) -> jax.Array:
    """hidden [rows,d], codes int[rows,D'-1] -> [rows,D',w]."""
    raise NotImplementedError

  def logits_of(self, states: jax.Array) -> jax.Array:
    """[...,w] -> [...,C]."""
    raise NotImplementedError

  def logits(self, hidden: jax.Array, codes: jax.Array, embedding: nnx.Module) -> jax.Array:
    """hidden [...,d], codes int[...,D] -> [...,D,C] in float32; depth i sees codes 0..i-1."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    y = self.logits_of(self.states(rows, codes.reshape(len(rows), -1)[:, :-1], embedding))
    return y.astype(jnp.float32).reshape(*codes.shape, -1)

  def next_logits(self, hidden: jax.Array, codes: jax.Array, depth: int, embedding: nnx.Module) -> jax.Array:
    """Logits [...,C] of code number `depth`; `codes` is right before it. Only the depths up to it are computed."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    y = self.logits_of(self.states(rows, codes.reshape(len(rows), -1)[:, :depth], embedding)[:, -1])
    return y.astype(jnp.float32).reshape(*codes.shape[:-1], -1)


class ResidualHead(_DeepHead):
  """After VILA-U (Unified GRPO), with the trunk's kind of layers and a table of its own; for models trained from
  nothing."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    trunk = config.trunk
    w = trunk.width
    self.hidden_kernel = param(rngs, (w, w), ('embed', 'width'))
    self.code_embedding = param(rngs, (config.codebook, w), ('codes', 'width'), normal(w ** -0.5))
    self.depth_embedding = param(rngs, (config.depth, w), ('places', 'width'), normal(w ** -0.5))
    remat = config.head_remat or trunk.remat
    self.depth_trunk = Trunk(dataclasses.replace(trunk, layers=max(1, trunk.layers // 4), remat=remat), rngs)
    self.head = param(rngs, (w, config.codebook), ('embed', 'codes'), normal(0.02))

  def states(self, hidden: jax.Array, codes: jax.Array, embedding: nnx.Module) -> jax.Array:
    del embedding
    rows, depth = len(codes), codes.shape[-1] + 1
    first = (hidden @ self.hidden_kernel[...].astype(hidden.dtype))[:, None]
    known = self.code_embedding[...].astype(hidden.dtype)[codes]
    x = jnp.concatenate([first, jnp.cumsum(known, axis=1)], axis=1)
    x = x + self.depth_embedding[...].astype(hidden.dtype)[:depth]
    position = jnp.broadcast_to(jnp.arange(depth), (rows, depth))
    return self.depth_trunk(x, position, _causal(rows, depth))

  def logits_of(self, states: jax.Array) -> jax.Array:
    return states @ self.head[...].astype(states.dtype)


class DepthBlock(nnx.Module):
  """One block of VILA-U's depth transformer: attention and MLP, norms first, biases everywhere, no rotation."""

  def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
    w, f = width, 4 * width
    self.heads = heads
    linear = lambda a, b, *axes: (param(rngs, (a, b), axes), param(rngs, (b,), axes[1:], constant(0.0)))
    self.norm1 = LayerNorm((w,), ('width',), rngs)
    self.query_kernel, self.query_bias = linear(w, w, 'embed', 'heads')
    self.key_kernel, self.key_bias = linear(w, w, 'embed', 'heads')
    self.value_kernel, self.value_bias = linear(w, w, 'embed', 'heads')
    self.out_kernel, self.out_bias = linear(w, w, 'heads', 'embed')
    self.norm2 = LayerNorm((w,), ('width',), rngs)
    self.up_kernel, self.up_bias = linear(w, f, 'embed', 'mlp')
    self.down_kernel, self.down_bias = linear(f, w, 'mlp', 'embed')

  def __call__(self, x: jax.Array, visible: jax.Array) -> jax.Array:
    """x [rows,D',w], visible bool[rows,D',D'] -> the same shape as x."""
    split = lambda y: y.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)
    y = self.norm1(x)
    queries = split(_linear(y, self.query_kernel, self.query_bias))
    keys = split(_linear(y, self.key_kernel, self.key_bias))
    values = split(_linear(y, self.value_kernel, self.value_bias))
    seen = attend(queries, keys, values, visible).swapaxes(1, 2).reshape(x.shape)
    x = x + _linear(seen, self.out_kernel, self.out_bias)
    y = jax.nn.gelu(_linear(self.norm2(x), self.up_kernel, self.up_bias), approximate=False)
    return x + _linear(y, self.down_kernel, self.down_bias)


class DepthHead(_DeepHead):
  """VILA-U's depth transformer. What stands for the codes before a depth is the sum of their vectors in the codebook of the
  image embedding, which no gradient reaches: it is the image tokenizer's. There is no dropout: log-probs must repeat.

  Args:
    width: w. layers, heads: of its transformer. By default those of the trunk, with a quarter of its layers.
    code_width: c; d if not given.
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, width: int | None = None, layers: int | None = None,
               heads: int | None = None, code_width: int | None = None):
    d = config.trunk.width
    w, heads = width or d, heads or config.trunk.heads
    if w % heads:
      raise UserError(f'model.image_head `depth`: its width {w} is no multiple of its {heads} heads')
    self.remat = config.head_remat or config.trunk.remat
    self.hidden_kernel = param(rngs, (d, w), ('embed', 'width'))
    self.hidden_bias = param(rngs, (w,), ('width',), constant(0.0))
    self.code_kernel = param(rngs, (code_width or d, w), ('embed', 'width'))
    self.code_bias = param(rngs, (w,), ('width',), constant(0.0))
    self.depth_embedding = param(rngs, (config.depth, w), ('places', 'width'), normal(0.02))
    self.layers = stacked(lambda rngs: DepthBlock(w, heads, rngs), layers or max(1, config.trunk.layers // 4), rngs)
    self.norm = LayerNorm((w,), ('width',), rngs)
    self.head = param(rngs, (w, config.codebook), ('embed', 'codes'), normal(0.02))
    self.head_bias = param(rngs, (config.codebook,), ('codes',), constant(0.0))

  def states(self, hidden: jax.Array, codes: jax.Array, embedding: nnx.Module) -> jax.Array:
    rows, depth = len(codes), codes.shape[-1] + 1
    vectors = jax.lax.stop_gradient(_table(embedding, 'codebook', 'depth'))[codes].astype(hidden.dtype)
    x = jnp.concatenate([
        _linear(hidden, self.hidden_kernel, self.hidden_bias)[:, None],
        _linear(jnp.cumsum(vectors, axis=1), self.code_kernel, self.code_bias)], axis=1)
    x = x + self.depth_embedding[...].astype(x.dtype)[:depth]
    graph, params = nnx.split(self.layers)
    visible = _causal(rows, depth)
    block = remade(lambda x, layer: (nnx.merge(graph, layer)(x, visible), None), self.remat)
    x, _ = jax.lax.scan(block, x, params)
    return self.norm(x)

  def logits_of(self, states: jax.Array) -> jax.Array:
    return _linear(states, self.head, self.head_bias)


HEADS = {'flat': FlatHead, 'mlp': MLPHead, 'residual': ResidualHead, 'depth': DepthHead}


def _one_code(config: ModelConfig, name: str) -> None:
  if config.depth != 1:
    raise UserError(f'model.image_head `{name}` writes one code per position, image.depth is {config.depth}; use `residual`')


def _table(embedding: nnx.Module, name: str, head: str) -> jax.Array:
  """A table of the image embedding that a head shares."""
  if not hasattr(embedding, name):
    raise UserError(f'model.image_head `{head}` shares the {name} of the image embedding, and {type(embedding).__name__} has '
                    'none; take another model.image_embedding')
  return getattr(embedding, name)[...]


def _linear(x: jax.Array, kernel: nnx.Param, bias: nnx.Param) -> jax.Array:
  return project(x, kernel) + bias[...].astype(x.dtype)


def _causal(rows: int, depth: int) -> jax.Array:
  return jnp.broadcast_to(jnp.tril(jnp.ones((depth, depth), bool)), (rows, depth, depth))
