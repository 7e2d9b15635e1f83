"""Adds image codes to shards: every different picture goes through the image tokenizer once.

Threads decode the pictures of the next batches while the tokenizer works on one.

Letters: n pictures of a device batch, H height, W width, P positions of a picture, D codes per position.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures

import numpy as np

from intersyn_jax.data import builders, conversion, images, manifest, records, resume, shards
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Image, Segment, Turn, images_of

Encode = Callable[[np.ndarray], np.ndarray]
"""uint8[n,H,W,3] -> int32[n,P,D]; always called with the same n, so that it compiles once."""

CHUNK = 1024
"""Most conversations that wait for one batch of pictures."""
AHEAD = 2
"""Batches that are decoded or being decoded at a time."""
REMEMBER = 500_000


def encode_folder(source: str | os.PathLike[str], target: str | os.PathLike[str], encode: Encode, *, tokenizer: str,
                  batch: int = 256, splits: Sequence[str] | None = None,
                  progress: builders.Progress = builders.silent) -> manifest.Manifest:
  """Writes the shards of `source` once more to `target`, as many, with codes for every picture.

  Args:
    source: folder that `builders.build` made.
    target: another folder; splits that are complete there for this tokenizer are not done again, and one that was
      interrupted goes on after its last finished shard.
    encode: the image tokenizer.
    tokenizer: names its weights (a hash of them or of their checkpoint), kept in the manifest.
    batch: n.
    splits: which; all if None.
    progress: called as in `builders.build`.

  Returns:
    The manifest of `target`.

  Raises:
    UserError: a picture that cannot be decoded or has another size than the first one.
  """
  given = manifest.verify(source, contents=False)
  coder = _Coder(encode, batch)
  done = manifest.load(target) or manifest.Manifest(given.dataset)
  for split in splits or given.splits:
    entry = given.splits[split]
    settings = {'tokenizer': tokenizer, 'source': [shard.sha256 for shard in entry.shards]}
    if not builders.is_complete(target, done, split, settings):
      opened = shards.open_split(source, split) if entry.shards else ()
      written = resume.write_split(target, split, functools.partial(_outcomes, opened, coder, f'codes of {split}', progress),
                                   settings=settings, records_per_shard=max((s.records for s in entry.shards), default=1))
      # What the import left out is left out here too.
      done = done.with_split(split, dataclasses.replace(written, rejected=entry.rejected, unlisted=entry.unlisted))
      builders.save(target, done)
    resume.forget(target, split)
  return done


def _outcomes(opened: Sequence[Conversation], coder: _Coder, label: str, progress: builders.Progress,
              done: int) -> Iterator[conversion.Outcome]:
  """The records after the first `done`, with codes."""
  coded = coder.stream(opened[i] for i in range(done, len(opened)))
  for conversation in builders.counted(coded, label, len(opened), progress, done):
    yield conversion.Outcome('', conversation.id, records.encode(conversation))


def with_codes(conversations: Iterable[Conversation], encode: Encode, batch: int = 256) -> Iterator[Conversation]:
  """Yields the conversations with the codes of every picture that has bytes; codes without bytes stay as they are.

  Args:
    conversations: read ahead of what is yielded, by a few batches of pictures.
    encode: the image tokenizer.
    batch: n.

  Raises:
    UserError: a picture that cannot be decoded or has another size than the first one.
  """
  return _Coder(encode, batch).stream(conversations)


_Chunk = list[tuple[Conversation, list[bytes]]]


@dataclasses.dataclass
class _Load:
  """Conversations, and their new pictures on the way into batches.

  Attributes:
    chunk: conversations that wait for these pictures, and the keys of all pictures of each.
    keys: of the new pictures.
    batches: uint8[n,H,W,3] each, zeros behind the last picture.
    decoding: one for every picture.
  """

  chunk: _Chunk
  keys: list[bytes]
  batches: list[np.ndarray]
  decoding: list[futures.Future]


class _Coder:
  """The image tokenizer, and the codes of the pictures seen lately by the hash of their bytes."""

  def __init__(self, encode: Encode, batch: int):
    self._encode, self._batch = encode, batch
    self._known: dict[bytes, np.ndarray] = {}
    self._shape: tuple[int, ...] | None = None

  def stream(self, conversations: Iterable[Conversation]) -> Iterator[Conversation]:
    pool = futures.ThreadPoolExecutor(os.cpu_count())  # Pillow decodes without holding Python's lock
    waiting: collections.deque[_Load] = collections.deque()
    pending: set[bytes] = set()
    try:
      for chunk, new in self._chunks(conversations, pending):
        waiting.append(self._begin(chunk, new, pool))
        pending.update(new)
        while waiting and (len(waiting) == AHEAD or len(self._known) > REMEMBER):
          yield from self._finish(waiting.popleft(), pending)
        if len(self._known) > REMEMBER:  # nothing waits for what is forgotten
          self._known.clear()
      while waiting:
        yield from self._finish(waiting.popleft(), pending)
    finally:
      pool.shutdown(cancel_futures=True)

  def _chunks(self, conversations: Iterable[Conversation], pending: set[bytes],
              ) -> Iterator[tuple[_Chunk, dict[bytes, tuple[bytes, str]]]]:
    """Conversations with at most n new pictures together (one alone may have more), and those: key to bytes and record."""
    chunk: _Chunk = []
    new: dict[bytes, tuple[bytes, str]] = {}
    for conversation in conversations:
      pictures = [image.data for turn in conversation.turns for image in images_of((*turn.question, *turn.answer))
                  if image.data]
      keys = [hashlib.blake2b(data, digest_size=16).digest() for data in pictures]
      found = {key: (data, conversation.id) for key, data in zip(keys, pictures, strict=True)}
      fresh = {key: value for key, value in found.items() if not (key in self._known or key in pending or key in new)}
      if chunk and (len(new) + len(fresh) > self._batch or len(chunk) == CHUNK):
        yield chunk, new
        chunk, new = [], {}
        fresh = {key: value for key, value in found.items() if not (key in self._known or key in pending)}
      chunk.append((conversation, keys))
      new |= fresh
    if chunk:
      yield chunk, new

  def _begin(self, chunk: _Chunk, new: dict[bytes, tuple[bytes, str]], pool: futures.Executor) -> _Load:
    """Has the pictures decoded, each into its place."""
    load = _Load(chunk, list(new), [], [])
    if new and self._shape is None:
      self._shape = _pixels(*next(iter(new.values()))).shape
    for place, (data, name) in enumerate(new.values()):
      if place % self._batch == 0:
        load.batches.append(np.zeros((self._batch, *self._shape), np.uint8))
      load.decoding.append(pool.submit(self._decode, load.batches[-1][place % self._batch], data, name))
    return load

  def _decode(self, target: np.ndarray, data: bytes, name: str) -> None:
    array = _pixels(data, name)
    if array.shape != target.shape:
      raise UserError(f'record {name}: field image is {array.shape[1]}x{array.shape[0]} pixels, others are '
                      f'{target.shape[1]}x{target.shape[0]}; import the data again with one size (data.pixels)')
    target[:] = array

  def _finish(self, load: _Load, pending: set[bytes]) -> Iterator[Conversation]:
    for future in load.decoding:
      future.result()
    for start, pictures in zip(range(0, len(load.keys), self._batch), load.batches, strict=True):
      codes = np.asarray(self._encode(pictures), np.int32)
      self._known.update(zip(load.keys[start:start + self._batch], codes, strict=False))
    pending.difference_update(load.keys)
    for conversation, keys in load.chunk:
      left = iter(keys)
      turns = tuple(Turn(self._segments(turn.question, left), self._segments(turn.answer, left))
                    for turn in conversation.turns)
      yield dataclasses.replace(conversation, turns=turns)

  def _segments(self, segments: Sequence[Segment], keys: Iterator[bytes]) -> tuple[Segment, ...]:
    return tuple(dataclasses.replace(s, codes=self._known[next(keys)]) if isinstance(s, Image) and s.data else s
                 for s in segments)


def _pixels(data: bytes, name: str) -> np.ndarray:
  return images.pixels(data, f'record {name}, field image')
