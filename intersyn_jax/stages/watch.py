"""What GRPO does to held-out questions while it runs: the judge it is rewarded by beside the known world (reward hacking watch).

Only the validation split is read (DESIGN 4), and nothing here reaches a reward.
"""

from __future__ import annotations

from typing import Any

import ml_collections
import numpy as np

from intersyn_jax.errors import UserError
from intersyn_jax.evaluation import answers as answers_lib
from intersyn_jax.evaluation.truth import truth
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.types import DIMENSIONS, text_of
from intersyn_jax.models.definition import Params
from intersyn_jax.stages.evaluate import DECODINGS, judged
from intersyn_jax.stages.parts import Parts


class Watch:
  """Scores sampled answers to the first questions of the validation split, the same ones with the same draws every time.

  Args:
    section: `config.grpo.watch`: `every` (iterations between two looks, 0 for none), `prompts`, and `divergence` (points by which
      the judge's mean may rise above the known world's, counted from the first look, before the stage ends; 0 never ends it).

  Attributes:
    every: iterations between two looks; 0 also where the data have no split `validation`.
    history: rows {step, judge, truth, ...} of all looks so far; keep it with the state.
  """

  def __init__(self, parts: Parts, section: ml_collections.ConfigDict, judge: tuple):
    self.section, self.history = section, []
    self.every = section.every if 'validation' in parts.splits() else 0
    self._parts, self._judge = parts, judge
    self._known = parts.config.data.source == 'storyworld'
    if section.divergence and not (self._known and self.every):
      raise UserError('grpo.watch.divergence compares judge and known world: set grpo.watch.every, and use it with '
                      'data.source storyworld and a split validation')
    if not self.every:
      return
    split = parts.conversations('validation')
    self._questions = [answers_lib.first_turn(split[i]) for i in range(min(section.prompts, len(split)))]
    self._prompts = [layout.prompt(c, parts.layout) for c in self._questions]
    self._decoder = parts.decoder(**DECODINGS['sampled'])
    self._length = answers_lib.room(self._prompts, self._decoder.config.bucket)

  def due(self, step: int, last: int) -> bool:
    """Whether to look after so many iterations: before the first, after every so many, and after the last."""
    seen = self.history and self.history[-1]['step'] >= step
    return bool(self.every) and not seen and (step % self.every == 0 or step == last)

  def look(self, step: int, params: Params) -> dict[str, Any]:
    """Scores a policy; the row is added to the history. Means are of the four scores, 0 to 5."""
    config = self._parts.config
    made = answers_lib.write(self._decoder, params, self._prompts, np.arange(len(self._prompts)), length=self._length,
                             seed=config.seed)
    scores = {'judge': judged(*self._judge, answers_lib.joined(self._prompts, made, self._length), config.decode.rows)}
    if self._known:
      texts = [text_of(c.turns[0].question) for c in self._questions]
      scores['truth'] = truth(texts, made.segments(self._parts.layout), self._parts.decode, jitter=config.data.jitter)
    row: dict[str, Any] = {'step': step, 'well_formed': float(made.well_formed.mean())}
    for scorer, found in scores.items():
      known = found[np.isfinite(found).all(axis=1)]
      mean = known.mean(axis=0) if len(known) else np.full(len(DIMENSIONS), np.nan)
      row |= {scorer: float(mean.mean()), f'{scorer}.failed': len(found) - len(known)}
      row |= {f'{scorer}.{name}': float(value) for name, value in zip(DIMENSIONS, mean, strict=True)}
    self.history.append(row)
    return row

  @property
  def diverged(self) -> bool:
    """Whether judge and truth have drifted apart by more than is allowed."""
    if not self.section.divergence or len(self.history) < 2:
      return False
    gap = lambda row: row['judge'] - row['truth']
    return gap(self.history[-1]) - gap(self.history[0]) > self.section.divergence
