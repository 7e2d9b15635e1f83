"""Every family reads, learns and writes interleaved answers: warm-up, decoding and GRPO on a small model, on 1 and 8 devices."""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax import sharding
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import Decoder
from intersyn_jax.grpo.advantages import AdvantageConfig
from intersyn_jax.grpo.loss import LossConfig
from intersyn_jax.grpo.trainer import GRPOConfig, Trainer
from intersyn_jax.interleave import grammar, layout
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn
from intersyn_jax.judge.model import SynJudge
from intersyn_jax.models import unified
from intersyn_jax.training import loop
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer
from intersyn_jax.training.supervised import next_token_loss
from tests.families import tiny_tokenizers

FAMILIES = tuple(tiny_tokenizers.MODULES)
MESHES = {'1': {}, '8': {'fsdp': 4, 'tensor': 2}}
STEPS = 30
ROWS = 8


@functools.cache
def story(family: str, folder) -> SimpleNamespace:
  """A layout, a model of random weights, and one conversation whose answer has two steps."""
  module = tiny_tokenizers.MODULES[family]
  place = tiny_tokenizers.layout(family, folder)
  config = module.model(module.SIZES['tiny'])
  config = dataclasses.replace(config, vocabulary=place.tokenizer.size)
  block, rng = place.block, np.random.default_rng(0)
  images = [Image(codes=rng.integers(0, block.codebook, (block.places, block.depth)).astype(np.int32)) for _ in range(2)]
  conversation = Conversation('q', 'shapes', (Turn((Text('show a red circle, two pictures'),),
                                                   (Text('a circle'), images[0], Text('it is red'), images[1])),))
  return SimpleNamespace(layout=place, config=config, conversation=conversation)


def drawn(definition, mesh, seed: int):
  """Parameters as a model starts with, drawn on the host: compiling their initialisers would take longer than all the rest."""
  rng = np.random.default_rng(seed)

  def one(path, shape):
    if path[-1].key == 'scale':
      return np.ones(shape.shape, np.float32)
    spread = 0.0 if path[-1].key.endswith('bias') else shape.shape[-2:][0] ** -0.5
    return (spread * rng.standard_normal(shape.shape)).astype(np.float32)

  return jax.device_put(jax.tree_util.tree_map_with_path(one, definition.shapes), definition.shardings(mesh))


@functools.cache
def trained(family: str, folder, devices: str) -> SimpleNamespace:
  """The model after it has read that conversation STEPS times, and the loss before and after."""
  parts = story(family, folder)
  mesh = sharding.make_mesh(MESHES[devices], jax.devices()[:int(devices)])
  definition = unified.define(parts.config)
  document = layout.tokenise(parts.conversation, parts.layout)
  batch = layout.stack([document] * ROWS, len(document.text))
  batch = jax.device_put(batch, sharding.rows(mesh))
  optimizer = make_optimizer(OptimizerConfig(name='adamw', learning_rate=0.01, warmup=5, clip=1.0), STEPS)
  step = jax.jit(loop.make_step(next_token_loss(definition), optimizer), donate_argnums=0)
  state, losses = loop.init_state(drawn(definition, mesh, 0), optimizer), []
  for number in range(STEPS):
    state, metrics = step(state, batch, jax.random.key(number))
    losses.append(float(metrics['loss']))
  return SimpleNamespace(**vars(parts), mesh=mesh, definition=definition, params=state['params'], losses=losses,
                         optimizer=optimizer)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('families')


def decoder_of(parts: SimpleNamespace, document: layout.TokenBatch, **config) -> Decoder:
  return Decoder(parts.definition, parts.layout, parts.mesh,
                 DecodeConfig(max_positions=len(document.text), max_images=2, bucket=8, **config))


QUICK = (('vila_u', '1'), ('chameleon', '8'))
"""Four codes a position; many devices. The others are for `make test-slow`."""
CASES = [pytest.param(family, devices, marks=() if (family, devices) in QUICK else pytest.mark.slow)
         for family in FAMILIES for devices in MESHES]


@pytest.mark.parametrize('family, devices', CASES)
def test_warm_up_decoding_and_grpo(family, devices, folder):
  parts = trained(family, folder / family, devices)
  assert parts.losses[-1] < 0.2 * parts.losses[0]

  # What it learnt it writes: the tags, every word, every code, the forced tokens and the end.
  question = Conversation('q', 'shapes', (Turn(parts.conversation.turns[0].question),))
  prompt = layout.prompt(question, parts.layout)
  whole = layout.tokenise(parts.conversation, parts.layout)
  decoder = decoder_of(parts, whole)
  group = 4
  prompts = layout.stack([prompt, prompt], decoder.room([prompt]), left=True)
  done = jax.device_get(decoder.rollout(parts.params, prompts, np.arange(2 * group, dtype=np.uint32), 0, group=group))
  parsed = grammar.parse(done.tokens, parts.layout, 3)
  good = np.asarray(parsed.well_formed) & (np.asarray(parsed.steps) == 2)
  assert good.any(), 'no sampled answer keeps the format'
  row = int(np.flatnonzero(good)[0])
  answer = layout.answer_of(*(np.asarray(getattr(done.tokens, name))[row] for name in ('text', 'codes', 'modality')),
                            parts.layout, np.asarray(done.tokens.forced)[row])
  assert [type(segment) for segment in answer] == [Text, Image, Text, Image]
  forced = np.asarray(done.tokens.text)[row][np.asarray(done.tokens.forced)[row]]
  assert forced.tolist() == [entry for entry in parts.layout.block.template if entry != layout.CODE] * 2

  # One GRPO iteration with the judge on the family's own trunk.
  judge = SynJudge.of(parts.config, parts.layout, {'layers': 1, 'reader': 1, 'max_steps': 3, 'widths': {
      name: 2 * len(whole.text) for name in ('tcc', 'icc', 'its')}}).within(prompts.text.shape[1], len(whole.text))
  trainer = Trainer(decoder, judge.score, drawn(judge.definition, parts.mesh, 1), parts.optimizer, parts.params,
                    GRPOConfig(prompts.text.shape[1]),
                    AdvantageConfig(group, {'textual': 1.0, 'visual': 1.0, 'format': 1.0}), LossConfig(), seed=0)
  state = loop.init_state(jax.tree.map(jnp.copy, parts.params), parts.optimizer)
  state, metrics = trainer.iteration(state, lambda number: (prompts, np.asarray([2, 2], np.int32)))
  # Decoder and trainer agree on what was drawn, so that the first ratio is 1 by agreement.
  assert max(metrics['log_ratio.text'], metrics['log_ratio.image']) < 1e-4
  moved = [float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(state['params']), jax.tree.leaves(parts.params),
                                                       strict=True)]
  assert all(np.isfinite(moved)) and max(moved) > 0
