"""Prompts with pictures that are read as features: what is written is as probable as the full forward says."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from intersyn_jax.data import images
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import Decoder, join
from intersyn_jax.decoding.generator import Eyes, Generator
from intersyn_jax.errors import UserError
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.layout import FEATURES, PADDING
from intersyn_jax.interleave.types import Image, Text
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.unified import ModelConfig, define, position_log_probs
from tests import small_model

WIDTH = 6


def pictured(document):
  """A prompt whose positions 2 and 3 are the first two rows of its features."""
  modality, text, codes = document.modality.copy(), document.text.copy(), document.codes.copy()
  modality[2:4], text[2:4], codes[2:4, 0] = FEATURES, 0, [0, 1]
  return document.replace(modality=modality, text=text, codes=codes)


def test_features_of_prompts():
  layout_ = small_model.plain(1)
  definition = define(ModelConfig(TrunkConfig(32, 1, 4, 2, 8, 64), layout_.tokenizer.size, 4, 1, small_model.CODEBOOK, mix=3,
                                  image_embedding='projected', image_head='mlp', features=WIDTH))
  params = definition.init(jax.random.key(0), small_model.one_device())
  params['text_head'] = params['text_head'] * 30
  prompts = [pictured(layout.prompt(small_model.question(q), layout_)) for q in ('a red circle', 'move the blue square')]
  writer = Decoder(definition, layout_, small_model.one_device(), DecodeConfig(max_positions=8, guidance=2.0))
  features = np.random.default_rng(0).standard_normal((4, WIDTH)).astype(np.float32)

  @jax.jit
  def score(params, rows, features):
    model = definition.bind(params)
    return position_log_probs(model, model(rows, features), rows)[:2]

  def plain(features, read):
    out = jax.device_get(writer.decode(params, prompts, group=2, features=features))
    text, codes = jax.device_get(score(params, join(stacked, out), read))
    scored = (out.tokens.modality != PADDING) & ~out.tokens.forced
    whole = (text + codes.sum(-1))[:, stacked.text.shape[1]:]
    return out.plain_log_prob[scored], whole[scored]

  stacked = writer.stack(prompts)
  np.testing.assert_array_equal(stacked.codes[stacked.modality == FEATURES][:, 0], [0, 1, 2, 3])
  np.testing.assert_allclose(*plain(features, features), atol=1e-4)
  drawn, other = plain(features, features[::-1])  # the comparison can fail
  assert np.abs(drawn - other).max() > 1e-2
  with pytest.raises(ValueError, match='features'):
    writer.decode(params, prompts)


@pytest.fixture(scope='module')
def reader():
  """A generator that reads pictures of questions as features: a picture's first pixels."""
  layout_ = dataclasses.replace(small_model.plain(1), features=True)
  definition = define(ModelConfig(TrunkConfig(32, 1, 4, 2, 8, 64), layout_.tokenizer.size, 4, 1, small_model.CODEBOOK,
                                  image_embedding='table', features=WIDTH))
  params = definition.init(jax.random.key(0), small_model.one_device())
  params['text_head'] = params['text_head'] * 30
  features = lambda found: np.stack([images.pixels(data)[:4, :2].reshape(4, WIDTH) / 25.0 for data in found])
  config = DecodeConfig(max_positions=8, max_images=0, rows=3, bucket=32)
  build = lambda eyes: Generator(definition, params, layout_, None, small_model.one_device(), config, eyes)
  return build, Eyes(codes=lambda found: None, features=features)


def test_a_generator_reads_pictures_of_questions(reader):
  build, eyes = reader
  look = lambda seed: Image(data=images.png(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)))
  questions = [(look(0), Text('what is it?')), (Text('a red circle'),), (look(1), Text('and'), look(2))] * 2
  generator = build(eyes)
  together = generator.generate(questions, n=2)
  said = lambda answers: [c.turns[-1].answer for c in answers]
  assert said(generator.generate([questions[0]], n=2)[0]) == said(together[0])  # whoever else is read
  assert said(generator.generate([(look(3), Text('what is it?'))], n=2)[0]) != said(together[0])
  assert together[2][0].turns[0].question == questions[2]
  with pytest.raises(UserError, match='record 0: this model reads pictures in questions as features'):
    build(None).generate(questions)
