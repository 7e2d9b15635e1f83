"""What any sound judge does: flaws never raise the scores that they damage, and the rubric's caps and zeros hold.

Unlike accuracy this needs no labels, only answers before and after one change; a policy trained on a judge that fails here
is paid for the flaw.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from intersyn_jax.data.storyworld import flaws
from intersyn_jax.evaluation.statistics import draws, interval
from intersyn_jax.interleave.layout import Layout, TokenBatch, tokenise
from intersyn_jax.interleave.types import DIMENSIONS, Conversation, Text
from intersyn_jax.judge.adversarial import Arrays, Material, Scorer, captioned, coded, make

CAP = 4.0
"""Most that ITS may be where the text only repeats the picture (rubric: 5 is for parts that add to one another)."""

UNSEEN = {'missing_image': 'iq', 'missing_step': 'iq'}
"""What a flaw costs the asked-for answer but no view of single pictures can see: IQ is that of the pictures that are there."""

ZEROS = {'only_text': ('icc', 'iq', 'its'), 'only_images': ('tcc', 'its'), 'empty_think': ('tcc', 'its'),
         'empty_vis': ('icc', 'iq', 'its'), 'empty_tags': DIMENSIONS}
"""Cases of `adversarial` with what the rubric gives no point for."""


def measure(score: Scorer, conversations: Sequence[Conversation], layout: Layout, encode: Arrays, decode: Arrays, *,
            max_steps: int, jitter: int = 0, seed: int = 0, samples: int = 1000) -> list[dict[str, Any]]:
  """All tests of a judge.

  Args:
    score: the judge, see `adversarial.scorer`.
    conversations: gold Storyworld conversations of one turn, pictures as bytes, on topics that the judge has not seen.
    layout, encode, decode, max_steps, jitter, seed: see `adversarial.measure`.
    samples: of the bootstrap.

  Returns:
    rows {test, dimension, n, failed, change, low, high, passes}; low and high bound the change with 95 %, n answers counted,
    `failed` were not scored before or after. Tests:
    `flaw.NAME`: mean change of a score that the flaw is said to lower; passes where it is not above 0.
    `other_images`: mean change of ITS when two answers with as many pictures exchange them; passes where `high` is below 0.
    `repeated_in_words`: mean ITS, less 4, of pictures whose texts say all that they show; passes where it is not above 0.
    `zero.CASE`: the largest score that is 0 by the rubric; passes where it is exactly 0.
  """
  flawed: dict[str, list[int]] = {}
  everything = list(conversations)
  for kind in flaws.COSTS:
    made = [flaws.inject(conversation, random.Random(f'{seed}/{kind}/{i}'), [kind], jitter=jitter)
            for i, conversation in enumerate(conversations)]
    flawed[kind] = [i for i, (_, kinds) in enumerate(made) if kinds]
    everything += [made[i][0] for i in flawed[kind]]
  queue = iter(coded(everything, encode))
  gold = [next(queue) for _ in conversations]
  material = Material(gold, layout, decode, max_steps, seed)
  changed = {f'flaw.{kind}': (fits, [tokenise(next(queue), layout) for _ in fits]) for kind, fits in flawed.items()}
  changed['other_images'] = _exchanged(material)
  changed['repeated_in_words'] = list(range(len(gold))), [captioned(material, i, random.Random()) for i in range(len(gold))]
  for case in ZEROS:
    changed[f'zero.{case}'] = list(range(len(gold))), make(case, material)

  documents = [*material.documents, *(document for _, made in changed.values() for document in made)]
  scores = score(documents).astype(np.float64)
  before, rows, first = scores[:len(gold)], [], len(gold)
  for test, (picked, made) in changed.items():
    after, first = scores[first:first + len(made)], first + len(made)
    kind, _, name = test.partition('.')
    for dimension in _dimensions(kind, name):
      d = DIMENSIONS.index(dimension)
      if kind == 'zero':
        rows.append(_zero(test, dimension, after[:, d]))
        continue
      change = after[:, d] - (CAP if kind == 'repeated_in_words' else before[picked, d])
      rows.append(_row(test, dimension, change, samples, seed, strict=kind == 'other_images'))
  return [row for row in rows if row['n'] or row['failed']]


def share_of_flaws(rows: Sequence[dict[str, Any]]) -> float:
  """Share of the flaws all of whose named scores fall on average."""
  falls: dict[str, bool] = {}
  for row in rows:
    if row['test'].startswith('flaw.'):
      falls[row['test']] = falls.get(row['test'], True) and row['change'] is not None and row['change'] < 0
  return sum(falls.values()) / len(falls) if falls else float('nan')


def _dimensions(kind: str, name: str) -> Sequence[str]:
  if kind == 'flaw':
    return [dimension for dimension in flaws.COSTS[name] if dimension != UNSEEN.get(name)]
  return ZEROS[name] if kind == 'zero' else ('its',)


def _exchanged(material: Material) -> tuple[list[int], list[TokenBatch]]:
  """Answers with the pictures of the next one that has as many, which never shares one with them."""
  picked, made = [], []
  steps = [material.steps(i) for i in range(len(material.gold))]
  for i, mine in enumerate(steps):
    codes = [image.codes.tobytes() for _, image in mine]
    others = (steps[(i + step) % len(steps)] for step in range(1, len(steps)))
    other = next((o for o in others if len(o) == len(mine) and not set(codes) & {image.codes.tobytes() for _, image in o}), None)
    if other is not None:
      picked.append(i)
      made.append(material.write(i, [s for (text, _), (_, image) in zip(mine, other, strict=True) for s in (Text(text), image)]))
  return picked, made


def _row(test: str, dimension: str, change: np.ndarray, samples: int, seed: int, *, strict: bool) -> dict[str, Any]:
  known = change[np.isfinite(change)]
  row = {'test': test, 'dimension': dimension, 'n': len(known), 'failed': len(change) - len(known)}
  if not len(known):
    return row | {'change': None, 'low': None, 'high': None, 'passes': False}
  (low,), (high,) = interval(known[:, None], draws(len(known), samples, seed))
  mean = float(known.mean())
  return row | {'change': mean, 'low': float(low), 'high': float(high), 'passes': bool(high < 0 if strict else mean <= 0)}


def _zero(test: str, dimension: str, score: np.ndarray) -> dict[str, Any]:
  known = np.abs(score[np.isfinite(score)])
  most = float(known.max()) if len(known) else None
  return {'test': test, 'dimension': dimension, 'n': len(known), 'failed': len(score) - len(known), 'change': most,
          'low': most, 'high': most, 'passes': most == 0}
