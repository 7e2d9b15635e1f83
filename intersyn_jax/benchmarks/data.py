"""Benchmark `data`: how fast records come to the device, against peers that read the same, and what a training step waits.

- `encoded images`: records with JPEG pictures of 256 pixels, decoded: the job that adds image codes to shards
  (`data.codes`), with nothing but the transfer in the tokenizer's place.
- `cached codes`: records with image codes as packed rows: the training pipeline (`data.pipeline`). `first pass` is from the
  records on, text tokenised and rows packed; `later passes` are what training reads, documents shuffled and packed anew; in
  `rows packed before` ours does so too, but the peers read rows that were packed once and for all.
- `waiting`: the share of a training step that the host spends on the next batch, at the shapes of `tiny` and `small`. It is
  an upper bound of what the step waits: the devices compute meanwhile.

The peers (`data_peers`) are Hugging Face `datasets` under torch's DataLoader, and webdataset, each with 0, 1 and 2 workers,
of which the quickest counts. All take turns, in one run. Without the extra `peers`, ours is measured alone.

Letters: B rows of a batch, T positions, D codes per image position.
"""

from __future__ import annotations

import functools
import io
import itertools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import PIL.Image

from intersyn_jax import sharding
from intersyn_jax.benchmarks import data_peers
from intersyn_jax.benchmarks.rows import Options, Row, row, seconds
from intersyn_jax.data import codes, shards
from intersyn_jax.data.pipeline import Documents, Pipeline
from intersyn_jax.interleave.layout import Layout, TokenBatch, plain_layout
from intersyn_jax.interleave.text import TextTokenizer
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn, images_of
from intersyn_jax.models import unified
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.unified import ModelConfig
from intersyn_jax.training import loop
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer
from intersyn_jax.training.supervised import next_token_loss

GOAL = 0.02
"""Most that a training step may wait for data."""

SIDE, PICTURES = 256, 64
"""Pixels of a picture's side, and pictures of a device batch."""


class Sizes(NamedTuple):
  """What is read.

  Attributes:
    pictured, coded: records with pictures, and with codes.
    places, codebook: P and C of a picture's codes.
    words: of a text, at least and at most.
    rows, length: B and T.
  """

  pictured: int = 400
  coded: int = 3000
  places: int = 64
  codebook: int = 1024
  words: tuple[int, int] = (12, 40)
  rows: int = 64
  length: int = 512


class Trained(NamedTuple):
  """A model in training, as in configs/storyworld.py.

  Attributes:
    windows, steps: of metrics, and steps of each; one window of warm-up goes before.
  """

  name: str
  model: ModelConfig
  sizes: Sizes
  windows: int
  steps: int


TINY = Trained(
    'tiny', ModelConfig(TrunkConfig(width=96, layers=3, heads=3, kv_heads=3, head_width=32, mlp_width=384), 768, places=16,
                        depth=1, codebook=512, mix=4),
    Sizes(coded=2000, places=16, codebook=512, words=(6, 24), rows=12, length=192), windows=5, steps=10)
SMALL = Trained(
    'small', ModelConfig(TrunkConfig(width=384, layers=8, heads=6, kv_heads=6, head_width=64, mlp_width=1536), 1024,
                         places=64, depth=1, codebook=1024, mix=4),
    Sizes(coded=2000, rows=64, length=384, words=(6, 24)), windows=3, steps=2)
CPU_ROWS = 8
"""Rows of a batch of `small` on a CPU, where one of 64 takes a minute. Step and batch shrink alike."""


def run(options: Options) -> Iterator[Row]:
  """All cases."""
  with tempfile.TemporaryDirectory() as folder:
    yield from _read(options, pathlib.Path(folder), Sizes())
  on_cpu = jax.devices()[0].platform == 'cpu'
  small = SMALL._replace(sizes=SMALL.sizes._replace(rows=CPU_ROWS)) if on_cpu else SMALL
  for trained in (TINY, small):
    if options.wants(case := f'waiting {trained.name}'):
      yield _waiting(case, trained)


# What is read.


def conversations(count: int, sizes: Sizes, *, pictures: bool) -> list[Conversation]:
  """Questions that are answered by one to three texts, each with a picture after it: as bytes, or as codes alone."""
  rng = np.random.default_rng(0)
  syllables = [a + b for a in 'bdfgklmnprst' for b in 'aeiou']
  vocabulary = [''.join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(1000)]
  text = lambda: Text(' '.join(rng.choice(vocabulary, rng.integers(*sizes.words))))

  def image() -> Image:
    if pictures:
      return Image(_photograph(rng))
    return Image(codes=rng.integers(0, sizes.codebook, (sizes.places, 1)).astype(np.int32))

  answer = lambda: tuple(s for _ in range(rng.integers(1, 4)) for s in (text(), image()))
  return [Conversation(f'c{number}', 'a/b/c', (Turn((text(),), answer()),)) for number in range(count)]


def _photograph(rng: np.random.Generator) -> bytes:
  """A JPEG of as many bytes as a photograph of this size has: shades, edges and grain."""
  scales = ((4, 0.5), (16, 0.25), (64, 0.15))
  draw = lambda n: PIL.Image.fromarray(rng.integers(0, 256, (n, n, 3)).astype(np.uint8)).resize((SIDE, SIDE))
  whole = sum(weight * np.asarray(draw(n), np.float32) for n, weight in scales) + rng.normal(0, 6, (SIDE, SIDE, 3))
  out = io.BytesIO()
  PIL.Image.fromarray(whole.clip(0, 255).astype(np.uint8)).save(out, 'JPEG', quality=92)
  return out.getvalue()


def layout_of(found: Sequence[Conversation], sizes: Sizes, vocabulary: int) -> Layout:
  """Of a model trained from nothing on these conversations."""
  texts = (s.text for c in found for turn in c.turns for s in (*turn.question, *turn.answer) if isinstance(s, Text))
  return plain_layout(TextTokenizer.train(texts, vocabulary), places=sizes.places, depth=1, codebook=sizes.codebook)


# Reading.


def _read(options: Options, folder: pathlib.Path, sizes: Sizes) -> Iterator[Row]:
  peers = data_peers.installed(folder)
  if options.wants(case := f'encoded images {SIDE} pixels'):
    found = conversations(sizes.pictured, sizes, pictures=True)
    shards.write_split(folder / 'pictures', 'train', found)
    others = [peer.pictures(found, PICTURES // 2) for peer in peers]
    yield from _compared(case, 'records', len(found), lambda: _pictures(folder / 'pictures', found), others, options.runs)
  first, later, ready = (f'cached codes, {what}' for what in ('first pass', 'later passes', 'rows packed before'))
  if not any(map(options.wants, (first, later, ready))):
    return
  found = conversations(sizes.coded, sizes, pictures=False)
  shards.write_split(folder / 'codes', 'train', found)
  layout = layout_of(found, sizes, 2048)
  documents = Documents({'train': found}, layout, length=sizes.length)
  positions = int(documents.lengths.sum())
  if options.wants(first):
    others = [peer.records(found, layout, sizes.length) for peer in peers]
    ours = functools.partial(_first_pass, folder / 'codes', layout, sizes)
    yield from _compared(first, 'positions', positions, ours, others, options.runs)
  rows = _whole(documents, sizes)
  batches = iter(Pipeline(documents, rows=sizes.rows, length=sizes.length, seed=0))
  ours = lambda: _send(itertools.islice(batches, -(-len(rows.text) // sizes.rows)))
  if options.wants(later):
    others = [peer.documents(documents, sizes.length) for peer in peers]
    yield from _compared(later, 'positions', positions, ours, others, options.runs)
  if options.wants(ready):
    others = [peer.rows(rows, sizes.rows) for peer in peers]
    yield from _compared(ready, 'positions', positions, ours, others, options.runs)


def _compared(case: str, what: str, amount: int, ours: data_peers.Pass, others: Sequence[Mapping[str, data_peers.Pass]],
              runs: int) -> Iterator[Row]:
  """Ours against the quickest of each peer, all in turn; `amount` is what a pass reads."""
  names = [name for peer in others for name in peer]
  taken, *rest = seconds(ours, *(run for peer in others for run in peer.values()), runs=runs)
  found = dict(zip(names, rest, strict=True))
  best = [min(peer, key=found.__getitem__) for peer in others] or [None]
  for name in best:
    yield row(case, what, amount / taken, '1/s', runs, peer=amount / found[name] if name else None, peer_name=name,
              less_is_better=False)


def _pictures(folder: pathlib.Path, wanted: Sequence[Conversation]) -> None:
  """The job that adds codes, up to the device; every record must come back, and every picture have been there."""
  there = 0

  def encode(pictures: np.ndarray) -> np.ndarray:
    nonlocal there
    there += int(jax.block_until_ready(jax.device_put(pictures)).shape[0])
    return np.zeros((len(pictures), 1, 1), np.int32)

  count = sum(1 for _ in codes.with_codes(shards.open_split(folder, 'train'), encode, PICTURES))
  expected = sum(len(images_of(turn.answer)) for c in wanted for turn in c.turns)
  if count != len(wanted) or there < expected:
    raise RuntimeError(f'{count} records and {there} pictures came, not {len(wanted)} and {expected}')


def _first_pass(folder: pathlib.Path, layout: Layout, sizes: Sizes) -> None:
  documents = Documents({'train': shards.open_split(folder, 'train')}, layout, length=sizes.length)
  _send(Pipeline(documents, rows=sizes.rows, length=sizes.length, seed=0, epochs=1))


def _send(batches: Iterator[TokenBatch] | Pipeline) -> None:
  last = None
  for batch in batches:
    last = jax.device_put(batch)
  jax.block_until_ready(last)


def _whole(documents: Documents, sizes: Sizes) -> TokenBatch:
  """All rows of one pass, [R,T]."""
  batches = list(Pipeline(documents, rows=sizes.rows, length=sizes.length, seed=0, epochs=1))
  whole = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
  used = whole.document.any(axis=1)
  return jax.tree.map(lambda array: array[used], whole)


# Waiting.


class _Timed:
  """Batches on the device, and the seconds that their making and sending took the loop."""

  def __init__(self, batches: Any, place: jax.sharding.Sharding):
    self._batches, self._place = batches, place
    self.seconds = 0.0

  def __next__(self) -> Any:
    start = time.perf_counter()
    batch = loop.put(next(self._batches), self._place)
    self.seconds += time.perf_counter() - start
    return batch

  def get_state(self) -> Any:
    return self._batches.get_state()

  def set_state(self, state: Any) -> None:
    self._batches.set_state(state)


class _Windows:
  """The share of each window of metrics that went to batches."""

  def __init__(self, batches: _Timed):
    self._batches, self._before = batches, None
    self.shares: list[float] = []

  def write(self, step: int, values: Mapping[str, float]) -> None:
    del step, values
    now = time.perf_counter(), self._batches.seconds
    if self._before is not None:  # the first window holds the compilation
      self.shares.append((now[1] - self._before[1]) / (now[0] - self._before[0]))
    self._before = now


def _waiting(case: str, trained: Trained) -> Row:
  """Trains for a few steps as the stage `warmup` does; the median over windows of the share that batches took."""
  sizes, mesh = trained.sizes, sharding.make_mesh({'fsdp': -1})
  found = conversations(sizes.coded, sizes, pictures=False)
  layout = layout_of(found, sizes, trained.model.vocabulary)
  documents = Documents({'train': found}, layout, length=sizes.length, too_long='drop')
  batches = _Timed(iter(Pipeline(documents, rows=sizes.rows, length=sizes.length, seed=0)), sharding.rows(mesh))
  definition = unified.define(trained.model)
  steps = trained.steps * (trained.windows + 1)
  optimizer = make_optimizer(OptimizerConfig(name='muon'), steps)
  windows = _Windows(batches)
  state = loop.init_state(definition.init(jax.random.key(0), mesh), optimizer)
  loop.fit(loop.make_step(next_token_loss(definition), optimizer), state, batches, steps=steps, seed=0, metrics=windows,
           metrics_every=trained.steps, batch_sharding=sharding.rows(mesh))
  return row(case, f'batches, {sizes.rows} rows of {sizes.length}', statistics.median(windows.shares), 'of the step',
             trained.windows, peer=GOAL, peer_name='the goal, at most')
