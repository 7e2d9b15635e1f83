"""Emu3: a Llama with grouped keys and one vocabulary, whose last rows are the image tokens.

Names and defaults are those of transformers' Emu3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from intersyn_jax.models.families import language, layouts
from intersyn_jax.models.families.entries import Entry
from intersyn_jax.models.families.family import COMPUTED, Family, differs
from intersyn_jax.models.unified import ModelConfig
from intersyn_jax.models.vision.codec import emu3_codec
from intersyn_jax.models.vision.fields import Fields

_DEFAULTS = {
    'vocab_size': 184622, 'hidden_size': 4096, 'intermediate_size': 14336, 'num_hidden_layers': 32, 'num_attention_heads': 32,
    'num_key_value_heads': 8, 'rms_norm_eps': 1e-5, 'rope_theta': 1_000_000.0,
}

SIZES: Mapping[str, Mapping[str, Any]] = {
    '8b': {'model_type': 'emu3', 'architectures': ['Emu3ForConditionalGeneration'],
           'text_config': {'model_type': 'emu3_text_model', **_DEFAULTS}, 'vq_config': {'codebook_size': 32768, 'embed_dim': 4}},
    'tiny': {'model_type': 'emu3', 'architectures': ['Emu3ForConditionalGeneration'],
             'text_config': {'model_type': 'emu3_text_model', 'vocab_size': 640, 'hidden_size': 48, 'intermediate_size': 80,
                             'num_hidden_layers': 2, 'num_attention_heads': 4, 'num_key_value_heads': 2, 'rms_norm_eps': 1e-5,
                             'rope_theta': 1_000_000.0, 'pad_token_id': 0, 'bos_token_id': 1, 'eos_token_id': 2},
             'vq_config': {'base_channels': 32, 'channel_multiplier': [1, 2], 'num_res_blocks': 1, 'embed_dim': 4,
                           'latent_channels': 4, 'codebook_size': 60, 'hidden_size': 64, 'num_attention_heads': 2,
                           'attn_resolutions': [1], 'temporal_downsample_factor': 4},
             'image_pixels': 16},
}


def model(hf: Mapping[str, Any]) -> ModelConfig:
  """The unified model of a config.json; `image_pixels` (see `vision.codec.emu3_codec`) fixes the places of a picture.

  Raises:
    UserError: a field of another kind than it should be.
  """
  c, top = _language(hf), Fields(hf)
  side = top.size('image_pixels', 720) >> len(top.section('vq_config').sizes('channel_multiplier', (1, 2, 2, 4))) - 1
  text = language.text_rows(c.size('vocab_size'), code_rows(hf))
  return ModelConfig(language.trunk(c), vocabulary=text, places=side ** 2, depth=1, codebook=_codes(hf), image_embedding='table',
                     tied=top.flag('tie_word_embeddings', False))


def entries(hf: Mapping[str, Any]) -> list[Entry]:
  """Where every parameter of that model lies."""
  c = _language(hf)
  return [*language.joint(code_rows(hf), c.size('vocab_size'), 'model.text_model.embed_tokens.weight', 'lm_head.weight',
                          tied=Fields(hf).flag('tie_word_embeddings', False)),
          *language.trunk_entries(language.trunk(c), 'model.text_model.')]


def code_rows(hf: Mapping[str, Any]) -> np.ndarray:
  """int[C]: the checkpoint's id of each code, an image token being `<|visual token 000000|>`."""
  size, count = _language(hf).size('vocab_size'), _codes(hf)
  return language.rows_by_name(hf, r'<\|visual token (\d{6})\|>', int, first=size - count, count=count, size=size)


def _language(hf: Mapping[str, Any]) -> Fields:
  return language.fields(Fields(hf).section('text_config').given, _DEFAULTS, 'text_config.')


def _codes(hf: Mapping[str, Any]) -> int:
  return Fields(hf).section('vq_config').size('codebook_size', 32768)


FAMILY = Family(
    name='emu3', sizes=SIZES, contradiction=lambda hf: differs(hf, 'model_type', 'emu3'), model=model, entries=entries,
    codec=emu3_codec, layout=layouts.emu3, code_rows=code_rows, unused=COMPUTED,
    copies={'lm_head.weight': 'model.text_model.embed_tokens.weight'},
    # Names before transformers 5, which the released folders have.
    older=((r'^text_model\.lm_head', 'lm_head'), (r'^text_model\.model', 'model.text_model'), (r'^vqmodel', 'model.vqmodel')),
    # Emu3's image_generation.py; its multimodal_understanding.py takes the likeliest word.
    decode=dict(text_temperature=0.0, image_top_k=2048, guidance=3.0))
