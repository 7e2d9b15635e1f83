"""Retained skills and diversity: what policy training may cost (DESIGN 4).

Understanding: exact answers to questions about pictures. Text-to-image: ICC of the drawn picture by the known world. Both
on test topics, greedy. Diversity: how many different answers and pictures a policy gives to the same prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from intersyn_jax.data import codes, images
from intersyn_jax.data.storyworld import language, story
from intersyn_jax.data.storyworld.render import read_arrays
from intersyn_jax.data.storyworld.score import Item, score_answers
from intersyn_jax.data.storyworld.world import GROUNDS, Action
from intersyn_jax.interleave.types import Conversation, Segment, images_of, text_of


class Probes(NamedTuple):
  """Held-out conversations whose answers are known; pictures carry codes."""

  understanding: list[Conversation]
  drawing: list[Conversation]


def probes(seed: int, count: int, encode: codes.Encode, *, pixels: int, jitter: int) -> Probes:
  """`count` questions of either kind on test topics."""
  made = [[make(seed, index, 'test', pixels=pixels, jitter=jitter) for index in range(count)]
          for make in (story.understanding, story.text_to_image)]
  return Probes(*(list(codes.with_codes(part, encode)) for part in made))


def understood(conversations: Sequence[Conversation], answers: Sequence[Sequence[Segment]]) -> np.ndarray:
  """float32[N]: 1 where the text of the answer is exactly the known one (spacing and case aside)."""
  return np.array([language.normalise(text_of(answer)) == language.normalise(text_of(c.turns[0].answer))
                   for c, answer in zip(conversations, answers, strict=True)], np.float32)


def drawn(conversations: Sequence[Conversation], pictures: Sequence[Sequence[np.ndarray]], *,
          jitter: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """How well captions were drawn: ICC float32[N] (0-5) and the share of the asked objects that are exactly right, [N].

  Args:
    conversations: from `probes`. pictures: uint8[H,W,3] of each answer; the first one counts, none scores 0.
  """
  icc, right = np.zeros(len(pictures), np.float32), np.zeros(len(pictures), np.float32)
  done = [i for i, found in enumerate(pictures) if found]
  if not done:
    return icc, right
  gold = [images_of(conversations[i].turns[0].answer)[0] for i in done]
  shown = [pictures[i][0] for i in done]
  scores = score_answers([Item([_as_question(image.caption)], [('', picture)]) for image, picture in zip(gold, shown)],
                         jitter=jitter)
  icc[done] = [s.steps[0].icc for s in scores]
  (ground, tiles, _), (other, seen, _) = (read_arrays(np.stack(p), jitter)
                                          for p in ([images.pixels(image.data) for image in gold], shown))
  same = (tiles == seen) & (ground == other)[:, None] & (tiles > 0)
  right[done] = same.sum(axis=1) / np.maximum((tiles > 0).sum(axis=1), 1)
  return icc, right


def _as_question(caption: str) -> str:
  """A question whose first step is to show just what the caption says: the scorer judges steps of questions."""
  view = language.parse_caption(caption)
  after = Action('reground', value=(view.ground + 1) % len(GROUNDS))
  return language.write_question(language.Request(2, view, (after,)), language.SERIES[0])


def diversity(answers: Sequence[Sequence[Segment]], group: int) -> dict[str, float]:
  """Share of different texts and of different pictures (of equal place) among `group` answers to one prompt.

  1 means all differ; 1 / group means that they are all the same.
  """
  texts, shown = [], []
  for start in range(0, len(answers), group):
    members = answers[start:start + group]
    texts.append(len({text_of(a) for a in members}) / group)
    pictures = [[image.codes.tobytes() for image in images_of(a)] for a in members]
    for place in range(max(map(len, pictures))):
      here = [p[place] for p in pictures if len(p) > place]
      if len(here) == group:
        shown.append(len(set(here)) / group)
  return {'texts': float(np.mean(texts)), 'pictures': float(np.mean(shown)) if shown else 0.0}
