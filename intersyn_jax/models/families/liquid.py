"""Liquid: a plain Gemma whose vocabulary goes on with the image tokens, in the order of their codes.

config.json is a Gemma's and says nothing of pictures, which are Chameleon's codec; a `vq_config` as in Chameleon's is read where
one is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from intersyn_jax.models.families import chameleon, language, layouts
from intersyn_jax.models.families.entries import Entry
from intersyn_jax.models.families.family import COMPUTED, Family, differs
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.unified import ModelConfig
from intersyn_jax.models.vision.codec import chameleon_codec
from intersyn_jax.models.vision.fields import Fields

_TANH = 'gelu_pytorch_tanh'
_DEFAULTS = {
    'vocab_size': 256000, 'hidden_size': 3072, 'intermediate_size': 24576, 'num_hidden_layers': 28, 'num_attention_heads': 16,
    'num_key_value_heads': 16, 'head_dim': 256, 'rms_norm_eps': 1e-6, 'hidden_act': _TANH,
}

SIZES: Mapping[str, Mapping[str, Any]] = {
    '7b': {'model_type': 'gemma', 'architectures': ['GemmaForCausalLM'], **_DEFAULTS, 'vocab_size': 264192},
    'tiny': {'model_type': 'gemma', 'architectures': ['GemmaForCausalLM'], 'vocab_size': 640, 'hidden_size': 48,
             'intermediate_size': 80, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 16,
             'rms_norm_eps': 1e-6, 'hidden_act': _TANH, 'vq_config': chameleon.SIZES['tiny']['vq_config']},
}


def model(hf: Mapping[str, Any]) -> ModelConfig:
  """The unified model of a config.json.

  Raises:
    UserError: a field of another kind than it should be.
  """
  c = _language(hf)
  trunk, text = _trunk(c), language.text_rows(c.size('vocab_size'), code_rows(hf))
  return ModelConfig(trunk, vocabulary=text, places=chameleon.places(hf), depth=1, codebook=chameleon.codes(hf),
                     image_embedding='table', embedding_scale=trunk.width ** 0.5, tied=c.flag('tie_word_embeddings', True))


def entries(hf: Mapping[str, Any]) -> list[Entry]:
  """Where every parameter of that model lies."""
  c = _language(hf)
  return [*language.joint(code_rows(hf), c.size('vocab_size'), 'model.embed_tokens.weight', 'lm_head.weight',
                          tied=c.flag('tie_word_embeddings', True)),
          *language.trunk_entries(_trunk(c), 'model.')]


def code_rows(hf: Mapping[str, Any]) -> np.ndarray:
  """int[C]: the checkpoint's id of each code, the last rows."""
  size = _language(hf).size('vocab_size')
  return np.arange(size - chameleon.codes(hf), size)


def _language(hf: Mapping[str, Any]) -> Fields:
  # Every Gemma has the tanh form; the first configs called it `gelu`.
  return language.fields({**hf, 'hidden_act': _TANH} if hf.get('hidden_act') == 'gelu' else hf, _DEFAULTS)


def _trunk(c: Fields) -> TrunkConfig:
  return language.trunk(c, norm_offset=1.0)


def _contradiction(hf: Mapping[str, Any]) -> str:
  """A Gemma has another number of rows; one that says how its pictures are coded is believed."""
  rows = () if 'vq_config' in hf else (SIZES['7b']['vocab_size'],)
  return differs(hf, 'model_type', 'gemma') or (differs(hf, 'vocab_size', *rows) if rows else '')


FAMILY = Family(
    name='liquid', sizes=SIZES, contradiction=_contradiction, model=model, entries=entries, codec=chameleon_codec,
    layout=layouts.liquid, code_rows=code_rows, codec_files=('vqgan',), unused=(*COMPUTED, r'vqgan/loss\..*'),
    copies={'lm_head.weight': 'model.embed_tokens.weight'},
    # Liquid's inference_t2i.py.
    decode=dict(image_temperature=0.99, image_top_k=4096, image_top_p=0.96, guidance=7.0))
