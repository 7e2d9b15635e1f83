"""A reward for GRPO: 1 for a step of at most LIMIT tokens of text, down to 0 at twice as many."""

import jax.numpy as jnp

from intersyn_jax.interleave.layout import TEXT

LIMIT = 12


def terse(parts):
  steps = parts.config.judge.max_steps

  def reward(tokens):
    """TokenBatch of R prompts with their answers -> [R, steps]."""
    said = (tokens.modality == TEXT) & (tokens.loss > 0)  # the policy's own words; the prompt and forced tokens have no loss
    of_step = tokens.step[:, None, :] == jnp.arange(steps)[None, :, None]
    length = jnp.sum(said[:, None, :] & of_step, axis=-1)
    return jnp.clip(2 - length / LIMIT, 0, 1)

  return reward
