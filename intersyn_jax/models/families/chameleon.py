"""Chameleon and Anole: one vocabulary of text and image tokens, a norm on every query and key head.

Names and defaults are those of transformers' Chameleon. Anole is Chameleon with other rows for image tokens in its head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from intersyn_jax.models.families import language, layouts
from intersyn_jax.models.families.entries import Entry
from intersyn_jax.models.families.family import COMPUTED, Family, differs
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.unified import ModelConfig
from intersyn_jax.models.vision.codec import chameleon_codec
from intersyn_jax.models.vision.fields import Fields

_DEFAULTS = {
    'vocab_size': 65536, 'hidden_size': 4096, 'intermediate_size': 11008, 'num_hidden_layers': 32, 'num_attention_heads': 32,
    'num_key_value_heads': 32, 'rms_norm_eps': 1e-5,
}
FIRST = 4
"""Row of code 0 in the public vocabulary, after the four special tokens."""

SIZES: Mapping[str, Mapping[str, Any]] = {
    '7b': {'model_type': 'chameleon', 'architectures': ['ChameleonForConditionalGeneration'], **_DEFAULTS, 'swin_norm': False,
           'vq_config': {'resolution': 512, 'num_embeddings': 8192, 'embed_dim': 256}},
    'tiny': {'model_type': 'chameleon', 'architectures': ['ChameleonForConditionalGeneration'], 'vocab_size': 640,
             'hidden_size': 48, 'intermediate_size': 80, 'num_hidden_layers': 2, 'num_attention_heads': 4,
             'num_key_value_heads': 2, 'rms_norm_eps': 1e-5,
             'vq_config': {'base_channels': 32, 'channel_multiplier': [1, 2, 2], 'num_res_blocks': 1, 'latent_channels': 24,
                           'embed_dim': 12, 'num_embeddings': 60, 'resolution': 16, 'attn_resolutions': [8]}},
}


def model(hf: Mapping[str, Any]) -> ModelConfig:
  """The unified model of a config.json.

  Raises:
    UserError: a field of another kind than it should be.
  """
  c = _language(hf)
  text = language.text_rows(c.size('vocab_size'), code_rows(hf))
  return ModelConfig(_trunk(c), vocabulary=text, places=places(hf), depth=1, codebook=codes(hf), image_embedding='table',
                     tied=c.flag('tie_word_embeddings', False))


def entries(hf: Mapping[str, Any]) -> list[Entry]:
  """Where every parameter of that model lies."""
  c = _language(hf)
  return [*language.joint(code_rows(hf), c.size('vocab_size'), 'model.embed_tokens.weight', 'lm_head.weight',
                          tied=c.flag('tie_word_embeddings', False)),
          *language.trunk_entries(_trunk(c), 'model.')]


def code_rows(hf: Mapping[str, Any]) -> np.ndarray:
  """int[C]: the checkpoint's id of each code. An image token is `IMGIMG`, its code in letters A-J for 0-9, and `Z`."""
  digits = str.maketrans('ABCDEFGHIJ', '0123456789')
  return language.rows_by_name(hf, r'IMGIMG([A-J]{1,9})Z', lambda letters: int(letters.translate(digits)), first=FIRST,
                               count=codes(hf), size=_language(hf).size('vocab_size'))


def codes(hf: Mapping[str, Any]) -> int:
  """C."""
  return Fields(hf).section('vq_config').size('num_embeddings', 8192)


def places(hf: Mapping[str, Any]) -> int:
  """P of a picture."""
  c = Fields(hf).section('vq_config')
  return (c.size('resolution', 512) >> len(c.sizes('channel_multiplier', (1, 1, 2, 2, 4))) - 1) ** 2


def _language(hf: Mapping[str, Any]) -> Fields:
  return language.fields(hf, _DEFAULTS)


def _trunk(c: Fields) -> TrunkConfig:
  return language.trunk(c, qk_norm=True, swin_norm=c.flag('swin_norm', False))


FAMILY = Family(
    name='chameleon', sizes=SIZES, contradiction=lambda hf: differs(hf, 'model_type', 'chameleon'), model=model, entries=entries,
    codec=chameleon_codec, layout=layouts.chameleon, code_rows=code_rows, codec_files=('vqgan',),
    unused=(*COMPUTED, r'vqgan/loss\..*'), copies={'lm_head.weight': 'model.embed_tokens.weight'},
    # Meta's inference code: three branches of guidance. Anole's uses the same.
    decode=dict(text_temperature=1.0, text_top_p=0.9, text_repetition=1.2, image_temperature=0.7, image_top_p=0.9, guidance=3.0,
                image_guidance=1.2))
