"""What the image tokenizer leaves of Storyworld's answers: gold, each flaw in pixels or text, each damage in code space.

Measures three things that everything else leans on: gold pictures keep their scores through encode and decode; each flaw
costs what it is said to cost when it is read from decoded codes; and picture quality still varies there.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from intersyn_jax.data.storyworld import flaws, score, story
from intersyn_jax.data.storyworld.render import decode as read_png
from intersyn_jax.interleave.types import DIMENSIONS, Conversation, images_of, steps_of, text_of

Arrays = Callable[[np.ndarray], np.ndarray]


def measure(encode: Arrays, decode: Arrays, *, codebook: int, pixels: int, jitter: int, seed: int,
            answers: int = 100) -> list[dict[str, Any]]:
  """One row for gold and for each flaw.

  Args:
    encode: uint8[n,H,W,3] -> int32[n,P,D]. decode: the way back.
    codebook: C.
    pixels, jitter: of the pictures.
    seed: of the conversations and the flaws.
    answers: how many conversations a flaw is tried on; those it does not fit are left out.

  Returns:
    rows {flaw, n, codes_changed (share of codes that differ from gold's, null where pictures are missing), tcc, icc, iq,
    its, iq_std}; the scores of gold are means, those of flaws are differences to gold of the same conversations.
  """
  gold = [story.conversation(seed, i, 'roles', pixels=pixels, jitter=jitter) for i in range(answers)]
  before = _Scored(gold, [None] * answers, encode, decode, jitter)
  rows = [{'flaw': 'none', 'n': answers, 'codes_changed': 0.0, **_columns(before.scores.mean(0)),
           'iq_std': float(before.scores[:, 2].std())}]
  for name in (*flaws.COSTS, *flaws.CODE_FLAWS):
    rng = random.Random(f'{seed}/{name}')
    if name in flaws.CODE_FLAWS:
      picked, damaged = list(range(answers)), gold
      change = lambda codes, name=name, rng=rng: flaws.CODE_FLAWS[name](codes, codebook, rng)
      after = _Scored(damaged, [change] * answers, encode, decode, jitter)
    else:
      made = [flaws.inject(conversation, rng, [name], jitter=jitter) for conversation in gold]
      picked = [i for i, (_, names) in enumerate(made) if names]
      after = _Scored([made[i][0] for i in picked], [None] * len(picked), encode, decode, jitter)
    if not picked:
      continue
    same = [i for i, j in enumerate(picked) if after.codes[i].shape == before.codes[j].shape]
    changed = [np.mean(after.codes[i] != before.codes[picked[i]]) for i in same if after.codes[i].size]
    rows.append({'flaw': name, 'n': len(picked), 'codes_changed': float(np.mean(changed)) if changed else None,
                 **_columns((after.scores - before.scores[picked]).mean(0)), 'iq_std': float(after.scores[:, 2].std())})
  return rows


def _columns(values: np.ndarray) -> dict[str, float]:
  return {name: round(float(value), 4) for name, value in zip(DIMENSIONS, values, strict=True)}


class _Scored:
  """Answers after encode, damage and decode: codes int32[pictures,P,D] of each, and whole scores [n,4]."""

  def __init__(self, conversations: list[Conversation], damage: list, encode: Arrays, decode: Arrays, jitter: int):
    pictures = [read_png(image.data) for c in conversations for image in images_of(c.turns[-1].answer)]
    codes = iter(encode(np.stack(pictures)))
    self.codes = []
    for conversation, change in zip(conversations, damage, strict=True):
      mine = [next(codes) for _ in images_of(conversation.turns[-1].answer)]
      mine = [change(c) if change is not None else c for c in mine]
      self.codes.append(np.stack(mine) if mine else np.zeros((0,), np.int32))
    shown = iter(decode(np.concatenate([c for c in self.codes if c.size])))
    items = []
    for conversation in conversations:
      steps = [(text, None if image is None else next(shown)) for text, image in steps_of(conversation.turns[-1].answer)]
      items.append(score.Item([text_of(turn.question) for turn in conversation.turns], steps))
    scored = score.score_answers(items, jitter=jitter)
    self.scores = np.array([s.whole.values() for s in scored], np.float64)
