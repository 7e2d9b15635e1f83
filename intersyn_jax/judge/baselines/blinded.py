"""The judge without each modality: a second judge of the same size whose views have lost the answer's pictures or texts.

Without pictures ICC, IQ and ITS read the context, and ITS the texts too; without texts TCC and ITS read the context, and ITS
the pictures too. Tags stay, so the format of the answer is known, and so is what the rules in code need: steps and what is
present are those of the whole answer. Whatever a score does without the hidden modality it owes to the rest.

Where a view never had the modality, the second judge could only be the first with other noise: there the score is that of
the full judge, and what is hidden changes it by exactly 0.

Letters: N answers, B rows, L positions of a view, S steps, D codes.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax.interleave.layout import FILL, TEXT, Layout, TokenBatch
from intersyn_jax.judge import training
from intersyn_jax.judge.baselines.shared import answer_begin
from intersyn_jax.judge.labelled import Labelled
from intersyn_jax.judge.model import SynJudge
from intersyn_jax.judge.views import ICC, IQ, ITS, TCC, View, Views
from intersyn_jax.models.definition import Params

IMAGES, TEXTS = 'images', 'text'
"""What can be hidden."""

TOUCHED = {IMAGES: (ICC, IQ, ITS), TEXTS: (TCC, ITS)}
"""The dimensions whose views lose something."""


@dataclasses.dataclass(frozen=True)
class BlindJudge(SynJudge):
  """A judge that reads blinded views; trained and asked like any other.

  Attributes:
    hide: IMAGES or TEXTS.
  """

  hide: str = IMAGES

  @classmethod
  def like(cls, judge: SynJudge, hide: str) -> BlindJudge:
    """The judge of the same size, layout and widths, not calibrated yet."""
    return cls(judge.definition, judge.layout, judge.widths, judge.max_steps, hide=hide)

  def cut(self, batch: TokenBatch) -> Views:
    return blind(super().cut(batch), batch, self.layout, self.hide)


def blinded_scores(judge: SynJudge, params: Params, labelled: Labelled, full: np.ndarray, hide: str) -> np.ndarray:
  """float32[N,4]: where a view lost something the score of the second judge, else that of the full one.

  Args:
    judge: the full judge.
    params: of the second one.
    labelled: the answers.
    full: float32[N,4], what the full judge says of them.
    hide: what the second judge was trained without.
  """
  found = training.judge_all(BlindJudge.like(judge, hide), params, labelled.documents).whole
  touched = np.isin(np.arange(full.shape[1]), TOUCHED[hide])
  failed = np.isnan(full).any(axis=1) | np.isnan(found).any(axis=1)
  return np.where(failed[:, None], np.nan, np.where(touched, found, full)).astype(np.float32)


def blind(seen: Views, batch: TokenBatch, layout: Layout, hide: str) -> Views:
  """Takes the answer's pictures (begin token and all) or words out of views, and closes the gaps. Pure, for jit.

  Args:
    seen: of `views.build`.
    batch: [B,T], the rows it was built from.
    layout: of both.
    hide: IMAGES or TEXTS.

  Returns:
    Views with the same `present`, `shown` and `fits`: those of the whole answer.
  """
  begin = answer_begin(batch)[:, None]

  def without(view: View) -> View:
    tokens = view.tokens
    if hide == IMAGES:
      # Outside blocks nothing of a view is codes, forced or a begin token.
      hidden = (tokens.modality > TEXT) | tokens.forced | (tokens.text == layout.block.begin) & (tokens.modality == TEXT)
    else:
      tag = jnp.isin(tokens.text, jnp.array([*layout.tags, layout.block.begin]))
      hidden = (tokens.modality == TEXT) & ~tokens.forced & ~tag
    return _close(view, hidden & (view.source >= begin))

  if hide == IMAGES:
    place = jnp.arange(seen.iq.source.shape[1])
    iq = _close(seen.iq, jnp.broadcast_to(place > 0, seen.iq.source.shape))  # the begin token is left, the same for all
    return seen._replace(icc=without(seen.icc), its=without(seen.its), iq=iq)
  return seen._replace(tcc=without(seen.tcc), its=without(seen.its))


def _close(view: View, hidden: jax.Array) -> View:
  """Moves what is left of a view to the left. A step that ended in something hidden is read at what stood before it."""
  keep = (view.tokens.document > 0) & ~hidden
  order = jnp.argsort(~keep, axis=1, stable=True)
  filled = jnp.take_along_axis(keep, order, axis=1)

  def pick(a: jax.Array, fill: int = 0) -> jax.Array:
    at, here = (order, filled) if a.ndim == 2 else (order[..., None], filled[..., None])
    return jnp.where(here, jnp.take_along_axis(a, at, axis=1), fill).astype(a.dtype)

  fields = {name: pick(getattr(view.tokens, name), FILL.get(name, 0)) for name in view.tokens.__dataclass_fields__}
  fields['position'] = jnp.where(filled, jnp.arange(keep.shape[1]), 0).astype(view.tokens.position.dtype)
  last = jnp.cumsum(keep, axis=1) - 1
  moved = lambda places: jnp.maximum(jnp.take_along_axis(last, jnp.maximum(places, 0), axis=1), 0)
  ends = view.ends if view.ends.ndim == 2 else view.ends[..., None]
  ends = jnp.where(ends < 0, -1, moved(jnp.broadcast_to(ends, (len(keep), ends.shape[-1]))))
  return view._replace(tokens=TokenBatch(**fields), ends=ends.reshape(view.ends.shape),
                       end=moved(view.end[:, None])[:, 0], source=pick(view.source, -1))
