"""A visual reward without the judge: how well each step's picture goes with its text (the CLIP-score ablation of Unified GRPO).

    --config.grpo.rewards='("intersyn_jax.grpo.clip:clip_similarity",)' --config.grpo.reward.visual=0.0

The two towers are those of the judge's baseline `clip`, trained here on the texts and pictures of the data that the judge may
learn from. They do not see the question.

Letters: R rollouts, T positions, S steps at most, L tokens of a text, P places, D codes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from intersyn_jax.errors import UserError
from intersyn_jax.grpo.rewards import Reward
from intersyn_jax.interleave.layout import CODES, TEXT, Layout, TokenBatch
from intersyn_jax.judge.baselines import clip
from intersyn_jax.models.definition import Definition, Params

SPLITS = ('text_to_image', 'interleaved')
"""What the towers learn from, as the baseline does."""


def clip_similarity(parts) -> Reward:
  """The reward, for `grpo.rewards`; `parts` are those of the run (`stages.parts.Parts`)."""
  config = clip.ClipConfig(**parts.config.judge.clip)
  splits = [split for split in SPLITS if split in parts.splits()]
  if not splits:
    raise UserError(f'config.grpo.rewards: clip_similarity learns from the splits {", ".join(SPLITS)}; the data '
                    'have neither')
  conversations = [conversation for split in splits for conversation in parts.conversations(split)]
  pairs = clip.pairs_of(conversations, parts.layout, config.longest)
  definition, params = clip.train(pairs, parts.model_config, config, parts.mesh, parts.config.seed)
  return similarity(definition, params, parts.layout, parts.config.judge.max_steps, config.longest)


def similarity(definition: Definition, params: Params, layout: Layout, steps: int, longest: int) -> Reward:
  """Cosine of each step's text and first picture, [R,S], 0 where it is negative or one of the two is missing.

  Args:
    definition, params: of `clip.TwoTowers`.
    steps: S. longest: L.
  """

  def reward(tokens: TokenBatch) -> jax.Array:
    towers = definition.bind(params)
    texts, codes, whole = parts_of_steps(tokens, layout, steps, longest)
    flat = lambda a: a.reshape(-1, *a.shape[2:])
    cosine = jnp.sum(towers.of_texts(flat(texts)) * towers.of_pictures(flat(codes)), axis=-1).reshape(whole.shape)
    return jnp.where(whole, jnp.maximum(cosine, 0.0), 0.0)

  return reward


def parts_of_steps(tokens: TokenBatch, layout: Layout, steps: int, longest: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Of each step the text int32[R,S,L] (-1 behind its end), the codes of its first picture int32[R,S,P,D], and bool[R,S], whether
  both are there and whole."""
  here = tokens.step[:, None] == jnp.arange(steps)[:, None]  # [R,S,T]
  marks = jnp.asarray(sorted(layout.marks | set(layout.template.end)))
  word = (tokens.modality == TEXT) & ~tokens.forced & ~jnp.isin(tokens.text, marks)
  texts = _first(jnp.where(word, tokens.text, -1)[:, None], here & word[:, None], longest, -1)
  is_code = (tokens.modality == CODES)[:, None] & here
  codes = _first(tokens.codes[:, None], is_code, layout.block.places, 0)
  whole = (texts[..., 0] >= 0) & (jnp.sum(is_code, axis=-1) >= layout.block.places)
  return texts, codes, whole


def _first(values: jax.Array, chosen: jax.Array, count: int, fill: int) -> jax.Array:
  """The first `count` chosen values of each row: values [R,1,T,...], chosen bool[R,S,T] -> [R,S,count,...]."""
  place = jnp.where(chosen, jnp.cumsum(chosen, axis=-1) - 1, count)
  rows, steps, _ = chosen.shape
  out = jnp.full((rows, steps, count, *values.shape[3:]), fill, values.dtype)
  at = jnp.arange(rows)[:, None, None], jnp.arange(steps)[None, :, None], place
  return out.at[at].set(jnp.broadcast_to(values, (*chosen.shape, *values.shape[3:])), mode='drop')
