"""VILA-U: a Llama-2 between a projector of residual codes and a depth transformer that writes them.

The checkpoint is three folders, `llm`, `vision_tower` and `mm_projector`, each with a config.json, which are fields of that
name here; tensors have the folder before their names. The codebook belongs to the image tokenizer (`vision.codec`); projector
and depth transformer read it too, so the model holds it as well, and never writes it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from intersyn_jax.models.families import language, layouts
from intersyn_jax.models.families.entries import Entry, linear, prefixed, same, stacked
from intersyn_jax.models.families.family import COMPUTED, Family, differs
from intersyn_jax.models.image_embeddings import ProjectedEmbedding
from intersyn_jax.models.image_heads import DepthHead
from intersyn_jax.models.unified import ModelConfig
from intersyn_jax.models.vision.codec import vila_u_codec
from intersyn_jax.models.vision.fields import Fields

_DEFAULTS = {
    'vocab_size': 32004, 'hidden_size': 4096, 'intermediate_size': 11008, 'num_hidden_layers': 32, 'num_attention_heads': 32,
    'rms_norm_eps': 1e-5,
}
"""Of Llama-2-7B, with four tokens added."""

_BLOCK = {'query': 'attn.query', 'key': 'attn.key', 'value': 'attn.value', 'out': 'attn.proj', 'up': 'mlp.0', 'down': 'mlp.2'}
_BLOCK_NORMS = {'norm1': 'ln1', 'norm2': 'ln2'}


def _public(siglip: str, width: int, side: int, depth: int, latent: int) -> dict[str, Any]:
  """config.json of a public size: SigLIP `width`, side^2 places of `depth` codes, a decoder that begins at latent^2."""
  shape = [side, side, depth]
  return {
      'model_type': 'vila_u', 'architectures': ['VILAULlamaModel'],
      'llm': {'model_type': 'llama', **_DEFAULTS, 'num_key_value_heads': 32},
      'mm_projector': {'mm_projector_type': 'mlp2x_gelu'},
      'vision_tower': {
          'rqvaesiglip': {'pretrained_model': siglip, 'embed_dim': width, 'n_embed': 16384, 'latent_shape': [side, side, width],
                          'code_shape': shape, 'shared_codebook': True, 'decoder_latent_shape': [latent, latent],
                          'ddconfig': {'ch': 128, 'out_ch': 3, 'ch_mult': [1, 1, 2, 2, 4], 'num_res_blocks': 2,
                                       'attn_resolutions': [latent], 'resolution': 16 * latent, 'z_channels': 256}},
          'rqtransformer': {'block_size': shape, 'input_embed_dim_1': width, 'input_embed_dim_2': 4096, 'embed_dim': 2560,
                            'vocab_size': 16384, 'head': {'n_layer': 6, 'block': {'n_head': 40}}}}}


SIZES: Mapping[str, Mapping[str, Any]] = {
    '7b-256': _public('google/siglip-large-patch16-256', width=1024, side=16, depth=4, latent=16),
    '7b-384': _public('google/siglip-so400m-patch14-384', width=1152, side=27, depth=16, latent=24),
    'tiny': {
        'model_type': 'vila_u', 'architectures': ['VILAULlamaModel'],
        'llm': {'model_type': 'llama', 'vocab_size': 580, 'hidden_size': 48, 'intermediate_size': 80, 'num_hidden_layers': 2,
                'num_attention_heads': 4, 'num_key_value_heads': 4, 'rms_norm_eps': 1e-5,
                'rope_scaling': {'type': 'linear', 'factor': 2.0}},
        'mm_projector': {'mm_projector_type': 'mlp2x_gelu'},
        'vision_tower': {
            'rqvaesiglip': {'embed_dim': 32, 'n_embed': 60, 'code_shape': [5, 5, 4], 'latent_shape': [5, 5, 32],
                            'shared_codebook': True, 'decoder_latent_shape': [4, 4],
                            'siglip_config': {'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 4,
                                              'num_attention_heads': 4, 'image_size': 16, 'patch_size': 3},
                            'ddconfig': {'ch': 32, 'out_ch': 3, 'ch_mult': [1, 1, 2], 'num_res_blocks': 1,
                                         'attn_resolutions': [4], 'resolution': 16, 'z_channels': 24}},
            'rqtransformer': {'block_size': [5, 5, 4], 'input_embed_dim_1': 32, 'input_embed_dim_2': 48, 'embed_dim': 40,
                              'vocab_size': 60, 'head': {'n_layer': 2, 'block': {'n_head': 5}}}}},
}
"""The released config files were not at hand: the public sizes have what shapes and counts of the checkpoints tell, and the class
default for the heads of the depth transformer, which they do not. Of `7b-384`, SigLIP, places and depth are published; that its
decoder begins at 24x24 is inferred from 384 pixels. Nor do we know whether `rope_scaling` is set (it is where a context longer
than 4,096 was trained). A real folder says all of this.
"""


def model(hf: Mapping[str, Any]) -> ModelConfig:
  """The unified model of the config.json of the three folders.

  Raises:
    UserError: a field of another kind than it should be, or parts that do not fit one another.
  """
  c, codec, head = _language(hf), _tower(hf, 'rqvaesiglip'), _tower(hf, 'rqtransformer')
  Fields(hf).section('mm_projector').only('mm_projector_type', 'mlp2x_gelu')
  height, width, depth = head.sizes('block_size', count=3)
  code_width, codebook = head.size('input_embed_dim_1'), codec.size('n_embed', 16384)
  trunk = language.trunk(c)
  head.only('input_embed_dim_2', trunk.width)
  head.only('vocab_size', codebook)
  codec.only('embed_dim', code_width)
  codec.only('code_shape', [height, width, depth])
  return ModelConfig(
      trunk, vocabulary=c.size('vocab_size'), places=height * width, depth=depth, codebook=codebook,
      image_embedding=functools.partial(ProjectedEmbedding, code_width=code_width),
      image_head=functools.partial(
          DepthHead, width=head.size('embed_dim'), layers=head.section('head').size('n_layer'),
          heads=head.section('head').section('block').size('n_head'), code_width=code_width),
      tied=c.flag('tie_word_embeddings', False))


def entries(hf: Mapping[str, Any]) -> list[Entry]:
  """Where every parameter of that model lies."""
  c = _language(hf)
  head = 'vision_tower/rqtransformer.'
  return [*language.apart('llm/model.embed_tokens.weight', 'llm/lm_head.weight', tied=c.flag('tie_word_embeddings', False)),
          *language.trunk_entries(language.trunk(c), 'llm/model.'),
          Entry(('backbone/image_embedding/codebook',), ('vision_tower/rqvaesiglip.quantizer.codebooks.0.weight',),
                lambda arrays: [arrays[0][:-1]], lambda arrays: []),  # the last row is padding
          *language.projector_entries('backbone/image_embedding', 'mm_projector/layers.0', 'mm_projector/layers.2'),
          *prefixed(_head_entries(_tower(hf, 'rqtransformer').section('head').size('n_layer')), 'image_head/', head)]


def _head_entries(layers: int) -> list[Entry]:
  both = (linear, 'kernel', 'weight'), (same, 'bias', 'bias')
  scaled = (same, 'scale', 'weight'), (same, 'bias', 'bias')
  found = [make(f'{ours}_{part}', f'{theirs}.{leaf}') for ours, theirs in (('hidden', 'in_mlp_2'), ('code', 'in_mlp_1'))
           for make, part, leaf in both]
  for parts, joint, names in ((both, '_', _BLOCK), (scaled, '/', _BLOCK_NORMS)):
    found += [stacked(make, f'layers/{ours}{joint}{part}', f'head_transformer.blocks.{{}}.{theirs}.{leaf}', layers)
              for ours, theirs in names.items() for make, part, leaf in parts]
  found += [make(f'norm/{part}', f'classifier_mlp.layer_norm.{leaf}') for make, part, leaf in scaled]
  return [*found, linear('head', 'classifier_mlp.linear.weight'), same('head_bias', 'classifier_mlp.linear.bias'),
          Entry(('depth_embedding',), ('pos_emb_d',), lambda arrays: [arrays[0][0]], lambda arrays: [arrays[0][None]])]


def _language(hf: Mapping[str, Any]) -> Fields:
  return language.fields(Fields(hf).section('llm').given, _DEFAULTS, 'llm.')


def _tower(hf: Mapping[str, Any], name: str) -> Fields:
  return Fields(hf).section('vision_tower').section(name)


FOLDERS = ('llm', 'mm_projector', 'vision_tower')


def _contradiction(hf: Mapping[str, Any]) -> str:
  """Three folders tell a VILA-U; `model_type` of the released one is not known here."""
  absent = [folder for folder in FOLDERS if folder not in hf]
  return f'there is no {absent[0]}/config.json' if absent else differs(hf['llm'], 'model_type', 'llama')


FAMILY = Family(
    name='vila_u', sizes=SIZES, contradiction=_contradiction, model=model, entries=entries, folders=FOLDERS, codec=vila_u_codec,
    layout=layouts.vila_u, text_folder='llm', unused=COMPUTED,
    copies={'llm/lm_head.weight': 'llm/model.embed_tokens.weight'},
    # Its inference.py: for text the defaults of the command line, for pictures those of the generator.
    decode=dict(text_temperature=0.9, text_top_p=0.6, image_temperature=1.0, image_top_k=900, image_top_p=0.96, guidance=3.0))
