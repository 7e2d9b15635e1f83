"""Image codecs of the public families against results of the public code (tests/peers), from names and config.json to pixels."""

import copy
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest

from intersyn_jax import sharding
from intersyn_jax.errors import UserError
from intersyn_jax.models.image_tokenizer import from_bytes
from intersyn_jax.models.vision import codec, jobs
from intersyn_jax.training import trees
from tests.models.vision import tiny

GOLDENS = pathlib.Path(__file__).parents[2] / 'goldens' / 'vision_tiny.npz'
NAMES = ('chameleon', 'janus', 'emu3', 'vila_u')

VILA_U_256 = {'vision_tower': {'rqvaesiglip': {
    'embed_dim': 1024, 'n_embed': 16384, 'code_shape': [16, 16, 4], 'latent_shape': [16, 16, 1024], 'shared_codebook': True,
    'pretrained_model': 'google/siglip-large-patch16-256', 'decoder_latent_shape': None,
    'ddconfig': {'ch': 128, 'out_ch': 3, 'ch_mult': [1, 1, 2, 2, 4], 'num_res_blocks': 2, 'attn_resolutions': [16],
                 'resolution': 256, 'in_channels': 3, 'z_channels': 256, 'double_z': False}}}}
"""As the released checkpoint must be to have its count and size of tensors (its config.json was not at hand)."""


class Case:
  """A tiny codec, its weights, and one compiled program that does all."""

  def __init__(self, name: str):
    make, hf = tiny.CODECS[name]
    self.codec = make(hf)
    self.tensors = {n: tiny.values(n, shape) for n, shape in tiny.shapes_of(self.codec).items()}
    self.params = tiny.params_of(self.codec, self.tensors)
    with np.load(GOLDENS) as kept:
      self.wanted = {key: kept[f'{name}/{key}'] for key in ('codes', 'recon')}

    @jax.jit
    def run(params, pictures, codes):
      with jax.default_matmul_precision('highest'):
        model = self.codec.bind(params)
        return model.codes(from_bytes(pictures)), model.pixels(codes), self.codec.decode(params, codes)
    self._run = run

  def run(self, params):
    return [np.asarray(a) for a in self._run(params, tiny.pictures(), self.wanted['codes'])]


@pytest.fixture(scope='module')
def cases():
  return {name: Case(name) for name in NAMES}


@pytest.mark.parametrize('name', NAMES)
def test_parity(cases, name):
  case = cases[name]
  codes, pixels, pictures = case.run(case.params)
  assert codes.dtype == np.int32 and codes.shape == (tiny.COUNT, case.codec.places, case.codec.depth)
  np.testing.assert_array_equal(codes, case.wanted['codes'])
  assert np.abs(pixels - case.wanted['recon']).max() < 1e-4
  assert pictures.dtype == np.uint8
  np.testing.assert_array_equal(pictures, np.clip(np.floor((pixels.astype(np.float64) + 1) * 127.5), 0, 255))


@pytest.mark.parametrize('name, one, two', [
    ('chameleon', 'encoder.down.1.attn.0.q.weight', 'encoder.down.1.attn.0.v.weight'),
    ('chameleon', 'decoder.up.2.block.0.conv1.weight', 'decoder.up.2.block.1.conv1.weight'),
    ('janus', 'decoder.up.0.block.1.norm1.weight', 'decoder.up.0.block.1.norm2.weight'),
    ('emu3', 'encoder.time_conv.0.conv.conv.weight', 'encoder.time_conv.1.conv.conv.weight'),
    ('emu3', 'decoder.norm_out.conv_y.weight', 'decoder.norm_out.conv_b.weight'),
    ('vila_u', 'siglip_model.vision_model.encoder.layers.0.mlp.fc1.weight',
     'siglip_model.vision_model.encoder.layers.1.mlp.fc1.weight')])
def test_tensors_in_each_others_place_are_noticed(cases, name, one, two):
  case = cases[name]
  swapped = case.tensors | {one: case.tensors[two], two: case.tensors[one]}
  codes, pixels, _ = case.run(tiny.params_of(case.codec, swapped))
  assert np.any(codes != case.wanted['codes']) or np.abs(pixels - case.wanted['recon']).max() > 1e-2


@pytest.mark.parametrize('name', [*NAMES, 'janus_features'])
@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_what_is_written_is_what_was_read(name, dtype, cases):
  vision = cases[name].codec if name in cases else tiny.CODECS[name][0](tiny.CODECS[name][1])
  tensors = {n: tiny.values(n, shape).astype(dtype) for n, shape in tiny.shapes_of(vision).items()}
  params = tiny.params_of(vision, tensors)
  assert {path: a.shape for path, a in trees.flat(params).items()} == {
      path: a.shape for path, a in trees.flat(vision.definition.shapes).items()}
  again = tiny.written(vision, params)
  assert again.keys() == tensors.keys()
  for key, array in again.items():
    assert array.dtype == dtype and array.tobytes() == tensors[key].tobytes(), key


def test_features():
  make, hf = tiny.CODECS['janus_features']
  vision = make(hf)
  params = tiny.params_of(vision, {n: tiny.values(n, shape) for n, shape in tiny.shapes_of(vision).items()})
  found = jax.jit(vision.encode)(params, tiny.pictures())
  with np.load(GOLDENS) as kept:
    assert np.abs(found - kept['janus_features/features']).max() < 1e-4
  assert found.shape == (tiny.COUNT, vision.places, vision.width)


def test_rows_are_spread_over_the_mesh_and_stored_types_do_not_matter(cases):
  """Eight devices, two calls, the last padded; bfloat16 weights that are exact give the codes of their float32 copies."""
  case = cases['vila_u']
  exact = {n: a.astype(ml_dtypes.bfloat16) for n, a in case.tensors.items()}
  mesh = sharding.make_mesh({'replica': 2, 'fsdp': -1})
  encode = jobs.runner(case.codec, tiny.params_of(case.codec, exact), mesh, case.codec.encode, rows=1)
  wanted = case.run(tiny.params_of(case.codec, {n: a.astype(np.float32) for n, a in exact.items()}))[0]
  order = np.random.default_rng(3).permutation([0, 1, 2] * 3)
  found = encode(tiny.pictures()[order])
  assert found.shape == (9, 25, 4) and len(np.unique(found)) > 15
  np.testing.assert_array_equal(found, wanted[order])


def test_vila_u_has_the_published_tensors():
  """1107 names with the 105 of the depth transformer, which belongs to the unified model; values of the decoder's reading."""
  vila_u = codec.vila_u_codec(VILA_U_256)
  shapes = tiny.shapes_of(vila_u)
  assert not set(shapes) & set(vila_u.unused) and len(set(vila_u.unused)) == len(vila_u.unused)
  assert len(shapes) + len(vila_u.unused) + 105 == 1107
  values = lambda prefix: sum(int(np.prod(shape)) for name, shape in shapes.items() if name.startswith(prefix))
  decoder = [name for name in shapes if name.startswith('decoder.')]
  assert len(decoder) == 194 and values('decoder.') == 42_449_795
  assert shapes['quantizer.codebooks.3.weight'] == (16385, 1024) and shapes['post_quant_conv.weight'] == (256, 1024, 1, 1)
  assert (vila_u.pixels, vila_u.places, vila_u.depth, vila_u.codebook) == (256, 256, 4, 16384)


def test_decoder_is_optional_for_chameleon_alone(cases):
  chameleon = cases['chameleon'].codec
  assert set(chameleon.optional) == {n for n in tiny.shapes_of(chameleon) if n.startswith('decoder.')}
  assert not any(cases[name].codec.optional for name in NAMES if name != 'chameleon')


def test_codebooks_that_differ_are_refused(cases):
  case = cases['vila_u']
  name = 'quantizer.codebooks.2.weight'
  other = case.tensors[name].copy()
  other[-1, 0] = -0.0 if other[-1, 0] == 0 else -other[-1, 0]
  with pytest.raises(UserError, match='codebooks.2.weight differs from quantizer.codebooks.0.weight'):
    tiny.params_of(case.codec, case.tensors | {name: other})


@pytest.mark.parametrize('name, path, value, told', [
    ('chameleon', ('vq_config', 'base_channels'), '128', 'vq_config.base_channels'),
    ('chameleon', ('vq_config', 'channel_multiplier'), [1, 0], 'vq_config.channel_multiplier'),
    ('chameleon', ('vq_config', 'base_channels'), 48, 'vq_config has a level of 48 channels'),
    ('chameleon', ('vq_config', 'attn_type'), 'linear', 'vq_config.attn_type'),
    ('chameleon', ('vq_config', 'resolution'), 18, '18 pixels'),
    ('chameleon', ('vq_config',), [], 'vq_config'),
    ('janus', ('vq_config', 'double_latent'), True, 'vq_config.double_latent'),
    ('janus', ('vision_config', 'image_size'), [16, 16], 'vision_config.image_size'),
    ('janus_features', ('vision_config', 'hidden_act'), 'relu', 'vision_config.hidden_act'),
    ('janus_features', ('vision_config', 'num_attention_heads'), 5, 'num_attention_heads'),
    ('emu3', ('vq_config', 'latent_channels'), 8, 'vq_config.latent_channels'),
    ('emu3', ('vq_config', 'num_attention_heads'), 3, 'vq_config has a level of 32 channels'),
    ('emu3', ('vq_config', 'temporal_downsample_factor'), 3, 'temporal_downsample_factor'),
    ('vila_u', ('vision_tower', 'rqvaesiglip', 'shared_codebook'), False, 'rqvaesiglip.shared_codebook'),
    ('vila_u', ('vision_tower', 'rqvaesiglip', 'siglip_config'), None, 'rqvaesiglip.pretrained_model'),
    ('vila_u', ('vision_tower', 'rqvaesiglip', 'code_shape'), [4, 4, 4], 'rqvaesiglip.code_shape'),
    ('vila_u', ('vision_tower', 'rqvaesiglip', 'decoder_latent_shape'), [8, 8], 'decoder_latent_shape'),
    ('vila_u', ('vision_tower', 'rqvaesiglip', 'ddconfig', 'ch_mult'), None, 'ddconfig.ch_mult')])
def test_a_wrong_config_is_one_clear_line(name, path, value, told):
  make, hf = tiny.CODECS[name]
  hf = copy.deepcopy(hf)
  section = hf
  for key in path[:-1]:
    section = section[key]
  section[path[-1]] = value
  with pytest.raises(UserError, match='config.json: .*' + told.replace('.', r'\.')) as error:
    make(hf)
  assert '\n' not in str(error.value)
