"""Attention of packed documents that is never laid out as a matrix, by the splash kernel of TPUs.

What may see what is told by `Documents`, not by a matrix [B,T,S]: causal, inside one document, nobody sees padding. Where the
kernel cannot be had, `trunk.attend` makes the matrix of it. The choice depends on the devices of the arrays' mesh, so that a
program for a TPU may be compiled where there is none.

Letters: B batch, T query positions, S key positions, N heads, K key-value heads, H head width.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from intersyn_jax import sharding

LANES = 128
"""Head widths and blocks of splash are multiples of it."""

BLOCK = 512
"""Positions that splash takes at once; rows are padded to a multiple of it, or of `LANES` where they are shorter."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Documents:
  """Which keys each query sees: those up to itself in its document. The queries stand at the last T of the S key positions.

  Attributes:
    queries, keys: int32[B,T] and int32[B,S], the document that each position belongs to, 0 for padding.
  """

  queries: jax.Array
  keys: jax.Array

  def matrix(self) -> jax.Array:
    """bool[B,T,S]."""
    t, s = self.queries.shape[1], self.keys.shape[1]
    causal = jnp.arange(s - t, s)[:, None] >= jnp.arange(s)[None, :]
    return causal & (self.queries[:, :, None] == self.keys[:, None, :]) & (self.keys[:, None, :] > 0)


def has_kernel(x: jax.Array, head_width: int) -> bool:
  """Whether the kernel can attend to what x [B,...] becomes: on a TPU, with heads of whole lanes, and rows that divide among the
  devices of the mesh."""
  mesh = jax.typeof(x).sharding.mesh
  return (isinstance(x, jax.core.Tracer) and platform_of(mesh) == 'tpu' and head_width % LANES == 0
          and x.shape[0] % sharding.row_multiple(mesh) == 0)


def platform_of(mesh: jax.sharding.AbstractMesh) -> str:
  """`tpu`, `gpu`, `cpu`, or '' where there is no mesh, or it does not say."""
  return mesh.abstract_device.platform if not mesh.empty and mesh.abstract_device else ''


def attend(queries: jax.Array, keys: jax.Array, values: jax.Array, documents: Documents) -> jax.Array:
  """Grouped-query attention by the kernel: queries [B,N,T,H], keys and values [B,K,S,H] -> [B,N,T,H].

  What a query of padding gets means nothing.
  """
  mesh = jax.typeof(queries).sharding.mesh
  heads = 'kv_heads' if keys.shape[1] % mesh.shape['tensor'] == 0 else None
  whole = sharding.spec(mesh, ('batch', heads, None, None), keys.shape)
  rows = PartitionSpec(whole[0])
  inner = jax.shard_map(splashed, mesh=mesh, in_specs=(whole, whole, whole, Documents(rows, rows)), out_specs=whole,
                        check_vma=False)
  return inner(queries, keys, values, documents)


def splashed(queries: jax.Array, keys: jax.Array, values: jax.Array, documents: Documents, *,
             interpret: bool = False) -> jax.Array:
  """The same by splash, on one device; `interpret` runs it anywhere, slowly."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash  # slow to import
  b, n, t, h = queries.shape
  k, s = keys.shape[1:3]
  block = lambda size: BLOCK if size >= BLOCK else LANES * math.ceil(size / LANES)
  fill = lambda a, axis, size: jnp.pad(a, [(0, size - a.shape[i] if i == axis else 0) for i in range(a.ndim)])
  rounded = lambda size: block(size) * math.ceil(size / block(size))
  # Padding goes behind all else, where causality hides it.
  queries = fill((queries * h ** -0.5).astype(queries.dtype).reshape(b, k, n // k, t, h), 3, rounded(t))
  keys, values = fill(keys, 2, rounded(s)), fill(values, 2, rounded(s))
  segments = splash.SegmentIds(fill(documents.queries, 1, rounded(t)), fill(documents.keys, 1, rounded(s)))
  one = _kernel(n // k, rounded(t), rounded(s), s - t, block(t), block(s), interpret)
  over_heads = jax.vmap(one, in_axes=(0, 0, 0, None))
  found = jax.vmap(over_heads)(queries, keys, values, segments)
  return found[:, :, :, :t].reshape(b, n, t, h)


def _kernel(heads: int, t: int, s: int, offset: int, block_q: int, block_kv: int, interpret: bool) -> Any:
  """Splash for the heads that share keys and values."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask
  sizes = splash.BlockSizes(
      block_q=block_q, block_kv=block_kv, block_kv_compute=block_kv, block_q_dkv=block_q, block_kv_dkv=block_kv,
      block_kv_dkv_compute=block_kv, block_q_dq=block_q, block_kv_dq=block_kv)
  causal = splash_attention_mask.CausalMask((t, s), offset)
  return splash.make_splash_mqa_single_device(
      splash_attention_mask.MultiHeadMask([causal] * heads), block_sizes=sizes, interpret=interpret)
