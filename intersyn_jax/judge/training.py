"""Training batches and loss of the judge.

Every view of every answer is one document with scores of one dimension, so that views need not stay together: they are
cut once, packed densely, and drawn by dimension and by label. Rare labels come as often as a power of their number says,
which keeps a judge from learning that nearly all answers are good.

Letters: N answers, R packed rows, T positions, M readouts of a batch, S steps.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax import sharding
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import FILL, TokenBatch, stack
from intersyn_jax.interleave.types import DIMENSIONS
from intersyn_jax.judge import annotators
from intersyn_jax.judge.labelled import MARKS, Labelled
from intersyn_jax.judge.model import CLAIMED, DENIED, FILLED, SynJudge, cross_entropy
from intersyn_jax.judge.views import ICC, IQ, ITS
from intersyn_jax.models.definition import Definition, Params

_CUT = 256  # answers whose views are cut at once
_CROWD = 6  # times as many documents as fill a row on average may stand in it


@dataclasses.dataclass
class Examples:
  """Views as documents without padding.

  Attributes:
    text, codes, modality, forced, step: of all documents, one after the other: int32[all], int32[all,D], ...
    marks: float32[all,M], `Labelled.marks` that the document's view can know, NaN elsewhere.
    expected: int32[all,D], `Labelled.expected` in the views of ICC and ITS, -1 elsewhere.
    start, length: int64[n], where each document lies.
    dimension: int8[n]. row: int32[n], the labelled row that each document is of.
    places, labels: int32[n,S+1] and float32[n,S+1]: where steps and the whole (last) are read, and their labels; NaN
      where there is none.
  """

  text: np.ndarray
  codes: np.ndarray
  modality: np.ndarray
  forced: np.ndarray
  step: np.ndarray
  marks: np.ndarray
  expected: np.ndarray
  start: np.ndarray
  length: np.ndarray
  dimension: np.ndarray
  row: np.ndarray
  places: np.ndarray
  labels: np.ndarray


def examples(judge: SynJudge, labelled: Labelled) -> Examples:
  """Cuts the views of all answers, short ones first, and keeps those with a label; that of the whole is the mean vote."""
  lengths = np.array([len(d.text) for d in labelled.documents])
  order, cuts = np.argsort(lengths, kind='stable'), {}
  votes = annotators.mean(labelled.votes)
  parts: list[list[np.ndarray]] = [[] for _ in range(12)]
  s = judge.max_steps
  for first in range(0, len(labelled), _CUT):
    chunk = [order[min(i, len(order) - 1)] for i in range(first, first + _CUT)]
    width = -(-int(lengths[chunk].max()) // 64) * 64
    if width not in cuts:
      cuts[width] = jax.jit(judge.narrow(width).cut)
    seen = jax.device_get(cuts[width](stack([labelled.documents[i] for i in chunk], width)))
    real = np.arange(_CUT) < len(labelled) - first
    whole, steps, numbers = votes[chunk], labelled.steps[chunk], np.array(chunk, np.int32)
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
      if not used.any():
        continue
      filled = (view.tokens.document > 0) & used[:, None]
      marks = _marks([labelled.marks[i] for i in chunk], view.source, dimension)
      expected = _expected([labelled.expected[i] for i in chunk], view.source, dimension)
      tokens = view.tokens
      for part, value in zip(parts, (
          tokens.text[filled], tokens.codes[filled], tokens.modality[filled], tokens.forced[filled], tokens.step[filled],
          marks[filled], expected[filled], filled.sum(1)[used], np.full(used.sum(), dimension, np.int8),
          np.repeat(numbers, len(used) // _CUT)[used], places[used], labels[used]), strict=True):
        part.append(value)
  text, codes, modality, forced, step, marks, expected, length, dimension, row, places, labels = map(np.concatenate, parts)
  start = np.cumsum(length) - length
  return Examples(text, codes, modality, forced, step, marks, expected, start, length, dimension, row, places, labels)


def kept(data: Examples, keep: np.ndarray) -> Examples:
  """The documents that bool[n] names. What the others held stays in `text`."""
  of_documents = ('start', 'length', 'dimension', 'row', 'places', 'labels')
  return dataclasses.replace(data, **{name: getattr(data, name)[keep] for name in of_documents})


def _marks(marks: Sequence[np.ndarray], source: np.ndarray, dimension: int) -> np.ndarray:
  """Marks [T,M] of rows, those that a view can know put to where it shows their positions: [rows,L,M]."""
  out = np.full((*source.shape, len(MARKS)), np.nan, np.float32)
  known = [kind for kind, views in enumerate(MARKS.values()) if dimension in views]
  for row, mark in enumerate(marks if known else ()):
    shown = np.where((source[row] >= 0)[:, None], mark[np.minimum(source[row], len(mark) - 1)], np.nan)
    out[row][:, known] = shown[:, known]
  return out


def _expected(expected: Sequence[np.ndarray], source: np.ndarray, dimension: int) -> np.ndarray:
  """The same for expected codes [T,D], which only a view that knows the question can: [rows,L,D]."""
  out = np.full((*source.shape, expected[0].shape[1]), -1, np.int32)
  for row, codes in enumerate(expected if dimension in (ICC, ITS) else ()):
    out[row] = np.where((source[row] >= 0)[:, None], codes[np.minimum(source[row], len(codes) - 1)], -1)
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
    tokens: [R,T]. marks: float32[R,T,M], expected: int32[R,T,D], as in Examples.
    dimension: int32[R,M] of each readout. place: int32[R,M]. label: float32[R,M], NaN for none.
  """

  tokens: TokenBatch
  marks: np.ndarray
  expected: np.ndarray
  dimension: np.ndarray
  place: np.ndarray
  label: np.ndarray


def batches(data: Examples, chance: np.ndarray, *, rows: int, length: int, seed: int) -> Callable[[int], Batch]:
  """The batch of each number: documents drawn with `chance` fill rows of `length`, the fullest row that has room first."""
  if data.length.max() > length:
    raise ValueError(f'a view has {data.length.max()} positions, a row {length}; see `kept`')
  edges = np.cumsum(chance)
  slots = data.labels.shape[1]
  # Some views are of two positions; a row seldom has many of them, and room for all it could have would be most of the work.
  documents = min(-(-length // int(data.length.min())), math.ceil(_CROWD * length / float(chance @ data.length)))
  most = slots * documents

  def batch(number: int) -> Batch:
    rng = np.random.Generator(np.random.Philox(key=[seed, number]))
    tokens = _empty(rows, length, data.codes.shape[1])
    dimension, place = np.zeros((rows, most), np.int32), np.zeros((rows, most), np.int32)
    label = np.full((rows, most), np.nan, np.float32)
    used, count = np.zeros(rows, int), np.zeros(rows, int)
    marks = np.full((rows, length, len(MARKS)), np.nan, np.float32)
    expected = np.full(tokens.codes.shape, -1, np.int32)
    misses = 0
    while misses < 8:
      for i in np.minimum(np.searchsorted(edges, rng.random(32)), len(edges) - 1):
        n = data.length[i]
        room = np.where(count < most, length - used, 0)
        row = int(np.argmin(np.where(room >= n, room, length + 1)))
        if room[row] < n:
          misses += 1
          continue
        here, there = slice(used[row], used[row] + n), slice(data.start[i], data.start[i] + n)
        tokens.text[row, here], tokens.codes[row, here] = data.text[there], data.codes[there]
        tokens.modality[row, here], tokens.forced[row, here] = data.modality[there], data.forced[there]
        tokens.step[row, here] = data.step[there]
        marks[row, here], expected[row, here] = data.marks[there], data.expected[there]
        tokens.document[row, here], tokens.position[row, here] = count[row] // slots + 1, np.arange(n)
        spot = slice(count[row], count[row] + slots)
        dimension[row, spot], place[row, spot] = data.dimension[i], used[row] + data.places[i]
        label[row, spot] = data.labels[i]
        used[row] += n
        count[row] += slots
    return Batch(tokens, marks, expected, dimension, place, label)

  return batch


def _empty(rows: int, length: int, depth: int) -> TokenBatch:
  shape = (rows, length)
  kinds = dict(text=np.int32, codes=np.int32, modality=np.int8, loss=np.float32, forced=bool, document=np.int32,
               position=np.int32, turn=np.int32, step=np.int32)
  return TokenBatch(**{name: np.full((*shape, depth) if name == 'codes' else shape, FILL.get(name, 0), kind)
                       for name, kind in kinds.items()})


def loss_of(definition: Definition) -> Callable[[Params, Batch, jax.Array], dict[str, tuple[jax.Array, jax.Array]]]:
  """Loss (params, batch, key) -> {name: (sum, denominator)}: `loss` over all readouts, one part for each dimension, and
  for each kind of marks `marks.NAME`, over its marked positions; `expected`, over codes that should have stood there."""

  def loss(params: Params, batch: Batch, key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    del key
    judge = definition.bind(params)
    hidden, marks, before = judge(batch.tokens, batch.place)
    logits = jnp.take_along_axis(judge.logits(hidden), batch.dimension[..., None, None], axis=2)[..., 0, :]
    real = jnp.isfinite(batch.label)
    cost = jnp.where(real, cross_entropy(logits, jnp.where(real, batch.label, 0.0)), 0.0)
    part = lambda where: (jnp.sum(jnp.where(where, cost, 0.0)), jnp.sum(where & real).astype(jnp.float32))
    return {'loss': part(True)} | {name: part(batch.dimension == i) for i, name in enumerate(DIMENSIONS)} | {
        f'marks.{name}': _binary(marks[..., i], batch.marks[..., i]) for i, name in enumerate(MARKS)} | {
        'expected': _should(judge.expected(before), batch.expected)}

  return loss


ALIGNED = ('claimed', 'denied', 'filled')
"""Marks that `align_loss_of` is about."""

_ALIGNED_AT = 48
"""Positions of a row that `align_loss_of` reads, at most."""

MATCHES, OTHERS = r'^matching/(?!phrase)', r'^(?!matching/)'
"""`OptimizerConfig.frozen` of what aligning has taught, and of what it leaves alone."""


def align_loss_of(definition: Definition) -> Callable[[Params, Batch, jax.Array], dict[str, tuple[jax.Array, jax.Array]]]:
  """Losses as `loss_of` gives, of `Judge.matching` alone: whether words claim something of the picture (`claimed`), whether it
  does not show it (`denied`), and where it has objects (`filled`). Of every row it reads all claims and some other words.

  Words and codes are brought together by many examples, and none of the layers: a step costs a small part of one of the whole
  judge, which afterwards needs to learn only what follows from what is denied.
  """
  def loss(params: Params, batch: Batch, key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    label = batch.marks[..., CLAIMED:DENIED + 1]
    first = jnp.isfinite(label[..., 1]) + jnp.where(jnp.isfinite(label[..., 0]), jax.random.uniform(key, label.shape[:2]), -1.0)
    _, at = jax.lax.top_k(first, min(_ALIGNED_AT, first.shape[1]))
    label = jnp.take_along_axis(label, at[..., None], axis=1)
    matching = definition.bind(params).matching
    told, filled = matching(batch.tokens, at), matching.filled(batch.tokens)
    parts = ((told[..., 0], label[..., 0]), (told[..., 1], label[..., 1]), (filled, batch.marks[..., FILLED]))
    return {name: _binary(*part) for name, part in zip(ALIGNED, parts, strict=True)}

  return loss


def _binary(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Sum and count of the cross-entropy of logits where there is a label, 0 to 1, NaN for none."""
  known = jnp.isfinite(label)
  cost = jnp.where(known, jax.nn.softplus(logits) - jnp.where(known, label, 0.0) * logits, 0.0)
  return jnp.sum(cost), jnp.sum(known).astype(jnp.float32)


def _should(logits: jax.Array, expected: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Sum and count of the cross-entropy of expected codes [R,T,D] under logits [R,T,C]; all codes of a place share these."""
  known = expected >= 0
  log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(expected, 0), axis=-1)
  return -jnp.sum(jnp.where(known, log_prob, 0.0)), jnp.sum(known).astype(jnp.float32)


class Judged(NamedTuple):
  """What a judge says of N answers: whole, spread float32[N,4], steps float32[N,S,4], valid bool[N] (see `JudgeScores`); and
  what it is calibrated with: the cumulative logits, before the temperatures, of the whole [N,4,K] and of the pictures' IQ
  [N,S,K], and which are scored at all, shown bool[N,4] and seen bool[N,S]."""

  whole: np.ndarray
  spread: np.ndarray
  steps: np.ndarray
  valid: np.ndarray
  logits: np.ndarray
  pictures: np.ndarray
  shown: np.ndarray
  seen: np.ndarray


def judge_all(judge: SynJudge, params: Params, documents: Sequence[TokenBatch], rows: int = 64) -> Judged:
  """Judges the answers that documents [T] end with, short ones first, in views as wide as they need."""
  def of(judge: SynJudge, params: Params, batch: TokenBatch) -> Judged:
    seen = judge.cut(batch)
    steps, whole = judge.logits_of(params, seen)
    scores = judge.scores_from(steps, whole, seen)
    return Judged(scores.whole, scores.spread, scores.steps, scores.valid, whole, steps[:, :, IQ],
                  seen.shown & seen.fits[:, None], seen.present[..., IQ] & seen.fits[:, None])

  lengths = np.array([len(d.text) for d in documents])
  order, programs, parts = np.argsort(lengths, kind='stable'), judge.programs, []
  for first in range(0, len(order), rows):
    chunk = [order[min(i, len(order) - 1)] for i in range(first, first + rows)]
    width = -(-int(lengths[chunk].max()) // 128) * 128
    if width not in programs:
      programs[width] = jax.jit(functools.partial(of, judge.narrow(width)))
    found = programs[width](params, stack([documents[i] for i in chunk], width))
    parts.append([a[:len(order) - first] for a in sharding.host(found)])
  back = np.argsort(order)
  return Judged(*(np.concatenate(column)[back] for column in zip(*parts, strict=True)))


def readouts(judged: Judged, labelled: Labelled) -> tuple[np.ndarray, np.ndarray]:
  """Cumulative logits [M,4,K] and labels [M,4] (NaN for none) to calibrate with: of every answer the whole, and of every
  picture IQ in a row of its own."""
  n, s, k = judged.pictures.shape
  logits = np.zeros((n + n * s, len(DIMENSIONS), k), np.float32)
  labels = np.full(logits.shape[:2], np.nan, np.float32)
  logits[:n], logits[n:, IQ] = judged.logits, judged.pictures.reshape(-1, k)
  labels[:n] = np.where(judged.shown, labelled.whole, np.nan)
  labels[:n, IQ] = np.nan
  labels[n:, IQ] = np.where(judged.seen, labelled.steps[..., IQ], np.nan).reshape(-1)
  return logits, labels
