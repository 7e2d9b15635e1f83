"""Benchmark `train`: tokens a second of the supervised step, and the share of the machine's operations that they make.

- On a CPU, Llama-shaped models of 7M and 40M in float32, 8 rows of 256 tokens, AdamW, gradients clipped; the peers are the same
  weights in transformers on PyTorch, run eagerly and by `torch.compile` (extra `peers`).
- On a GPU, models of 1B (float32 parameters, bfloat16 activations) and of 7B (`optimizer.precision` `lean`) with rows of 2,048.

The floor is the operations of the model at the peak of the machine, so that `of the floor` is the MFU: six for each weight and
token, attention to what is before alone, nothing for what is computed again. The peak of a GPU is what its maker states for
bfloat16 without sparsity; of a CPU, or a GPU that is not in the list, the rate of one large product, measured in the same run.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax.benchmarks import decode
from intersyn_jax.benchmarks.decode import Model
from intersyn_jax.benchmarks.rows import Options, Row, row, seconds
from intersyn_jax.interleave.layout import TokenBatch
from intersyn_jax.models import unified
from intersyn_jax.models.definition import Params
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.training import loop, precision
from intersyn_jax.training.optimizer import Optimizer, OptimizerConfig, make_optimizer
from intersyn_jax.training.supervised import next_token_loss

PEAKS = {'H100': 989e12, 'H200': 989e12, 'A100': 312e12}
"""Operations a second in bfloat16 that the maker states, by a part of the device's name."""

RATE, BETAS, CLIP = 1e-4, (0.9, 0.95), 1.0


class Shape(NamedTuple):
  """A model in training.

  Attributes:
    rows, length: of a batch.
    chunk: positions of every row whose logits are built at a time.
    precision: of parameters and moments, as in `OptimizerConfig`.
  """

  model: Model
  rows: int = 8
  length: int = 256
  chunk: int = 0
  precision: str = precision.FULL

  @property
  def tokens(self) -> int:
    """Predicted in a step."""
    return self.rows * (self.length - 1)


SMALL, MEDIUM = Shape(decode.SMALL), Shape(decode.MEDIUM)
BILLION = Shape(
    Model('1B', TrunkConfig(width=2048, layers=16, heads=32, kv_heads=8, head_width=64, mlp_width=8192, dtype='bfloat16',
                            remat='dots'), 32_000),
    length=2048, chunk=256)
LARGE = Shape(
    Model('7B', TrunkConfig(width=4096, layers=32, heads=32, kv_heads=32, head_width=128, mlp_width=11_008, dtype='bfloat16',
                            remat='full'), 32_000),
    rows=4, length=2048, chunk=512, precision=precision.LEAN)


def run(options: Options) -> Iterator[Row]:
  """All cases that this machine can run."""
  on_gpu = jax.default_backend() == 'gpu'
  for shape in (BILLION, LARGE) if on_gpu else (SMALL, MEDIUM):
    if options.wants(case := f'step {shape.model.name}'):
      yield from _step(case, shape, options.runs)


# What is measured.


def batch_of(shape: Shape) -> TokenBatch:
  """Rows of random words, all but the first of which are learnt."""
  rows = decode.prompts(shape.rows, shape.length, shape.model.vocabulary)
  return rows.replace(loss=np.broadcast_to(np.arange(shape.length) > 0, rows.text.shape).astype(np.float32))


def make_ours(shape: Shape, params: Params, optimizer: Optimizer) -> Callable[[], jax.Array]:
  """One step of our loop; gives the loss. The parameters are used up."""
  definition = _definition(shape)
  step = jax.jit(loop.make_step(next_token_loss(definition, chunk=shape.chunk), optimizer), donate_argnums=0)
  held, batch = [loop.init_state(params, optimizer)], jax.device_put(batch_of(shape))

  def one() -> jax.Array:
    held[0], metrics = step(held[0], batch, jax.random.key(0))
    # The update is waited for, not only the loss.
    return jax.block_until_ready((metrics['loss'], held[0]))[0]

  return one


def _definition(shape: Shape) -> Any:
  model = shape.model
  return unified.define(unified.ModelConfig(
      model.trunk, model.vocabulary, model.places, model.depth, model.codebook, param_dtype=precision.HELD[shape.precision]))


def _optimizer(shape: Shape) -> Optimizer:
  config = OptimizerConfig(learning_rate=RATE, b1=BETAS[0], b2=BETAS[1], clip=CLIP, precision=shape.precision)
  return make_optimizer(config, steps=1)


def products(model: Model) -> tuple[float, float, float]:
  """Multiplications of one position with the trunk's weights, with one position that it sees, and with the text head."""
  t = model.trunk
  weights = t.layers * (2 * t.width * t.head_width * (t.heads + t.kv_heads) + 3 * t.width * t.mlp_width)
  return weights, t.layers * 2 * t.heads * t.head_width, t.width * model.vocabulary


def operations(shape: Shape) -> float:
  """Floating-point operations of the model in a step: forward, and twice as many backward."""
  trunk, pair, head = products(shape.model)
  return 6 * shape.rows * shape.length * (trunk + pair * shape.length / 2 + head)


def rate(dtype: str = 'float32', size: int = 0) -> float:
  """Floating-point operations a second of one large product."""
  size = size or (8192 if jax.default_backend() == 'gpu' else 2048)
  square = jnp.ones((size, size), dtype)
  (taken,) = seconds(lambda: _product(square, square), runs=3)
  return 2 * size ** 3 / taken


_product = jax.jit(jnp.matmul)


def _step(case: str, shape: Shape, runs: int) -> Iterator[Row]:
  """Tokens a second against each peer, and against the peak."""
  params = _definition(shape).init(jax.random.key(0), decode._one_device())
  peers = _torch(shape, params) if jax.default_backend() == 'cpu' else {}
  ours = make_ours(shape, params, _optimizer(shape))
  first = {name: float(one()) for name, one in {'ours': ours, **peers}.items()}
  if max(first.values()) - min(first.values()) > 1e-3:
    raise RuntimeError(f'the losses of the first step are not the same: {first}')
  rates: list[float] = []
  taken = seconds(ours, *peers.values(), lambda: rates.append(rate(shape.model.trunk.dtype)), runs=runs)
  name = jax.devices()[0].device_kind
  peak = next((peak for part, peak in PEAKS.items() if part in name), float(np.median(rates)))
  speeds = [shape.tokens / s for s in taken]
  floor = peak * shape.tokens / operations(shape)
  for peer, theirs in zip(peers or [None], speeds[1:], strict=False):
    yield row(case, f'{shape.rows} rows of {shape.length} tokens', speeds[0], '1/s', runs, peer=theirs if peer else None,
              peer_name=peer, floor=floor, less_is_better=False)


# The peers.


def _torch(shape: Shape, params: Params) -> dict[str, Callable[[], float]]:
  """A step of the same weights in PyTorch, eager and compiled; none where it is not installed."""
  try:
    import torch
    import transformers
  except ImportError:
    return {}
  torch.set_num_threads(os.cpu_count() or 1)
  ids = torch.from_numpy(np.asarray(batch_of(shape).text).astype(np.int64))
  found = {}
  with tempfile.TemporaryDirectory() as folder:
    decode.export_llama(shape.model, params, pathlib.Path(folder))
    for name in ('PyTorch eager', 'torch.compile'):
      model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
      run = torch.compile(model) if name == 'torch.compile' else model
      optimizer = torch.optim.AdamW(model.parameters(), RATE, BETAS, weight_decay=0.0, fused=True)

      def one(model: Any = model, run: Any = run, optimizer: Any = optimizer) -> float:
        optimizer.zero_grad()
        loss = run(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.item()

      found[name] = one
  return found
