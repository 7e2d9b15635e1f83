"""Continuous batching: a fixed number of rows in the cache, any number of requests waiting (DESIGN 6).

The device writes a chunk of positions; then the host looks which rows are over, hands out what was written, and lets the
next requests of the queue take their places. A prompt is read once for all rows that begin it together. The cache has the
length that the longest row needs just now, rounded up so that few programs are compiled.

Letters: as in `decoder`.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax import sharding
from intersyn_jax.decoding.decoder import GOING, Decoder, State, Written
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.layout import FILL, TokenBatch
from intersyn_jax.models.definition import Params

CHUNK = 32
"""Positions of a chunk where the config names none."""


class Piece(NamedTuple):
  """What one chunk added to one completion.

  Attributes:
    number: of the completion, prompt by prompt.
    columns: [n] and [n,D] each, on the host.
    finish: GOING or why it is over.
  """

  number: int
  columns: Written
  finish: int


class Asked(NamedTuple):
  """The prompts of a stream.

  Attributes:
    prompts: documents.
    features: [n,f] of each, where prompts hold pictures as features; else nothing.
    room: T, to which they are padded.
  """

  prompts: Sequence[TokenBatch]
  features: Sequence[np.ndarray]
  room: int


class Server:
  """Writes completions with one set of parameters.

  Args:
    decoder: how; `config.chunk` positions at a time, CHUNK where that is 0.
    params: of the model, on the mesh.
    rows: R, rows of the cache; made a multiple of what the mesh divides rows by.
  """

  def __init__(self, decoder: Decoder, params: Params, rows: int):
    multiple = sharding.row_multiple(decoder.mesh)
    self.rows = -(-rows // multiple) * multiple
    self.decoder = decoder
    self.chunk = min(decoder.config.chunk or CHUNK, decoder.config.max_positions)
    self.filled = 0.0
    """Mean share of the rows that were at work, of the last `stream`."""
    self._params = params
    # Sliced once: inside a program every chunk would copy all weights.
    self._layers = jax.jit(lambda params: decoder.bind(params).backbone.trunk.layer_params())(params)
    # Every process needs to know what was written, and only a replicated array can be read whole.
    whole = sharding.replicated(decoder.mesh)
    self._start = jax.jit(self._start_program)
    self._insert = jax.jit(self._insert_program, donate_argnums=0)
    self._resize = jax.jit(decoder.resize, static_argnums=(1, 2))
    self._advance = jax.jit(self._advance_program, donate_argnums=2)
    self._gather = jax.jit(lambda tree: tree, out_shardings=whole)

  def stream(self, prompts: Sequence[TokenBatch], *, group: int = 1, seed: int = 0,
             request_ids: Sequence[int] | None = None, features: Sequence[np.ndarray] | None = None) -> Iterator[Piece]:
    """Yields what each chunk adds to each completion that was at work in it.

    Args:
      prompts, group, seed, request_ids: see `Decoder.decode`.
      features: of the pictures that each prompt holds as features, [n,f] with n of 0 for none.
    """
    total = len(prompts) * group
    requests = np.arange(total) if request_ids is None else np.asarray(request_ids)
    if len(requests) != total:
      raise ValueError(f'{len(requests)} request ids for {len(prompts)} prompts of {group} completions')
    if not total:
      return
    width = max((part.shape[1] for part in features or ()), default=0)
    asked = Asked(prompts, [part.reshape(-1, width) for part in features] if width else (), self.decoder.room(prompts))
    waiting = collections.deque(range(total))
    state = self._read(asked, [], self.rows)
    number = np.full(self.rows, -1)  # the completion each row writes, -1 for none
    count = np.zeros(self.rows, int)
    chunks = at_work = 0
    while waiting or (number >= 0).any():
      live = self._live(asked.room, count[number >= 0].max(initial=0))
      state = self._resize(state, live, 0)
      here = np.flatnonzero(number < 0)[:len(waiting)]
      if len(here):
        number[here] = [waiting.popleft() for _ in here]
        count[here] = 0
        state = self._enter(state, asked, number[here] // group, here, requests[number[here]])
      state, written = self._advance(self._params, self._layers, self._resize(state, live, self.chunk), seed)
      columns, finish, done = jax.tree.map(np.asarray, self._gather((written, state.finish, state.count)))
      chunks, at_work = chunks + 1, at_work + (number >= 0).sum()
      self.filled = at_work / (chunks * self.rows)
      for row in np.flatnonzero(number >= 0):
        new = int(done[row]) - count[row]
        yield Piece(int(number[row]), jax.tree.map(lambda a, row=row, new=new: a[:new, row], columns), int(finish[row]))
        count[row] += new
      number[finish != GOING] = -1

  def _live(self, room: int, longest: int) -> int:
    """Places of the cache that rows need which have written up to `longest` positions: the room of a prompt and 0, 1, 2,
    4, ... chunks."""
    size = 0
    while size < longest:
      size = max(self.chunk, 2 * size)
    return room + size

  def _enter(self, state: State, asked: Asked, which: np.ndarray, rows: np.ndarray, requests: np.ndarray) -> State:
    """Puts completions of the prompts `which` in place of `rows`. A prompt that several begin is read once; the number read
    together is a power of two, so that few programs are compiled."""
    read, of_row = np.unique(which, return_inverse=True)
    fresh = self._read(asked, read, 1 << (len(read) - 1).bit_length())
    source, ids = np.full(self.rows, -1, np.int32), np.zeros(self.rows, np.uint32)
    source[rows], ids[rows] = of_row, requests
    return self._insert(state, fresh, source, ids)

  def _read(self, asked: Asked, which: Sequence[int], size: int) -> State:
    """As many rows as `size` says, the first of them with the prompts `which` read."""
    idle = [nothing(asked.prompts[0])] * (size - len(which))
    batch = layout.stack([asked.prompts[i] for i in which] + idle, asked.room, left=True)
    if not asked.features:
      return self._start(self._params, batch, None)
    found = np.concatenate([asked.features[0][:0], *(asked.features[i] for i in which)])
    room = size * max(map(len, asked.features))  # one program, whichever prompts hold pictures
    return self._start(self._params, batch, np.pad(found, [(0, room - len(found)), (0, 0)]))

  def _start_program(self, params: Params, prompts: TokenBatch, features: jax.Array | None) -> State:
    requests = jnp.zeros(len(prompts.text), jnp.uint32)
    return self.decoder.start(self.decoder.bind(params), prompts, requests, 1, features)

  def _insert_program(self, state: State, fresh: State, source: jax.Array, requests: jax.Array) -> State:
    """The fresh row `source` in place of each row, where that is not -1; all caches end on the right."""
    fresh = self.decoder.resize(fresh, state.seen.shape[1], 0)
    new = source >= 0

    def put(old: jax.Array, come: jax.Array) -> jax.Array:
      if not old.size:
        return old
      width = len(old) // len(source)  # W neighbouring entries a row, or one
      come = come.reshape(-1, width, *come.shape[1:])[jnp.maximum(source, 0)].reshape(old.shape)
      return jnp.where(jnp.repeat(new, width).reshape(-1, *[1] * (old.ndim - 1)), come, old)

    state = jax.tree.map(put, state, fresh)
    return dataclasses.replace(state, request=jnp.where(new, requests, state.request))

  def _advance_program(self, params: Params, layers: Any, state: State, seed: jax.Array) -> tuple[State, Written]:
    model = self.decoder.bind(params)
    return self.decoder.advance(model, model.backbone.trunk.with_layers(layers), state, seed, self.chunk)


def nothing(like: TokenBatch) -> TokenBatch:
  """A document of padding alone, whose rows the decoder leaves empty."""
  empty = {f.name: np.full_like(getattr(like, f.name), FILL.get(f.name, 0)) for f in dataclasses.fields(TokenBatch)}
  return TokenBatch(**empty)
