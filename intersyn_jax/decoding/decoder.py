"""The interleaved decoder: prompts in, completions of text and images out, jitted and sharded (DESIGN 6).

Every row is a state machine of its own: it writes text, or stands at place k of the image block's template, and rows of
one batch stand in different places at the same step. The cache is aligned on the right: whatever their lengths, all rows
have written last to the same place, so that a step writes one column, new rows enter by having their prompt end there,
and what is older than the longest row can be cut off.

With guidance a row has further branches, neighbouring rows of the cache that read the codes it draws. The null branch
sees the null prompt and what follows the begin token of its current image, nothing else: it starts anew at every image.
The image branch sees the images of prompt and completion without any text, moved together.

Letters: P prompts, G completions of each, R = P G rows, W branches of a row, T prompt positions, M completion positions,
S cache places, D codes per image position, V vocabulary, d model width.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from intersyn_jax import sharding
from intersyn_jax.decoding import sampling
from intersyn_jax.decoding.config import IMAGES, NULL, DecodeConfig
from intersyn_jax.errors import UserError
from intersyn_jax.interleave import grammar, layout
from intersyn_jax.interleave.layout import CODE, CODES, FEATURES, PADDING, TEXT, ImageBlock, Layout, TokenBatch
from intersyn_jax.models.definition import Definition, Params
from intersyn_jax.models.trunk import LayerCache
from intersyn_jax.models.unified import Cache, UnifiedModel

GOING, END, LENGTH, MAX_IMAGES = -1, 0, 1, 2
"""Why a completion is over: it wrote a stop token, its positions ran out, or it has all the images it may have."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Completions:
  """What was written, [R,M], and how probable it was.

  Attributes:
    tokens: the completions alone; padding after their end; positions go on from the prompt's, steps by the grammar;
      the loss weight is 1 where the model had a choice.
    log_prob: float32[R,M], under the distribution really drawn from (mask, repetition, temperature, truncation, guidance);
      of an image position the sum over its codes; 0 at forced positions, at padding and for temperature 0.
    plain_log_prob: float32[R,M], by the heads alone at temperature 1, without mask and guidance: what
      `models.unified.position_log_probs` gives; 0 at forced positions and padding.
    code_log_prob, plain_code_log_prob: float32[R,M,D], the same two for each code; 0 at text positions. Guided ones are
      recomputed by `guidance.log_probs`.
    finish: int8[R], END, LENGTH or MAX_IMAGES.
  """

  tokens: TokenBatch
  log_prob: jax.Array
  plain_log_prob: jax.Array
  code_log_prob: jax.Array
  plain_code_log_prob: jax.Array
  finish: jax.Array


class Written(typing.NamedTuple):
  """Columns of the completions, position first so that a step writes one contiguous piece: [M,R] and [M,R,D]."""

  text: jax.Array
  codes: jax.Array
  modality: jax.Array
  forced: jax.Array
  log_prob: jax.Array
  plain_log_prob: jax.Array
  code_log_prob: jax.Array
  plain_code_log_prob: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
  """R rows between two positions.

  Attributes:
    request: uint32[R]; with the seed and the count it decides the draws.
    count: int32[R], positions written.
    place: int32[R], next entry of the block's template, -1 in text.
    images, steps: int32[R], blocks and steps opened.
    finish: int8[R], GOING or why the row is over.
    said: bool[R,V], words the completion holds; [R,0] where nothing asks.
    position: int32[R,W], of the next position in each branch.
    seen: bool[R W,S], the places of the cache that each branch sees.
    hidden: [R W,d], of the last position read.
    cache: R W rows of S places; those of the prompt may be held once for its G rows (`LayerCache.prompt`).
  """

  request: jax.Array
  count: jax.Array
  place: jax.Array
  images: jax.Array
  steps: jax.Array
  finish: jax.Array
  said: jax.Array
  position: jax.Array
  seen: jax.Array
  hidden: jax.Array
  cache: Cache


def runs(block: ImageBlock) -> np.ndarray:
  """int32[entries]: how many codes in a row stand right before each entry of the template (`unified.places_of`)."""
  out, run = [], 0
  for entry in block.template:
    out.append(run)
    run = run + 1 if entry == CODE else 0
  return np.asarray(out, np.int32)


def images_only(batch: TokenBatch, layout_: Layout) -> tuple[TokenBatch, jax.Array]:
  """What the image branch reads of rows [B,T]: the first position and all image blocks, moved together to the right.

  Returns:
    rows [B,T] with text, codes, modality, forced, document and position; and int32[B,T], where each position went, T
    where it was dropped.
  """
  t = batch.text.shape[1]
  real = batch.document > 0
  first = real & (jnp.cumsum(real, axis=1) == 1)
  begin = (batch.modality == TEXT) & (batch.text == layout_.block.begin) & ~batch.forced
  keep = real & (first | begin | (batch.modality == CODES) | (batch.modality == FEATURES) | batch.forced)
  count = jnp.sum(keep, axis=1, keepdims=True)
  number = jnp.cumsum(keep, axis=1) - 1
  target = jnp.where(keep, t - count + number, t)
  rows = jnp.arange(len(target))[:, None]
  move = lambda a: jnp.zeros_like(a).at[rows, target].set(a, mode='drop')
  return batch.replace(
      text=move(batch.text), codes=move(batch.codes), modality=move(batch.modality), forced=move(batch.forced),
      document=move(jnp.ones_like(batch.document)), position=move(jnp.broadcast_to(number, target.shape))), target


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
    self._stop = [self._token(name, 'decode.stop') for name in config.stop]
    if config.min_steps or config.max_steps:
      self._token('<think>', 'decode.min_steps and decode.max_steps')
    self.rollout = jax.jit(self._rollout, static_argnames=('group',))

  def _token(self, name: str, field: str) -> int:
    try:
      return self.layout.special(name)
    except ValueError:
      raise UserError(f'{field}: this tokenizer has no token {name}') from None

  def decode(self, params: Params, prompts: Sequence[TokenBatch], *, group: int = 1, seed: int = 0,
             request_ids: Sequence[int] | None = None, features: jax.Array | None = None) -> Completions:
    """Writes `group` completions of each prompt, all at once.

    Args:
      params: of the model, on the mesh.
      prompts: documents from `layout.prompt`.
      group: G; the prompt is read once for all of them.
      seed: of all draws.
      request_ids: one for each of the P G completions, prompt by prompt; with the seed they decide the draws. The
        default counts from 0.
      features: [N,f] of the pictures that prompts hold as features; theirs are the rows that `codes` names (see `Backbone`).

    Returns:
      completions of P G rows, prompt by prompt.
    """
    batch = self.stack(prompts)
    requests = np.arange(len(prompts) * group) if request_ids is None else np.asarray(request_ids)
    if len(requests) != len(prompts) * group:
      raise ValueError(f'{len(requests)} request ids for {len(prompts)} prompts of {group} completions')
    if features is None and np.any(batch.modality == FEATURES):
      raise ValueError('a prompt holds image features, and no `features` were given')
    return self.rollout(params, batch, requests.astype(np.uint32), seed, group=group, features=features)

  def stack(self, prompts: Sequence[TokenBatch]) -> TokenBatch:
    """Prompts as rows padded on the left to a bucketed length, [P,T]."""
    return layout.stack(prompts, self.room(prompts), left=True)

  def room(self, prompts: Sequence[TokenBatch]) -> int:
    """T, a multiple of the bucket that has room for each of the prompts."""
    longest = max(len(layout.null_prompt(self.layout).text), *(len(p.text) for p in prompts))
    return -(-longest // self.config.bucket) * self.config.bucket

  def bind(self, params: Params) -> UnifiedModel:
    """The model with its parameters laid out for decoding."""
    return self.definition.bind(self._whole_rows(params))

  def _rollout(self, params: Params, prompts: TokenBatch, request_ids: jax.Array, seed: jax.Array | int, *,
               group: int, features: jax.Array | None = None) -> Completions:
    """The whole decoding of a batch; jitted as `rollout`, and may be called inside another jit.

    Args:
      params: of the model.
      prompts: [P,T], padded on the left, each ending with `<model>`; rows of padding alone stay empty.
      request_ids: uint32[P G].
      seed: of all draws.
      group: G.
      features: as in `decode`.
    """
    model = self.bind(params)
    layers = model.backbone.trunk.unstack()
    state = self.start(model, prompts, request_ids, group, features)
    begin = state.position[:, 0]
    pieces, live, left = [], prompts.text.shape[1], self.config.max_positions
    size = self.config.chunk or left
    while left:
      size = min(size, left)
      state, piece = self.advance(model, layers, self.resize(state, live, size), seed, size)
      pieces.append(piece)
      live, left, size = live + size, left - size, live + size - prompts.text.shape[1]
    written = jax.tree.map(lambda *columns: jnp.concatenate(columns), *pieces)
    return self.finish(written, state.finish, begin, jnp.repeat(prompts.turn[:, -1], group))

  def start(self, model: UnifiedModel, prompts: TokenBatch, request_ids: jax.Array, group: int,
            features: jax.Array | None = None) -> State:
    """Reads prompts [P,T], once each, and gives the P G rows that are to complete them, in a cache of T places."""
    config = self.config
    prompts = jax.tree.map(self._rows, prompts)
    branches = [self._branch(model, prompts, kind, features) for kind in config.branches]
    rows = len(prompts.text) * group
    each = lambda *parts: self._rows(jnp.repeat(jnp.stack(parts, axis=1), group, axis=0).reshape(
        rows * len(parts), *parts[0].shape[1:]))
    hidden, recent, seen = jax.tree.map(each, *((hidden, cache.recent, real) for hidden, cache, real in branches))
    if self._shares(len(prompts.text), group):
      layers = [self._shared(parts, group) for parts in zip(*(cache.layers for _, cache, _ in branches), strict=True)]
    else:
      layers = jax.tree.map(each, *(cache.layers for _, cache, _ in branches))
    position = jnp.stack([jnp.sum(real, axis=1) for _, _, real in branches], axis=1)
    count = jnp.zeros(rows, jnp.int32)
    idle = jnp.repeat(~jnp.any(prompts.document > 0, axis=1), group)
    words = model.config.vocabulary if config.text_repetition != 1.0 else 0
    return State(
        request=jnp.asarray(request_ids, jnp.uint32), count=count, place=count - 1, images=count, steps=count,
        finish=jnp.where(idle, END, GOING).astype(jnp.int8), said=jnp.zeros((rows, words), bool),
        position=jnp.repeat(position, group, axis=0).astype(jnp.int32), seen=seen, hidden=hidden, cache=Cache(layers, recent))

  def _shares(self, prompts: int, group: int) -> bool:
    """Whether keys and values of a prompt are held once for its group: where prompts divide among the devices. Not on TPU: there
    the compiler makes up for it with copies of what each row has of its own (docs/compile.md)."""
    return group > 1 and prompts % sharding.row_multiple(self.mesh) == 0 and self.mesh.devices.flat[0].platform != 'tpu'

  def _shared(self, branches: Sequence[LayerCache], group: int) -> LayerCache:
    """A layer's keys and values [P,K,T,H] of each branch, held once for all G rows of a prompt, with no places of these yet."""
    keys, values = (self._rows(jnp.stack(parts, axis=1), None, 'kv_heads', None, None)
                    for parts in zip(*((one.keys, one.values) for one in branches), strict=True))
    prompts, width, heads, _, channels = keys.shape
    own = jnp.zeros((prompts * group * width, heads, 0, channels), keys.dtype)
    return LayerCache(own, own, LayerCache(keys, values))

  def _branch(self, model: UnifiedModel, prompts: TokenBatch, kind: str,
              features: jax.Array | None) -> tuple[jax.Array, Cache, jax.Array]:
    """What one branch has of P prompts: hidden [P,d], cache, and bool[P,T], the places it sees. All end on the right."""
    length = prompts.text.shape[1]
    if kind == NULL:
      context = layout.stack([layout.null_prompt(self.layout)], length, left=True)
    else:
      context = images_only(prompts, self.layout)[0] if kind == IMAGES else prompts
    hidden, cache = model.backbone.prefill(context, None if kind == NULL else features)
    all_ = lambda a: jnp.broadcast_to(a, (len(prompts.text), *a.shape[1:]))
    return jax.tree.map(all_, (hidden[:, -1], cache, jnp.asarray(context.document > 0)))

  def resize(self, state: State, live: int, free: int) -> State:
    """The last `live` places of the cache, then `free` new ones; places that rows share are never cut off."""
    def fit(array: jax.Array, axis: int, live: int) -> jax.Array:
      have = array.shape[axis]
      kept = jax.lax.slice_in_dim(array, max(0, have - live), have, axis=axis)
      padding = [(0, 0)] * array.ndim
      padding[axis] = (max(0, live - have), free)
      return jnp.pad(kept, padding)

    own = live - (state.seen.shape[1] - state.cache.layers[0].keys.shape[2])
    places = lambda a: self._rows(fit(a, 2, own), 'kv_heads', None, None)
    layers = [LayerCache(places(layer.keys), places(layer.values), layer.prompt) for layer in state.cache.layers]
    return dataclasses.replace(state, seen=self._rows(fit(state.seen, 1, live)), cache=Cache(layers, state.cache.recent))

  def advance(self, model: UnifiedModel, layers: list[Any], state: State, seed: jax.Array | int,
              positions: int) -> tuple[State, Written]:
    """Writes up to `positions` positions of every row into the free end of the cache; stops when all rows are over.

    Args:
      layers: `trunk.unstack()`.

    Returns:
      the state, and the columns: those of rows that were over before are padding.
    """
    rows, depth = len(state.count), model.config.depth
    numbers = sampling.uniforms(seed, state.request, positions, depth, state.count)
    wide = lambda dtype: jnp.zeros((positions, rows), dtype)
    deep = lambda dtype: jnp.zeros((positions, rows, depth), dtype)
    written = Written(wide(jnp.int32), deep(jnp.int32), wide(jnp.int8), wide(bool), wide(jnp.float32),
                      wide(jnp.float32), deep(jnp.float32), deep(jnp.float32))
    start = state.seen.shape[1] - positions

    def step(carry: tuple[jax.Array, State, Written]) -> tuple[jax.Array, State, Written]:
      index, state, written = carry
      uniform = jax.lax.dynamic_index_in_dim(numbers, index, keepdims=False)
      state, column = self._step(model, layers, state, uniform, start + index)
      put = lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one.astype(all_.dtype), index, 0)
      return index + 1, state, jax.tree.map(put, written, column)

    going = lambda carry: (carry[0] < positions) & jnp.any(carry[1].finish == GOING)
    _, state, written = jax.lax.while_loop(going, step, (jnp.int32(0), state, written))
    return state, written

  def _step(self, model: UnifiedModel, layers: list[Any], state: State, uniform: jax.Array,
            slot: jax.Array) -> tuple[State, Written]:
    """Chooses one position of every row, writes it, and reads it into place `slot` of the cache."""
    config, block = self.config, self.layout.block
    rows, depth = len(state.count), model.config.depth
    template = jnp.asarray(block.template, jnp.int32)
    going = state.finish == GOING
    entry = template[jnp.maximum(state.place, 0)]
    in_block, in_text = going & (state.place >= 0), going & (state.place < 0)
    in_codes, forced = in_block & (entry == CODE), in_block & (entry != CODE)
    hidden = state.hidden.reshape(rows, len(config.branches), -1)

    silent_text = lambda: (jnp.zeros(rows, jnp.int32), jnp.zeros(rows), jnp.zeros(rows))
    word, word_log_prob, word_plain = jax.lax.cond(
        jnp.any(in_text), lambda: self._draw_text(model, state, hidden[:, 0], uniform[:, 0]), silent_text)
    silent_codes = lambda: (jnp.zeros((rows, depth), jnp.int32), jnp.zeros((rows, depth)), jnp.zeros((rows, depth)))
    codes, code_log_prob, code_plain = jax.lax.cond(
        jnp.any(in_codes), lambda: self._draw_codes(model, hidden, uniform), silent_codes)

    zero = lambda keep, a: jnp.where(keep.reshape(-1, *[1] * (a.ndim - 1)), a, jnp.zeros((), a.dtype))
    text = jnp.where(in_text, word, zero(forced, entry))
    codes, code_log_prob, code_plain = (zero(in_codes, a) for a in (codes, code_log_prob, code_plain))
    modality = jnp.where(~going, PADDING, jnp.where(in_codes, CODES, TEXT)).astype(jnp.int8)
    column = Written(
        text, codes, modality, forced,
        jnp.where(in_text, word_log_prob, jnp.sum(code_log_prob, axis=-1)),
        jnp.where(in_text, word_plain, jnp.sum(code_plain, axis=-1)), code_log_prob, code_plain)

    opens = in_text & (text == block.begin)
    following = jnp.where(state.place + 1 < len(template), state.place + 1, -1)
    place = jnp.where(opens, 0, jnp.where(in_block, following, state.place))
    images = state.images + opens
    steps = state.steps + (in_text & (text == self.layout.special('<think>'))) if self._counts_steps else state.steps
    enough = in_block & (place < 0) & (images >= config.max_images) & config.stop_after_images
    ended = in_text & jnp.isin(text, jnp.asarray(self._stop))
    over = jnp.where(ended, END, jnp.where(enough, MAX_IMAGES, jnp.where(
        state.count + 1 >= config.max_positions, LENGTH, GOING))).astype(jnp.int8)
    said = state.said
    if said.shape[1]:
      said = said | (in_text[:, None] & (jnp.arange(said.shape[1]) == text[:, None]))
    read = self._read(model, layers, state, column, opens, in_block, slot)
    return dataclasses.replace(
        read, count=state.count + going, place=place, images=images, steps=steps, said=said,
        finish=jnp.where(going, over, state.finish)), column

  @property
  def _counts_steps(self) -> bool:
    return bool(self.config.min_steps or self.config.max_steps)

  def _draw_text(self, model: UnifiedModel, state: State, hidden: jax.Array,
                 uniform: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Text ids [R] with log-prob and plain log-prob; the begin token only where a whole block still fits."""
    config = self.config
    logits = model.text_logits(hidden)
    allowed = sampling.allowed(self.layout, config, logits.shape[-1], state.count, state.images, state.steps)
    drawn_from = logits
    if config.text_repetition != 1.0:
      words = jnp.asarray(sampling.words(self.layout, logits.shape[-1]))
      drawn_from = sampling.repetition(logits, state.said & words, config.text_repetition)
    chosen, log_prob = sampling.draw(jnp.where(allowed, drawn_from, -jnp.inf), uniform, config.text)
    return chosen, log_prob, sampling.log_prob(logits, chosen)

  def _draw_codes(self, model: UnifiedModel, hidden: jax.Array,
                  uniform: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Codes [R,D], one after another, from hidden [R,W,d], with log-prob and plain log-prob of each."""
    rows, branches, _ = hidden.shape
    codes = jnp.zeros((rows, uniform.shape[-1]), jnp.int32)
    columns = []
    for number in range(uniform.shape[-1]):
      known = jnp.broadcast_to(codes[:, None], (rows, branches, codes.shape[-1]))
      logits = model.next_code_logits(hidden, known, number)
      drawn_from = sampling.guide(logits, self.config.guidance, self.config.image_guidance)
      ids, log_prob = sampling.draw(drawn_from, uniform[:, number], self.config.image)
      codes = codes.at[:, number].set(ids)
      columns.append((log_prob, sampling.log_prob(logits[:, 0], ids)))
    log_prob, plain = (jnp.stack(column, axis=-1) for column in zip(*columns, strict=True))
    return codes, log_prob, plain

  def _read(self, model: UnifiedModel, layers: list[Any], state: State, column: Written, opens: jax.Array,
            in_block: jax.Array, slot: jax.Array) -> State:
    """Feeds one position of every row, each branch in its own way; new are `position`, `seen`, `hidden` and `cache`.

    Args:
      column: what was written there.
      opens, in_block: bool[R], it is a begin token; it follows one in its block.
    """
    kinds = self.config.branches
    null = layout.null_prompt(self.layout)
    rows, width = len(state.count), len(kinds)
    places = jnp.arange(state.seen.shape[1])
    seen = state.seen.reshape(rows, width, -1)
    position, following, shows = [], [], []
    for branch, kind in enumerate(kinds):
      here = state.position[:, branch]
      shown = (opens | in_block) if kind == IMAGES else jnp.ones_like(opens)
      if kind == NULL:  # anew: the null prompt, which ends where the completion begins, and this begin token
        here = jnp.where(opens, len(null.text), here)
        first = (slot - state.count)[:, None]
        anew = (places >= first - len(null.text)) & (places < first)
        seen = seen.at[:, branch].set(jnp.where(opens[:, None], anew, seen[:, branch]))
      position.append(here)
      following.append(here + shown)
      shows.append(shown)
    shows = jnp.stack(shows, axis=1)
    seen = (seen | ((places == slot) & shows[..., None])).reshape(rows * width, -1)
    cache = state.cache
    flat = lambda parts: jnp.stack(parts, axis=1).reshape(-1)
    if NULL in kinds and model.config.mix > 1:
      anew = flat([opens if kind == NULL else jnp.zeros_like(opens) for kind in kinds])
      cache = Cache(cache.layers, jnp.where(anew[:, None, None], model.backbone.recent_of(null), cache.recent))
    run = jnp.asarray(runs(self.layout.block))[jnp.maximum(state.place, 0)]
    both = lambda a: jnp.repeat(a, width, axis=0)
    own = slot - (seen.shape[1] - cache.layers[0].keys.shape[2])
    hidden, new = model.backbone.decode(
        layers, both(column.text), both(column.codes), both(column.modality), both(run), flat(position), cache, own, seen)
    held = [LayerCache(*(self._rows(a, 'kv_heads', None, None) for a in (layer.keys, layer.values)), layer.prompt)
            for layer in new.layers]
    recent = jnp.where(shows.reshape(-1, 1, 1), new.recent, cache.recent) if IMAGES in kinds else new.recent
    return dataclasses.replace(
        state, position=jnp.stack(following, axis=1), seen=self._rows(seen), hidden=self._rows(hidden),
        cache=Cache(held, self._rows(recent)))

  def finish(self, written: Written, finish: jax.Array, begin: jax.Array, turn: jax.Array) -> Completions:
    """Columns [M,R] to rows, with the fields of TokenBatch that follow from them.

    Args:
      finish: int8[R]. begin: int32[R], position of the first that was written. turn: int32[R].
    """
    rows = jax.tree.map(lambda a: self._rows(a.swapaxes(0, 1)), written)
    real = rows.modality != PADDING
    here = lambda a, fill: jnp.where(real, a, fill).astype(jnp.int32)
    tokens = TokenBatch(
        text=rows.text, codes=rows.codes, modality=rows.modality,
        loss=(real & ~rows.forced).astype(jnp.float32), forced=rows.forced, document=here(1, 0),
        position=here(begin[:, None] + jnp.arange(real.shape[1]), 0), turn=here(turn[:, None], -1),
        step=here(-1, -1))
    tokens = tokens.replace(step=grammar.parse(tokens, self.layout, 1).step)
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
