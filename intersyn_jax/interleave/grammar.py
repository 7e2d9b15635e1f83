"""The format of an interleaved answer, as a state machine over tokens that runs under jit.

Answer: (`<think>` text `</think>` `<vis>` image `</vis>`)+ `</s>`, where `</s>` is what closes an answer in the layout's
template. The structure reward r_f of GRPO (DESIGN 8) and the
places where process rewards are paid come from here.

Letters: B rows, T positions, S steps at most.
"""

from __future__ import annotations

import typing

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax.interleave.layout import PADDING, STOP, TEXT, Layout, TokenBatch

# What a token is to the grammar.
_WORD, _THINK, _THINK_END, _VIS, _VIS_END, _IMAGE, _BLOCK, _END, _OTHER, _PAD = range(10)
# Where the machine stands.
_BETWEEN, _OPEN, _SAYING, _SAID, _SHOWING, _SHOWN, _DONE, _BROKEN = range(8)

_NEXT = np.full((8, 10), _BROKEN, np.int32)
_NEXT[:, _PAD] = np.arange(8)
_NEXT[_BETWEEN, _THINK] = _OPEN
_NEXT[_BETWEEN, _END] = _DONE
_NEXT[_OPEN, _WORD] = _SAYING
_NEXT[_SAYING, _WORD] = _SAYING
_NEXT[_SAYING, _THINK_END] = _SAID
_NEXT[_SAID, _VIS] = _SHOWING
_NEXT[_SHOWING, _IMAGE] = _SHOWN
_NEXT[_SHOWN, _BLOCK] = _SHOWN
_NEXT[_SHOWN, _VIS_END] = _BETWEEN


class Parse(typing.NamedTuple):
  """What the grammar says of B answers.

  Attributes:
    step: int32[B,T], the answer step of each position, -1 before the first and at padding.
    think_end: int32[B,S], where step s closes its text, -1 where it never does.
    vis_end: int32[B,S], where step s closes its image, -1 where it never does.
    steps: int32[B], how many steps the answer opens.
    well_formed: bool[B], the whole answer keeps the format and is closed by `</s>`.
  """

  step: jax.Array
  think_end: jax.Array
  vis_end: jax.Array
  steps: jax.Array
  well_formed: jax.Array


def _kinds(answer: TokenBatch, layout: Layout) -> jax.Array:
  of_id = np.full(layout.tokenizer.size, _WORD, np.int32)
  of_id[layout.structure] = _OTHER
  of_id[list(layout.tags)] = _THINK, _THINK_END, _VIS, _VIS_END
  of_id[layout.special(STOP)] = _END
  of_id[layout.block.begin] = _IMAGE
  kind = jnp.asarray(of_id)[answer.text]
  kind = jnp.where(closing(answer, layout), _PAD, kind)  # the last id of the run counts
  kind = jnp.where((answer.modality > TEXT) | answer.forced, _BLOCK, kind)
  return jnp.where(answer.modality == PADDING, _PAD, kind)


def closing(batch: TokenBatch, layout: Layout) -> jax.Array:
  """bool[B,T]: ids of a whole run that closes an answer, its last one, the stop token, left out."""
  run = layout.template.end
  out = jnp.zeros(batch.text.shape, bool)
  if len(run) == 1:
    return out
  text = jnp.where((batch.modality == TEXT) & ~batch.forced, batch.text, -1)
  ahead = lambda n: jnp.pad(text, ((0, 0), (0, n)), constant_values=-1)[:, n:]
  whole = jnp.all(jnp.stack([ahead(n) == i for n, i in enumerate(run)]), axis=0)
  for n in range(len(run) - 1):
    out = out | jnp.pad(whole, ((0, 0), (n, 0)))[:, :whole.shape[1]]
  return out


def parse(answer: TokenBatch, layout: Layout, max_steps: int) -> Parse:
  """Parses answers [B,T] that hold only what followed the prompt (other positions as padding).

  A `<think>` opens a step; so does a `<vis>` that follows no text of its own. Positions of a broken answer still get
  steps, so that a judge can score what is there.
  """
  kind = _kinds(answer, layout)
  table = jnp.asarray(_NEXT)

  def advance(carry, k):
    state, step, said = carry
    opens = (k == _THINK) | ((k == _VIS) & ~said)
    step = step + opens
    said = jnp.where(k == _THINK, True, jnp.where(k == _VIS, False, said))
    return (table[state, k], step, said), jnp.where(k == _PAD, -1, step)

  rows = kind.shape[0]
  start = (jnp.full(rows, _BETWEEN), jnp.full(rows, -1), jnp.zeros(rows, bool))
  (state, last, _), step = jax.lax.scan(advance, start, kind.T)
  step = step.T
  where = jnp.arange(kind.shape[1])

  def close(of_kind: int) -> jax.Array:
    here = (kind == of_kind)[:, None, :] & (step[:, None, :] == jnp.arange(max_steps)[None, :, None])
    return jnp.max(jnp.where(here, where, -1), axis=-1)

  return Parse(step, close(_THINK_END), close(_VIS_END), last + 1, (state == _DONE) & (last >= 0))
