"""The image codecs against the public code: names, shapes and results, which are kept for tests/models/vision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.chameleon import configuration_chameleon, modeling_chameleon
from transformers.models.emu3 import configuration_emu3, modeling_emu3
from transformers.models.janus import configuration_janus, modeling_janus

from intersyn_jax.models.image_tokenizer import from_bytes
from tests.models.vision import tiny
from tests.peers import make_goldens_vision, vision_reference

PUBLIC = {
    'chameleon': (modeling_chameleon.ChameleonVQVAE, configuration_chameleon.ChameleonVQVAEConfig),
    'janus': (modeling_janus.JanusVQVAE, configuration_janus.JanusVQVAEConfig),
    'emu3': (modeling_emu3.Emu3VQVAE, configuration_emu3.Emu3VQVAEConfig),
    'janus_features': (modeling_janus.JanusVisionModel, configuration_janus.JanusVisionConfig),
}


@pytest.fixture(scope='module')
def references():
  return {name: vision_reference.reference(name) for name in tiny.CODECS}


def test_the_kept_results_are_these(references):
  with np.load(make_goldens_vision.GOLDENS) as kept:
    assert sorted(kept) == sorted(f'{name}/{key}' for name, found in references.items() for key in found)
    for name, found in references.items():
      for key, array in found.items():
        # Loosely: float32 differs from one kind of processor to another.
        np.testing.assert_allclose(kept[f'{name}/{key}'], array, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('name', tiny.CODECS)
def test_results_are_sharp(references, name):
  """A comparison with these results can fail: many codes, none by a hair, and pictures with contrast."""
  found = references[name]
  if name == 'janus_features':
    assert found['features'].std() > 0.5
  else:
    assert len(np.unique(found['codes'])) > 15 and found['gap'] > 1e-3 and found['recon'].std() > 0.3


@pytest.mark.parametrize('name', tiny.CODECS)
def test_parity(references, name):
  make, hf = tiny.CODECS[name]
  vision, wanted = make(hf), references[name]
  params = tiny.params_of(vision, {n: tiny.values(n, shape) for n, shape in tiny.shapes_of(vision).items()})

  @jax.jit
  def run(params, pictures, codes):
    with jax.default_matmul_precision('highest'):
      model = vision.bind(params)
      if name == 'janus_features':
        return {'features': model(from_bytes(pictures))}
      return {'codes': model.codes(from_bytes(pictures)), 'recon': model.pixels(codes)}

  found = run(params, tiny.pictures(), wanted.get('codes', jnp.zeros(1)))
  for key, array in found.items():
    if key == 'codes':
      np.testing.assert_array_equal(array, wanted[key])
    else:
      assert np.abs(array - wanted[key]).max() < 1e-4


@pytest.mark.parametrize('name', PUBLIC)
def test_public_checkpoint_names_and_shapes(name):
  """At the public sizes: every tensor of transformers' module has its place with us, and its shape."""
  module, config = PUBLIC[name]
  with torch.device('meta'):
    theirs = {key: tuple(tensor.shape) for key, tensor in module(config()).state_dict().items()}
  vision = tiny.CODECS[name][0]({})
  ours = tiny.shapes_of(vision)
  optional = getattr(vision, 'optional', ())
  assert {key: shape for key, shape in ours.items() if key not in optional} == {
      key: shape for key, shape in theirs.items() if key not in vision.unused}
  assert set(vision.unused) <= set(theirs)
  assert bool(optional) == (name == 'chameleon')  # whose decoder transformers does not have


def test_public_siglip_of_vila_u():
  """SigLIP's names and shapes at the size of VILA-U 256: those that are read, and those that are not."""
  make, hf = tiny.CODECS['vila_u']
  fields = hf['vision_tower']['rqvaesiglip'] | {
      'pretrained_model': 'google/siglip-large-patch16-256', 'siglip_config': None, 'embed_dim': 1024, 'n_embed': 16384,
      'code_shape': [16, 16, 4], 'latent_shape': [16, 16, 1024], 'decoder_latent_shape': None}
  fields['ddconfig'] = fields['ddconfig'] | {'ch_mult': [1, 1, 2, 2, 4], 'resolution': 256}
  vision = make({'vision_tower': {'rqvaesiglip': fields}})
  side = {'hidden_size': 1024, 'intermediate_size': 4096, 'num_hidden_layers': 24, 'num_attention_heads': 16}
  config = transformers.SiglipConfig(text_config=side, vision_config=side | {'image_size': 256, 'patch_size': 16})
  with torch.device('meta'):
    theirs = {f'siglip_model.{key}': tuple(tensor.shape) for key, tensor in transformers.SiglipModel(config).state_dict().items()}
  ours = {key: shape for key, shape in tiny.shapes_of(vision).items() if key.startswith('siglip_model.')}
  assert {key: theirs[key] for key in ours} == ours
  assert set(theirs) == set(ours) | {key for key in vision.unused if key.startswith('siglip_model.')}
