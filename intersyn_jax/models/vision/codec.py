"""The image codecs of the public checkpoint families: what turns pictures into codes and back, and where its weights lie.

A codec is built from the checkpoint's config.json, so that tiny and public sizes take one path. All families scale pixels to
-1..1, clip what they decode and cut it to whole bytes; all run here in float32 at full precision, whatever type the weights
are stored in, because a near-tie between two code vectors is decided by the last bits.

Letters: B pictures, H W pixels, P places of a picture, D codes per place, d width of features.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from intersyn_jax.errors import UserError
from intersyn_jax.models.definition import Definition, Params
from intersyn_jax.models.families.entries import Entry
from intersyn_jax.models.image_tokenizer import from_bytes
from intersyn_jax.models.vision import keys, resize
from intersyn_jax.models.vision.emu3_vq import Emu3VQ, Emu3VQConfig
from intersyn_jax.models.vision.fields import Fields
from intersyn_jax.models.vision.layers import GROUPS
from intersyn_jax.models.vision.residual import ResidualCodec, ResidualConfig
from intersyn_jax.models.vision.siglip import ACTIVATIONS, Siglip, SiglipConfig
from intersyn_jax.models.vision.vqgan import VQGAN, PyramidConfig, VQGANConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vision:
  """What reads pictures: the common part of codecs and feature encoders.

  Attributes:
    name: of the family.
    pixels: H = W. places: P.
    definition: structure and shapes.
    entries: where every parameter lies; their names have `prefix` before them in the family's files.
    resize: how a picture of any size becomes H x W.
    unused: names of tensors that lie beside (with the prefix), which nothing here reads.
  """

  name: str
  pixels: int
  places: int
  definition: Definition
  entries: list[Entry]
  prefix: str
  resize: resize.Resize
  unused: tuple[str, ...] = ()

  def bind(self, params: Params) -> Any:
    """The module with these parameters, in float32."""
    return self.definition.bind(jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codec(Vision):
  """Pictures to codes and back.

  Attributes:
    depth: D. codebook: size of the codebook.
    optional: names of tensors that some folders lack and that decoding needs (Chameleon's converted folders have no decoder;
      Meta's `vqgan.ckpt` has all tensors, by the names of `entries` without a prefix).
  """

  depth: int
  codebook: int
  optional: tuple[str, ...] = ()

  def encode(self, params: Params, pictures: jax.Array) -> jax.Array:
    """uint8[B,H,W,3] -> int32[B,P,D]. Pure; jit it."""
    with jax.default_matmul_precision('highest'):
      return self.bind(params).codes(from_bytes(pictures))

  def decode(self, params: Params, codes: jax.Array) -> jax.Array:
    """int32[B,P,D] -> uint8[B,H,W,3]. Pure; jit it."""
    with jax.default_matmul_precision('highest'):
      pixels = self.bind(params).pixels(codes)
    return jnp.clip((pixels + 1) * 127.5, 0, 255).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureEncoder(Vision):
  """Pictures to features that a language model reads through a projector.

  Attributes:
    width: d.
  """

  width: int

  def encode(self, params: Params, pictures: jax.Array) -> jax.Array:
    """uint8[B,H,W,3] -> float32[B,P,d]. Pure; jit it."""
    with jax.default_matmul_precision('highest'):
      return self.bind(params)(from_bytes(pictures))


def chameleon_codec(hf: Mapping[str, Any]) -> Codec:
  """Chameleon's, also Anole's and Liquid's, from `vq_config` of config.json; what it leaves out is as in the public checkpoints.

  Raises:
    UserError: a field of another kind than it should be, or a variant that was never published.
  """
  c = Fields(hf).section('vq_config')
  c.only('attn_type', 'vanilla')
  c.only('double_latent', False)
  multipliers, pixels = c.sizes('channel_multiplier', (1, 1, 2, 2, 4)), c.size('resolution', 512)
  pyramid = _checked(c, PyramidConfig(
      c.size('base_channels', 128), multipliers, c.size('num_res_blocks', 2), c.size('latent_channels', 256),
      attention=_levels_of(c.sizes('attn_resolutions', ()), pixels, multipliers)))
  config = VQGANConfig(pyramid, c.size('num_embeddings', 8192), c.size('embed_dim', 256))
  codec = _vqgan('chameleon', config, pixels, keys.PYRAMID, resize.CHAMELEON)
  decoder = tuple(name for entry in codec.entries for name in entry.theirs if name.startswith('decoder.'))
  return dataclasses.replace(codec, optional=decoder)


def janus_codec(hf: Mapping[str, Any]) -> Codec:
  """Janus's, from `vq_config` and `vision_config` (for the size of a picture) of config.json.

  Latents and code vectors have length one when they are compared, and code vectors when they are decoded, as in the original
  code. (The encoder of transformers leaves the lengths as they are; nothing there encodes pictures to generate.)

  Raises:
    UserError: as in `chameleon_codec`.
  """
  c = Fields(hf).section('vq_config')
  c.only('double_latent', False)
  multipliers = c.sizes('channel_multiplier', (1, 1, 2, 2, 4))
  last = len(multipliers) - 1
  pyramid = _checked(c, PyramidConfig(c.size('base_channels', 128), multipliers, c.size('num_res_blocks', 2),
                                      c.size('latent_channels', 256), attention=(last,)))
  config = VQGANConfig(pyramid, c.size('num_embeddings', 16384), c.size('embed_dim', 8), unit=True)
  # The checkpoint counts the decoder's levels in the order in which they run.
  rules = [*keys.PYRAMID, (r'^decoder/up/(\d+)', lambda m: f'decoder/up/{last - int(m[1])}')]
  return _vqgan('janus', config, Fields(hf).section('vision_config').size('image_size', 384), rules, resize.JANUS)


def emu3_codec(hf: Mapping[str, Any]) -> Codec:
  """Emu3's, from `vq_config` of config.json.

  Emu3 takes pictures of any size; here an image block has one. `image_pixels`, a field of ours beside `vq_config`, is its side;
  without it 720, as Emu3-Gen was trained.

  Raises:
    UserError: as in `chameleon_codec`.
  """
  c = Fields(hf).section('vq_config')
  c.only('double_latent', False)
  multipliers, width = c.sizes('channel_multiplier', (1, 2, 2, 4)), c.size('embed_dim', 4)
  c.only('latent_channels', width)  # code vectors and latents pass the same layers
  last = len(multipliers) - 1
  attention = tuple(level for level in c.sizes('attn_resolutions', (3,), least=0) if level <= last)  # levels, by their numbers
  pyramid = _checked(c, PyramidConfig(c.size('base_channels', 256), multipliers, c.size('num_res_blocks', 2), width, attention,
                                      c.size('num_attention_heads', 1)))
  for level in (*attention, last):
    c.only('hidden_size', pyramid.width(level))
  frames = c.size('temporal_downsample_factor', 4)
  if frames & (frames - 1):
    raise UserError(f'config.json: vq_config.temporal_downsample_factor is {frames}; it must be a power of 2')
  config = Emu3VQConfig(pyramid, c.size('codebook_size', 32768), frames.bit_length() - 1)
  pixels = Fields(hf).size('image_pixels', 720)
  definition = _definition(Emu3VQ, config)
  mapped = keys.entries_of(definition.shapes, keys.EMU3, linear=r'_proj\.weight$')
  counters = tuple(name.replace('running_mean', 'num_batches_tracked')
                   for entry in mapped for name in entry.theirs if name.endswith('running_mean'))
  return Codec(name='emu3', pixels=pixels, places=_places(pixels, pyramid), depth=1, codebook=config.codebook,
               definition=definition, entries=mapped, prefix='model.vqmodel.', resize=resize.EMU3, unused=counters)


SIGLIP = {
    'google/siglip-large-patch16-256': {
        'hidden_size': 1024, 'intermediate_size': 4096, 'num_hidden_layers': 24, 'num_attention_heads': 16,
        'image_size': 256, 'patch_size': 16},
    'google/siglip-so400m-patch14-384': {
        'hidden_size': 1152, 'intermediate_size': 4304, 'num_hidden_layers': 27, 'num_attention_heads': 16,
        'image_size': 384, 'patch_size': 14},
}
"""Sizes by the names that VILA-U's config gives; it has no more of them."""


def vila_u_codec(hf: Mapping[str, Any]) -> Codec:
  """VILA-U's, from `rqvaesiglip` of vision_tower/config.json, which is `vision_tower` here.

  `pretrained_model` names the SigLIP. `siglip_config`, a field of ours, has the sizes of one that is not in SIGLIP.

  Raises:
    UserError: as in `chameleon_codec`, or a codebook per depth.
  """
  c = Fields(hf).section('vision_tower').section('rqvaesiglip')
  s = c.section('siglip_config')
  if not s.given:
    s = Fields(SIGLIP[c.choice('pretrained_model', SIGLIP, 'google/siglip-large-patch16-256')])
  layers = s.size('num_hidden_layers')
  siglip = _siglip(s, layers=layers - 1, final_norm=False)
  *grid, depth = c.sizes('code_shape', (16, 16, 4), count=3)
  if grid[0] != grid[1] or grid[0] ** 2 != siglip.places:
    raise UserError(f'config.json: {c.where}code_shape has {grid[0]}x{grid[1]} places; its SigLIP makes a square of '
                    f'{siglip.places}')
  c.only('shared_codebook', True)
  c.only('latent_shape', [*grid, siglip.width])
  c.only('embed_dim', siglip.width)
  d = c.section('ddconfig')
  d.only('out_ch', 3)
  d.only('give_pre_end', False)
  multipliers = d.sizes('ch_mult')
  decoder = _checked(d, PyramidConfig(
      d.size('ch'), multipliers, d.size('num_res_blocks'), d.size('z_channels'),
      attention=_levels_of(d.sizes('attn_resolutions'), d.size('resolution'), multipliers)))
  side = c.sizes('decoder_latent_shape', tuple(grid), count=2)
  if side[0] != side[1] or side[0] * decoder.downsample != siglip.pixels:
    raise UserError(f'config.json: {c.where}decoder_latent_shape, {side[0]}x{side[1]} places, is enlarged {decoder.downsample} '
                    f'times by ddconfig.ch_mult, which is not the {siglip.pixels} pixels of SigLIP')
  config = ResidualConfig(siglip, decoder, c.size('n_embed', 16384), depth, side[0])
  definition = _definition(ResidualCodec, config)
  rules = [(r'^siglip/', 'siglip_model/vision_model/'), *keys.siglip('out_proj'), *keys.PYRAMID]
  mapped = [entry for entry in keys.entries_of(definition.shapes, rules, linear=r'\.encoder\.layers\.')
            if entry.ours[0] not in ('codebook', 'padding_row')]
  mapped.append(keys.repeated_table('codebook', 'padding_row', 'quantizer.codebooks.{}.weight', depth))
  return Codec(name='vila_u', pixels=siglip.pixels, places=siglip.places, depth=depth, codebook=config.codebook,
               definition=definition, entries=mapped, prefix='vision_tower/rqvaesiglip.', resize=resize.VILA_U,
               unused=keys.unused_of_vila_u(layers, depth))


def janus_features(hf: Mapping[str, Any]) -> FeatureEncoder:
  """Janus's encoder of pictures to understand, from `vision_config` of config.json: all layers, then the last norm.

  Raises:
    UserError: as in `chameleon_codec`.
  """
  c = Fields(hf).section('vision_config')
  c.only('use_qk_norm', False)
  c.only('attention_bias', True)
  width = c.size('hidden_size', 1024)
  defaults = {'hidden_size': width, 'num_hidden_layers': 24, 'num_attention_heads': 16, 'image_size': 384, 'patch_size': 16,
              'hidden_act': 'gelu', 'intermediate_size': int(width * c.number('mlp_ratio', 4.0))}
  s = Fields(defaults | {name: value for name, value in c.given.items() if value is not None}, c.where)
  siglip = _siglip(s, layers=s.size('num_hidden_layers'), final_norm=True)
  definition = _definition(Siglip, siglip)
  mapped = keys.entries_of(definition.shapes, [*keys.siglip('projection_layer'), (r'^norm/', 'post_layernorm/')],
                           linear=r'^encoder\.layers\.')
  return FeatureEncoder(name='janus', pixels=siglip.pixels, places=siglip.places, width=siglip.width, definition=definition,
                        entries=mapped, prefix='model.vision_model.', resize=resize.JANUS_QUESTION)


@functools.cache
def _definition(make: Callable[..., Any], config: Any) -> Definition:
  """Of each configuration once: layouts ask for their family's codec too, and a public size takes seconds."""
  return Definition(lambda rngs: make(config, rngs))


def _vqgan(name: str, config: VQGANConfig, pixels: int, rules: keys.Rules, policy: resize.Resize) -> Codec:
  definition = _definition(VQGAN, config)
  return Codec(name=name, pixels=pixels, places=_places(pixels, config.pyramid), depth=1, codebook=config.codebook,
               definition=definition, entries=keys.entries_of(definition.shapes, rules), prefix='model.vqmodel.', resize=policy)


def _siglip(s: Fields, *, layers: int, final_norm: bool) -> SiglipConfig:
  config = SiglipConfig(
      s.size('image_size'), s.size('patch_size'), s.size('hidden_size'), layers, s.size('num_attention_heads'),
      s.size('intermediate_size'), s.choice('hidden_act', ACTIVATIONS, 'gelu_pytorch_tanh'), s.number('layer_norm_eps', 1e-6),
      final_norm)
  if config.width % config.heads:
    raise UserError(f'config.json: {s.where}num_attention_heads {config.heads} does not divide hidden_size {config.width}')
  return config


def _checked(fields: Fields, pyramid: PyramidConfig) -> PyramidConfig:
  """Refuses widths that the norms' groups or the heads of attention do not divide."""
  for width in (pyramid.channels, *map(pyramid.width, range(pyramid.levels))):
    if width % GROUPS or width % pyramid.heads:
      raise UserError(f'config.json: {fields.where[:-1]} has a level of {width} channels, which do not divide into '
                      f'{GROUPS} groups and {pyramid.heads} heads')
  return pyramid


def _places(pixels: int, pyramid: PyramidConfig) -> int:
  if pixels % pyramid.downsample:
    raise UserError(f'config.json: pictures of {pixels} pixels do not divide into places of {pyramid.downsample} pixels')
  return (pixels // pyramid.downsample) ** 2


def _levels_of(resolutions: tuple[int, ...], pixels: int, multipliers: tuple[int, ...]) -> tuple[int, ...]:
  """The levels whose maps have one of these sides."""
  return tuple(i for i in range(len(multipliers)) if pixels // 2 ** i in resolutions)
