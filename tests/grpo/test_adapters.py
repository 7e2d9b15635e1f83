"""GRPO over a base that stands still: the reference is that base, and decoder and trainer agree on it, quantised too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import Decoder
from intersyn_jax.grpo.advantages import AdvantageConfig
from intersyn_jax.grpo.loss import LossConfig
from intersyn_jax.grpo.trainer import GRPOConfig, Trainer
from intersyn_jax.interleave import layout
from intersyn_jax.judge.model import JudgeScores
from intersyn_jax.models import unified
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.training.optimizer import OptimizerConfig
from intersyn_jax.training.trees import flat, unflat
from intersyn_jax.training.tuning import Tuned, TuningConfig
from tests import small_model as small

LENGTH = 16
WEIGHTS = {'textual': 1.0, 'visual': 1.0, 'format': 0.0, 'own': 1.0}


def even(judge, tokens):
  """A judge with a known taste: even text ids."""
  chosen = (tokens.loss > 0) & (tokens.modality == layout.TEXT)
  wish = jnp.sum(chosen & (tokens.text % 2 == 0), axis=1) / jnp.maximum(jnp.sum(chosen, axis=1), 1)
  steps = jnp.broadcast_to(5.0 * wish[:, None, None], (len(wish), 3, 4))
  return JudgeScores(steps[:, 0], steps, None, jnp.ones(len(wish), bool))


def test_adapters_leave_a_reference_that_is_their_base():
  pytest.importorskip('qwix')
  written, mesh = small.plain(), small.one_device()
  block = written.block
  model = unified.ModelConfig(TrunkConfig(16, 1, 2, 2, 8, 16), written.tokenizer.size, block.places, 1, block.codebook)
  plain, rng = unified.define(model), np.random.default_rng(0)
  size = lambda path: 0.02 if path.endswith('head') else 0.3
  draw = lambda path, s: jnp.asarray(float(path.endswith('scale')) + size(path) * rng.standard_normal(s.shape), s.dtype)
  params = small.eager(unflat(plain.shapes, {path: draw(path, s) for path, s in flat(plain.shapes).items()}), written)
  tuned = Tuned(model, TuningConfig(4, 8.0, 'int8'), OptimizerConfig(learning_rate=0.02), 20, mesh)
  state = tuned.begin(jax.device_put(params, plain.shardings(mesh)), 0)
  decoder = Decoder(tuned.definition, written, mesh, DecodeConfig(max_positions=20, bucket=8, max_images=2))
  trainer = Trainer(decoder, even, {}, tuned.optimizer, tuned.reference(state), GRPOConfig(LENGTH),
                    AdvantageConfig(8, WEIGHTS, process=False), LossConfig(kl=0.01), seed=0)
  prompts = layout.stack([layout.prompt(small.question(text), written) for text in ('a red circle', 'move the blue')], LENGTH,
                         left=True)
  places = lambda state: [a.unsafe_buffer_pointer() for a in jax.tree.leaves(state['base'])]
  before, history = places(state), []
  for _ in range(3):
    state, metrics = trainer.iteration(state, lambda number: (prompts, np.array([2, 2], np.int32)))
    history.append(metrics)
  assert places(state) == before
  assert all(m['images'] > 0 and m['gradient_norm'] > 0 for m in history)
  for name in ('text', 'image'):
    assert max(m[f'log_ratio.{name}'] for m in history) < 1e-4
    assert history[0][f'kl.{name}'] == 0.0, 'the same numbers, to the bit'
    assert history[-1][f'kl.{name}'] > 1e-5
