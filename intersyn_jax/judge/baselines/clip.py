"""A similarity of texts and pictures in the manner of CLIP: two towers, trained on the same shards with InfoNCE.

It knows which words go with which pictures, and neither what was asked for in which step nor what a score is. As scores:

    TCC   similarity of question and answer, both texts
    ICC   mean similarity of the question and each picture
    IQ    best similarity of a picture with any text of a fixed bank of training texts; the mean over pictures
    ITS   mean similarity of each step's text and picture

each through a rising map that is fitted to training labels.

Letters: n texts or pictures, T positions of a text, P places, D codes, w width of an embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from intersyn_jax import sharding
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import CODES, TEXT, Layout, TokenBatch, turns_of
from intersyn_jax.interleave.types import Conversation, Text, images_of, steps_of, text_of
from intersyn_jax.judge.baselines.shared import MonotoneMap, Viewer, fit_maps, ruled
from intersyn_jax.judge.labelled import Labelled
from intersyn_jax.models.definition import Definition, Params, constant, param
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.unified import Backbone, ModelConfig
from intersyn_jax.training import loop
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer

HEAD = 32
"""Width of an attention head."""

SHARPEST = 100.0
"""Similarities are multiplied by at most this (as CLIP does)."""

_ROWS, _WIDTH = 256, 32  # of what is embedded at once


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """Sizes of the two towers and of their training.

  Attributes:
    width: of both towers; that of the model where it is smaller.
    layers: of each.
    steps: of training.
    rows: pairs of a batch.
    longest: tokens of a text that are read.
    bank: texts of the bank that IQ looks in.
    optimizer: fields of OptimizerConfig that are not as below.
  """

  width: int = 96
  layers: int = 2
  steps: int = 300
  rows: int = 64
  longest: int = 96
  bank: int = 512
  optimizer: dict = dataclasses.field(default_factory=dict)

  def optimizer_config(self) -> OptimizerConfig:
    fields = dict(name='adamw', learning_rate=3e-3, schedule='linear', warmup=0.1, floor=0.05, b2=0.98)
    return OptimizerConfig(**(fields | self.optimizer))


class Tower(nnx.Module):
  """Backbone, mean over positions, projection to the sphere."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.backbone = Backbone(config, rngs)
    self.out_kernel = param(rngs, (config.trunk.width, config.trunk.width), ('embed', 'mlp'))

  def __call__(self, batch: TokenBatch) -> jax.Array:
    """Rows [n,T], one document each, to unit vectors float32[n,w]."""
    real = (batch.document > 0)[..., None]
    mean = jnp.sum(jnp.where(real, self.backbone(batch), 0), axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)
    x = (mean @ self.out_kernel[...].astype(mean.dtype)).astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


class TwoTowers(nnx.Module):
  """A tower for texts, one for pictures, and how sharply their similarities are read."""

  def __init__(self, model: ModelConfig, config: ClipConfig, rngs: nnx.Rngs):
    heads = max(1, min(config.width, model.trunk.width) // HEAD)
    width = min(config.width, model.trunk.width)
    trunk = TrunkConfig(width, config.layers, heads, heads, HEAD, 2 * width)
    sizes = lambda **fields: ModelConfig(trunk, **(dict(vocabulary=1, places=1, depth=model.depth, codebook=1, mix=4) | fields))
    self.text = Tower(sizes(vocabulary=model.vocabulary), rngs)
    self.picture = Tower(sizes(places=model.places, codebook=model.codebook), rngs)
    self.log_scale = param(rngs, (1,), ('width',), constant(np.log(10.0)))

  def of_texts(self, ids: jax.Array) -> jax.Array:
    """int32[n,T] token ids, -1 behind the end -> [n,w]."""
    real, depth = ids >= 0, self.text.backbone.config.depth
    return self.text(_rows(jnp.where(real, ids, 0), jnp.zeros((*ids.shape, depth), jnp.int32), TEXT, real))

  def of_pictures(self, codes: jax.Array) -> jax.Array:
    """int32[n,P,D] -> [n,w]."""
    shape = codes.shape[:2]
    return self.picture(_rows(jnp.zeros(shape, jnp.int32), codes, CODES, jnp.ones(shape, bool)))


def _rows(text: jax.Array, codes: jax.Array, modality: int, real: jax.Array) -> TokenBatch:
  zero = jnp.zeros(text.shape, jnp.int32)
  return TokenBatch(text=text, codes=codes, modality=jnp.where(real, modality, 0).astype(jnp.int8), loss=zero, forced=zero > 0,
                    document=real.astype(jnp.int32), position=jnp.where(real, jnp.arange(text.shape[1]), 0), turn=zero, step=zero)


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Texts and the pictures that belong to them.

  Attributes:
    texts: int32[n,T], -1 behind the end.
    codes: int32[n,P,D].
  """

  texts: np.ndarray
  codes: np.ndarray


def pairs_of(conversations: Iterable[Conversation], layout: Layout, longest: int) -> Pairs:
  """Each step's text with its picture; where an answer is one picture and nothing else, the question's text with it.

  Raises:
    UserError: there is no such pair, or a picture has no codes.
  """
  found: list[tuple[str, np.ndarray]] = []
  for conversation in conversations:
    for turn in conversation.turns:
      if len(turn.answer) == 1 and all(isinstance(s, Text) for s in turn.question):
        steps = [(text_of(turn.question), image) for image in images_of(turn.answer)]
      else:
        steps = [(text, image) for text, image in steps_of(turn.answer) if text and image]
      for text, image in steps:
        if image.codes is None:
          raise UserError(f'record {conversation.id}: a picture has no codes yet; run the tokenizer stage, which adds them')
        found.append((text, image.codes))
  if not found:
    raise UserError('judge: the shards for the two-tower baseline hold no text with a picture; take splits that do')
  return Pairs(padded([layout.tokenizer.encode(text) for text, _ in found], longest), np.stack([c for _, c in found]))


def padded(texts: Sequence[Sequence[int]], longest: int) -> np.ndarray:
  """Token ids as rows int32[n,T], cut to `longest`, -1 behind the end; T is a multiple of 32."""
  length = min(max(map(len, texts), default=1), longest)
  out = np.full((len(texts), -(-max(length, 1) // _WIDTH) * _WIDTH), -1, np.int32)
  for row, text in zip(out, texts, strict=True):
    row[:min(len(text), longest)] = text[:longest]
  return out


def loss_of(definition: Definition) -> Callable[[Params, Pairs, jax.Array], dict[str, tuple[jax.Array, jax.Array]]]:
  """Symmetric InfoNCE: among the pictures of a batch the text's own, and the other way round; `accuracy` counts how often
  it is the most similar one."""

  def loss(params: Params, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    del key
    towers = definition.bind(params)
    scale = jnp.minimum(jnp.exp(towers.log_scale[0]), SHARPEST)
    logits = scale * towers.of_texts(batch['texts']) @ towers.of_pictures(batch['codes']).T
    own = jnp.diagonal(logits)
    cost = jax.nn.logsumexp(logits, axis=0) + jax.nn.logsumexp(logits, axis=1) - 2 * own
    rows = jnp.float32(len(own))
    return {'loss': (jnp.sum(cost) / 2, rows), 'accuracy': (jnp.sum(own >= jnp.max(logits, axis=1)), rows)}

  return loss


def train(pairs: Pairs, model: ModelConfig, config: ClipConfig, mesh: Mesh, seed: int) -> tuple[Definition, Params]:
  """Trains the two towers. Deterministic from the seed."""
  definition = Definition(lambda rngs: TwoTowers(model, config, rngs))
  step = sharding.row_multiple(mesh)
  rows = -(-config.rows // step) * step

  def batch(number: int) -> dict[str, np.ndarray]:
    rng = np.random.Generator(np.random.Philox(key=[seed, number]))
    picked = rng.choice(len(pairs.texts), rows, replace=len(pairs.texts) < rows)
    return {'texts': pairs.texts[picked], 'codes': pairs.codes[picked]}

  optimizer = make_optimizer(config.optimizer_config(), config.steps)
  params = definition.init(jax.random.key(seed), mesh)
  state, _ = loop.fit(loop.make_step(loss_of(definition), optimizer), loop.init_state(params, optimizer),
                      loop.Indexed(batch, mesh), steps=config.steps, seed=seed, metrics_every=50,
                      batch_sharding=sharding.rows(mesh))
  return definition, state['params']


class Clip:
  """The baseline `clip`.

  Args:
    viewer: says what the rules in code say.
    definition, params: of the two towers.
    bank: int32[n,T], texts that IQ looks in.
    longest: tokens of a text that are read.
  """

  name = 'clip'

  def __init__(self, viewer: Viewer, definition: Definition, params: Params, bank: np.ndarray, longest: int):
    self.viewer, self.params, self.longest = viewer, params, longest
    self.maps: tuple[MonotoneMap, ...] = ()
    self._of_texts = jax.jit(lambda params, x: definition.bind(params).of_texts(x))
    self._of_pictures = jax.jit(lambda params, x: definition.bind(params).of_pictures(x))
    self.bank = self.embed_texts([row[row >= 0].tolist() for row in bank])

  @classmethod
  def fit(cls, viewer: Viewer, model: ModelConfig, train_rows: Labelled, conversations: Iterable[Conversation], mesh: Mesh,
          config: ClipConfig, seed: int = 0) -> Clip:
    """Trains the towers on texts and pictures of the conversations, then fits the maps to the labelled rows."""
    pairs = pairs_of(conversations, viewer.judge.layout, config.longest)
    definition, params = train(pairs, model, config, mesh, seed)
    bank = np.unique(pairs.texts, axis=0)
    bank = bank[np.random.default_rng(seed).permutation(len(bank))[:config.bank]]
    found = cls(viewer, definition, params, bank, config.longest)
    found.maps = fit_maps(found.similarities(train_rows), train_rows, *viewer.rules(train_rows))
    return found

  def embed_texts(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """Texts as token ids -> unit vectors float32[n,w]."""
    # Short ones first, so that few rows are padded far.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = np.zeros((len(texts), self._width), np.float32)
    for first in range(0, len(order), _ROWS):
      part = order[first:first + _ROWS]
      rows = padded([texts[i] for i in part] + [[]] * (_ROWS - len(part)), self.longest)
      out[part] = sharding.host(self._of_texts(self.params, rows))[:len(part)]
    return out

  def embed_pictures(self, codes: np.ndarray) -> np.ndarray:
    """int32[n,P,D] -> unit vectors float32[n,w]."""
    out = np.zeros((len(codes), self._width), np.float32)
    for first in range(0, len(codes), _ROWS):
      part = codes[first:first + _ROWS]
      rows = np.concatenate([part, np.zeros((_ROWS - len(part), *part.shape[1:]), part.dtype)])
      out[first:first + _ROWS] = sharding.host(self._of_pictures(self.params, rows))[:len(part)]
    return out

  @property
  def _width(self) -> int:
    return self.params['text']['out_kernel'].shape[1]

  def similarities(self, labelled: Labelled) -> np.ndarray:
    """The four numbers, float32[N,4], each -1 to 1; NaN where the answer lacks what they compare."""
    layout = self.viewer.judge.layout
    texts: dict[str, int] = {'': 0}
    pictures: dict[bytes, int] = {}
    codes: list[np.ndarray] = []
    answers = []
    for document in labelled.documents:
      turn = turns_of(document, layout)[-1]
      number = lambda text: texts.setdefault(text or '', len(texts))
      steps = []
      for text, image in steps_of(turn.answer):
        if image is not None and pictures.setdefault(image.codes.tobytes(), len(codes)) == len(codes):
          codes.append(image.codes)
        steps.append((number(text), -1 if image is None else pictures[image.codes.tobytes()]))
      answers.append((number(text_of(turn.question)), number(text_of(turn.answer)), steps))
    words = self.embed_texts([layout.tokenizer.encode(text) for text in texts])
    if not codes:
      codes = [np.zeros((layout.block.places, layout.block.depth), np.int32)]
    views_of = self.embed_pictures(np.stack(codes))
    known = (views_of @ self.bank.T).max(axis=1)
    mean = lambda values: float(np.mean(values)) if values else np.nan
    out = np.full((len(labelled), 4), np.nan, np.float32)
    for row, (question, answer, steps) in zip(out, answers, strict=True):
      shown = [picture for _, picture in steps if picture >= 0]
      row[:] = (words[question] @ words[answer] if answer else np.nan,
                mean([words[question] @ views_of[picture] for picture in shown]),
                mean([known[picture] for picture in shown]),
                mean([words[text] @ views_of[picture] for text, picture in steps if text and picture >= 0]))
    return out

  def scores(self, labelled: Labelled) -> np.ndarray:
    found = self.similarities(labelled)
    # An answer that has both, in no common step, has nothing in common.
    found = np.where(np.isnan(found), -1.0, found)
    mapped = np.stack([of(found[:, i]) for i, of in enumerate(self.maps)], axis=1)
    return ruled(mapped, *self.viewer.rules(labelled))
