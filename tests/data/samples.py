"""Conversations, pictures and a small layout that the tests of the data folder share."""

from __future__ import annotations

import functools

import numpy as np

from intersyn_jax.data import images
from intersyn_jax.interleave.layout import Layout, plain_layout
from intersyn_jax.interleave.text import TextTokenizer
from intersyn_jax.interleave.types import Conversation, Image, Score, Text, Turn

PLACES, CODEBOOK = 4, 32


@functools.cache
def layout() -> Layout:
  tokenizer = TextTokenizer.train(['please draw a red circle', 'what is this', 'number one two three'] * 5, 300)
  return plain_layout(tokenizer, places=PLACES, depth=1, codebook=CODEBOOK)


def png(seed: int = 0, size: int = 8) -> bytes:
  return images.png(np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8))


def codes(seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, CODEBOOK, (PLACES, 1)).astype(np.int32)


def interleaved(i: int, steps: int = 2) -> Conversation:
  """Differs from record to record in text, length, picture and codes."""
  answer = []
  for step in range(1 + (i + steps) % steps if steps > 1 else 1):
    answer += [Text(f'step {step} of {i}' + ' and on' * (i % 5)), Image(png(i), codes(i), f'picture {i}')]
  turn = Turn((Text(f'please draw number {i}'),), tuple(answer))
  return Conversation(f'i{i}', 'a/b/c', (turn,), (Score(0, -1, 4.2, 3.0, 0.1, 5.0),), 'gold', i, f't{i}')


def understanding(i: int) -> Conversation:
  return Conversation(f'u{i}', 'a', (Turn((Image(png(i), codes(i)), Text('what is this')), (Text(f'number {i}'),)),))


def text_to_image(i: int) -> Conversation:
  return Conversation(f't{i}', 'a', (Turn((Text(f'draw {i}'),), (Image(png(i), codes(i)),)),))


def message(error) -> str:
  """The text of a caught error, which must be one line."""
  text = str(error.value)
  assert '\n' not in text
  return text
