"""Scores of answers by the known world (DESIGN 4): only evaluation and studies may ask it about test prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from intersyn_jax.data.storyworld.score import Item, score_answers
from intersyn_jax.evaluation.answers import Pictures, with_pictures
from intersyn_jax.interleave.types import Segment, steps_of


def truth(questions: Sequence[str], answers: Sequence[Sequence[Segment]], decode: Pictures, *,
          jitter: int = 0) -> np.ndarray:
  """Ground-truth scores float32[N,4] of whole answers to first-turn questions; NaN where the question makes no sense.

  Args:
    questions: N texts. answers: N runs of segments whose images carry codes.
    decode: the image tokenizer; what is scored is the decoded picture.
    jitter: of the pictures (`data.jitter`).
  """
  items = []
  for question, answer, pictures in zip(questions, answers, with_pictures(answers, decode), strict=True):
    queue = iter(pictures)
    items.append(Item([question], [(text, None if image is None else next(queue)) for text, image in steps_of(answer)]))
  scored = score_answers(items, jitter=jitter)
  return np.array([s.whole.values() if s is not None else (np.nan,) * 4 for s in scored], np.float32).reshape(-1, 4)
