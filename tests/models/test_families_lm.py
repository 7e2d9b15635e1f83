"""The language sides of the public families: parity with others' logits, kept in goldens, and decoding equal to the forward.

`tests/peers/test_families_lm.py` compares with the other implementations themselves.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.models import unified
from intersyn_jax.models.definition import Definition
from intersyn_jax.models.families import chameleon, emu3, janus, language, liquid, vila_u
from intersyn_jax.models.image_embeddings import Projector
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.unified import ModelConfig
from intersyn_jax.training import trees
from tests import small_model
from tests.models import tiny_lm


@functools.cache
def golden(case: str) -> dict[str, np.ndarray]:
  with np.load(tiny_lm.golden_file(case)) as file:
    return dict(file)


@functools.cache
def outputs(case: str):
  return tiny_lm.outputs(case, tiny_lm.tensors(case))


@pytest.mark.parametrize('case', tiny_lm.CASES)
def test_logits_are_those_of_the_other_implementation(case):
  ours, _ = outputs(case)
  assert max(tiny_lm.difference(ours, golden(case)).values()) < 1e-4


@pytest.mark.parametrize('case', tiny_lm.CASES)
def test_decoding_equals_the_forward(case):
  """Prompt at once, then position by position and code by code; D is 1, and 4 for VILA-U."""
  whole, steps = outputs(case)
  for a, b in zip(whole, steps, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


LAYER = 'model.layers.{}.'
SWAPS = [
    ('chameleon', LAYER + 'self_attn.q_norm.weight', LAYER + 'self_attn.q_norm.bias'),
    ('chameleon', LAYER + 'input_layernorm.weight', LAYER + 'post_attention_layernorm.weight'),
    ('swin', LAYER + 'input_layernorm.weight', LAYER + 'post_attention_layernorm.weight'),
    ('chameleon', 'model.embed_tokens.weight', 'lm_head.weight'),
    ('emu3', 'model.text_model.layers.{}.self_attn.k_proj.weight', 'model.text_model.layers.{}.self_attn.v_proj.weight'),
    ('liquid', LAYER + 'mlp.gate_proj.weight', LAYER + 'mlp.up_proj.weight'),
    ('janus', 'model.generation_aligner.hidden_layers.0.weight', 'model.generation_head.proj_out.weight'),
    ('janus', 'model.aligner.hidden_layers.0.bias', 'model.aligner.fc1.bias'),
    ('vila_u', 'llm/model.layers.{}.self_attn.q_proj.weight', 'llm/model.layers.{}.self_attn.o_proj.weight'),
    ('vila_u', 'mm_projector/layers.0.bias', 'mm_projector/layers.2.bias'),
    ('vila_u', 'vision_tower/rqtransformer.in_mlp_1.bias', 'vision_tower/rqtransformer.in_mlp_2.bias'),
    ('vila_u', 'vision_tower/rqtransformer.head_transformer.blocks.0.attn.key.weight',
     'vision_tower/rqtransformer.head_transformer.blocks.1.attn.key.weight'),
]


@pytest.mark.parametrize('case, one, other', SWAPS)
def test_a_swapped_pair_of_tensors_is_seen(case, one, other):
  """The comparison can fail."""
  found = tiny_lm.tensors(case)
  one, other = one.format(1), other.format(1)
  found[one], found[other] = found[other], found[one]
  ours, _ = tiny_lm.outputs(case, found)
  assert max(tiny_lm.difference(ours, golden(case)).values()) > 1e-2


@pytest.mark.parametrize('case', tiny_lm.CASES)
def test_what_is_read_is_written_back(case):
  module, hf = tiny_lm.CASES[case]
  found = tiny_lm.tensors(case)
  leaves = trees.flat(tiny_lm.params(case, found))
  written = {}
  for entry in module.entries(hf):
    arrays = entry.write([leaves[path] for path in entry.ours])
    written |= dict(zip(entry.theirs, arrays, strict=bool(arrays)))
  assert found.keys() - written.keys() == ({tiny_lm.CODEBOOK} if case == 'vila_u' else set())
  for name, array in written.items():
    np.testing.assert_array_equal(array, found[name])


COUNTS = [
    (chameleon, '7b', {'': 7_013_666_816}),
    (emu3, '8b', {'': 8_492_011_520}),
    (janus, '1b', {'': 1_701_064_704}),
    (janus, '7b', {'': 7_032_201_216}),
    (liquid, '7b', {'': 8_537_680_896 + 8192 * 3072}),  # Gemma-7B and the rows of the codes
    (vila_u, '7b-256', {'backbone/t text_head': 6_738_448_384, 'image_head': 527_145_984,
                        'backbone/image_embedding': 20_979_712 + 16384 * 1024}),  # projector and codebook
]


@pytest.mark.parametrize('module, size, counts', COUNTS)
def test_public_sizes(module, size, counts):
  """VILA-U's counts are published (vila_u_layout, 1), Gemma's too; the others' are those of transformers' modules
  (tests/peers). All parameters have one entry, and can be sharded."""
  hf = module.SIZES[size]
  config = dataclasses.replace(module.model(hf), param_dtype='bfloat16')
  definition = unified.define(config)
  shapes = trees.flat(definition.shapes)
  for prefixes, wanted in counts.items():
    chosen = [s for path, s in shapes.items() if path.startswith(tuple(prefixes.split(' ')))]
    assert sum(math.prod(s.shape) for s in chosen) == wanted
  assert {s.dtype for s in shapes.values()} == {jnp.dtype('bfloat16')}
  assert sorted(path for entry in module.entries(hf) for path in entry.ours) == sorted(shapes)
  mesh = small_model.sharding.make_mesh({'fsdp': 2, 'tensor': 4})
  for path, sharding in trees.flat(definition.shardings(mesh)).items():
    assert math.prod(shapes[path].shape) < 1e6 or not sharding.is_fully_replicated, path


@pytest.mark.parametrize('held, computed', [('bfloat16', 'bfloat16'), ('bfloat16', 'float32'), ('float32', 'bfloat16')])
def test_types_of_parameters_and_activations(held, computed):
  """Whatever parameters are held in, hidden states have the type of the trunk, and logits are float32."""
  for case, (module, hf) in tiny_lm.CASES.items():
    config = module.model(hf)
    config = dataclasses.replace(config, param_dtype=held, trunk=dataclasses.replace(config.trunk, dtype=computed))
    definition = unified.define(config)

    def run(params, rows, features, definition=definition):
      model = definition.bind(params)
      hidden = model(rows, features)
      return hidden, model.backbone.prefill(rows, features), model.text_logits(hidden), model.code_logits(hidden, rows.codes)

    hidden, (other, cache), text, codes = jax.eval_shape(run, definition.shapes, *tiny_lm.batch(case))
    assert {a.dtype for a in (hidden, other, *jax.tree.leaves(cache))} == {jnp.dtype(computed)}
    assert {text.dtype, codes.dtype} == {jnp.dtype('float32')}


def test_parameters_are_born_in_their_type():
  definition = Definition(lambda rngs: Projector((4, 8, 2), ('width', 'mlp', 'embed'), rngs), 'bfloat16')
  born = jax.eval_shape(lambda key: definition.init(key, small_model.one_device()), jax.random.key(0))
  assert jax.tree.map(lambda a: (a.shape, a.dtype), born) == jax.tree.map(lambda a: (a.shape, a.dtype), definition.shapes)


def test_no_gradient_reaches_the_codebook_through_the_depth_transformer():
  definition = tiny_lm.definition('vila_u')
  params = tiny_lm.params('vila_u', tiny_lm.tensors('vila_u'))
  codes = jnp.arange(8).reshape(2, 4)

  def logits(codebook):
    tables = params['backbone']['image_embedding'] | {'codebook': codebook}
    model = definition.bind(params | {'backbone': params['backbone'] | {'image_embedding': tables}})
    return model.code_logits(jnp.ones((2, 48)), codes)

  codebook = params['backbone']['image_embedding']['codebook']
  run = jax.jit(lambda c: jax.jvp(logits, (c,), (jnp.ones_like(c),)))
  here, slope = run(codebook)
  assert np.abs(run(2 * codebook)[0] - here).max() > 0.1  # it is read,
  assert not np.any(slope)


def test_features_are_predicted_by_nobody():
  definition = tiny_lm.definition('janus')
  rows, _ = tiny_lm.batch('janus')
  model = definition.bind(tiny_lm.params('janus', tiny_lm.tensors('janus')))
  score = jax.jit(lambda hidden: unified.position_log_probs(model, hidden, rows))
  text, codes, entropy = score(jnp.ones((2, tiny_lm.LENGTH, 48)))
  seen = rows.modality == unified.FEATURES
  assert seen.sum() == 4 and not (np.any(text[seen]) or np.any(codes[seen]) or np.any(entropy[seen]))
  assert np.all(text[:, 1:][rows.modality[:, 1:] == 1] < 0)
  # Codes that follow features begin at place 0, as after text.
  after = np.array([[3, 3, 2, 2, 1]], np.int8)
  np.testing.assert_array_equal(unified.places_of(jnp.asarray(after))[0, 2:4], [0, 1])


def test_rows_of_codes_follow_the_names():
  _, hf = tiny_lm.CASES['chameleon']
  found = chameleon.code_rows(hf)
  assert sorted(found) == list(range(4, 64)) and list(found) != sorted(found)
  assert found[37] == hf['vocabulary_map']['IMGIMGDHZ']
  np.testing.assert_array_equal(chameleon.code_rows(chameleon.SIZES['7b']), np.arange(4, 8196))
  np.testing.assert_array_equal(emu3.code_rows(emu3.SIZES['8b']), np.arange(151854, 184622))
  np.testing.assert_array_equal(liquid.code_rows(liquid.SIZES['7b']), np.arange(256000, 264192))


def changed(module, **fields):
  return {**module.SIZES['tiny'], **fields}


@pytest.mark.parametrize('module, hf, message', [
    (chameleon, changed(chameleon, hidden_size='wide'), 'hidden_size'),
    (chameleon, changed(chameleon, attention_bias=True), 'attention_bias'),
    (chameleon, changed(chameleon, vocab_size=50), 'no room for text'),
    (chameleon, changed(chameleon, vocabulary_map={'IMGIMGAZ': 4}), 'one for each of the 60 codes'),
    (chameleon, changed(chameleon, vocabulary_map={'IMGIMGAZ': '4'}), 'outside the 640 rows'),
    (emu3, changed(emu3, text_config=7), 'text_config'),
    (janus, changed(janus, vision_config={'depth': 3}), 'vision_config.depth'),
    (janus, changed(janus, vq_config={}), 'vq_config.projection_dim'),  # 2,048 where it is not given
    (liquid, changed(liquid, hidden_act='relu'), 'hidden_act'),
    (vila_u, changed(vila_u, llm={'rope_scaling': {'type': 'yarn', 'factor': 2.0}}), 'llm.rope_scaling.type'),
    (vila_u, changed(vila_u, llm={'rope_scaling': {'type': 'linear'}}), 'llm.rope_scaling.factor'),
    (vila_u, changed(vila_u, llm={'hidden_size': 64}), 'input_embed_dim_2'),
])
def test_a_bad_config_is_named(module, hf, message):
  with pytest.raises(UserError, match=message):
    module.entries(hf)
    module.model(hf)


def test_linear_scaling_is_read_from_old_and_new_fields():
  fields = {'rope_theta': 500.0, 'rope_scaling': {'type': 'linear', 'factor': 2.0}}
  newer = {'rope_parameters': {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 500.0}}
  for given in (fields, newer):
    trunk = language.trunk(language.fields(given, vila_u._DEFAULTS))
    assert (trunk.rope_base, trunk.rope_scale) == (500.0, 2.0)


def test_parts_that_do_not_fit_are_named():
  trunk = TrunkConfig(32, 1, 4, 2, 8, 64)
  for config, message in (
      (ModelConfig(trunk, 300, 4, 1, 16, image_embedding='nothing'), r'model\.image_embedding .*places, table, projected'),
      (ModelConfig(trunk, 300, 4, 4, 16, image_head='mlp'), r'model\.image_head `mlp`'),
      (dataclasses.replace(ModelConfig(trunk, 300, 4, 4, 16, image_embedding='projected'), image_head='depth',
                           trunk=dataclasses.replace(trunk, heads=6)), 'no multiple')):
    with pytest.raises(UserError, match=message):
      unified.define(config)
  with pytest.raises(UserError, match=r'model\.activation'):
    dataclasses.replace(trunk, activation='relu')
  definition = unified.define(ModelConfig(trunk, 300, 4, 4, 16, image_head='depth'))  # on an embedding without a codebook
  with pytest.raises(UserError, match='codebook of the image embedding'):
    jax.eval_shape(lambda p: definition.bind(p).code_logits(jnp.ones((2, 32)), jnp.zeros((2, 4), int)), definition.shapes)
