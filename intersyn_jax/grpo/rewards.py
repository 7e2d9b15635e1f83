"""Hybrid rewards of an interleaved answer: textual relevance, visual-text alignment, structure (Unified GRPO, section 3).

r_t = E[TCC] / 5, r_v = mean(E[ICC], E[IQ], E[ITS]) / 5, r_f = 1 where the answer keeps the format and has the number of
steps asked for. Each lies in 0..1. No ground truth and no gold answer is seen here.

Letters: R rollouts, S steps at most.
"""

from __future__ import annotations

import re
import typing

import jax
import jax.numpy as jnp

from intersyn_jax.interleave.grammar import Parse

_NUMBERS = {word: i for i, word in enumerate(
    ('one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten'), start=1)}
_ASKED = re.compile(rf'\b({"|".join(_NUMBERS)}|\d{{1,2}})\s+(?:pictures?|images?|steps?|drawings?)\b', re.IGNORECASE)


def asked_steps(question: str) -> int:
  """How many steps a question asks for in words (`two pictures`, `3 images`); 0 where it does not say."""
  match = _ASKED.search(question)
  return 0 if match is None else _NUMBERS.get(match[1].lower()) or int(match[1])


class Rewards(typing.NamedTuple):
  """Rewards of R rollouts.

  Attributes:
    textual, visual: float32[R,S], of each step; 0 where the step is missing.
    whole: float32[R,2], textual and visual of the answer as a whole.
    structure: float32[R].
    counts: bool[R,S], the steps that count: those asked for, or those written where the question names no number.
    valid: bool[R], the judge could score the answer. An answer it could not score takes no part in anything.
  """

  textual: jax.Array
  visual: jax.Array
  whole: jax.Array
  structure: jax.Array
  counts: jax.Array
  valid: jax.Array


def hybrid(steps: jax.Array, whole: jax.Array, valid: jax.Array, parse: Parse, asked: jax.Array) -> Rewards:
  """Rewards from judge scores.

  Args:
    steps: float32[R,S,4] judge scores of each step, 0 where the step is missing.
    whole: float32[R,4] judge scores of the answer; of answers that are not valid neither is read.
    valid: bool[R].
    parse: what the grammar says of the answers.
    asked: int32[R], steps asked for, 0 for any number.
  """
  number = jnp.arange(steps.shape[1])[None, :]
  wanted = jnp.where(asked > 0, asked, jnp.maximum(parse.steps, 1))
  keeps = parse.well_formed & ((asked == 0) | (parse.steps == asked))
  part = lambda s: jnp.stack([s[..., 0], jnp.mean(s[..., 1:], axis=-1)], axis=-1) / 5.0
  each = part(jnp.where(valid[:, None, None], steps, 0.0))
  return Rewards(each[..., 0], each[..., 1], part(jnp.where(valid[:, None], whole, 0.0)), keeps.astype(jnp.float32),
                 number < wanted[:, None], valid)
