"""Janus and Janus-Pro: a Llama whose pictures come in as SigLIP features, and go out and come back as codes.

Text has its vocabulary for itself. Codes have their own embedding (a small vector, projected) and head; features, which the
language model reads where a question shows a picture, have a projector. Names and defaults are those of transformers' Janus.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from intersyn_jax.models.families import language, layouts
from intersyn_jax.models.families.entries import Entry, same
from intersyn_jax.models.families.family import COMPUTED, Family, differs
from intersyn_jax.models.image_embeddings import ProjectedEmbedding
from intersyn_jax.models.image_heads import MLPHead
from intersyn_jax.models.unified import ModelConfig
from intersyn_jax.models.vision.codec import janus_codec, janus_features
from intersyn_jax.models.vision.fields import Fields

_DEFAULTS = {
    'vocab_size': 32000, 'hidden_size': 4096, 'intermediate_size': 11008, 'num_hidden_layers': 32, 'num_attention_heads': 32,
    'rms_norm_eps': 1e-6,
}
"""Of a Llama, which is what `text_config` is compared with when it is written."""
_VISION = {'hidden_size': 1024, 'image_size': 384, 'patch_size': 16, 'projection_dim': 2048, 'depth': 2, 'hidden_act': 'gelu'}
_VQ = {'num_embeddings': 16384, 'embed_dim': 8, 'projection_dim': 2048, 'image_token_embed_dim': 2048, 'num_hidden_layers': 2,
       'hidden_act': 'gelu'}


def _size(width: int, layers: int, heads: int, mlp_width: int) -> Mapping[str, Any]:
  return {
      'model_type': 'janus', 'architectures': ['JanusForConditionalGeneration'], 'tie_word_embeddings': False,
      'text_config': {'model_type': 'llama', 'vocab_size': 102400, 'hidden_size': width, 'intermediate_size': mlp_width,
                      'num_hidden_layers': layers, 'num_attention_heads': heads, 'num_key_value_heads': heads,
                      'rms_norm_eps': 1e-6, 'max_position_embeddings': 16384},
      'vision_config': {'hidden_size': 1024, 'num_hidden_layers': 24, 'num_attention_heads': 16, 'image_size': 384,
                        'patch_size': 16, 'projection_dim': width, 'depth': 2, 'hidden_act': 'gelu'},
      'vq_config': {'num_embeddings': 16384, 'embed_dim': 8, 'projection_dim': width, 'image_token_embed_dim': width,
                    'num_hidden_layers': 2, 'hidden_act': 'gelu'}}


SIZES: Mapping[str, Mapping[str, Any]] = {
    '1b': _size(2048, 24, 16, 5632),
    '7b': _size(4096, 30, 32, 11008),
    'tiny': {
        'model_type': 'janus', 'architectures': ['JanusForConditionalGeneration'], 'tie_word_embeddings': False,
        'text_config': {'model_type': 'llama', 'vocab_size': 580, 'hidden_size': 48, 'intermediate_size': 80,
                        'num_hidden_layers': 2, 'num_attention_heads': 4, 'num_key_value_heads': 2, 'rms_norm_eps': 1e-6},
        'vision_config': {'hidden_size': 32, 'num_hidden_layers': 3, 'num_attention_heads': 4, 'image_size': 16, 'patch_size': 2,
                          'mlp_ratio': 3.0, 'hidden_act': 'gelu', 'projection_dim': 48, 'depth': 2},
        'vq_config': {'base_channels': 32, 'channel_multiplier': [1, 2], 'num_res_blocks': 1, 'latent_channels': 24,
                      'embed_dim': 8, 'num_embeddings': 60, 'projection_dim': 48, 'image_token_embed_dim': 48,
                      'num_hidden_layers': 2, 'hidden_act': 'gelu'}},
}


def model(hf: Mapping[str, Any]) -> ModelConfig:
  """The unified model of a config.json.

  Raises:
    UserError: a field of another kind than it should be, or projectors of another depth or activation than the published.
  """
  c = _language(hf)
  trunk = language.trunk(c)
  vision, vq = _fields(hf, 'vision_config', _VISION), _fields(hf, 'vq_config', _VQ)
  for projector, layers, *widths in ((vision, 'depth', 'projection_dim'),
                                     (vq, 'num_hidden_layers', 'projection_dim', 'image_token_embed_dim')):
    projector.only(layers, 2)
    projector.only('hidden_act', 'gelu')
    for name in widths:
      projector.only(name, trunk.width)
  return ModelConfig(
      trunk, vocabulary=c.size('vocab_size'), places=(vision.size('image_size') // vision.size('patch_size')) ** 2, depth=1,
      codebook=vq.size('num_embeddings'), features=vision.size('hidden_size'),
      image_embedding=functools.partial(ProjectedEmbedding, code_width=vq.size('embed_dim')), image_head=MLPHead,
      tied=_tied(hf))


def entries(hf: Mapping[str, Any]) -> list[Entry]:
  """Where every parameter of that model lies."""
  projectors = {'backbone/image_embedding': ('model.generation_aligner.fc1', 'model.generation_aligner.hidden_layers.0'),
                'backbone/feature_projector': ('model.aligner.fc1', 'model.aligner.hidden_layers.0'),
                'image_head': ('model.generation_head.proj_out', 'model.generation_head.vision_head')}
  return [*language.apart('model.language_model.embed_tokens.weight', 'lm_head.weight', tied=_tied(hf)),
          *language.trunk_entries(language.trunk(_language(hf)), 'model.language_model.'),
          same('backbone/image_embedding/codebook', 'model.generation_embeddings.weight'),
          *(entry for ours, theirs in projectors.items() for entry in language.projector_entries(ours, *theirs))]


def _language(hf: Mapping[str, Any]) -> Fields:
  return _fields(hf, 'text_config', _DEFAULTS)


def _fields(hf: Mapping[str, Any], section: str, defaults: Mapping[str, Any]) -> Fields:
  return language.fields(Fields(hf).section(section).given, defaults, f'{section}.')


def _tied(hf: Mapping[str, Any]) -> bool:
  """No published Janus ties its head. (transformers' class says it does by default, and unties a checkpoint that has both.)"""
  return Fields(hf).flag('tie_word_embeddings', False)


FAMILY = Family(
    name='janus', sizes=SIZES, contradiction=lambda hf: differs(hf, 'model_type', 'janus'), model=model, entries=entries,
    codec=janus_codec, features=janus_features, layout=layouts.janus, unused=COMPUTED,
    copies={'lm_head.weight': 'model.language_model.embed_tokens.weight'},
    # Janus's generation_inference.py; its inference.py takes the likeliest word.
    decode=dict(text_temperature=0.0, image_temperature=1.0, guidance=5.0))
