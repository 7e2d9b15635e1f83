"""What each score may see: four views of an answer, cut out of token rows under jit (DESIGN 8).

TCC reads the text of context and answer; ICC the context and the pictures of the answer; IQ each picture alone; ITS
everything. A view is moved together to the left, its positions count from 0 and it ends with one `</s>` of its own, so
nothing of what it may not see is left in it: no id, no place, no length. Two consequences: the answer's own `</s>` is
in no view, and tags go with their modality (`<think>` with text, `<vis>` with pictures and only into ITS, which needs the
pairing). Steps of TCC are counted by `<think>` alone, of ICC and IQ by pictures alone, of ITS by the grammar; in an answer
that keeps the format these are the same steps.

Letters: B rows, T positions, L positions of a view, S steps at most, D codes per image position.
"""

from __future__ import annotations

import dataclasses
import typing

import jax
import jax.numpy as jnp

from intersyn_jax.errors import UserError
from intersyn_jax.interleave import grammar
from intersyn_jax.interleave.layout import PADDING, STOP, TEXT, Layout, TokenBatch

TCC, ICC, IQ, ITS = range(4)
"""Places of the dimensions in score arrays, as in `interleave.types.DIMENSIONS`."""


@dataclasses.dataclass(frozen=True)
class Widths:
  """Positions L that the views TCC, ICC and ITS have room for; an answer that needs more cannot be judged."""

  tcc: int
  icc: int
  its: int

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if getattr(self, field.name) < 2:
        raise UserError(f'judge.widths.{field.name} is {getattr(self, field.name)}; make it at least 2')


class View(typing.NamedTuple):
  """One view of B answers.

  Attributes:
    tokens: [B,L]; loss weights 0, turn -1; `step` as the view counts steps, -1 of the context.
    ends: int32[B,S], where step s of this view is read, -1 where there is none.
    end: int32[B], where the whole is read.
    fits: bool[B], the view had room for all it should show.
    source: int32[B,L], the position of the row that each one shows, -1 for its own `</s>` and for padding.
  """

  tokens: TokenBatch
  ends: jax.Array
  end: jax.Array
  fits: jax.Array
  source: jax.Array


class Views(typing.NamedTuple):
  """All views of B answers.

  Attributes:
    tcc, icc, its: one view each.
    iq: B S rows, one for each picture; `ends` has one entry, `end` the same place.
    present: bool[B,S,4], the steps that a dimension has something to score in.
    shown: bool[B,4], whether the answer has what a dimension scores at all: the rubric's zeros where not.
    fits: bool[B], there is an answer, and every view had room for it.
  """

  tcc: View
  icc: View
  iq: View
  its: View
  present: jax.Array
  shown: jax.Array
  fits: jax.Array


class _Parts(typing.NamedTuple):
  """Which positions of the rows [B,T] are what."""

  context: jax.Array
  words: jax.Array  # the answer's text, without tags
  think: jax.Array  # `<think>` and `</think>` of the answer
  vis: jax.Array  # `<vis>` and `</vis>`, anywhere
  block: jax.Array  # inside an image block that is complete, anywhere
  start: jax.Array  # its begin token
  answer: jax.Array


def _parts(batch: TokenBatch, layout: Layout) -> _Parts:
  t = jnp.arange(batch.text.shape[1])
  word = (batch.modality == TEXT) & ~batch.forced
  is_ = lambda name: word & (batch.text == layout.special(name))
  # The answer is what the last turn has from its first loss weight on: no word of a question or a policy can move it.
  last = jnp.max(jnp.where(batch.modality != PADDING, batch.turn, -1), axis=1, keepdims=True)
  answer = jnp.cumsum((batch.turn == last) & (batch.loss > 0), axis=1) > 0
  context = (batch.modality != PADDING) & ~answer
  ends = grammar.closing(batch, layout) | is_(STOP)
  answer &= (batch.modality != PADDING) & (jnp.cumsum(answer & ends, axis=1) == 0)
  # Blocks: a begin token, then the whole template. An image cut short is no image and in no view.
  length = len(layout.block.template)
  begin = word & (batch.text == layout.block.begin)
  latest = jax.lax.cummax(jnp.where(begin, t, -1), axis=1)
  member = (latest >= 0) & (t - latest <= length) & (begin | (batch.modality > TEXT) | batch.forced)
  final = jnp.clip(latest + length, 0, len(t) - 1)
  reached = jnp.take_along_axis(member & (t - latest == length), final, axis=1)
  block = member & reached & (latest + length < len(t))
  think, vis = is_('<think>') | is_('</think>'), is_('<vis>') | is_('</vis>')
  plain = word & ~begin & ~think & ~vis
  return _Parts(context, answer & plain, answer & think, vis, block, begin & block, answer)


def _cut(batch: TokenBatch, visible: jax.Array, slot: jax.Array, width: int, steps: int, layout: Layout) -> View:
  """Moves the visible positions to the left, adds `</s>`, and finds where each step (`slot`, -1 for none) ends."""
  rows, t = visible.shape
  target = jnp.cumsum(visible, axis=1) - 1
  count = target[:, -1] + 1
  source = jnp.zeros((rows, width), jnp.int32).at[
      jnp.arange(rows)[:, None], jnp.where(visible, target, width)].set(jnp.arange(t), mode='drop')
  place = jnp.arange(width)
  filled, end = place < count[:, None], place == count[:, None]
  pick = lambda a, fill=0: jnp.where(filled, jnp.take_along_axis(a, source, axis=1), fill).astype(a.dtype)
  codes = jnp.take_along_axis(batch.codes, source[..., None], axis=1)
  real = filled | end
  tokens = TokenBatch(
      text=jnp.where(end, layout.special(STOP), pick(batch.text)),
      codes=jnp.where(filled[..., None], codes, 0),
      modality=jnp.where(end, TEXT, pick(batch.modality)).astype(jnp.int8),
      loss=jnp.zeros((rows, width)), forced=pick(batch.forced, False), document=real.astype(jnp.int32),
      position=jnp.where(real, place, 0), turn=jnp.full((rows, width), -1), step=pick(slot, -1))
  mine = tokens.step[:, None, :] == jnp.arange(steps)[:, None]
  ends = jnp.max(jnp.where(mine, place, -1), axis=-1)
  return View(tokens, ends, jnp.minimum(count, width - 1), count < width, jnp.where(filled, source, -1))


def _pictures(batch: TokenBatch, start: jax.Array, slot: jax.Array, steps: int, layout: Layout) -> View:
  """Every picture of the answer as a row of its own: begin token and template."""
  rows, t = start.shape
  width = 1 + len(layout.block.template)
  where = (start[:, None, :] & (slot[:, None, :] == jnp.arange(steps)[:, None]))  # [B,S,T]
  first = jnp.argmax(where, axis=-1)
  real = jnp.any(where, axis=-1).reshape(-1, 1)
  source = jnp.clip(first.reshape(-1, 1) + jnp.arange(width), 0, t - 1)  # [B S,L]
  row = jnp.repeat(jnp.arange(rows), steps)[:, None]
  pick = lambda a: jnp.where(real, a[row, source], 0).astype(a.dtype)
  shape = source.shape
  tokens = TokenBatch(
      text=pick(batch.text), codes=jnp.where(real[..., None], batch.codes[row, source], 0), modality=pick(batch.modality),
      loss=jnp.zeros(shape), forced=pick(batch.forced), document=jnp.broadcast_to(real, shape).astype(jnp.int32),
      position=jnp.where(real, jnp.arange(width), 0), turn=jnp.full(shape, -1), step=jnp.full(shape, -1))
  end = jnp.full(rows * steps, width - 1)
  return View(tokens, jnp.where(real, width - 1, -1), end, jnp.ones(rows * steps, bool), jnp.where(real, source, -1))


def build(batch: TokenBatch, layout: Layout, widths: Widths, max_steps: int) -> Views:
  """Cuts the four views out of rows that hold a conversation whose last answer is to be judged.

  Args:
    batch: [B,T], one conversation a row, as `layout.tokenise` or `decoder.join` gives it (padding on either side); its
      loss weights say where the answer begins. Rows of padding alone do not fit.
    layout: it was written with.
    widths: room of the views.
    max_steps: S; of an answer with more pictures some would not be seen, so that it does not fit.
  """
  parts = _parts(batch, layout)
  answer_block, answer_start = parts.block & parts.answer, parts.start & parts.answer
  # Steps by own modality.
  opened = parts.think & (batch.text == layout.special('<think>'))
  text_slot = jnp.where(parts.words | parts.think, jnp.maximum(jnp.cumsum(opened, axis=1) - 1, 0), -1)
  image_slot = jnp.where(answer_block, jnp.cumsum(answer_start, axis=1) - 1, -1)
  # Steps of the whole format.
  alone = batch.replace(modality=jnp.where(parts.answer, batch.modality, PADDING))
  step = grammar.parse(alone, layout, max_steps).step

  spoken = parts.context & (batch.modality == TEXT) & ~parts.block & ~parts.vis
  cut = lambda visible, slot, width: _cut(batch, visible, slot, width, max_steps, layout)
  tcc = cut(spoken | parts.words | parts.think, text_slot, widths.tcc)
  icc = cut(parts.context | answer_block, image_slot, widths.icc)
  every = parts.words | parts.think | (parts.vis & parts.answer) | answer_block
  its = cut(parts.context | every, jnp.where(every, step, -1), widths.its)
  iq = _pictures(batch, answer_start, image_slot, max_steps, layout)

  has = lambda where, slot: jnp.any(where[:, None, :] & (slot[:, None, :] == jnp.arange(max_steps)[:, None]), axis=-1)
  texts, images = has(parts.words, text_slot), has(answer_start, image_slot)
  both = has(parts.words, step) & has(answer_start, step)
  any_text, any_image = jnp.any(parts.words, axis=1), jnp.any(answer_start, axis=1)
  fits = jnp.any(parts.context, axis=1) & (jnp.sum(answer_start, axis=1) <= max_steps) & tcc.fits & icc.fits & its.fits
  return Views(
      tcc, icc, iq, its,
      present=jnp.stack([texts, images, images, both], axis=-1),
      shown=jnp.stack([any_text, any_image, any_image, any_text & any_image], axis=-1), fits=fits)
