"""A small layout that spells Storyworld, and an image codec that is exact, for tests of evaluation."""

from __future__ import annotations

import functools

import numpy as np

from intersyn_jax.data import codes
from intersyn_jax.data.storyworld import story
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.layout import Layout
from intersyn_jax.interleave.text import TextTokenizer
from intersyn_jax.interleave.types import Conversation, Text

CODEBOOK, PLACES = 16, 4


class Codec:
  """Numbers the pictures it has seen and writes the number as codes; unknown codes decode to grey."""

  def __init__(self):
    self.known: dict[bytes, int] = {}
    self.pictures: list[np.ndarray] = []

  def encode(self, pictures: np.ndarray) -> np.ndarray:
    """uint8[n,H,W,3] -> int32[n,P,1]."""
    result = []
    for picture in pictures:
      number = self.known.setdefault(picture.tobytes(), len(self.pictures))
      if number == len(self.pictures):
        self.pictures.append(picture)
      result.append([[number // CODEBOOK ** place % CODEBOOK] for place in range(PLACES)])
    return np.array(result, np.int32)

  def decode(self, rows: np.ndarray) -> np.ndarray:
    """int32[n,P,1] -> uint8[n,32,32,3]."""
    numbers = (rows[..., 0] * CODEBOOK ** np.arange(PLACES)).sum(-1)
    grey = np.full((32, 32, 3), 128, np.uint8)
    return np.stack([self.pictures[n] if n < len(self.pictures) else grey for n in numbers])


@functools.cache
def text_tokenizer() -> TextTokenizer:
  texts = (s.text for i in range(200) for s in (*_turn(i).question, *_turn(i).answer) if isinstance(s, Text))
  return TextTokenizer.train(texts, 400)


def _turn(index: int):
  return story.conversation(1, index, 'policy').turns[0]


def small_layout() -> Layout:
  return layout.plain_layout(text_tokenizer(), places=PLACES, depth=1, codebook=CODEBOOK)


def gold(count: int, codec: Codec, split: str = 'test', **options) -> list[Conversation]:
  """Gold conversations of one turn whose pictures carry codes."""
  made = [story.conversation(0, i, split, **options) for i in range(count)]
  return list(codes.with_codes(made, codec.encode, batch=8))
