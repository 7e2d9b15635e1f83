"""The three ways to train the judge's backbone: all of it, LoRA, not at all."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.interleave import layout
from intersyn_jax.judge import model
from intersyn_jax.models import lora
from intersyn_jax.models.trunk import KERNELS, TrunkConfig
from intersyn_jax.models.unified import ModelConfig
from intersyn_jax.models.unified import define as define_policy
from intersyn_jax.training.loop import init_state, make_step
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer
from intersyn_jax.training.trees import flat
from tests import small_model as small

WRITTEN = small.plain()
BLOCK = WRITTEN.block
POLICY = ModelConfig(TrunkConfig(16, 3, 2, 1, 8, 32), WRITTEN.tokenizer.size, BLOCK.places, 1, BLOCK.codebook, mix=2)


def judge_of(rank: int = 0):
  return model.define(POLICY, 2, 1, lora_rank=rank, lora_alpha=4.0)


def drawn(shapes, seed: int):
  """Parameters without the compilation that `Definition.init` costs."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda s: jnp.asarray(0.2 * rng.standard_normal(s.shape), s.dtype), shapes)


def loss_of(definition):
  def loss(params, batch, key):
    del key
    judge = definition.bind(params)
    hidden = judge(batch['tokens'])[0]
    cost = model.cross_entropy(judge.logits(hidden[:, -1]), batch['label'])
    return {'loss': (jnp.sum(cost), jnp.asarray(cost.size, jnp.float32))}

  return loss


def batch():
  documents = [layout.tokenise(small.conversation(WRITTEN, s), WRITTEN) for s in range(4)]
  label = np.random.default_rng(0).uniform(0, 5, (4, 4)).astype(np.float32)
  return {'tokens': layout.stack([jax.tree.map(lambda a: a[:24], d) for d in documents], 24, left=True), 'label': label}


@pytest.mark.parametrize('mode', lora.MODES)
def test_each_mode_learns_and_leaves_the_rest_to_the_bit(mode):
  definition = judge_of(2 if mode == 'lora' else 0)
  params = drawn(definition.shapes, 0)
  before = {path: np.asarray(a) for path, a in flat(params).items()}
  optimizer = make_optimizer(OptimizerConfig(learning_rate=3e-3, frozen=lora.frozen_patterns(mode)), 10)
  state = init_state(params, optimizer)
  step = jax.jit(make_step(loss_of(definition), optimizer))
  losses = []
  for _ in range(10):
    state, metrics = step(state, batch(), jax.random.key(0))
    losses.append(float(metrics['loss']))
  assert losses[-1] < losses[0] - 0.05, losses
  after = flat(state['params'])
  changed = {path for path, a in before.items() if not np.array_equal(a, after[path])}
  backbone = {path for path in before if path.startswith('backbone/')}
  factors = {path for path in backbone if path.endswith(('_lora_in', '_lora_out'))}
  assert len(factors) == (2 * len(KERNELS) if mode == 'lora' else 0)
  expected = {'full': set(before), 'lora': before.keys() - backbone | factors, 'frozen': before.keys() - backbone}[mode]
  # A head that the loss of this test does not read stands still in any mode.
  assert changed <= expected and expected - changed <= {p for p in before if '/' not in p}
  with_state = {path for path in before if any(path in str(keys) for keys, _ in
                                               jax.tree_util.tree_leaves_with_path(state['opt_state']))}
  assert with_state == expected


def test_the_judge_starts_as_the_policy_with_fresh_factors_and_its_reader_has_none():
  policy = drawn(define_policy(POLICY).shapes, 0)
  definition = judge_of(2)
  fresh = drawn(definition.shapes, 1)
  params = model.init_from(policy, fresh)
  assert jax.tree.structure(params) == jax.tree.structure(fresh)
  ours, theirs = (p['backbone']['trunk']['layers'] for p in (params, policy))
  np.testing.assert_array_equal(ours['up_kernel'], theirs['up_kernel'][:2])
  np.testing.assert_array_equal(ours['up_lora_in'], fresh['backbone']['trunk']['layers']['up_lora_in'])
  assert all(path.startswith('backbone/trunk/layers/') for path in flat(params) if '_lora_' in path)


def test_a_merged_judge_gives_the_same_scores():
  tuned, plain = judge_of(2), judge_of()
  params = drawn(tuned.shapes, 2)
  merged = lora.merge(params, dataclasses.replace(POLICY.trunk, lora_rank=2, lora_alpha=4.0))
  assert jax.tree.structure(merged) == jax.tree.structure(plain.shapes)

  def scores(definition, params):
    judge = definition.bind(params)
    return model.expectation(judge.logits(judge(batch()['tokens'])[0]))

  np.testing.assert_allclose(jax.jit(lambda p: scores(plain, p))(merged), jax.jit(lambda p: scores(tuned, p))(params), atol=1e-4)


def test_an_unknown_mode_is_named():
  with pytest.raises(UserError, match=r"judge.mode is 'adapter': choose one of full, lora, frozen"):
    lora.frozen_patterns('adapter')
