"""A judge without any training of its own: how likely the warm-up model finds what was written (zero-shot).

Each dimension is a mean log-probability of exactly what its view shows:

    TCC   the answer's words, and the tag that closes them, given context and the words before
    ICC   the codes of the answer's pictures, given context and the pictures before
    IQ    the codes of each picture alone; the mean over pictures
    ITS   codes given context, texts and pictures before, minus the same without texts (the number of ICC): how much the
          texts tell about the pictures (pointwise mutual information)

A log-probability is no score. A rising map, fitted to training labels, makes it one; it leaves the order that the model
gives as it is, so this is zero-shot up to a monotone map.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax import sharding
from intersyn_jax.interleave.layout import CODES, TEXT, Layout, TokenBatch
from intersyn_jax.judge.baselines.shared import MonotoneMap, Viewer, fit_maps, ruled, wide
from intersyn_jax.judge.labelled import Labelled
from intersyn_jax.judge.views import View
from intersyn_jax.models.definition import Definition, Params
from intersyn_jax.models.unified import position_log_probs

_LOGITS = 2**27
"""Largest number of logits that exist at once."""


class Likelihood:
  """The baseline `likelihood`.

  Args:
    viewer: cuts the views.
    policy: the unified model.
    params: its parameters.
  """

  name = 'likelihood'

  def __init__(self, viewer: Viewer, policy: Definition, params: Params):
    self.viewer, self.params = viewer, params
    self.maps: tuple[MonotoneMap, ...] = ()
    block, vocabulary = viewer.judge.layout.block, viewer.judge.layout.tokenizer.size

    def mean_log_prob(params: Params, tokens: TokenBatch, scored: jax.Array) -> jax.Array:
      """float32[B] over the scored positions bool[B,L]; NaN where there are none."""
      model = policy.bind(params)
      chunk = max(_LOGITS // (len(tokens.text) * (vocabulary + block.depth * block.codebook)), 1)
      text, codes, _ = position_log_probs(model, model(tokens), tokens, chunk=chunk)
      found = jnp.where(tokens.modality == CODES, jnp.mean(codes, axis=-1), text)
      count = jnp.sum(scored, axis=1)
      return jnp.where(count > 0, jnp.sum(jnp.where(scored, found, 0.0), axis=1) / jnp.maximum(count, 1), jnp.nan)

    self._mean_log_prob = jax.jit(mean_log_prob)

  @classmethod
  def fit(cls, viewer: Viewer, policy: Definition, params: Params, train: Labelled) -> Likelihood:
    """Fits nothing but the maps."""
    found = cls(viewer, policy, params)
    found.maps = fit_maps(found.log_probs(train), train, *viewer.rules(train))
    return found

  def log_probs(self, labelled: Labelled) -> np.ndarray:
    """The four numbers in nats, float32[N,4]; NaN where the answer lacks what they are about."""
    out = np.full((len(labelled), 4), np.nan, np.float32)
    layout, steps = self.viewer.judge.layout, self.viewer.judge.max_steps
    for numbers, seen, begin in self.viewer.chunks(labelled):
      tcc, icc, its = (in_written_order(v) for v in (seen.tcc, seen.icc, seen.its))
      alone = after_null(seen.iq.tokens, layout)
      answer = lambda view: view.source >= begin[:, None]  # noqa: B023
      words = answer(tcc) & (tcc.tokens.modality == TEXT) & ~tcc.tokens.forced
      words &= ~np.isin(tcc.tokens.text, [tag for tag in layout.tags if tag != layout.special('</think>')])
      pictures = [answer(view) & (view.tokens.modality == CODES) for view in (icc, its)]
      given = self._of(icc.tokens, pictures[0])
      each = self._of(alone, (alone.modality == CODES) & (alone.document > 0)).reshape(-1, steps)
      there = np.isfinite(each)
      quality = np.where(there, each, 0).sum(1) / np.maximum(there.sum(1), 1)
      found = [self._of(tcc.tokens, words), given, np.where(there.any(1), quality, np.nan),
               self._of(its.tokens, pictures[1]) - given]
      out[numbers] = np.stack(found, axis=1)[:len(numbers)]
    return out

  def scores(self, labelled: Labelled) -> np.ndarray:
    found = self.log_probs(labelled)
    mapped = np.stack([of(found[:, i]) for i, of in enumerate(self.maps)], axis=1)
    return ruled(mapped, *self.viewer.rules(labelled))

  def _of(self, tokens: TokenBatch, scored: np.ndarray) -> np.ndarray:
    """Without the padding that all rows have."""
    real = tokens.document > 0
    width = min(wide(real.sum(1).max(initial=1)), real.shape[1])
    return sharding.host(self._mean_log_prob(self.params, jax.tree.map(lambda a: a[:, :width], tokens), scored[:, :width]))


def in_written_order(view: View) -> View:
  """A view (numpy, [B,L]) whose positions stand as they were written, which is how the model learnt to predict them.

  What is seen stays the same; `ends` is that of the view and no longer means anything.
  """
  last = np.iinfo(np.int32).max
  order = np.argsort(np.where(view.source < 0, last, view.source), axis=1, kind='stable')
  pick = lambda a: np.take_along_axis(a, order if a.ndim == 2 else order[..., None], axis=1)
  tokens = jax.tree.map(pick, view.tokens).replace(position=view.tokens.position)
  return view._replace(tokens=tokens, source=pick(view.source))


def after_null(pictures: TokenBatch, layout: Layout) -> TokenBatch:
  """Pictures [B,L] behind the null context of guidance, with which the model learnt to draw without a question.

  It is the same for all, so it says nothing of the answer.
  """
  null = np.asarray(layout.template.null, np.int32)
  real = pictures.document[:, :1] > 0
  shape = (len(real), len(null))
  before = dict(text=null, codes=0, modality=TEXT, loss=0, forced=False, document=1, position=np.arange(len(null)), turn=-1,
                step=-1)
  fields = {}
  for name, value in before.items():
    old = getattr(pictures, name)
    filled = np.broadcast_to(value, (*shape, *old.shape[2:])) if name == 'codes' else np.broadcast_to(value, shape)
    here = real[..., None] if name == 'codes' else real
    fields[name] = np.concatenate([np.where(here, filled, 0).astype(old.dtype), old], axis=1)
  fields['position'] = np.where(fields['document'] > 0, np.arange(fields['position'].shape[1]), 0).astype(np.int32)
  return TokenBatch(**fields)
