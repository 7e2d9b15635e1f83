"""Adds image codes to shards: every different picture goes through the image tokenizer once.

Letters: n pictures of a device batch, H height, W width, P positions of a picture, D codes per position.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from intersyn_jax.data import builders, images, manifest, shards
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Image, Segment, Turn

Encode = Callable[[np.ndarray], np.ndarray]
"""uint8[n,H,W,3] -> int32[n,P,D]; always called with the same n, so that it compiles once."""

CHUNK = 1024
REMEMBER = 500_000


def encode_folder(source: str | os.PathLike[str], target: str | os.PathLike[str], encode: Encode, *, tokenizer: str,
                  batch: int = 256, splits: Sequence[str] | None = None,
                  progress: builders.Progress = builders.silent) -> manifest.Manifest:
  """Writes the shards of `source` once more to `target`, with codes for every picture.

  Args:
    source: folder that `builders.build` made.
    target: another folder; splits that are complete there for this tokenizer are not done again.
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
  cache = _Codes(encode, batch)
  done = manifest.load(target) or manifest.Manifest(given.dataset)
  for split in splits or given.splits:
    settings = {'tokenizer': tokenizer, 'source': [shard.sha256 for shard in given.splits[split].shards]}
    if builders.is_complete(target, done, split, settings):
      continue
    opened = shards.open_split(source, split)
    written = shards.write_split(target, split, builders.counted(
        with_codes(opened, cache), f'codes of {split}', len(opened), progress))
    done = done.with_split(split, manifest.Split(tuple(written), given.splits[split].rejected, settings))
    builders.save(target, done)
  return done


def with_codes(conversations: Iterable[Conversation], encode: Encode | _Codes,
               batch: int = 256) -> Iterator[Conversation]:
  """Yields the conversations with the codes of every picture that has bytes; codes without bytes stay as they are."""
  cache = encode if isinstance(encode, _Codes) else _Codes(encode, batch)
  chunk: list[Conversation] = []
  for conversation in conversations:
    chunk.append(conversation)
    if len(chunk) == CHUNK:
      yield from cache.fill(chunk)
      chunk = []
  yield from cache.fill(chunk)


class _Codes:
  """Codes of the pictures seen lately, by the hash of their bytes."""

  def __init__(self, encode: Encode, batch: int):
    self._encode, self._batch = encode, batch
    self._known: dict[bytes, np.ndarray] = {}
    self._shape: tuple[int, ...] | None = None

  def fill(self, chunk: Sequence[Conversation]) -> Iterator[Conversation]:
    if len(self._known) > REMEMBER:
      self._known.clear()
    new: dict[bytes, tuple[bytes, str]] = {}
    for conversation in chunk:
      for turn in conversation.turns:
        for segment in (*turn.question, *turn.answer):
          if isinstance(segment, Image) and segment.data and (key := _key(segment.data)) not in self._known:
            new[key] = (segment.data, conversation.id)
    keys = list(new)
    for start in range(0, len(keys), self._batch):
      part = keys[start:start + self._batch]
      pictures = np.stack([self._pixels(*new[key]) for key in part])
      room = np.zeros((self._batch - len(part), *pictures.shape[1:]), np.uint8)
      codes = np.asarray(self._encode(np.concatenate([pictures, room])), np.int32)
      self._known.update(zip(part, codes, strict=False))
    for conversation in chunk:
      turns = tuple(Turn(self._segments(turn.question), self._segments(turn.answer)) for turn in conversation.turns)
      yield dataclasses.replace(conversation, turns=turns)

  def _segments(self, segments: Sequence[Segment]) -> tuple[Segment, ...]:
    return tuple(dataclasses.replace(s, codes=self._known[_key(s.data)]) if isinstance(s, Image) and s.data else s
                 for s in segments)

  def _pixels(self, data: bytes, name: str) -> np.ndarray:
    array = images.pixels(data, f'record {name}, field image')
    self._shape = self._shape or array.shape
    if array.shape != self._shape:
      raise UserError(f'record {name}: field image is {array.shape[1]}x{array.shape[0]} pixels, others are '
                      f'{self._shape[1]}x{self._shape[0]}; import the data again with one size (data.pixels)')
    return array


def _key(data: bytes) -> bytes:
  return hashlib.blake2b(data, digest_size=16).digest()
