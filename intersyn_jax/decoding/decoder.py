"""The interleaved decoder: prompts in, completions of text and images out, one jitted and sharded function (DESIGN 6).

Every row is a state machine of its own: it writes text, or stands at place k of the image block's template, and rows of
one batch stand in different places at the same step. All rows write the same cache place at a step, because prompts are
padded on the left. With guidance every row is a pair (conditional, null) of neighbouring rows of the cache; both read
the codes that the pair has drawn. The null row sees the null prompt and what follows the begin token of its current
image, nothing else: it starts anew at every image.

Letters: P prompts, G completions of each, R = P G rows, W rows of the cache of one row (2 with guidance, else 1), T prompt
positions, M completion positions, S = T + M cache places, D codes per image position, V vocabulary, d model width.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from intersyn_jax import sharding
from intersyn_jax.decoding import sampling
from intersyn_jax.decoding.sampling import Sampling
from intersyn_jax.errors import UserError
from intersyn_jax.interleave import grammar, layout
from intersyn_jax.interleave.layout import CODE, CODES, PADDING, TEXT, ImageBlock, Layout, TokenBatch
from intersyn_jax.models.definition import Definition, Params
from intersyn_jax.models.trunk import LayerCache
from intersyn_jax.models.unified import Cache, UnifiedModel

END, LENGTH = 0, 1
"""Why a completion is over: it wrote `</s>`, or its positions ran out."""


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
  """How completions are written; the config section `decode`.

  Attributes:
    max_positions: M, room of a completion, `</s>` included.
    max_images: image blocks a completion may open.
    text_temperature, text_top_k, text_top_p: of text ids, see `sampling.Sampling`.
    image_temperature, image_top_k, image_top_p: of image codes.
    guidance: scale s of u + s (c - u) on the logits of image codes; 1 is off and costs nothing.
    bucket: prompts are padded to a multiple of this many positions, so that few programs are compiled.
    rows: completions written at once by `Generator`.
  """

  max_positions: int = 128
  max_images: int = 4
  text_temperature: float = 1.0
  text_top_k: int = 0
  text_top_p: float = 1.0
  image_temperature: float = 1.0
  image_top_k: int = 0
  image_top_p: float = 1.0
  guidance: float = 1.0
  bucket: int = 16
  rows: int = 64

  def __post_init__(self):
    for field in ('max_positions', 'bucket', 'rows'):
      if getattr(self, field) < 1:
        raise UserError(f'decode.{field} is {getattr(self, field)}; make it at least 1')
    for field in ('max_images', 'text_temperature', 'text_top_k', 'image_temperature', 'image_top_k', 'guidance'):
      if getattr(self, field) < 0:
        raise UserError(f'decode.{field} is {getattr(self, field)}; it cannot be negative')
    for field in ('text_top_p', 'image_top_p'):
      if not 0 < getattr(self, field) <= 1:
        raise UserError(f'decode.{field} is {getattr(self, field)}; use a share above 0 and at most 1')

  @property
  def text(self) -> Sampling:
    return Sampling(self.text_temperature, self.text_top_k, self.text_top_p)

  @property
  def image(self) -> Sampling:
    return Sampling(self.image_temperature, self.image_top_k, self.image_top_p)

  @property
  def branches(self) -> int:
    """W, rows of the cache that one completion needs."""
    return 1 if self.guidance == 1.0 else 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Completions:
  """What was written, [R,M], and how probable it was.

  Attributes:
    tokens: the completions alone; padding after their end; positions go on from the prompt's, steps by the grammar;
      the loss weight is 1 where the model had a choice.
    log_prob: float32[R,M], under the distribution really drawn from (mask, temperature, truncation, guidance);
      of an image position the sum over its codes; 0 at forced positions, at padding and for temperature 0.
    plain_log_prob: float32[R,M], by the heads alone at temperature 1, without mask and guidance: what
      `models.unified.position_log_probs` gives; 0 at forced positions and padding.
    code_log_prob, plain_code_log_prob: float32[R,M,D], the same two for each code; 0 at text positions.
    finish: int8[R], END or LENGTH.
  """

  tokens: TokenBatch
  log_prob: jax.Array
  plain_log_prob: jax.Array
  code_log_prob: jax.Array
  plain_code_log_prob: jax.Array
  finish: jax.Array


class _Written(typing.NamedTuple):
  """Columns of the completions, position first so that a step writes one contiguous piece: [M,R] and [M,R,D]."""

  text: jax.Array
  codes: jax.Array
  modality: jax.Array
  forced: jax.Array
  log_prob: jax.Array
  plain_log_prob: jax.Array
  code_log_prob: jax.Array
  plain_code_log_prob: jax.Array


class _Fixed(typing.NamedTuple):
  """What every step of the loop reads.

  Attributes:
    layers: of the trunk, one by one.
    seen: bool[R W,T], the prompt places that each row of the cache sees.
    position: int32[R], of the first position of each completion.
    numbers: float32[M,R,D], uniform.
    null_recent: the embeddings that the token mixer sees right after the null prompt.
  """

  layers: list[Any]
  seen: jax.Array
  position: jax.Array
  numbers: jax.Array
  null_recent: jax.Array


class _State(typing.NamedTuple):
  """What the loop carries.

  Attributes:
    index: int32, how many positions are written.
    hidden: [R W,d], of the last position read.
    cache: of all rows, R W by S.
    place: int32[R], next entry of the block's template, -1 in text.
    images: int32[R], blocks opened.
    done: bool[R].
    ended: bool[R], wrote `</s>`.
    begin: int32[R], the cache place of the last begin token.
    written: columns so far.
  """

  index: jax.Array
  hidden: jax.Array
  cache: Cache
  place: jax.Array
  images: jax.Array
  done: jax.Array
  ended: jax.Array
  begin: jax.Array
  written: _Written


def runs(block: ImageBlock) -> np.ndarray:
  """int32[entries]: how many codes in a row stand right before each entry of the template (`unified.places_of`)."""
  out, run = [], 0
  for entry in block.template:
    out.append(run)
    run = run + 1 if entry == CODE else 0
  return np.asarray(out, np.int32)


class Decoder:
  """Writes completions with a unified model.

  Args:
    definition: of the model whose parameters `decode` will be given.
    layout: the token layout it was trained with.
    mesh: rows go over its `replica` and `fsdp` axes, heads over `tensor`.
    config: limits and sampling controls; they are part of the compiled program.
  """

  def __init__(self, definition: Definition, layout: Layout, mesh: Mesh, config: DecodeConfig):
    self.definition = definition
    self.layout = layout
    self.mesh = mesh
    self.config = config
    self.rollout = jax.jit(self._rollout, static_argnames=('group',))

  def decode(self, params: Params, prompts: Sequence[TokenBatch], *, group: int = 1, seed: int = 0,
             request_ids: Sequence[int] | None = None) -> Completions:
    """Writes `group` completions of each prompt.

    Args:
      params: of the model, on the mesh.
      prompts: documents from `layout.prompt`.
      group: G; the prompt is read once for all of them.
      seed: of all draws.
      request_ids: one for each of the P G completions, prompt by prompt; with the seed they decide the draws. The
        default counts from 0.

    Returns:
      completions of P G rows, prompt by prompt.
    """
    batch = self.stack(prompts)
    requests = np.arange(len(prompts) * group) if request_ids is None else np.asarray(request_ids)
    if len(requests) != len(prompts) * group:
      raise ValueError(f'{len(requests)} request ids for {len(prompts)} prompts of {group} completions')
    return self.rollout(params, batch, requests.astype(np.uint32), seed, group=group)

  def stack(self, prompts: Sequence[TokenBatch]) -> TokenBatch:
    """Prompts as rows padded on the left to a bucketed length, [P,T]."""
    longest = max(len(layout.null_prompt(self.layout).text), *(len(p.text) for p in prompts))
    return layout.stack(prompts, -(-longest // self.config.bucket) * self.config.bucket, left=True)

  def _rollout(self, params: Params, prompts: TokenBatch, request_ids: jax.Array, seed: jax.Array | int, *,
               group: int) -> Completions:
    """The whole decoding of a batch; jitted as `rollout`, and may be called inside another jit.

    Args:
      params: of the model.
      prompts: [P,T], padded on the left, each ending with `<model>`; rows of padding alone stay empty.
      request_ids: uint32[P G].
      seed: of all draws.
      group: G.
    """
    model: UnifiedModel = self.definition.bind(self._whole_rows(params))
    prompts = jax.tree.map(self._rows, prompts)
    numbers = sampling.uniforms(seed, request_ids, self.config.max_positions, model.config.depth)
    fixed, state = self._start(model, prompts, group, numbers)
    going = lambda s: (s.index < self.config.max_positions) & ~jnp.all(s.done)
    state = jax.lax.while_loop(going, functools.partial(self._step, model, fixed), state)
    return self._finish(state, fixed.position, jnp.repeat(prompts.turn[:, -1], group))

  def _start(self, model: UnifiedModel, prompts: TokenBatch, group: int, numbers: jax.Array) -> tuple[_Fixed, _State]:
    """Reads the prompts, once each, and lays out the cache of all rows."""
    config = self.config
    room = prompts.text.shape[1] + config.max_positions
    hidden, cache = model.backbone.prefill(prompts)
    first, recent, layers = hidden[:, -1], cache.recent, cache.layers
    real = prompts.document > 0
    each = lambda a: jnp.repeat(a, group, axis=0)
    if config.branches == 1:
      pair = lambda a, null: each(a)
    else:
      pair = lambda a, null: jnp.stack([each(a), jnp.broadcast_to(null, (len(a) * group, *a.shape[1:]))], axis=1).reshape(
          -1, *a.shape[1:])
    null_hidden, null_cache, null_real = self._null(model, prompts.text.shape[1])
    grow = lambda a: self._rows(jnp.pad(a, ((0, 0), (0, 0), (0, room - a.shape[2]), (0, 0))), 'kv_heads', None, None)
    paired = [LayerCache(grow(pair(mine.keys, null.keys)), grow(pair(mine.values, null.values)))
              for mine, null in zip(layers, null_cache.layers, strict=True)]
    idle = ~each(jnp.any(real, axis=1))
    rows = idle.shape[0]
    wide = lambda dtype: jnp.zeros((config.max_positions, rows), dtype)
    deep = lambda dtype: jnp.zeros((config.max_positions, rows, model.config.depth), dtype)
    written = _Written(wide(jnp.int32), deep(jnp.int32), wide(jnp.int8), wide(bool), wide(jnp.float32),
                       wide(jnp.float32), deep(jnp.float32), deep(jnp.float32))
    count = jnp.zeros(rows, jnp.int32)
    state = _State(
        index=jnp.int32(0), hidden=self._rows(pair(first, null_hidden)),
        cache=Cache(paired, self._rows(pair(recent, null_cache.recent))),
        place=count - 1, images=count, done=idle, ended=idle, begin=count, written=written)
    position = self._rows(each(prompts.position[:, -1]) + 1)
    fixed = _Fixed(model.backbone.trunk.unstack(), self._rows(pair(real, null_real)), position, numbers, null_cache.recent)
    return fixed, state

  def _null(self, model: UnifiedModel, length: int) -> tuple[jax.Array, Cache, jax.Array]:
    """Hidden state [1,d] and cache of `length` places after the null prompt, and which of these places are real.

    The null prompt stands at the end of its places, as every prompt does.
    """
    document = layout.stack([layout.null_prompt(self.layout)], length, left=True)
    hidden, cache = model.backbone.prefill(document)
    return hidden[:, -1], cache, jnp.asarray(document.document > 0)

  def _step(self, model: UnifiedModel, fixed: _Fixed, state: _State) -> _State:
    """Chooses one position of every row, writes it, and reads it."""
    config, block, branches = self.config, self.layout.block, self.config.branches
    depth = model.config.depth
    rows = state.place.shape[0]
    template = jnp.asarray(block.template, jnp.int32)
    entry = template[jnp.maximum(state.place, 0)]
    in_block = ~state.done & (state.place >= 0)
    in_text = ~state.done & (state.place < 0)
    in_codes = in_block & (entry == CODE)
    forced = in_block & (entry != CODE)
    hidden = state.hidden.reshape(rows, branches, -1)
    uniform = jax.lax.dynamic_index_in_dim(fixed.numbers, state.index, keepdims=False)

    fits = (state.images < config.max_images) & (state.index + 1 + len(block.template) <= config.max_positions)
    silent_text = lambda: (jnp.zeros(rows, jnp.int32), jnp.zeros(rows), jnp.zeros(rows))
    word, word_log_prob, word_plain = jax.lax.cond(
        jnp.any(in_text), lambda: self._draw_text(model, hidden[:, 0], uniform[:, 0], fits), silent_text)
    silent_codes = lambda: (jnp.zeros((rows, depth), jnp.int32), jnp.zeros((rows, depth)), jnp.zeros((rows, depth)))
    codes, code_log_prob, code_plain = jax.lax.cond(
        jnp.any(in_codes), lambda: self._draw_codes(model, hidden, uniform), silent_codes)

    zero = lambda keep, a: jnp.where(keep.reshape(-1, *[1] * (a.ndim - 1)), a, jnp.zeros((), a.dtype))
    text = jnp.where(in_text, word, zero(forced, entry))
    codes, code_log_prob, code_plain = (zero(in_codes, a) for a in (codes, code_log_prob, code_plain))
    modality = jnp.where(state.done, PADDING, jnp.where(in_codes, CODES, TEXT)).astype(jnp.int8)
    column = _Written(
        text, codes, modality, forced,
        jnp.where(in_text, word_log_prob, jnp.sum(code_log_prob, axis=-1)),
        jnp.where(in_text, word_plain, jnp.sum(code_plain, axis=-1)), code_log_prob, code_plain)
    written = jax.tree.map(
        lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one.astype(all_.dtype), state.index, 0),
        state.written, column)

    opens = in_text & (text == block.begin)
    ended = state.ended | (in_text & (text == self.layout.special('</s>')))
    following = jnp.where(state.place + 1 < len(block.template), state.place + 1, -1)
    begin = jnp.where(opens, fixed.seen.shape[1] + state.index, state.begin)
    run = jnp.asarray(runs(block))[jnp.maximum(state.place, 0)]
    hidden, cache = self._read(model, fixed, state.index, state.cache, column, run, begin, opens)
    return _State(
        index=state.index + 1, hidden=hidden, cache=cache,
        place=jnp.where(opens, 0, jnp.where(in_block, following, state.place)),
        images=state.images + opens, done=ended, ended=ended, begin=begin, written=written)

  def _draw_text(self, model: UnifiedModel, hidden: jax.Array, uniform: jax.Array,
                 fits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Text ids [R] with log-prob and plain log-prob; the begin token only where a whole block still fits."""
    logits = model.text_logits(hidden)
    allowed = jnp.asarray(sampling.choosable(self.layout, logits.shape[-1]))
    allowed = allowed & (fits[:, None] | (jnp.arange(logits.shape[-1]) != self.layout.block.begin))
    ids, log_prob = sampling.draw(jnp.where(allowed, logits, -jnp.inf), uniform, self.config.text)
    return ids, log_prob, sampling.log_prob(logits, ids)

  def _draw_codes(self, model: UnifiedModel, hidden: jax.Array,
                  uniform: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Codes [R,D], one after another, from hidden [R,W,d], with log-prob and plain log-prob of each."""
    rows, branches, _ = hidden.shape
    codes = jnp.zeros((rows, uniform.shape[-1]), jnp.int32)
    columns = []
    for number in range(uniform.shape[-1]):
      known = jnp.broadcast_to(codes[:, None], (rows, branches, codes.shape[-1]))
      logits = model.image_head.next_logits(hidden, known, number)
      drawn_from = logits[:, 0]
      if branches == 2:
        drawn_from = sampling.guide(logits[:, 0], logits[:, 1], self.config.guidance)
      ids, log_prob = sampling.draw(drawn_from, uniform[:, number], self.config.image)
      codes = codes.at[:, number].set(ids)
      columns.append((log_prob, sampling.log_prob(logits[:, 0], ids)))
    log_prob, plain = (jnp.stack(column, axis=-1) for column in zip(*columns, strict=True))
    return codes, log_prob, plain

  def _read(self, model: UnifiedModel, fixed: _Fixed, index: jax.Array, cache: Cache, column: _Written, run: jax.Array,
            begin: jax.Array, opens: jax.Array) -> tuple[jax.Array, Cache]:
    """Feeds the position `index` of every row. Returns hidden [R W,d] and the cache.

    Args:
      column: what was written there.
      run: int32[R], place among the codes in a row.
      begin: int32[R], cache place of the last begin token; `opens`: bool[R], it is this one.
    """
    branches, start = self.config.branches, fixed.seen.shape[1]
    slot = start + index
    position, since = fixed.position + index, jnp.full(begin.shape, start)
    if branches == 2:
      null_length = len(layout.null_prompt(self.layout).text)
      position = jnp.stack([position, null_length + slot - begin], axis=1).reshape(-1)
      since = jnp.stack([since, begin], axis=1).reshape(-1)
      anew = jnp.stack([jnp.zeros_like(opens), opens], axis=1).reshape(-1, 1, 1)
      cache = Cache(cache.layers, jnp.where(anew, fixed.null_recent, cache.recent))
    places = start + jnp.arange(self.config.max_positions)
    visible = jnp.concatenate([fixed.seen, (places >= since[:, None]) & (places <= slot)], axis=1)
    both = lambda a: jnp.repeat(a, branches, axis=0)
    hidden, cache = model.backbone.decode(
        fixed.layers, both(column.text), both(column.codes), both(column.modality), both(run), position, cache, slot,
        visible)
    held = [LayerCache(*(self._rows(a, 'kv_heads', None, None) for a in (layer.keys, layer.values)))
            for layer in cache.layers]
    return self._rows(hidden), Cache(held, self._rows(cache.recent))

  def _finish(self, state: _State, position: jax.Array, turn: jax.Array) -> Completions:
    """Columns to rows, with the fields of TokenBatch that follow from them."""
    rows = jax.tree.map(lambda a: self._rows(a.swapaxes(0, 1)), state.written)
    real = rows.modality != PADDING
    here = lambda a, fill: jnp.where(real, a, fill).astype(jnp.int32)
    tokens = TokenBatch(
        text=rows.text, codes=rows.codes, modality=rows.modality,
        loss=(real & ~rows.forced).astype(jnp.float32), forced=rows.forced, document=here(1, 0),
        position=here(position[:, None] + jnp.arange(real.shape[1]), 0), turn=here(turn[:, None], -1),
        step=here(-1, -1))
    tokens = tokens.replace(step=grammar.parse(tokens, self.layout, 1).step)
    finish = jnp.where(state.ended, END, LENGTH).astype(jnp.int8)
    return Completions(tokens, rows.log_prob, rows.plain_log_prob, rows.code_log_prob, rows.plain_code_log_prob, finish)

  def _rows(self, array: jax.Array, *names: str | None) -> jax.Array:
    """Spreads the first axis over the mesh as the batch, the others by their logical names."""
    names = (*names, *(None,) * (array.ndim - 1 - len(names)))
    spec = sharding.spec(self.mesh, ('batch', *names), array.shape)
    return jax.lax.with_sharding_constraint(array, NamedSharding(self.mesh, spec))

  def _whole_rows(self, params: Params) -> Params:
    """Gathers what training spreads over `fsdp`, once, so that no step of the loop does; `tensor` stays spread."""
    def gather(array: jax.Array, names: tuple[str, ...]) -> jax.Array:
      spec = sharding.spec(self.mesh, [None if name == 'embed' else name for name in names], array.shape)
      return jax.lax.with_sharding_constraint(array, NamedSharding(self.mesh, spec))

    return jax.tree.map(gather, params, self.definition.axes)


def join(prompts: TokenBatch, completions: Completions) -> TokenBatch:
  """Prompts [P,T], padded on the left, and their P G completions as whole rows [R,T+M], for scoring and training.

  The loss weight of prompt positions is 0.
  """
  group = completions.finish.shape[0] // prompts.text.shape[0]
  prompts = prompts.replace(loss=jnp.zeros_like(prompts.loss))
  return jax.tree.map(lambda a, b: jnp.concatenate([jnp.repeat(a, group, axis=0), b], axis=1), prompts, completions.tokens)
