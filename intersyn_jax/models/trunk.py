"""The decoder trunk: RMSNorm, rotary positions, grouped-query attention, a gated MLP, one scan over layers.

A Llama as it stands; what Chameleon, Gemma and long-context Llamas do differently are fields of the config.

Letters: B batch, T query positions, S key positions, L layers, N heads, K key-value heads, H head width, d model width,
F feed-forward width, R rank of LoRA.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from intersyn_jax import sharding
from intersyn_jax.errors import UserError
from intersyn_jax.models import attention, quantised
from intersyn_jax.models.attention import Documents
from intersyn_jax.models.definition import Params, constant, param, stacked

REMAT = {
    'none': None,
    'full': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

_ACTIVATIONS = {'silu': jax.nn.silu, 'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True)}

LAYER_NORM_EPSILON = 1e-5
"""Of every LayerNorm of a language model here: no public checkpoint says another."""


KERNELS = ('query', 'key', 'value', 'out', 'gate', 'up', 'down')
"""The linear maps of a layer: `<name>_kernel` [in,out]; with LoRA also `<name>_lora_in` [in,R] and `<name>_lora_out` [R,out]."""


@dataclasses.dataclass(frozen=True)
class TrunkConfig:
  """Sizes of a trunk.

  Attributes:
    width: d. layers: L. heads: N. kv_heads: K. head_width: H. mlp_width: F.
    rope_base: base of the rotary frequencies.
    rope_scale: positions are divided by it (linear scaling; VILA-U).
    norm_epsilon: of every RMSNorm.
    norm_offset: an RMSNorm multiplies by this plus its scale (Gemma: 1).
    activation: of the gate: `silu`, or `gelu_tanh` (Gemma).
    qk_norm: a LayerNorm of its own for every query and key head, before the rotation (Chameleon).
    swin_norm: norms follow attention and MLP, before each is added, instead of preceding them (Chameleon 30B).
    remat: what the backward pass keeps: `none` (keeps all), `dots` (matrix products), `full` (nothing).
    dtype: of activations.
    lora_rank: R, of the low-rank update that every kernel gets (Hu et al. 2021); 0 for none, and then no parameter of it.
      See `models.lora`.
    lora_alpha: the update is multiplied by lora_alpha / lora_rank.
  """

  width: int
  layers: int
  heads: int
  kv_heads: int
  head_width: int
  mlp_width: int
  rope_base: float = 10_000.0
  rope_scale: float = 1.0
  norm_epsilon: float = 1e-5
  norm_offset: float = 0.0
  activation: str = 'silu'
  qk_norm: bool = False
  swin_norm: bool = False
  remat: str = 'none'
  dtype: str = 'float32'
  lora_rank: int = 0
  lora_alpha: float = 16.0

  def __post_init__(self):
    if self.heads % self.kv_heads:
      raise UserError(f'model.heads {self.heads} is no multiple of model.kv_heads {self.kv_heads}')
    if self.remat not in REMAT:
      raise UserError(f'model.remat {self.remat!r} is none of {", ".join(REMAT)}')
    if self.activation not in _ACTIVATIONS:
      raise UserError(f'model.activation {self.activation!r} is none of {", ".join(_ACTIVATIONS)}')
    if self.lora_rank < 0 or self.lora_alpha <= 0:
      raise UserError(f'lora_rank {self.lora_rank}, lora_alpha {self.lora_alpha}: take a rank of 0 (no LoRA) or more and '
                      'an alpha above 0')

  @property
  def lora_scale(self) -> float:
    return self.lora_alpha / self.lora_rank


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class LayerCache:
  """Keys and values of one layer, [B,K,S,H] each.

  Attributes:
    prompt: keys and values of places before these, [P,W,K,T,H] each, held once for all rows that share them: row (p, g, w) of
      B = P x G x W has those of (p, w). None where rows share nothing.
  """

  keys: jax.Array
  values: jax.Array
  prompt: LayerCache | None = None


Rotation = tuple[jax.Array, jax.Array]
"""Cosines and sines [B,T,H/2] of the angles by which queries and keys are turned."""


class RMSNorm(nnx.Module):
  """Root-mean-square norm with a learned scale, computed in float32."""

  def __init__(self, config: TrunkConfig, rngs: nnx.Rngs):
    self.epsilon, self.offset = config.norm_epsilon, config.norm_offset
    self.scale = param(rngs, (config.width,), ('width',), constant(1.0 - config.norm_offset))

  def __call__(self, x: jax.Array) -> jax.Array:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
    return (y * (self.offset + self.scale[...])).astype(x.dtype)


class LayerNorm(nnx.Module):
  """The last axis with mean 0 and variance 1, then a learned scale and bias of `shape`; computed in float32."""

  def __init__(self, shape: Sequence[int], axes: Sequence[str], rngs: nnx.Rngs):
    self.scale = param(rngs, shape, axes, constant(1.0))
    self.bias = param(rngs, shape, axes, constant(0.0))

  def __call__(self, x: jax.Array) -> jax.Array:
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + LAYER_NORM_EPSILON)
    return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


def rotation(position: jax.Array, config: TrunkConfig) -> Rotation:
  """Cosines and sines of the rotary embedding at positions int[B,T]. They are made once for all heads and layers."""
  half = config.head_width // 2
  frequency = config.rope_base ** (-jnp.arange(half, dtype=jnp.float32) / half) / config.rope_scale
  angle = position[..., None].astype(jnp.float32) * frequency
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, by: Rotation) -> jax.Array:
  """Rotary position embedding of x [B,N,T,H] (halves paired, as Llama does)."""
  cos, sin = (part[:, None] for part in by)
  a, b = (part.astype(jnp.float32) for part in jnp.split(x, 2, axis=-1))
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def attend(queries: jax.Array, keys: jax.Array, values: jax.Array, visible: jax.Array | Documents,
           prompt: LayerCache | None = None) -> jax.Array:
  """Grouped-query attention: queries [B,N,T,H], keys and values [B,K,S,H], visible bool[B,T,S] -> [B,N,T,H].

  With the `prompt` of a `LayerCache`, its places are the first that `visible` tells of. Rows that share them read them in one
  product (Hydragen, Juravsky et al. 2024). A query that sees nothing (padding) gets a mean of what is there, which nobody reads.
  Where `visible` is told by documents, the kernel of `models.attention` attends, if the device has it.
  """
  if isinstance(visible, Documents):
    if attention.has_kernel(queries, queries.shape[-1]):
      return attention.attend(queries, keys, values, visible)
    visible = visible.matrix()
  b, n, t, h = queries.shape
  k, s = keys.shape[1], visible.shape[-1]
  grouped = queries.reshape(b, k, (n // k) * t, h)
  weights = jnp.einsum('bkqh,bksh->bkqs', grouped, keys, preferred_element_type=jnp.float32)
  if prompt is not None:
    weights = jnp.concatenate([_of_prompt('pwkgqh,pwksh->pwkgqs', grouped, prompt.keys), weights], axis=-1)
  weights = jnp.where(visible[:, None], weights.reshape(b, n, t, s) * h ** -0.5, -1e9)
  weights = jnp.exp(weights - jax.lax.stop_gradient(jnp.max(weights, axis=-1, keepdims=True)))
  # Normalised after the product with the values: one pass less over [T,S].
  total = jnp.sum(weights, axis=-1, keepdims=True)
  weights = weights.reshape(b, k, (n // k) * t, s).astype(values.dtype)
  first = s - keys.shape[2]
  seen = jnp.einsum('bkqs,bksh->bkqh', weights[..., first:], values)
  if prompt is not None:
    seen = seen + _of_prompt('pwkgqs,pwksh->pwkgqh', weights[..., :first], prompt.values).astype(seen.dtype)
  return (seen.reshape(b, n, t, h) / total).astype(queries.dtype)


def _of_prompt(product: str, rows: jax.Array, held: jax.Array) -> jax.Array:
  """A product of rows [B,K,...] with what they share, [P,W,K,T,H], in float32."""
  grouped = rows.reshape(len(held), -1, held.shape[1], *rows.shape[1:])
  # What is shared leads: XLA of jax 0.12 on CPU has no bfloat16 product whose leading dimensions are in another order.
  found = jnp.einsum(product, jnp.moveaxis(grouped, 1, 3), held, preferred_element_type=jnp.float32)
  return jnp.moveaxis(found, 3, 1).reshape(*rows.shape[:-1], found.shape[-1])


def remade(body: Callable[..., Any], remat: str) -> Callable[..., Any]:
  """The body of a scan over layers, of which the backward pass makes again what `TrunkConfig.remat` does not keep."""
  return body if remat == 'none' else jax.checkpoint(body, policy=REMAT[remat])


def project(x: jax.Array, kernel: nnx.Param) -> jax.Array:
  """x [...,a] times kernel [a,b], quantised or not. Rows are flattened first: the gradient of a plain matrix product is twice as
  fast on CPU."""
  rows, held = x.reshape(-1, x.shape[-1]), kernel[...]
  y = quantised.product(rows, held) if quantised.is_quantised(held) else rows @ held.astype(x.dtype)
  return sharding.spread(y).reshape(*x.shape[:-1], y.shape[-1])


def taken(a: jax.Array, at: jax.Array | None) -> jax.Array:
  """a [B,T,...] at the positions int[B,M] of each row: [B,M,...]; all of it where `at` is None."""
  return a if at is None else jnp.take_along_axis(a, at.reshape(*at.shape, *[1] * (a.ndim - 2)), axis=1)


class Layer(nnx.Module):
  """One transformer block."""

  def __init__(self, config: TrunkConfig, rngs: nnx.Rngs):
    self.config = config
    d, h, f = config.width, config.head_width, config.mlp_width
    self.attention_norm = RMSNorm(config, rngs)
    self.query_kernel = param(rngs, (d, config.heads * h), ('embed', 'heads'))
    self.key_kernel = param(rngs, (d, config.kv_heads * h), ('embed', 'kv_heads'))
    self.value_kernel = param(rngs, (d, config.kv_heads * h), ('embed', 'kv_heads'))
    self.out_kernel = param(rngs, (config.heads * h, d), ('heads', 'embed'))
    self.mlp_norm = RMSNorm(config, rngs)
    self.gate_kernel = param(rngs, (d, f), ('embed', 'mlp'))
    self.up_kernel = param(rngs, (d, f), ('embed', 'mlp'))
    self.down_kernel = param(rngs, (f, d), ('mlp', 'embed'))
    if config.qk_norm:
      self.query_norm = LayerNorm((config.heads, h), ('heads', 'width'), rngs)
      self.key_norm = LayerNorm((config.kv_heads, h), ('kv_heads', 'width'), rngs)
    # Last, so that all else is drawn as without them. In float32 also where the kernels are bfloat16: those stand still, and
    # a step of training is less than bfloat16 tells apart.
    rank = config.lora_rank
    for name in KERNELS if rank else ():
      kernel = getattr(self, f'{name}_kernel')
      (inputs, outputs), (into, out) = kernel.shape, kernel.get_metadata()['axes']
      setattr(self, f'{name}_lora_in', param(rngs, (inputs, rank), (into, 'rank'), held='float32'))
      setattr(self, f'{name}_lora_out', param(rngs, (rank, outputs), ('rank', out), constant(0.0), held='float32'))

  def __call__(self, x: jax.Array, by: Rotation, visible: jax.Array, cache: LayerCache | None = None,
               index: jax.Array | int = 0, at: jax.Array | None = None) -> tuple[jax.Array, LayerCache]:
    """x [B,T,d] -> [B,T,d]; with a cache, this call's keys go to places index..index+T of its own and all of it is seen.

    Queries and keys are turned `by` the positions of x. With `at`, int[B,M], it gives those positions alone, [B,M,d], and visible
    is bool[B,M,S].
    """
    if self.config.swin_norm:
      y, cache = self._attend(x, by, visible, cache, index, at)
      x = taken(x, at) + self.attention_norm(y)
      return x + self.mlp_norm(self._mlp(x)), cache
    y, cache = self._attend(self.attention_norm(x), by, visible, cache, index, at)
    x = taken(x, at) + y
    return x + self._mlp(self.mlp_norm(x)), cache

  def _attend(self, x: jax.Array, by: Rotation, visible: jax.Array, cache: LayerCache | None,
              index: jax.Array | int, at: jax.Array | None) -> tuple[jax.Array, LayerCache]:
    config = self.config
    heads = lambda y, count: y.reshape(*y.shape[:2], count, config.head_width)
    queries = heads(self._project(taken(x, at), 'query'), config.heads)
    keys = heads(self._project(x, 'key'), config.kv_heads)
    if config.qk_norm:
      queries, keys = self.query_norm(queries), self.key_norm(keys)
    queries = rotate(queries.swapaxes(1, 2), jax.tree.map(lambda a: taken(a, at), by))
    keys = rotate(keys.swapaxes(1, 2), by)
    values = heads(self._project(x, 'value'), config.kv_heads).swapaxes(1, 2)
    prompt = None
    if cache is not None:
      keys = jax.lax.dynamic_update_slice_in_dim(cache.keys, keys, index, axis=2)
      values = jax.lax.dynamic_update_slice_in_dim(cache.values, values, index, axis=2)
      prompt = cache.prompt
    seen = attend(queries, keys, values, visible, prompt).swapaxes(1, 2)
    return self._project(seen.reshape(*seen.shape[:2], -1), 'out'), LayerCache(keys, values, prompt)

  def _mlp(self, x: jax.Array) -> jax.Array:
    gated = _ACTIVATIONS[self.config.activation](self._project(x, 'gate')) * self._project(x, 'up')
    return self._project(gated, 'down')

  def _project(self, x: jax.Array, name: str) -> jax.Array:
    """x [...,in] -> [...,out] by a kernel and, with LoRA, its update."""
    y = project(x, getattr(self, f'{name}_kernel'))
    if not self.config.lora_rank:
      return y
    narrow = project(x, getattr(self, f'{name}_lora_in')) * self.config.lora_scale
    return y + project(narrow, getattr(self, f'{name}_lora_out'))


class Trunk(nnx.Module):
  """L layers and the last norm."""

  def __init__(self, config: TrunkConfig, rngs: nnx.Rngs):
    self.config = config
    self.layers = stacked(lambda rngs: Layer(config, rngs), config.layers, rngs)
    self.norm = RMSNorm(config, rngs)

  def __call__(self, x: jax.Array, position: jax.Array, visible: jax.Array | Documents,
               before: LayerCache | None = None) -> jax.Array:
    """x [B,T,d], position int[B,T], visible bool[B,T,T] or the documents that tell it -> hidden [B,T,d].

    Rows may go on from what `read` gave of P rows: those of each are B/P neighbours, and visible is bool[B,T,S+T].
    """
    return self.norm(self._scan(x, position, visible, before)[0])

  def at(self, x: jax.Array, position: jax.Array, visible: jax.Array | Documents, at: jax.Array) -> jax.Array:
    """What `__call__` gives at some positions int[B,M] of each row, [B,M,d]: of the last layer only their part is computed."""
    graph, params = nnx.split(self.layers)
    x, _ = self._scan(x, position, visible, first=self.config.layers - 1)
    seen = taken(visible.matrix() if isinstance(visible, Documents) else visible, at)
    by = rotation(position, self.config)
    last = lambda layer, x: nnx.merge(graph, layer)(sharding.spread(x), by, seen, at=at)[0]
    return self.norm(sharding.spread(remade(last, self.config.remat)(jax.tree.map(lambda a: a[-1], params), x)))

  def read(self, x: jax.Array, position: jax.Array, visible: jax.Array | Documents) -> tuple[jax.Array, LayerCache]:
    """Hidden [P,S,d], and keys and values [L,P,K,S,H] for others to go on from."""
    x, caches = self._scan(x, position, visible, keep=True)
    return self.norm(x), caches

  def _scan(self, x: jax.Array, position: jax.Array, visible: jax.Array | Documents, before: LayerCache | None = None,
            keep: bool = False, first: int | None = None) -> tuple[jax.Array, LayerCache | None]:
    graph, params = nnx.split(self.layers)
    if first is not None:
      params = jax.tree.map(lambda a: a[:first], params)
    if isinstance(visible, Documents) and not attention.has_kernel(x, self.config.head_width):
      visible = visible.matrix()  # once, and not in every layer
    by = rotation(position, self.config)

    def body(x: jax.Array, inputs: tuple[Params, LayerCache | None]) -> tuple[jax.Array, LayerCache | None]:
      layer, old = inputs
      room, index = (None, 0) if old is None else (_with_room(old, *x.shape[:2]), old.keys.shape[2])
      x, cache = nnx.merge(graph, layer)(sharding.spread(x), by, visible, room, index)
      return sharding.spread(x), cache if keep else None

    return jax.lax.scan(remade(body, self.config.remat), x, (params, before))

  def prefill(self, x: jax.Array, position: jax.Array, visible: jax.Array | Documents) -> tuple[jax.Array, list[LayerCache]]:
    """The same, also returning the keys and values [B,K,T,H] of every layer."""
    caches, by = [], rotation(position, self.config)
    for layer in self.unstack():
      x, cache = layer(x, by, visible)
      caches.append(cache)
    return self.norm(x), caches

  def unstack(self) -> list[Layer]:
    """The layers one by one. Slice before a decode loop: inside it every step would copy all weights again."""
    return self.with_layers(self.layer_params())

  def layer_params(self) -> list[Params]:
    """The parameters of each layer by itself."""
    params = nnx.to_pure_dict(nnx.split(self.layers)[1])
    return [jax.tree.map(lambda a, i=i: a[i], params) for i in range(self.config.layers)]

  def with_layers(self, params: list[Params]) -> list[Layer]:
    """Layers that have these parameters."""
    graph = nnx.split(self.layers)[0]
    return [nnx.merge(graph, one) for one in params]


def _with_room(cache: LayerCache, rows: int, free: int) -> LayerCache:
  """A cache of P rows as one of `rows`, each of them repeated, with `free` more places."""
  fit = lambda a: jnp.pad(jnp.repeat(a, rows // len(a), axis=0), ((0, 0), (0, 0), (0, free), (0, 0)))
  return LayerCache(fit(cache.keys), fit(cache.values))


def same_document(document: jax.Array) -> Documents:
  """Who sees whom in packed rows [B,T]: causal, inside one document, nobody sees padding."""
  return Documents(document, document)
