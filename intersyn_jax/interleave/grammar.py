"""The format of an interleaved answer, as a state machine over tokens that runs under jit.

Answer: (`<think>` text `</think>` `<vis>` image `</vis>`)+ `</s>`. The structure reward r_f of GRPO (DESIGN 8) and the
places where process rewards are paid come from here.

Letters: B rows, T positions, S steps at most.
"""

from __future__ import annotations

import typing

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax.interleave.layout import CODES, PADDING, Layout, TokenBatch

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
  kind = jnp.full(answer.text.shape, _WORD, jnp.int32)
  names = {'<think>': _THINK, '</think>': _THINK_END, '<vis>': _VIS, '</vis>': _VIS_END, '</s>': _END,
           '<s>': _OTHER, '<pad>': _OTHER, '<user>': _OTHER, '<model>': _OTHER, '</image>': _OTHER}
  for name, value in names.items():
    kind = jnp.where(answer.text == layout.special(name), value, kind)
  kind = jnp.where(answer.text == layout.block.begin, _IMAGE, kind)
  kind = jnp.where((answer.modality == CODES) | answer.forced, _BLOCK, kind)
  return jnp.where(answer.modality == PADDING, _PAD, kind)


def parse(answer: TokenBatch, layout: Layout, max_steps: int) -> Parse:
  """Parses answers [B,T] that hold only what followed `<model>` (other positions as padding).

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
