"""The judge: first layers of a unified model and four ordinal heads (DESIGN 8).

A score 0-5 is five cumulative questions, "above 0?" to "above 4?", as logits that fall from one to the next by
construction; the score is the sum of their probabilities, which is the expectation, and is never rounded.

Letters: B rows, S steps at most, L positions of a view, K cumulative questions, d model width.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import CODES, TEXT, Layout, TokenBatch
from intersyn_jax.interleave.types import DIMENSIONS
from intersyn_jax.judge import calibration, views
from intersyn_jax.judge.matching import COUNTED, NOTHING, Matching
from intersyn_jax.judge.views import IQ, ITS, TCC, View, Views, Widths
from intersyn_jax.models import lora
from intersyn_jax.models.definition import Definition, Params, constant, normal, param
from intersyn_jax.models.trunk import Trunk, project, same_document
from intersyn_jax.models.unified import Backbone, ModelConfig

TOP = 5
"""K: the highest score, and how many cumulative questions there are."""

MARKS = 5
"""M: how many kinds of marks there are (`labelled.MARKS`)."""

CLAIMED, DENIED, FILLED = 1, 2, 4
"""The kinds of marks that matching tells."""

GAP = 1.0
"""Where the distance of neighbouring logits starts (before softplus)."""


STEPS = 8
"""Steps that are told apart by their number."""


class Reading(typing.NamedTuple):
  """What the judge makes of packed rows.

  Attributes:
    hidden: [B,T,d], or of the positions asked for [B,Q,d], for `Judge.logits`.
    marks: float32[B,T,M], logits of the marks.
    before: [B,T,d], the backbone's state right before each position, for `Judge.expected`.
  """

  hidden: jax.Array
  marks: jax.Array
  before: jax.Array


class Judge(nnx.Module):
  """Backbone, comparison, reader and heads.

  The backbone is the policy's: its hidden state at a position says what it expects next. The comparison multiplies that
  with what really stands next, through tables that start as the policy's own output heads, so that a sum over channels
  is the logit of what was written; in training they also learn to say what should have been (`Labelled.expected`). From there
  one more head marks positions (`labelled.MARKS`): facts of a text that are not asked for, or not shown, and places of a picture
  that are not as they should be. Labelled answers know of them, and so many labels an answer teach binding of objects to places
  and names that a few scores do not. Phrases, and what a text claims of its picture, are read through embeddings of the judge's
  own (`matching`). How much is marked is counted, and so are the steps, which attention, a mean, does badly. The reader, layers
  of the judge's own, gathers all this up to where a score is read.
  """

  def __init__(self, config: ModelConfig, reader: int, rngs: nnx.Rngs):
    d, n = config.trunk.width, len(DIMENSIONS)
    self.backbone = Backbone(config, rngs)
    self.expected_text_embedding = param(rngs, (config.vocabulary, d), ('vocab', 'embed'), normal(0.02))
    self.expected_code_embedding = param(rngs, (config.codebook, d), ('codes', 'embed'), normal(0.02))
    self.compare_kernel = param(rngs, (d, d), ('embed', 'mlp'), normal(0.02))
    self.compare_scale = param(rngs, (d,), ('width',), normal(0.1))
    self.matching = Matching(config, rngs)
    self.mark_head = param(rngs, (d, MARKS), ('embed', 'width'), normal(0.02))
    self.mark_embedding = param(rngs, (MARKS, d), ('width', 'embed'), normal(0.1))
    self.sum_embedding = param(rngs, ((4 * MARKS + 1) * (1 + COUNTED), d), ('width', 'embed'), normal(0.1))
    self.step_embedding = param(rngs, (STEPS, d), ('width', 'embed'), normal(0.1))
    self.reader = Trunk(dataclasses.replace(config.trunk, layers=reader, lora_rank=0), rngs)
    self.score_head = param(rngs, (d, n * TOP), ('embed', 'width'), normal(0.02))
    self.score_bias = param(rngs, (n * TOP,), ('width',), constant(0.0))

  def __call__(self, batch: TokenBatch, at: jax.Array | None = None, told: bool = True, shown: bool = True) -> Reading:
    """Reads packed rows [B,T].

    Args:
      at: int32[B,Q], the positions whose hidden states are given; None are all T.
      told, shown: where no row holds a text of an answer, or no picture, False gives the same for less.
    """
    hidden = self.backbone(batch, beside=self.matching.phrases(batch))
    dtype = hidden.dtype
    words = self.expected_text_embedding[...].astype(dtype)[batch.text]
    picture = jnp.sum(self.expected_code_embedding[...].astype(dtype)[batch.codes], axis=-2)
    written = jnp.where((batch.modality == CODES)[..., None], picture, words)
    before = jnp.pad(hidden[:, :-1], ((0, 0), (1, 0), (0, 0)))
    product = jnp.where((batch.position > 0)[..., None], before * written, 0)
    fit = jnp.sum(product, axis=-1, keepdims=True) * self.compare_scale[...].astype(dtype)
    x = hidden + project(product, self.compare_kernel) + fit
    marks = (x @ self.mark_head[...].astype(dtype)).astype(jnp.float32)
    marks = marks.at[..., CLAIMED:DENIED + 1].add(self.matching(batch, shown=shown) if told else NOTHING)
    marked = jax.nn.sigmoid(marks)
    marked = marked.at[..., DENIED].multiply(marked[..., CLAIMED])
    x = x + marked.astype(dtype) @ self.mark_embedding[...].astype(dtype)
    total = sums(batch, marked)
    said = total[..., -MARKS:]
    share = COUNTED * said[..., DENIED] / jnp.maximum(said[..., CLAIMED], 0.5)
    total = jnp.concatenate([total, share[..., None]], axis=-1)
    x = x + counts(total).astype(dtype) @ self.sum_embedding[...].astype(dtype)
    x = x + self.step_embedding[...].astype(dtype)[begun(batch)]
    documents = same_document(batch.document)
    reader = self.reader if at is None else functools.partial(self.reader.at, at=at)
    return Reading(reader(x, batch.position, documents), marks, before)

  def expected(self, before: jax.Array) -> jax.Array:
    """Logits float32[...,C] of the code that should stand next, of states [...,d] right before it."""
    return (before @ self.expected_code_embedding[...].astype(before.dtype).T).astype(jnp.float32)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Cumulative logits [...,4,K] in float32 of hidden states [...,d]: the k-th is that of "above k"."""
    raw = (hidden @ self.score_head[...].astype(hidden.dtype)).astype(jnp.float32) + self.score_bias[...]
    raw = raw.reshape(*raw.shape[:-1], len(DIMENSIONS), TOP)
    gaps = jnp.cumsum(jax.nn.softplus(raw[..., 1:] + GAP), axis=-1)
    first = raw[..., :1]
    return jnp.concatenate([first, first - gaps], axis=-1)


def sums(batch: TokenBatch, marked: jax.Array) -> jax.Array:
  """How much is marked up to each position, [B,T,4M] of marked [B,T,M]: in the document's pictures, in its texts, in the latest
  picture alone, and in the text right before that."""
  picture, text = batch.modality == CODES, (batch.modality == TEXT) & ~batch.forced
  total = lambda where: jnp.pad(jnp.cumsum(jnp.where(where[..., None], marked, 0.0), axis=1), ((0, 0), (1, 0), (0, 0)))
  at = lambda total, index: jnp.take_along_axis(total, index[..., None], axis=1)  # what lies before each index
  t = jnp.arange(picture.shape[1])
  document = t - batch.position
  block = picture | batch.forced
  begins = block & ~jnp.pad(block[:, :-1], ((0, 0), (1, 0)))
  latest = jax.lax.cummax(jnp.where(begins, t, -1), axis=1)
  closed = jax.lax.cummax(jnp.where(block, t + 1, 0), axis=1)
  # The text before a picture begins where the last block before it ends, or the document.
  said = jnp.maximum(jnp.take_along_axis(jnp.pad(closed, ((0, 0), (1, 0))), jnp.maximum(latest, 0), axis=1), document)
  pictures, texts = total(picture), total(text)
  shown = (latest >= document)[..., None]
  found = [pictures[:, 1:] - at(pictures, document), texts[:, 1:] - at(texts, document),
           jnp.where(shown, pictures[:, 1:] - at(pictures, jnp.maximum(latest, 0)), 0.0),
           jnp.where(shown, at(texts, jnp.maximum(latest, 0)) - at(texts, said), 0.0)]
  return jnp.maximum(jnp.concatenate(found, axis=-1), 0.0)


def begun(batch: TokenBatch) -> jax.Array:
  """How many steps of its document have begun at each position, int[B,T], STEPS - 1 at most."""
  first = batch.document * batch.step.shape[1]  # the documents of a row are numbered upwards: the count begins anew with each
  return jnp.minimum(jax.lax.cummax(first + batch.step + 1, axis=1) - first, STEPS - 1)


def counts(sums: jax.Array) -> jax.Array:
  """Features [...,N (1+COUNTED)] of sums [...,N]: the logarithm, and how far each is above 0, above 1, ... up to the next one."""
  above = jnp.clip(sums[..., None] - jnp.arange(COUNTED), 0.0, 1.0)
  return jnp.concatenate([jnp.log1p(sums)[..., None], above], axis=-1).reshape(*sums.shape[:-1], -1)


def define(config: ModelConfig, layers: int, reader: int, *, lora_rank: int = 0, lora_alpha: float = 16.0) -> Definition:
  """The judge on the first `layers` layers of such a model, with `reader` layers of its own behind them.

  `lora_rank` gives the model's layers low-rank updates (`models.lora`); the reader needs none.

  Raises:
    UserError: the model has fewer layers.
  """
  if not 1 <= layers <= config.trunk.layers:
    raise UserError(f'judge.layers is {layers}; the model has {config.trunk.layers} layers, take 1 to that many')
  trunk = dataclasses.replace(config.trunk, layers=layers, lora_rank=lora_rank, lora_alpha=lora_alpha)
  config = dataclasses.replace(config, trunk=trunk)
  return Definition(lambda rngs: Judge(config, reader, rngs), config.param_dtype)


def init_from(policy: Params, judge: Params) -> Params:
  """The judge's parameters with what a policy of the same model already knows.

  Embeddings and the first layers are copied; the comparison starts from the output heads, or the embeddings that they are
  tied to (of the image head only where it is flat: one table of codes). Reader, score heads and LoRA factors stay as they are.
  """
  ours, other = judge['backbone'], policy['backbone']
  first = lambda mine, theirs: {name: first(value, theirs[name]) if isinstance(value, dict) else theirs[name][:len(value)]
                                for name, value in mine.items() if name in theirs}
  trunk = {name: first(value, other['trunk'][name]) if name == 'layers' else other['trunk'][name]
           for name, value in ours['trunk'].items()}
  backbone = lora.attach({name: trunk if name == 'trunk' else other[name] for name in ours}, ours)
  words = policy['text_head'].T if 'text_head' in policy else other['text_embedding']
  codes, image_head = judge['expected_code_embedding'], policy.get('image_head', {})
  if set(image_head) == {'head'}:
    codes = image_head['head'].T
  elif not image_head:
    codes = other['image_embedding']['code_embedding']
  copied = jax.tree.map(jnp.array, {'backbone': backbone, 'expected_text_embedding': words, 'expected_code_embedding': codes})
  return judge | copied


def with_prior(judge: Params, labels: Sequence[np.ndarray]) -> Params:
  """Parameters whose heads say, before any training, how the labels [n] of each dimension are spread (NaN for none)."""
  bias = np.zeros((len(DIMENSIONS), TOP), np.float32)
  for row, known in zip(bias, labels, strict=True):
    known = known[np.isfinite(known)]
    above = np.clip(known[:, None] - np.arange(TOP), 0, 1).mean(axis=0) if len(known) else np.full(TOP, 0.5)
    above = np.clip(above, 0.01, 0.99)
    logits = np.log(above / (1 - above))
    gaps = np.maximum(logits[:-1] - logits[1:], 0.05)
    row[0], row[1:] = logits[0], np.log(np.expm1(gaps)) - GAP
  return judge | {'score_bias': jnp.asarray(bias.reshape(-1), judge['score_bias'].dtype),
                  'score_head': jnp.zeros_like(judge['score_head'])}


def expectation(logits: jax.Array) -> jax.Array:
  """Score [...] of cumulative logits [...,K]."""
  return jnp.sum(jax.nn.sigmoid(logits), axis=-1)


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Loss [...] of cumulative logits [...,K] against scores [...] that may lie between whole numbers.

  The k-th target is the part of the label above k, clipped to 0..1: the targets sum to the label, so that the
  expectation is what is learnt.
  """
  target = jnp.clip(label[..., None] - jnp.arange(TOP), 0.0, 1.0)
  return jnp.sum(jax.nn.softplus(logits) - target * logits, axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class JudgeScores:
  """What the judge says of B answers.

  Attributes:
    whole: float32[B,4], 0-5, in the order of `DIMENSIONS`; NaN where `valid` is False.
    steps: float32[B,S,4]; 0 where `present` is False, NaN where `valid` is False.
    present: bool[B,S,4], the steps that have what a dimension scores (see `views` for how each counts its steps).
    valid: bool[B]; False is a judge failure (the answer does not fit the views, or a score is not finite). Such answers
      are left out of means and counted; they have no score.
    spread: float32[B,4], how unsure `whole` is: the standard deviation of its distribution (`calibration.spread`), 0 for a
      rubric's zero, NaN where `valid` is False; None of a judge that does not say.
  """

  whole: jax.Array
  steps: jax.Array
  present: jax.Array
  valid: jax.Array
  spread: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class SynJudge:
  """A judge bound to the layout that it reads: everything but the parameters.

  Attributes:
    definition: from `define`.
    layout: of the tokens.
    widths: room of the views; parameters do not depend on it.
    max_steps: S.
    temperatures: what the logits of each dimension are divided by, fitted on held-aside answers (`calibration.fit`).
  """

  definition: Definition
  layout: Layout
  widths: Widths
  max_steps: int
  temperatures: tuple[float, ...] = (1.0,) * len(DIMENSIONS)

  def cut(self, batch: TokenBatch) -> Views:
    """What each score may see of the rows [B,T]."""
    return views.build(batch, self.layout, self.widths, self.max_steps)

  def score(self, params: Params, batch: TokenBatch) -> JudgeScores:
    """Scores the last answer of each row [B,T]. Pure; jit it, or call it inside another jit.

    Missing text or pictures give the rubric's zeros, of a step and of the whole. IQ of the whole is the mean of the
    pictures that are there: it sees each alone and cannot know how many were asked for.
    """
    return self.scores_of(params, self.cut(batch))

  @classmethod
  def of(cls, model: ModelConfig, layout: Layout, section: Mapping[str, Any]) -> SynJudge:
    """The judge of a config section: `layers` of the model, `reader` layers of its own, `widths` of the views, `max_steps`; where
    its `mode` is `lora`, with factors of `lora_rank` and `lora_alpha`."""
    factors = {name: section[name] for name in ('lora_rank', 'lora_alpha')} if section.get('mode') == 'lora' else {}
    if factors and factors['lora_rank'] < 1:
      raise UserError(f'judge.lora_rank is {factors["lora_rank"]}; mode lora takes 1 or more, or choose mode frozen')
    definition = define(model, section['layers'], section['reader'], **factors)
    return cls(definition, layout, Widths(**section['widths']), section['max_steps'])

  def at(self, temperatures: Sequence[float]) -> SynJudge:
    """The same judge with other temperatures."""
    return dataclasses.replace(self, temperatures=tuple(temperatures))

  def narrow(self, width: int) -> SynJudge:
    """The same judge with views no wider than rows of `width` positions need. Same scores up to rounding."""
    return dataclasses.replace(self, widths=Widths(*(min(w, width + 1) for w in dataclasses.astuple(self.widths))))

  def within(self, prompt: int, completion: int) -> SynJudge:
    """The same judge with the narrowest views that have room for every answer of at most `completion` positions to a
    prompt of at most `prompt`: cheaper where rows are known to be short, as rollouts are. Same scores up to rounding."""
    block = 1 + len(self.layout.block.template)
    images = min(self.max_steps, completion // block) * block
    return dataclasses.replace(self, widths=Widths(prompt + completion + 1, prompt + images + 1, prompt + completion + 1))

  @functools.cached_property
  def jitted(self):
    """`score`, compiled once a shape."""
    return jax.jit(self.score)

  @functools.cached_property
  def programs(self) -> dict[int, Callable[..., Any]]:
    """What `training.judge_all` has compiled, by width of the rows."""
    return {}

  def logits_of(self, params: Params, seen: Views) -> tuple[jax.Array, jax.Array]:
    """Cumulative logits of steps [B,S,4,K] and of whole answers [B,4,K], before the temperatures. IQ has no whole of its own:
    there stands that of the first picture."""
    model: Judge = self.definition.bind(params)
    pairs = [read(model, getattr(seen, name), dimension) for dimension, name in enumerate(DIMENSIONS)]
    rows = len(seen.fits)
    steps = jnp.stack([ends.reshape(rows, self.max_steps, TOP) for ends, _ in pairs], axis=2)
    whole = jnp.stack([whole.reshape(rows, -1, TOP)[:, 0] for _, whole in pairs], axis=1)
    return steps, whole

  def scores_of(self, params: Params, seen: Views) -> JudgeScores:
    """Scores of views that are cut already."""
    return self.scores_from(*self.logits_of(params, seen), seen)

  def scores_from(self, steps: jax.Array, whole: jax.Array, seen: Views) -> JudgeScores:
    """Scores of what `logits_of` gives."""
    steps, whole = (logits / jnp.array(self.temperatures)[:, None] for logits in (steps, whole))
    steps, whole, unsure, each = expectation(steps), expectation(whole), calibration.spread(whole), calibration.spread(steps)
    steps = jnp.where(seen.present, steps, 0.0)
    # IQ of the whole is the mean of the pictures, and the mean of their spreads bounds its own.
    of_pictures = lambda a: jnp.sum(jnp.where(seen.present[..., IQ], a[..., IQ], 0.0), axis=1) / jnp.maximum(
        jnp.sum(seen.present[..., IQ], axis=1), 1)
    whole, unsure = whole.at[:, IQ].set(of_pictures(steps)), unsure.at[:, IQ].set(of_pictures(each))
    whole, unsure = jnp.where(seen.shown, whole, 0.0), jnp.where(seen.shown, unsure, 0.0)
    finite = jnp.all(jnp.isfinite(whole), axis=-1) & jnp.all(jnp.isfinite(steps), axis=(-1, -2))
    valid = seen.fits & finite
    known = lambda a: jnp.where(valid.reshape(-1, *[1] * (a.ndim - 1)), a, jnp.nan)
    return JudgeScores(known(whole), known(steps), seen.present, valid, known(unsure))


def read(model: Judge, view: View, dimension: int) -> tuple[jax.Array, jax.Array]:
  """Cumulative logits of one dimension from one view: of its steps [B,S,K] and of the whole [B,K], in one causal pass."""
  places = jnp.concatenate([jnp.maximum(view.ends, 0).reshape(len(view.end), -1), view.end[:, None]], axis=1)
  reading = model(view.tokens, places, told=dimension in (TCC, ITS), shown=dimension != TCC)
  logits = model.logits(reading.hidden)[..., dimension, :]
  return logits[:, :-1], logits[:, -1]
