"""Benchmark `decode`: what a step of the interleaved decoder costs, against a peer and against the machine.

- `text`: sampled text after a prompt of 64, a Llama-shaped model; the peer is `generate` of transformers on the same weights
  (extra `peers`), the floor a loop of the same matrix products with nothing else in it.
- `images`: text and image blocks in one stream, without and with guidance, one code or four a position.
- `group`: reading one long prompt for eight rows, against reading it for one.
- `large`: on a GPU, a model of 7B in bfloat16 with random weights; the floor is the time to read weights and cache once
  at the copy bandwidth measured in the same run.

Imports jax, flax, optax and numpy, and the peer where it is installed.

Letters: B rows, M positions written, d width, F feed-forward width, V vocabulary, L layers.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax import sharding
from intersyn_jax.benchmarks.rows import Options, Row, row, seconds
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import Completions, Decoder
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.layout import CODES, PADDING, TEXT, Layout, TokenBatch
from intersyn_jax.models import unified
from intersyn_jax.models.definition import Definition, Params
from intersyn_jax.models.trunk import TrunkConfig

PROMPT, NEW = 64, 192
"""Positions of a prompt, and positions written after it."""

HEADS = 8
"""Heads of the models for a CPU."""

CHUNK = 32
"""Positions after which the cache grows for the first time."""

SPECIALS = ('<pad>', '<s>', '</s>', '<user>', '<model>', '<image>', '</image>', '<think>', '</think>', '<vis>', '</vis>')


class Ids(NamedTuple):
  """What the decoder asks of a text tokenizer, without one."""

  size: int
  specials: range = range(len(SPECIALS))

  def special(self, name: str) -> int:
    return SPECIALS.index(name)


class Model(NamedTuple):
  """A benchmark model: about `name` parameters."""

  name: str
  trunk: TrunkConfig
  vocabulary: int
  depth: int = 1
  places: int = 64
  codebook: int = 2048

  @property
  def layout(self) -> Layout:
    return layout.plain_layout(Ids(self.vocabulary), places=self.places, depth=self.depth, codebook=self.codebook)

  @property
  def definition(self) -> Definition:
    return unified.define(unified.ModelConfig(
        self.trunk, self.vocabulary, self.places, self.depth, self.codebook,
        image_head='flat' if self.depth == 1 else 'residual'))


# `remat` is of benchmarks that train: to keep what is no product takes a CPU longer than to make it again.
SMALL = Model('7M', TrunkConfig(
    width=256, layers=6, heads=HEADS, kv_heads=HEADS, head_width=32, mlp_width=1024, remat='dots'), 2048)
MEDIUM = Model('40M', TrunkConfig(
    width=512, layers=12, heads=HEADS, kv_heads=HEADS, head_width=64, mlp_width=1536, remat='dots'), 2048)
RESIDUAL = SMALL._replace(name='7M D=4', depth=4)
LARGE = Model('7B', TrunkConfig(width=4096, layers=32, heads=32, kv_heads=32, head_width=128, mlp_width=11008,
                                dtype='bfloat16'), 32_000, places=256, codebook=16_384)


def run(options: Options) -> Iterator[Row]:
  """All cases that this machine can run."""
  if jax.devices()[0].platform == 'gpu':
    yield from _large(options)
    return
  for model in (SMALL, MEDIUM):
    for batch in (1, 8, 32):
      if options.wants(case := f'text {model.name} batch {batch}'):
        yield from _text(case, model, batch, options.runs)
  for model in (SMALL, RESIDUAL):
    for guidance in (1.0, 3.0):
      if options.wants(case := f'images {model.name} batch 8 {"guided" if guidance > 1 else "plain"}'):
        yield from _images(case, model, 8, guidance, options.runs)
  if options.wants(case := 'group of 8 prompt 1024 7M'):
    yield _group(case, options.runs)


# Models and prompts.


def _one_device() -> jax.sharding.Mesh:
  return sharding.make_mesh({}, jax.devices()[:1])


@functools.lru_cache(maxsize=2)
def _params(model: Model) -> Params:
  """Random weights in the dtype of the activations."""
  definition, mesh = model.definition, _one_device()
  if model.trunk.dtype == 'float32':
    return definition.init(jax.random.key(0), mesh)
  cast = jax.jit(lambda a: (jnp.zeros(a.shape, model.trunk.dtype) + jnp.asarray(0.01, model.trunk.dtype)), static_argnums=0)
  return jax.tree.map(lambda a: cast(jax.ShapeDtypeStruct(a.shape, a.dtype)), definition.shapes)


def prompts(count: int, length: int, vocabulary: int) -> TokenBatch:
  """Rows of random words, [count,length]."""
  text = np.random.default_rng(0).integers(len(SPECIALS), vocabulary, (count, length)).astype(np.int32)
  zeros = np.zeros_like(text)
  return TokenBatch(
      text=text, codes=zeros[..., None], modality=np.full(text.shape, TEXT, np.int8), loss=np.zeros(text.shape, np.float32),
      forced=np.zeros(text.shape, bool), document=np.ones_like(text),
      position=np.broadcast_to(np.arange(length, dtype=np.int32), text.shape), turn=zeros, step=zeros - 1)


def _deep(batch: TokenBatch, depth: int) -> TokenBatch:
  return batch.replace(codes=np.zeros((*batch.text.shape, depth), np.int32))


def _writer(model: Model, **config: Any) -> Decoder:
  return Decoder(model.definition, model.layout, _one_device(), DecodeConfig(**config))


def _rollout(model: Model, batch: int, params: Params, length: int = PROMPT, **config: Any) -> Callable[[], Completions]:
  writer = _writer(model, **config)
  rows = jax.device_put(_deep(prompts(batch, length, model.vocabulary), model.depth))
  requests = np.arange(batch, dtype=np.uint32)
  return lambda: writer.rollout(params, rows, requests, 0, group=1)


def _products(params: Params, batch: int, steps: int, places: int = 0) -> Callable[[], jax.Array]:
  """The floor: the matrix products of `steps` steps, each weight by itself, each product waiting for the one before.

  With `places` also those of attention, queries with keys and weights with values, over so many places of a cache.
  """
  stacked = params['backbone']['trunk']['layers']
  count, width = stacked['query_kernel'].shape[:2]
  names = ('query_kernel', 'key_kernel', 'value_kernel', 'out_kernel', 'gate_kernel', 'up_kernel', 'down_kernel')
  layers = [[jnp.asarray(stacked[name][i]) for name in names] for i in range(count)]
  cache = [jnp.full((2, batch, HEADS, places, stacked['key_kernel'].shape[2] // HEADS), 0.01 + i) for i in range(count)]

  def attend(query: jax.Array, held: jax.Array) -> jax.Array:
    keys, values = held
    weights = jnp.einsum('bkh,bksh->bks', query.reshape(batch, HEADS, -1), keys)
    return jnp.einsum('bks,bksh->bkh', weights, values).reshape(batch, -1) / places

  @jax.jit
  def loop(layers: list, cache: list, head: jax.Array, x: jax.Array) -> jax.Array:
    def step(_: jax.Array, x: jax.Array) -> jax.Array:
      for (query, key, value, out, gate, up, down), held in zip(layers, cache, strict=True):
        mixed = x @ query + (x @ key + x @ value)[:, :1]
        if places:
          mixed = mixed + 1e-6 * attend(mixed, held)
        x = 1 + 0.1 * (mixed @ out)
        x = 1 + 0.1 * (((x @ gate) * (x @ up)) @ down)
      return x + 1e-3 * jnp.sum(x @ head, axis=-1, keepdims=True)

    return jax.lax.fori_loop(0, steps, step, x)

  start = jnp.ones((batch, width))
  return lambda: loop(layers, cache, params['text_head'], start)


# Cases.


def _text(case: str, model: Model, batch: int, runs: int) -> Iterator[Row]:
  """Milliseconds a step of text, against `generate` and the matrix products, of the weights and of attention too."""
  params = _params(model)
  # Nothing but the room ends a completion: the stop token is one that no model may choose.
  ours = _rollout(model, batch, params, max_positions=NEW, max_images=0, stop=('<pad>',), chunk=CHUNK)
  functions: list[Callable[[], Any]] = [ours, _products(params, batch, NEW), _products(params, batch, NEW, PROMPT + NEW // 2)]
  peer = _transformers(model, params, batch)
  functions += [peer] if peer else []
  taken = [1000 * s / NEW for s in seconds(*functions, runs=runs)]
  yield row(case, 'sampled step', taken[0], 'ms', runs, peer=taken[3] if peer else None,
            peer_name='transformers generate' if peer else None, floor=taken[1])
  yield row(case, 'sampled step, attention in the floor', taken[0], 'ms', runs, floor=taken[2])


def _images(case: str, model: Model, batch: int, guidance: float, runs: int) -> Iterator[Row]:
  """Tokens and images a second of a stream in which about half of the positions are of images."""
  params = _eager(_params(model), model.layout)
  ours = _rollout(model, batch, params, max_positions=4 * NEW, max_images=4, guidance=guidance, stop=('<pad>',),
                  chunk=CHUNK)
  done = jax.device_get(ours().tokens)
  positions, images = int((done.modality != PADDING).sum()), int((done.modality == CODES).sum()) // model.places
  taken, least = seconds(ours, _products(params, batch * (2 if guidance > 1 else 1), 4 * NEW), runs=runs)
  yield row(case, 'positions', positions / taken, '1/s', runs, floor=positions / least, less_is_better=False)
  yield row(case, 'images', images / taken, '1/s', runs, floor=images / least, less_is_better=False)


def _eager(params: Params, layout_: Layout, every: int = 40) -> Params:
  """The same weights, but an image is begun after `every` positions of text on average.

  One coordinate of the hidden state is made the same at all positions, large, and the begin token's logit hangs on it.
  """
  params = jax.tree.map(np.array, params)
  backbone, head = params['backbone'], params['text_head']
  pictures = backbone['image_embedding']
  backbone['text_embedding'][:, 0], pictures['place_embedding'][:, 0] = 20.0, 0.0
  pictures['code_embedding'][:, 0] = 20.0 / layout_.block.depth
  for name in ('out_kernel', 'down_kernel'):
    backbone['trunk']['layers'][name][..., 0] = 0.0
  head[0] = 0.0
  head[0, layout_.block.begin] = np.log(head.shape[1] / every) / np.sqrt(len(head))
  return jax.tree.map(jnp.asarray, params)


def _group(case: str, runs: int) -> Row:
  """Milliseconds until eight rows of one prompt of 1,024 stand ready; the peer is ourselves with one row."""
  params, writer = _params(SMALL), _writer(SMALL, max_positions=NEW)
  rows = jax.device_put(prompts(1, 1024, SMALL.vocabulary))
  start = jax.jit(lambda params, rows, group: writer.resize(writer.start(
      writer.bind(params), rows, jnp.arange(group, dtype=jnp.uint32), group), 1024, NEW), static_argnums=2)
  eight, one = seconds(lambda: start(params, rows, 8), lambda: start(params, rows, 1), runs=runs)
  return row(case, 'prefill', 1000 * eight, 'ms', runs, peer=1000 * one, peer_name='group of 1')


def _large(options: Options) -> Iterator[Row]:
  """Milliseconds a step of 7B on a GPU, against reading weights and cache once."""
  bandwidth = _bandwidth(options.runs)
  yield row('copy', 'bandwidth', bandwidth / 1e9, 'GB/s', options.runs, less_is_better=False)
  for model, batch, prompt in ((LARGE, 1, PROMPT), (LARGE, 8, PROMPT), (LARGE, 64, 1024),
                               (LARGE._replace(name='7B D=4', depth=4), 8, PROMPT)):
    case = f'text {model.name} batch {batch} prompt {prompt}'
    if not options.wants(case):
      continue
    params = _params(model)
    ours = _rollout(model, batch, params, prompt, max_positions=NEW, max_images=0, stop=('<pad>',))
    first = _rollout(model, batch, params, prompt, max_positions=1, max_images=0, stop=('<pad>',))
    whole, start = seconds(ours, first, runs=options.runs)
    weights = sum(a.nbytes for a in jax.tree.leaves(params['backbone']['trunk'])) + params['text_head'].nbytes
    cache = 4 * batch * model.trunk.layers * model.trunk.kv_heads * model.trunk.head_width * (prompt + NEW)
    yield row(case, 'sampled step', 1000 * (whole - start) / (NEW - 1), 'ms', options.runs,
              floor=1000 * (weights + cache) / bandwidth)


def _bandwidth(runs: int) -> float:
  """Bytes a second that a copy reads and writes, together."""
  array = jnp.zeros(2**30, jnp.bfloat16)
  (taken,) = seconds(functools.partial(jax.jit(lambda a: a + 1), array), runs=runs)
  return 2 * array.nbytes / taken


# The peer.


def _transformers(model: Model, params: Params, batch: int) -> Callable[[], Any] | None:
  """`generate` on the same weights, through a folder of safetensors; None where transformers is not installed."""
  try:
    import torch
    import transformers
  except ImportError:
    return None
  torch.set_num_threads(os.cpu_count() or 1)
  transformers.logging.set_verbosity_error()
  transformers.utils.logging.disable_progress_bar()
  with tempfile.TemporaryDirectory() as folder:
    export_llama(model, params, pathlib.Path(folder))
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
  ids = torch.from_numpy(np.asarray(prompts(batch, PROMPT, model.vocabulary).text).astype(np.int64))
  settings = transformers.GenerationConfig(do_sample=True, top_k=0, top_p=1.0, max_new_tokens=NEW, min_new_tokens=NEW,
                                           eos_token_id=None, pad_token_id=0)

  def generate() -> None:
    with torch.no_grad():
      found = theirs.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    if found.shape[1] != PROMPT + NEW:
      raise RuntimeError(f'generate wrote {found.shape[1] - PROMPT} positions, not {NEW}')

  return generate


def llama_tensors(params: Params) -> dict[str, np.ndarray]:
  """The text side under the names of transformers, whose linear layers hold [outputs, inputs]."""
  backbone = params['backbone']
  layers = backbone['trunk']['layers']
  names = {'self_attn.q_proj': 'query_kernel', 'self_attn.k_proj': 'key_kernel', 'self_attn.v_proj': 'value_kernel',
           'self_attn.o_proj': 'out_kernel', 'mlp.gate_proj': 'gate_kernel', 'mlp.up_proj': 'up_kernel',
           'mlp.down_proj': 'down_kernel'}
  host = lambda a: np.ascontiguousarray(np.asarray(a, np.float32))
  found = {'model.embed_tokens.weight': host(backbone['text_embedding']), 'lm_head.weight': host(params['text_head'].T),
           'model.norm.weight': host(backbone['trunk']['norm']['scale'])}
  for i in range(len(layers['query_kernel'])):
    found |= {f'model.layers.{i}.{theirs}.weight': host(layers[ours][i].T) for theirs, ours in names.items()}
    found[f'model.layers.{i}.input_layernorm.weight'] = host(layers['attention_norm']['scale'][i])
    found[f'model.layers.{i}.post_attention_layernorm.weight'] = host(layers['mlp_norm']['scale'][i])
  return found


def export_llama(model: Model, params: Params, folder: pathlib.Path) -> None:
  """Writes the text side as a safetensors folder that LlamaForCausalLM loads."""
  from safetensors.numpy import save_file
  trunk = model.trunk
  save_file(llama_tensors(params), folder / 'model.safetensors', metadata={'format': 'pt'})
  (folder / 'config.json').write_text(json.dumps(dict(
      architectures=['LlamaForCausalLM'], model_type='llama', vocab_size=model.vocabulary, hidden_size=trunk.width,
      intermediate_size=trunk.mlp_width, num_hidden_layers=trunk.layers, num_attention_heads=trunk.heads,
      num_key_value_heads=trunk.kv_heads, head_dim=trunk.head_width, rope_theta=trunk.rope_base,
      rms_norm_eps=trunk.norm_epsilon, tie_word_embeddings=False, max_position_embeddings=2048)))
