"""Test sets with people's scores: RMSE and the share within one point, and failures that are no scores."""

import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites import suite
from intersyn_jax.evaluation.suites.rated import Rated
from intersyn_jax.interleave.types import DIMENSIONS, Text
from tests.evaluation.suites import samples


def test_rmse_and_a1_by_hand(tmp_path):
  of = Rated(samples.rated(tmp_path))
  assert {n: e.category for n, e in of.entries.items()} == {'one/a': 'one', 'one/b': 'one', 'two/c': 'two'}
  # Labels are 5 4 3 2, 1 1 1 1 and, of two votes, 3 3 3 3.
  judge = {'one/a': dict(zip(DIMENSIONS, (5, 2, 3, 2), strict=True)), 'one/b': dict.fromkeys(DIMENSIONS, 2),
           'two/c': dict.fromkeys(DIMENSIONS, 3)}
  told = of.summary({name: suite.Verdict(scores) for name, scores in judge.items()}, samples.BOOT)
  assert told['tcc.rmse'] == pytest.approx((1 / 3) ** 0.5) and told['tcc.a1'] == 1
  assert told['icc.rmse'] == pytest.approx((5 / 3) ** 0.5) and told['icc.a1'] == pytest.approx(2 / 3)
  assert told['mean.a1'] == pytest.approx((1 + 2 / 3 + 1 + 1) / 4)
  assert told['two.tcc.rmse'] == 0 and told['one.tcc.n'] == 2
  assert told['icc.rmse.low'] <= told['icc.rmse'] <= told['icc.rmse.high']


def test_files_of_the_released_judges(tmp_path):
  """Their -1 for a reply that they could not read is averaged in by the released script."""
  of = Rated(samples.rated(tmp_path))
  path = samples.put(tmp_path / 'judged.jsonl', [
      {'id': 'a', 'generator': 'one', 'question': 'q', 'answer': 'a', 'labels': [5, 4, 3, 2]},
      {'id': 'one/b', 'labels': [-1, -1, -1, -1]}, {'id': 'two/c', 'labels': [3, 3]}])
  found = of.verdicts_in(path)
  assert [v.reason for v in found.values()] == ['', 'score out of range', 'labels are no four scores']
  told = of.summary(found, samples.BOOT)
  assert told['tcc.rmse'] == 0 and told['tcc.n'] == 1 and 'two.tcc.rmse' not in told
  plain = of.verdicts_in(samples.put(tmp_path / 's.jsonl', [{'id': 'one/a', 'tcc': 4.5, 'icc': 4, 'iq': 3, 'its': 2}]))
  assert plain['one/a'].scores['tcc'] == 4.5 and plain['two/c'].missing


def test_the_answers_of_the_rows_are_judged(tmp_path):
  of = Rated(samples.rated(tmp_path))
  seen = []

  def judge(items):
    seen.extend(item.conversation.turns[-1].answer[0] for item in items)
    return [samples.scored(**dict.fromkeys(DIMENSIONS, 3.0)) for _ in items]

  found = suite.judge_all(of, None, judge, look=suite.Look(8), window=2)
  assert seen == [Text('here')] * 3 and all(v.scores for v in found.values())
  with pytest.raises(UserError, match='holds no question of synjudge'):
    Rated(samples.put(tmp_path / 'none.jsonl', [{'id': 'x', 'question': 'q', 'answer': 'a'}]))
