"""Our model without images and token mixer is a Llama: the same weights give the logits of transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from intersyn_jax.benchmarks.decode import llama_tensors
from intersyn_jax.interleave.layout import TEXT, TokenBatch
from intersyn_jax.models import unified
from intersyn_jax.models.trunk import TrunkConfig

WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_WIDTH, MLP, VOCABULARY = 48, 3, 4, 2, 12, 80, 101
BATCH, LENGTH = 2, 37
SCALE = {'scale': 1.0, 'text_embedding': 1.0, 'text_head': 0.3}
"""Of each kind of weight, so that every layer changes the result; kernels get 1/sqrt(inputs)."""


def weights(definition) -> dict:
  """Every tensor drawn by itself; norms around 1."""
  rng = np.random.default_rng(5)

  def draw(path, shape):
    name = path[-1].key
    values = rng.standard_normal(shape.shape).astype(np.float32)
    if name == 'scale':
      return 1.0 + 0.3 * values
    return values * np.float32(SCALE.get(name, 1.5 * shape.shape[-2] ** -0.5))

  return jax.tree_util.tree_map_with_path(draw, definition.shapes)


def text_rows(text: np.ndarray, document: np.ndarray, position: np.ndarray) -> TokenBatch:
  zeros = np.zeros_like(text)
  return TokenBatch(
      text=text, codes=zeros[..., None], modality=np.full(text.shape, TEXT, np.int8), loss=np.ones(text.shape, np.float32),
      forced=np.zeros(text.shape, bool), document=document, position=position, turn=zeros, step=zeros)


@pytest.fixture(scope='module')
def models():
  """Ours as a function of a batch, and theirs, on the same weights in float32."""
  trunk = TrunkConfig(WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_WIDTH, MLP, rope_base=5000.0, norm_epsilon=3e-5)
  definition = unified.define(unified.ModelConfig(trunk, VOCABULARY, places=4, depth=1, codebook=8, mix=1))
  params = weights(definition)

  @jax.jit
  def ours(batch):
    with jax.default_matmul_precision('highest'):
      model = definition.bind(jax.tree.map(jnp.asarray, params))
      return model.text_logits(model(batch))

  theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
      vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
      num_key_value_heads=KV_HEADS, head_dim=HEAD_WIDTH, rope_theta=5000.0, rms_norm_eps=3e-5, tie_word_embeddings=False,
      attention_bias=False, mlp_bias=False, max_position_embeddings=128, attn_implementation='eager')).float().eval()
  tensors = {name: torch.from_numpy(value) for name, value in llama_tensors(params).items()}
  theirs.load_state_dict(tensors, strict=True)
  return ours, theirs


def llama_logits(theirs, text: np.ndarray) -> np.ndarray:
  with torch.no_grad():
    return theirs(input_ids=torch.from_numpy(text.astype(np.int64))).logits.numpy()


def test_logits(models):
  ours, theirs = models
  text = np.random.default_rng(1).integers(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)
  position = np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1))
  found, wanted = np.asarray(ours(text_rows(text, np.ones_like(text), position))), llama_logits(theirs, text)
  assert found.shape == wanted.shape == (BATCH, LENGTH, VOCABULARY)
  assert wanted.std() > 0.5  # a difference in any weight would show
  assert np.abs(found - wanted).max() < 1e-4


def test_packed_documents_are_separate_llama_inputs(models):
  ours, theirs = models
  text = np.random.default_rng(2).integers(0, VOCABULARY, (1, LENGTH)).astype(np.int32)
  cut = 15
  document = np.where(np.arange(LENGTH) < cut, 1, 2)[None].astype(np.int32)
  position = np.concatenate([np.arange(cut), np.arange(LENGTH - cut)])[None].astype(np.int32)
  found = np.asarray(ours(text_rows(text, document, position)))
  wanted = np.concatenate([llama_logits(theirs, part) for part in (text[:, :cut], text[:, cut:])], axis=1)
  assert np.abs(found - wanted).max() < 1e-4


@pytest.mark.parametrize('leaf', ['query_kernel', 'key_kernel', 'value_kernel', 'out_kernel', 'gate_kernel', 'up_kernel',
                                  'down_kernel'])
def test_every_kernel_counts(models, leaf):
  """The comparison can fail: one changed kernel in the last layer moves their logits far more than the tolerance."""
  theirs = models[1]
  names = {'query_kernel': 'self_attn.q_proj', 'key_kernel': 'self_attn.k_proj', 'value_kernel': 'self_attn.v_proj',
           'out_kernel': 'self_attn.o_proj', 'gate_kernel': 'mlp.gate_proj', 'up_kernel': 'mlp.up_proj',
           'down_kernel': 'mlp.down_proj'}
  text = np.random.default_rng(3).integers(0, VOCABULARY, (1, LENGTH)).astype(np.int32)
  before = llama_logits(theirs, text)
  weight = theirs.get_parameter(f'model.layers.{LAYERS - 1}.{names[leaf]}.weight')
  with torch.no_grad():
    kept = weight.clone()
    weight.copy_(weight.roll(1, dims=0))
  try:
    assert np.abs(llama_logits(theirs, text) - before).max() > 1e-2
  finally:
    with torch.no_grad():
      weight.copy_(kept)
