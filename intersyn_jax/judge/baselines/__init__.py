"""What SynJudge is held against: the mean, a zero-shot likelihood, a two-tower similarity, and itself half blind.

All read the same labelled answers, learn from training rows alone, and follow the judge's rules in code: the rubric's zero
where the answer lacks what a dimension scores, no score (NaN) where the answer does not fit the views. So a row of the
table is over the same answers for each of them, and none loses to a rule that it was not told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from jax.sharding import Mesh

from intersyn_jax.interleave.types import Conversation
from intersyn_jax.judge.baselines.clip import Clip, ClipConfig
from intersyn_jax.judge.baselines.likelihood import Likelihood
from intersyn_jax.judge.baselines.shared import Baseline, Mean, Viewer, some
from intersyn_jax.judge.labelled import Labelled
from intersyn_jax.judge.model import SynJudge
from intersyn_jax.models import unified
from intersyn_jax.models.definition import Params
from intersyn_jax.models.unified import ModelConfig


def fit_all(judge: SynJudge, model: ModelConfig, policy: Params, train: Labelled, conversations: Iterable[Conversation],
            mesh: Mesh, *, clip: ClipConfig, rows: int = 1000, seed: int = 0,
            names: Collection[str] = ('mean', 'likelihood', 'clip')) -> dict[str, Baseline]:
  """Fits the baselines that need no second judge; `blinded` has what that one needs.

  Args:
    judge: whose views say what each score may see. Its parameters are not used.
    model: of the policy.
    policy: parameters of the warm-up model.
    train: labelled training rows.
    conversations: with image codes, from training shards; the two towers learn from their texts and pictures.
    mesh: of the policy.
    clip: sizes of the two towers.
    rows: largest number of training rows that the monotone maps are fitted to.
    seed: of which rows, and of the two towers.
    names: the baselines that are wanted, among others perhaps.

  Returns:
    Those of `mean`, `likelihood` and `clip` that are named.
  """
  viewer = Viewer(judge)
  few = some(train, rows, seed)
  makers = {
      'mean': lambda: Mean.fit(viewer, train),
      'likelihood': lambda: Likelihood.fit(viewer, unified.define(model), policy, few),
      'clip': lambda: Clip.fit(viewer, model, few, conversations, mesh, clip, seed)}
  return {name: make() for name, make in makers.items() if name in names}
