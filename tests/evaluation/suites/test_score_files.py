"""Scores from a file: whatever is no number in the range has failed, and no file of any kind breaks the reader."""

import math

import hypothesis
import hypothesis.strategies as st
import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites import score_files
from intersyn_jax.evaluation.suites.suite import Verdict
from tests.evaluation.suites import samples

NAMES = st.sampled_from(['id', 'a', 'b', 'scores', 'x'])
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner), max_leaves=5)


@pytest.mark.parametrize('value, reason', [
    (None, 'score is null'), ('NA', 'score is no number'), ('4', 'score is no number'), (True, 'score is no number'),
    (-1, 'score out of range'), (6, 'score out of range'), (math.nan, 'score out of range'),
    (math.inf, 'score out of range'), ([3], 'score is no number')])
def test_no_score_is_no_zero(value, reason):
  assert score_files.checked({'a': 3, 'b': value}, 5) == Verdict(None, reason)
  assert score_files.checked({}, 5).reason == 'scores missing'
  assert score_files.checked({'a': 0, 'b': 5}, 5).scores == {'a': 0, 'b': 5}


def test_both_forms_and_repeated_rows(tmp_path):
  path = samples.put(tmp_path / 's.jsonl', [
      {'id': 'x', 'a': 4, 'why': 'good'}, {'id': 7, 'scores': {'a': 1, 'b': 2}}, {'id': 'x', 'a': 2}, {'id': 'x', 'a': None},
      {'id': 'y', 'a': 'NA'}, {'id': 'y'}])
  found = score_files.read(path, ('a', 'b'), 5)
  assert found == {'x': Verdict({'a': 3.0}), '7': Verdict({'a': 1.0, 'b': 2.0}), 'y': Verdict(None, 'score is no number')}


def test_broken_files_are_named(tmp_path):
  with pytest.raises(UserError, match='s s.jsonl, line 2: is no JSON'):
    score_files.read(samples.put(tmp_path / 's s.jsonl', '{"id": "x", "a": 1}\n{"id":\n'), ('a',), 5)
  with pytest.raises(UserError, match='line 1: field id is missing'):
    score_files.read(samples.put(tmp_path / 's.jsonl', [{'a': 1}]), ('a',), 5)
  with pytest.raises(UserError, match='set --judge'):
    score_files.read(tmp_path / 'nowhere', ('a',), 5)


@hypothesis.settings(max_examples=25, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(rows=st.lists(JSON, max_size=4))
def test_any_rows_give_verdicts_or_one_line(tmp_path, rows):
  path = samples.put(tmp_path / 'any.json', rows)
  try:
    found = score_files.read(path, ('a', 'b'), 5)
  except UserError as error:
    assert '\n' not in str(error) and 'any.json' in str(error)
    return
  for verdict in found.values():
    assert verdict.scores is None or all(0 <= s <= 5 for s in verdict.scores.values())
