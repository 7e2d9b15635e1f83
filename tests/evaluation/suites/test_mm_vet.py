"""MM-Vet: answers as one object, grades in tenths, capabilities; a grade that nobody gave is no zero."""

import json

import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites import mm_vet, suite
from intersyn_jax.evaluation.suites.mm_vet import MmVet
from intersyn_jax.interleave.types import Text
from intersyn_jax.judge.served import Judgement
from tests.evaluation.suites import samples


def test_questions_and_their_capabilities(tmp_path):
  of = MmVet(samples.mm_vet(tmp_path))
  assert {name: entry.category for name, entry in of.entries.items()} == {'v1_0': 'math+ocr', 'v1_1': 'math', 'v1_2': 'rec'}
  first = next(iter(of.conversations(suite.KEEP)))
  assert first.id == 'v1_0' and first.turns[0].question[1] == Text('What is x?')
  bad = samples.put(tmp_path / 'bad.json', {'v1_0': [], 'v1_1': {'question': 'x', 'answer': 'y', 'imagename': 'v.png'}})
  with pytest.raises(UserError, match='is no JSON object'):
    MmVet(bad)


def test_answers_are_one_object(tmp_path):
  of = MmVet(samples.mm_vet(tmp_path))
  out = tmp_path / 'out'
  out.mkdir()
  of.submit(out, 'ours', samples.Answers({'v1_0': (Text('x = -1'), *samples.step(1)), 'v1_2': ()}))
  assert json.loads((out / 'ours.json').read_text()) == {'v1_0': 'x = -1 step 1', 'v1_2': ''}
  back = of.submission(out)
  assert back.get('v1_0') == (Text('x = -1 step 1'),) and back.get('v1_2') == ()
  with pytest.raises(suite.Missing):
    back.get('v1_1')
  with pytest.raises(suite.Unreadable, match='answer is no text'):
    of.submission(samples.put(tmp_path / 'them' / 'm.json', {'v1_1': 4}).parent).get('v1_1')


def test_scores_by_capability_and_combination(tmp_path):
  of = MmVet(samples.mm_vet(tmp_path))
  verdicts = {'v1_0': samples.scored(correctness=0.5), 'v1_1': samples.scored(correctness=1.0), 'v1_2': samples.FAILED}
  told = of.summary(verdicts, samples.BOOT)
  assert told['percent'] == 75 and told['percent.n'] == 2
  assert told['math.percent'] == 75 and told['ocr.percent'] == 50 and told['math+ocr.percent'] == 50
  assert told['rec.percent'] is None  # the official script writes 0 after five tries


def test_official_grades_are_means_over_runs(tmp_path):
  of = MmVet(samples.mm_vet(tmp_path))
  grades = samples.put(tmp_path / 'grade.json', {
      'v1_0': {'model': ['m'] * 3, 'content': ['0.5', 'x', '1.0'], 'score': [0.5, None, 1.0]}, 'v1_1': {'score': [1.5]}})
  found = of.verdicts_in(grades)
  assert found['v1_0'].scores == {'correctness': 0.75}
  assert found['v1_1'].reason == 'score out of range' and found['v1_2'].missing
  plain = of.verdicts_in(samples.put(tmp_path / 'g.jsonl', [{'id': 'v1_0', 'correctness': 0.2}]))
  assert plain['v1_0'].scores == {'correctness': 0.2}
  with pytest.raises(UserError, match="such as 'v9'"):
    of.verdicts_in(samples.put(tmp_path / 'h.json', {'v9': {'score': [1]}}))


def test_the_judge_sees_question_known_answer_and_prediction(tmp_path):
  of = MmVet(samples.mm_vet(tmp_path))
  conversation = next(iter(of.conversations(suite.KEEP)))
  item = suite.Asked(of.entries['v1_0'], suite.answered(conversation, (Text('x = -1'),)))
  system, user = of.rubric().messages(item, ('tenths',), 224)
  told = [part['text'] for part in user['content']][1:-1]
  assert told == ['[Question]\nWhat is x?', '[Known answer]\n-1 <AND> -5', '[Prediction]\nx = -1']
  assert '"tenths": 0-10' in system['content']
  assert mm_vet.Rubric().verdict(Judgement((7.0,), (0.0,))).scores == {'correctness': 0.7}
