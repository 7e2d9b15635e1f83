"""A reward for GRPO that runs on the host: how much of a step's picture is new, as a tenth of its pixels or more counts 1."""

import numpy as np

from intersyn_jax.evaluation.answers import with_pictures
from intersyn_jax.grpo.rewards import HostReward


class Novelty(HostReward):

  def __init__(self, parts):
    self.steps = parts.config.judge.max_steps
    self.decode = parts.decode  # image codes to pixels

  def score(self, answers):
    """R conversations -> [R, steps]."""
    scores = np.zeros((len(answers), self.steps))
    shown = with_pictures([conversation.turns[-1].answer for conversation in answers], self.decode)
    for row, pictures in enumerate(shown):
      before = None
      for step, picture in enumerate(pictures[:self.steps]):
        new = 1.0 if before is None else np.mean(np.any(picture != before, axis=-1))
        scores[row, step] = min(1.0, 10 * new)
        before = picture
    return scores
