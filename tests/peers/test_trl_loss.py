"""The loss of text-only GRPO against TRL's, value and gradient, on the same log-probs, advantages and masks.

Ours and theirs: `sequence` is `grpo`, `token` is `bnpo` and, of one batch, `dapo`, `constant` is `dr_grpo` where rows hold
answers alone, `dual_clip` is `delta`, `sequence_ratio` is `importance_sampling_level` `sequence`. TRL multiplies the
divergence by the ratio unless `use_bias_correction_kl` is off, ours never does. Rows without any token count in TRL's `grpo`
and not in ours.
"""

import functools

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from trl import GRPOConfig, GRPOTrainer

from intersyn_jax.grpo.loss import LossConfig, make_loss
from intersyn_jax.interleave import layout

ROWS, LENGTH, KL = 5, 12, 0.3


@functools.cache
def numbers():
  """Log-probs now, before and of the reference, advantages and mask; ratios lie on both sides of every clip."""
  rng = np.random.default_rng(5)
  normal = lambda scale: rng.normal(0, scale, (ROWS, LENGTH)).astype(np.float32)
  current = -np.abs(normal(2.0))
  lengths = np.array([12, 3, 7, 1, 12])
  mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.float32)
  return current, current + normal(0.7), current + normal(0.5), rng.normal(size=ROWS).astype(np.float32), mask


class Given(GRPOTrainer):
  """Reads its log-probs instead of a model."""

  def _get_per_token_logps_and_entropies(self, *_, **__):
    return self.current, torch.zeros_like(self.current), None


def theirs(folder, loss_type, beta, **fields):
  """Value of TRL's loss, and its gradient by the log-probs."""
  current, old, reference, advantage, mask = map(torch.from_numpy, numbers())
  words = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0, '<end>': 1}, 'a'))
  trainer = Given(
      transformers.LlamaForCausalLM(transformers.LlamaConfig(
          vocab_size=2, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1)), lambda **_: [],
      GRPOConfig(str(folder), loss_type=loss_type, max_completion_length=LENGTH, use_cpu=True, bf16=False, report_to='none',
                 per_device_train_batch_size=8, use_bias_correction_kl=False, **fields),
      datasets.Dataset.from_dict({'prompt': ['a']}),
      processing_class=transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token='<end>', pad_token='<end>'))
  # A weight above 0 would make it load a reference model, which nothing reads here.
  trainer.beta, trainer.current, trainer.current_gradient_accumulation_steps = beta, current.clone().requires_grad_(), 1
  ids = torch.zeros((ROWS, LENGTH), dtype=torch.long)
  loss = trainer._compute_loss(trainer.model, {
      'prompt_ids': ids[:, :1], 'prompt_mask': ids[:, :1] + 1, 'completion_ids': ids, 'completion_mask': mask,
      'advantages': advantage, 'old_per_token_logps': old, 'ref_per_token_logps': reference, 'num_items_in_batch': mask.sum()})
  loss.backward()
  return loss.item(), trainer.current.grad.numpy()


def ours(**fields):
  current, old, reference, advantage, mask = numbers()
  zero = np.zeros((ROWS, LENGTH), np.int32)
  tokens = layout.TokenBatch(
      text=zero, codes=zero[..., None], modality=np.full_like(zero, layout.TEXT, dtype=np.int8), loss=mask, forced=zero > 0,
      document=zero + 1, position=zero + np.arange(LENGTH), turn=zero, step=zero - 1)
  batch = {'tokens': tokens, 'old': old[..., None], 'reference': reference[..., None],
           'advantage': np.broadcast_to(advantage[:, None], zero.shape), 'entropy_weight': np.zeros((ROWS, 2), np.float32)}
  loss, weights = make_loss(lambda params, tokens: (params, jnp.zeros((ROWS, LENGTH, 1)), jnp.zeros((ROWS, LENGTH))),
                            LossConfig(**fields))

  def total(current):
    pairs = loss(current, batch, jax.random.key(0))
    return sum(weight * pairs[name][0] / jnp.maximum(pairs[name][1], 1) for name, weight in weights.items())

  return jax.jit(jax.value_and_grad(total))(current)


KINDS = {'grpo': 'sequence', 'bnpo': 'token', 'dapo': 'token', 'dr_grpo': 'constant'}
CLIP = dict(clip_low=0.1, clip_high=0.3), dict(epsilon=0.1, epsilon_high=0.3)
DUAL = dict(clip_low=0.1, clip_high=0.3, dual_clip=1.5), dict(epsilon=0.1, epsilon_high=0.3, delta=1.5)
WHOLE = dict(clip_low=0.1, clip_high=0.1, sequence_ratio=True), dict(epsilon=0.1, importance_sampling_level='sequence')


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('our_fields', 'their_fields'), [CLIP, DUAL, WHOLE], ids=['clip', 'dual', 'whole'])
@pytest.mark.parametrize('beta', [0.0, KL])
def test_value_and_gradient(tmp_path, kind, our_fields, their_fields, beta):
  value, gradient = theirs(tmp_path, kind, beta, **their_fields)
  of_kl = dict(kl=beta) if beta else dict(kl_estimator='none')
  our_value, our_gradient = ours(aggregation=KINDS[kind], **our_fields, **of_kl)
  np.testing.assert_allclose(our_value, value, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(our_gradient, gradient, rtol=1e-4, atol=1e-6)
  assert np.abs(gradient).max() > 1e-3


def test_the_numbers_reach_every_clip():
  """Otherwise equality would say nothing about them."""
  current, old, _, advantage, mask = numbers()
  ratio, signs = np.exp(current - old)[mask > 0], np.repeat(advantage, LENGTH).reshape(ROWS, LENGTH)[mask > 0]
  between = lambda value, low, high: (value > low) & (value < high)
  for low, high in ((0.0, 0.9), (0.9, 1.3), (1.3, 1.5), (1.5, np.inf)):
    for positive in (True, False):
      assert (between(ratio, low, high) & ((signs > 0) == positive)).any()
  whole = np.exp(np.sum((current - old) * mask, axis=1) / mask.sum(axis=1))
  assert all(between(whole, low, high).any() for low, high in ((0.0, 0.9), (0.9, 1.1), (1.1, np.inf)))
