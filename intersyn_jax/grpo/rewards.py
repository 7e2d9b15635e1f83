"""Hybrid rewards of an interleaved answer: textual relevance, visual-text alignment, structure (Unified GRPO, section 3).

r_t = E[TCC] / 5, r_v = mean(E[ICC], E[IQ], E[ITS]) / 5, r_f = 1 where the answer keeps the format and has the number of
steps asked for. Each lies in 0..1. No ground truth and no gold answer is seen here. Rewards of one's own (`grpo.rewards`)
join them, jittable ones (`Reward`) or such as need the host (`HostReward`).

Letters: R rollouts, T positions, S steps at most.
"""

from __future__ import annotations

import abc
import re
import typing
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax.errors import UserError
from intersyn_jax.interleave.grammar import Parse
from intersyn_jax.interleave.layout import TokenBatch
from intersyn_jax.interleave.types import Conversation

_NUMBERS = {word: i for i, word in enumerate(
    ('one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten'), start=1)}
_ASKED = re.compile(rf'\b({"|".join(_NUMBERS)}|\d{{1,2}})\s+(?:pictures?|images?|steps?|drawings?)\b', re.IGNORECASE)


def asked_steps(question: str) -> int:
  """How many steps a question asks for in words (`two pictures`, `3 images`); 0 where it does not say."""
  match = _ASKED.search(question)
  return 0 if match is None else _NUMBERS.get(match[1].lower()) or int(match[1])


Reward = Callable[[TokenBatch], jax.Array]
"""A reward of one's own, jittable: prompts with their answers as rows [R,T] -> numbers [R,S], each best in 0..1.

`tokens.step` says which step of the answer a position belongs to (-1 in the prompt), `tokens.loss` is 1 where the policy chose
the token. What is given for steps that were never written is not read. An answer with a NaN could not be scored and takes no
part in the update.
"""


class HostReward(abc.ABC):
  """A reward of one's own that runs in Python on the host. Transfer and scoring are timed apart in the metrics.

  It holds up the devices: where it can be written in jax, a `Reward` costs next to nothing. Each process of a job scores all
  answers, so that the same answer must have the same score everywhere.
  """

  @abc.abstractmethod
  def score(self, answers: Sequence[Conversation]) -> np.ndarray:
    """Numbers [R,S] as of a `Reward` for R conversations, whose last turn holds the answer; its images have codes alone."""


def checked(name: str, value: typing.Any, shape: tuple[int, int]) -> jax.Array | np.ndarray:
  """What a reward of one's own gave, as float32. Raises UserError where that is not one number for each step of each answer."""
  found = getattr(value, 'shape', None)
  if found != shape or not any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
    what = type(value).__name__ if found is None else f'{value.dtype}{list(found)}'
    raise UserError(f'config.grpo.rewards: {name} gave {what} for {shape[0]} answers; give numbers [{shape[0]}, {shape[1]}], '
                    'a row for each answer, a number for each of the judge.max_steps steps')
  return value.astype(np.float32)


class Rewards(typing.NamedTuple):
  """Rewards of R rollouts.

  Attributes:
    textual, visual: float32[R,S], of each step; 0 where the step is missing.
    whole: float32[R,2], textual and visual of the answer as a whole.
    structure: float32[R].
    counts: bool[R,S], the steps that count: those asked for, or those written where the question names no number.
    valid: bool[R], the judge, and every reward of one's own, could score the answer. One that was not scored takes no part
      in anything.
    own: float32[R,S] of each reward of one's own, by name; 0 where the step is missing.
  """

  textual: jax.Array
  visual: jax.Array
  whole: jax.Array
  structure: jax.Array
  counts: jax.Array
  valid: jax.Array
  own: Mapping[str, jax.Array] = {}


def hybrid(steps: jax.Array, whole: jax.Array, valid: jax.Array, parse: Parse, asked: jax.Array,
           own: Mapping[str, jax.Array] | None = None) -> Rewards:
  """Rewards from judge scores, and from what rewards of one's own gave.

  Args:
    steps: float32[R,S,4] judge scores of each step, 0 where the step is missing.
    whole: float32[R,4] judge scores of the answer; of answers that are not valid neither is read.
    valid: bool[R].
    parse: what the grammar says of the answers.
    asked: int32[R], steps asked for, 0 for any number.
    own: [R,S] of each reward of one's own; steps that were not written are not read, a NaN elsewhere is no score.
  """
  number = jnp.arange(steps.shape[1])[None, :]
  own = {name: jnp.where(number < parse.steps[:, None], value, 0.0) for name, value in (own or {}).items()}
  for value in own.values():
    valid = valid & jnp.all(jnp.isfinite(value), axis=1)
  wanted = jnp.where(asked > 0, asked, jnp.maximum(parse.steps, 1))
  keeps = parse.well_formed & ((asked == 0) | (parse.steps == asked))
  part = lambda s: jnp.stack([s[..., 0], jnp.mean(s[..., 1:], axis=-1)], axis=-1) / 5.0
  each = part(jnp.where(valid[:, None, None], steps, 0.0))
  return Rewards(each[..., 0], each[..., 1], part(jnp.where(valid[:, None], whole, 0.0)), keeps.astype(jnp.float32),
                 number < wanted[:, None], valid,
                 {name: jnp.where(valid[:, None], value, 0.0) for name, value in own.items()})
