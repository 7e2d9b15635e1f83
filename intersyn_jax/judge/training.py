"""Training batches and loss of the judge.

Every view of every answer is one document with scores of one dimension, so that views need not stay together: they are
cut once, packed densely, and drawn by dimension and by label. Rare labels come as often as a power of their number says,
which keeps a judge from learning that nearly all answers are good.

Letters: N answers, R packed rows, T positions, M readouts of a batch, S steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import CODES, FILL, TokenBatch, stack
from intersyn_jax.interleave.types import DIMENSIONS
from intersyn_jax.judge import views
from intersyn_jax.judge.labelled import Labelled
from intersyn_jax.judge.model import SynJudge, cross_entropy
from intersyn_jax.judge.views import ICC, IQ, ITS
from intersyn_jax.models.definition import Definition, Params

_CUT = 256  # answers whose views are cut at once


@dataclasses.dataclass
class Examples:
  """Views as documents without padding.

  Attributes:
    text, codes, modality, forced: of all documents, one after the other: int32[all], int32[all,D], ...
    found: float32[all,2], labels of image positions of the answer (`Labelled.places`), NaN elsewhere.
    start, length: int64[n], where each document lies.
    dimension: int8[n].
    places, labels: int32[n,S+1] and float32[n,S+1]: where steps and the whole (last) are read, and their labels; NaN
      where there is none.
  """

  text: np.ndarray
  codes: np.ndarray
  modality: np.ndarray
  forced: np.ndarray
  found: np.ndarray
  start: np.ndarray
  length: np.ndarray
  dimension: np.ndarray
  places: np.ndarray
  labels: np.ndarray


def rows_of(labelled: Labelled, chunk: Sequence[int], width: int) -> TokenBatch:
  """Documents of some rows as a batch [len(chunk), width]."""
  return stack([labelled.documents[i] for i in chunk], width)


def examples(judge: SynJudge, labelled: Labelled) -> Examples:
  """Cuts the views of all answers and keeps those that a label belongs to."""
  width = max(len(d.text) for d in labelled.documents)
  cut = jax.jit(lambda batch: views.build(batch, judge.layout, judge.widths, judge.max_steps))
  parts: list[list[np.ndarray]] = [[] for _ in range(9)]
  s = judge.max_steps
  for first in range(0, len(labelled), _CUT):
    chunk = [min(i, len(labelled) - 1) for i in range(first, first + _CUT)]
    seen = jax.device_get(cut(rows_of(labelled, chunk, width)))
    real = np.arange(_CUT) < len(labelled) - first
    whole, steps = labelled.whole[chunk], labelled.steps[chunk]
    for dimension, name in enumerate(DIMENSIONS):
      view = getattr(seen, name)
      if dimension == IQ:
        used = (seen.present[..., IQ] & (real & seen.fits)[:, None]).reshape(-1)
        labels = np.concatenate([steps[..., IQ].reshape(-1, 1), np.full((_CUT * s, s), np.nan, np.float32)], axis=1)
        places = np.zeros((_CUT * s, s + 1), np.int32)
        places[:, 0] = view.end
      else:
        used = real & seen.fits & seen.shown[:, dimension]
        step_labels = np.where(seen.present[..., dimension], steps[..., dimension], np.nan)
        labels = np.concatenate([step_labels, whole[:, dimension, None]], axis=1)
        places = np.concatenate([np.maximum(view.ends, 0), view.end[:, None]], axis=1)
      used &= np.isfinite(labels).any(axis=1)
      filled = (view.tokens.document > 0) & used[:, None]
      found = _found(view.tokens.modality, seen.present[..., IQ].sum(1), labelled.places[chunk], dimension)
      for part, value in zip(parts, (
          view.tokens.text[filled], view.tokens.codes[filled], view.tokens.modality[filled], view.tokens.forced[filled],
          found[filled], filled.sum(1)[used], np.full(used.sum(), dimension, np.int8), places[used], labels[used]), strict=True):
        part.append(value)
  text, codes, modality, forced, found, length, dimension, places, labels = (np.concatenate(p) for p in parts)
  return Examples(text, codes, modality, forced, found, np.cumsum(length) - length, length, dimension, places, labels)


def _found(modality: np.ndarray, pictures: np.ndarray, places: np.ndarray, dimension: int) -> np.ndarray:
  """Puts the labels [rows,S,P,2] of the answer's pictures, the last ones of a view, to their positions [rows,L,2].

  "Wrong" goes to ICC and ITS, "named" to ITS; IQ can know neither, and TCC has no pictures.
  """
  out = np.full((*modality.shape, 2), np.nan, np.float32)
  known = {ICC: 1, ITS: 2}.get(dimension, 0)
  for row, count in enumerate(pictures if known else ()):
    if count:
      at = np.flatnonzero(modality[row] == CODES)[-count * places.shape[2]:]
      out[row, at, :known] = places[row, :count, :, :known].reshape(-1, known)
  return out


def chances(data: Examples, weights: Sequence[float], balance: float) -> np.ndarray:
  """How likely each document is drawn, float64[n], sums to 1.

  Args:
    weights: share of the documents of each dimension.
    balance: exponent: a label bin (whole numbers, by the mean label of the document) with share p is drawn with
      p ** (1 - balance), normalised; 0 leaves the data as they are, 1 makes all bins equally frequent.
  """
  out = np.zeros(len(data.dimension))
  bins = np.clip(np.rint(np.nanmean(data.labels, axis=1)), 0, 5).astype(int)
  for dimension, weight in enumerate(weights):
    mine = data.dimension == dimension
    if not mine.any():
      continue
    share = np.bincount(bins[mine], minlength=6) / mine.sum()
    chance = share[bins[mine]] ** -balance
    out[mine] = weight * chance / chance.sum()
  if not out.sum():
    raise UserError('judge: no labelled answer fits the views; make judge.widths larger')
  return out / out.sum()


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Batch:
  """R packed rows. Readouts belong to their row, so that rows can be spread over devices.

  Attributes:
    tokens: [R,T]. found: float32[R,T,2], as in Examples.
    dimension: int32[R,M] of each readout. place: int32[R,M]. label: float32[R,M], NaN for none.
  """

  tokens: TokenBatch
  found: np.ndarray
  dimension: np.ndarray
  place: np.ndarray
  label: np.ndarray


def batches(data: Examples, chance: np.ndarray, *, rows: int, length: int, seed: int) -> Callable[[int], Batch]:
  """The batch of each number: documents drawn with `chance` fill rows of `length`, the fullest row that has room first."""
  if data.length.max() > length:
    raise UserError(f'judge.row_length is {length}; the longest view has {data.length.max()} positions, make it that')
  edges = np.cumsum(chance)
  slots = data.labels.shape[1]
  most = slots * max(1, -(-length // int(data.length.min())))

  def batch(number: int) -> Batch:
    rng = np.random.Generator(np.random.Philox(key=[seed, number]))
    tokens = _empty(rows, length, data.codes.shape[1])
    dimension, place = np.zeros((rows, most), np.int32), np.zeros((rows, most), np.int32)
    label = np.full((rows, most), np.nan, np.float32)
    used, count = np.zeros(rows, int), np.zeros(rows, int)
    found = np.full((rows, length, 2), np.nan, np.float32)
    misses = 0
    while misses < 8:
      for i in np.minimum(np.searchsorted(edges, rng.random(32)), len(edges) - 1):
        n = data.length[i]
        room = length - used
        row = int(np.argmin(np.where(room >= n, room, length + 1)))
        if room[row] < n:
          misses += 1
          continue
        here, there = slice(used[row], used[row] + n), slice(data.start[i], data.start[i] + n)
        tokens.text[row, here], tokens.codes[row, here] = data.text[there], data.codes[there]
        tokens.modality[row, here], tokens.forced[row, here] = data.modality[there], data.forced[there]
        found[row, here] = data.found[there]
        tokens.document[row, here], tokens.position[row, here] = count[row] // slots + 1, np.arange(n)
        spot = slice(count[row], count[row] + slots)
        dimension[row, spot], place[row, spot] = data.dimension[i], used[row] + data.places[i]
        label[row, spot] = data.labels[i]
        used[row] += n
        count[row] += slots
    return Batch(tokens, found, dimension, place, label)

  return batch


def _empty(rows: int, length: int, depth: int) -> TokenBatch:
  shape = (rows, length)
  kinds = dict(text=np.int32, codes=np.int32, modality=np.int8, loss=np.float32, forced=bool, document=np.int32,
               position=np.int32, turn=np.int32, step=np.int32)
  return TokenBatch(**{name: np.full((*shape, depth) if name == 'codes' else shape, FILL.get(name, 0), kind)
                       for name, kind in kinds.items()})


def loss_of(definition: Definition) -> Callable[[Params, Batch, jax.Array], dict[str, tuple[jax.Array, jax.Array]]]:
  """Loss (params, batch, key) -> {name: (sum, denominator)}: `loss` over all readouts, one part for each dimension,
  and `places`, over image positions of answers."""

  def loss(params: Params, batch: Batch, key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    del key
    judge = definition.bind(params)
    hidden, found = judge(batch.tokens)
    hidden = jnp.take_along_axis(hidden, batch.place[..., None], axis=1)
    logits = jnp.take_along_axis(judge.logits(hidden), batch.dimension[..., None, None], axis=2)[..., 0, :]
    real = jnp.isfinite(batch.label)
    cost = jnp.where(real, cross_entropy(logits, jnp.where(real, batch.label, 0.0)), 0.0)
    labelled = jnp.isfinite(batch.found)
    binary = jax.nn.softplus(found) - jnp.where(labelled, batch.found, 0.0) * found
    part = lambda where: (jnp.sum(jnp.where(where, cost, 0.0)), jnp.sum(where & real).astype(jnp.float32))
    return {'loss': part(True)} | {name: part(batch.dimension == i) for i, name in enumerate(DIMENSIONS)} | {
        'places': (jnp.sum(jnp.where(labelled, binary, 0.0)), jnp.sum(labelled).astype(jnp.float32))}

  return loss


def judge_all(judge: SynJudge, params: Params, labelled: Labelled, rows: int = 64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Scores every answer: whole float32[N,4], steps float32[N,S,4], valid bool[N]."""
  width = max(len(d.text) for d in labelled.documents)
  parts = []
  for first in range(0, len(labelled), rows):
    chunk = [min(i, len(labelled) - 1) for i in range(first, first + rows)]
    scores = judge.jitted(params, rows_of(labelled, chunk, width))
    parts.append([np.asarray(a)[:len(labelled) - first] for a in (scores.whole, scores.steps, scores.valid)])
  return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
