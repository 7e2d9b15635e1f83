"""Tiny codecs and their weights, the same for the tests with and without torch.

A tensor's values depend on its name and shape only, so that no two tensors are alike and nothing needs to be stored. Names are
the checkpoint's: how they reach our parameters is part of what is tested.
"""

import math
import zlib

import numpy as np

from intersyn_jax.models.vision import codec
from intersyn_jax.training import trees

CHAMELEON = {'vq_config': {'base_channels': 32, 'channel_multiplier': [1, 2, 2], 'num_res_blocks': 1, 'latent_channels': 24,
                           'embed_dim': 12, 'num_embeddings': 60, 'resolution': 16, 'attn_resolutions': [8]}}
JANUS = {'vq_config': {'base_channels': 32, 'channel_multiplier': [1, 2], 'num_res_blocks': 1, 'latent_channels': 24,
                       'embed_dim': 8, 'num_embeddings': 60},
         'vision_config': {'hidden_size': 32, 'num_hidden_layers': 3, 'num_attention_heads': 4, 'image_size': 16, 'patch_size': 2,
                           'mlp_ratio': 3.0, 'hidden_act': 'gelu'}}
EMU3 = {'vq_config': {'base_channels': 32, 'channel_multiplier': [1, 2], 'num_res_blocks': 1, 'embed_dim': 4,
                      'latent_channels': 4, 'codebook_size': 60, 'hidden_size': 64, 'num_attention_heads': 2,
                      'attn_resolutions': [1], 'temporal_downsample_factor': 4}, 'image_pixels': 16}
VILA_U = {'vision_tower': {'rqvaesiglip': {
    'pretrained_model': 'tiny', 'embed_dim': 32, 'n_embed': 60, 'code_shape': [5, 5, 4], 'latent_shape': [5, 5, 32],
    'shared_codebook': True, 'decoder_latent_shape': [4, 4],
    'siglip_config': {'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 4, 'num_attention_heads': 4,
                      'image_size': 16, 'patch_size': 3},
    'ddconfig': {'ch': 32, 'out_ch': 3, 'ch_mult': [1, 1, 2], 'num_res_blocks': 1, 'attn_resolutions': [4], 'resolution': 16,
                 'in_channels': 3, 'z_channels': 24, 'double_z': False, 'dropout': 0.0}}}}

CODECS = {'chameleon': (codec.chameleon_codec, CHAMELEON), 'janus': (codec.janus_codec, JANUS),
          'emu3': (codec.emu3_codec, EMU3), 'vila_u': (codec.vila_u_codec, VILA_U),
          'janus_features': (codec.janus_features, JANUS)}

COUNT = 3
"""Pictures of a test batch."""


def pictures(pixels: int = 16) -> np.ndarray:
  """uint8[COUNT,pixels,pixels,3]."""
  return np.random.default_rng(11).integers(0, 256, (COUNT, pixels, pixels, 3), np.uint8)


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """The tensor of a checkpoint, float32."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  z = rng.standard_normal(shape).astype(np.float32)
  if name.endswith('running_var'):
    return np.exp(0.5 * z)
  if 'norm' in name.split('.')[-2] and name.endswith('weight'):
    return 1 + 0.3 * z
  if 'codebooks' in name:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)  # the depths share one
  if 'quantize.embedding' in name:
    return z * np.float32(0.4)
  if len(shape) < 2:
    return 0.2 * z
  inputs = shape[1] * math.prod(shape[2:][-2:])  # of a window over time only the last frame has something in it
  return z * np.float32(1.4 / math.sqrt(inputs))


def shapes_of(vision: codec.Vision) -> dict[str, tuple[int, ...]]:
  """Names and shapes of the tensors that a codec reads."""
  ours = trees.flat(vision.definition.shapes)
  return {name: array.shape for entry in vision.entries for name, array in zip(
      entry.theirs, entry.write([np.empty(ours[path].shape, 'V0') for path in entry.ours]), strict=True)}


def params_of(vision: codec.Vision, tensors: dict[str, np.ndarray]):
  """Our parameters from a checkpoint's tensors."""
  found = {path: array for entry in vision.entries
           for path, array in zip(entry.ours, entry.read([tensors[name] for name in entry.theirs]), strict=True)}
  return trees.unflat(vision.definition.shapes, found)


def written(vision: codec.Vision, params) -> dict[str, np.ndarray]:
  """A checkpoint's tensors from our parameters."""
  ours = trees.flat(params)
  return {name: array for entry in vision.entries
          for name, array in zip(entry.theirs, entry.write([ours[path] for path in entry.ours]), strict=True)}
