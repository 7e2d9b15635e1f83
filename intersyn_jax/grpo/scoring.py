"""Log-probabilities of answers by teacher forcing, of the same kind as those that were kept while they were written.

`plain`: of the heads at temperature 1, whatever the answer was drawn from. `drawn`: of the distribution it was drawn from, with
temperature, truncation, guidance and what was not allowed. Where answers are drawn plainly the two are one.

Letters: R rollouts, T positions of a whole row, M of a completion, D codes per image position.
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp

from intersyn_jax.decoding import guidance
from intersyn_jax.decoding.decoder import Completions, Decoder
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import TokenBatch
from intersyn_jax.models import unified
from intersyn_jax.models.definition import Params


class LogProbs(Protocol):
  """Text log-probs [R,T], code log-probs [R,T,D] and entropy [R,T] of rows [R,T]; of the prompt they are 0.

  `share` neighbours have the same prompt, and it is read once for them where it can be.
  """

  def __call__(self, params: Params, tokens: TokenBatch, share: int = 1) -> tuple[jax.Array, jax.Array, jax.Array]: ...


KINDS = ('plain', 'drawn')


def scorer(decoder: Decoder, kind: str, prompt: int, chunk: int = 0) -> LogProbs:
  """Scores rows that `decoder` wrote.

  Args:
    kind: `plain` or `drawn`.
    prompt: positions of the prompt in each row.
    chunk: positions of every row whose logits are built at a time; 0 all at once.

  Raises:
    UserError: an unknown kind, or `drawn` where the decoder takes the largest logit or weakens repetition.
  """
  if kind not in KINDS:
    raise UserError(f'grpo.scored is {kind!r}; use one of {", ".join(KINDS)}')
  definition, config = decoder.definition, decoder.config
  if kind == 'drawn' and (config.text_temperature == 0 or config.image_temperature == 0 or config.text_repetition != 1.0):
    raise UserError('grpo.scored is drawn: temperatures must be above 0 and text_repetition 1; what is chosen without chance has '
                    'no gradient, and a penalty on repetition is not scored')

  def score(params: Params, tokens: TokenBatch, share: int = 1) -> tuple[jax.Array, jax.Array, jax.Array]:
    model = definition.bind(params)
    if kind == 'plain':
      answers = jax.tree.map(lambda a: a[:, prompt:], tokens)
      found = unified.log_probs_after(model, model.backbone.answers(tokens, prompt, share), answers, chunk=chunk)
    else:
      found = guidance.log_probs(model, tokens, prompt, decoder.layout, config, chunk=chunk)
    return jax.tree.map(lambda a: jnp.pad(a, [(0, 0), (prompt, 0)] + [(0, 0)] * (a.ndim - 2)), found)

  return score


def written(completions: Completions, kind: str) -> tuple[jax.Array, jax.Array]:
  """Text log-probs [R,M] and code log-probs [R,M,D] of a kind that the decoder kept while it wrote."""
  if kind == 'plain':
    whole, codes = completions.plain_log_prob, completions.plain_code_log_prob
  else:
    whole, codes = completions.log_prob, completions.code_log_prob
  return whole - jnp.sum(codes, axis=-1), codes
