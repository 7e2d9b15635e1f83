"""MMIE: categories, the submission in its layout, and what the official script does silently."""

import json

import pytest

from intersyn_jax.data import images
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites import mmie, suite
from intersyn_jax.evaluation.suites.suite import KEEP
from intersyn_jax.interleave.types import Image, Text
from tests.evaluation.suites import samples

LONG = tuple(s for number in range(5) for s in samples.step(number))
"""Five pictures: the official script stops reading after three and drops the answer."""


@pytest.mark.parametrize('row, category', [
    ({'id': 'x', 'catagory': 'Situational analysis'}, 'SA'), ({'id': 'x', 'category': 'project based learning'}, 'PBL'),
    ({'id': 'MSR-17'}, 'MSR'), ({'id': 'math_PBL_3'}, 'PBL'), ({'id': 'SAMPLE_MSR_2'}, 'MSR'),
    ({'id': 'x', 'catagory': 'msr'}, 'MSR')])
def test_category(row, category):
  assert mmie.category_of(row) == category


@pytest.mark.parametrize('name', ['q1', 'SA_MSR_1', 'SAMPLE', ''])
def test_a_row_without_a_category_is_no_question(tmp_path, name):
  with pytest.raises(ValueError, match='tells one of the categories'):
    mmie.category_of({'id': name})
  path = samples.mmie(tmp_path, ('SA-1', name or 'none'))
  found = mmie.Mmie(path)
  assert list(found.entries) == ['SA-1'] and len(found.rejected) == 1


def test_the_submission_is_in_the_official_layout_and_reads_back(tmp_path):
  of = mmie.Mmie(samples.mmie(tmp_path))
  answers = {'SA-1': LONG, 'MSR-1': (Text('only text'),)}
  out = tmp_path / 'submission'
  out.mkdir()
  of.submit(out, 'ours', samples.Answers(answers))
  rows = json.loads((out / 'data.json').read_text())
  assert [row['id'] for row in rows] == ['SA-1', 'MSR-1']  # what is not answered is not there
  first = rows[0]
  assert set(first) == {'id', 'question', 'answer', 'gt_answer', 'model'} and first['model'] == 'ours'
  assert [sorted(item) for item in first['question']] == [['image', 'text']]
  assert first['question'][0]['text'] == 'do SA-1\nlike this' and first['gt_answer'][0]['text'] == 'done SA-1'
  for field in ('question', 'answer', 'gt_answer'):
    for item in first[field]:
      assert item['image'] is None or ((out / item['image']).is_file() and item['image'].startswith('images/'))
  # The question's picture has its own shape, not a square.
  assert images.pixels((out / first['question'][0]['image']).read_bytes()).shape == (12, 8, 3)
  back = of.submission(out)
  assert all(samples.same(back.get(name), answer) for name, answer in answers.items())
  with pytest.raises(suite.Missing):
    back.get('PBL-1')


def test_all_pictures_of_an_answer_are_judged(tmp_path):
  """The official script reads the text of one segment where the question has three pictures, and drops more than four."""
  of = mmie.Mmie(samples.mmie(tmp_path))
  seen = []

  def judge(items):
    seen.extend(items)
    return [samples.scored(score=6.0) for _ in items]

  found = suite.judge_all(of, samples.Answers({'SA-1': LONG}), judge, look=KEEP, window=2)
  assert len(seen) == 1 and seen[0].conversation.turns[-1].answer == LONG
  assert found['SA-1'].scores == {'score': 6} and found['PBL-1'].missing and found['MSR-1'].reason == suite.NO_ANSWER
  assert seen[0].reference[0] == Text('done SA-1')
  told = of.summary(found, samples.BOOT)
  assert told['percent'] == 100 and told['percent.n'] == 1 and told['SA.missing'] == 0 and told['PBL.missing'] == 1
  assert told['PBL.percent'] is None  # nothing was scored there: no zero


@pytest.mark.parametrize('text, score', [('### Feedback\ngood, 3 pictures\n### Score\n5', 5), ('### score: **6**', 6),
                                         ('### Score\n4.0', 4), ('### Score\n0', 0)])
def test_scores_in_feedback(text, score):
  assert mmie.feedback_score(text).scores == {'score': score}


@pytest.mark.parametrize('text, reason', [
    ('### Score\n4.5', 'score is no whole number'), ('### Score\n7', 'score out of range'),
    ('### Score\n-1', 'score out of range'), ('5', 'no score in the feedback'),
    ('### Score\nfive of 6', 'no score in the feedback'), (None, 'no score in the feedback')])
def test_feedback_without_a_score_has_failed(text, reason):
  found = mmie.feedback_score(text)
  assert found.scores is None and found.reason == reason and not found.missing


def test_an_official_result_file_is_read_and_failures_are_counted(tmp_path):
  of = mmie.Mmie(samples.mmie(tmp_path, ('SA-1', 'SA-2', 'SA-3', 'PBL-1', 'MSR-1')))
  results = samples.put(tmp_path / 'eval_result.json', [
      {'id': 'SA-1', 'gpt_feedback': '### Score\n3'}, {'id': 'SA-2', 'gpt_feedback': 'I refuse'},
      {'id': 'PBL-1', 'gpt_feedback': '### Score\n6'}, {'id': 'MSR-1', 'gpt_feedback': '### Score\n9'}])
  verdicts = of.verdicts_in(results)
  told = of.summary(verdicts, samples.BOOT)
  assert told['SA.percent'] == 50 and (told['SA.judged'], told['SA.failed'], told['SA.missing']) == (1, 1, 1)
  assert told['PBL.percent'] == 100 and told['MSR.percent'] is None and told['MSR.failed'] == 1
  assert told['percent'] == 75 and told['percent.n'] == 2


def test_an_answer_that_names_a_missing_picture_is_not_judged_without_it(tmp_path):
  of = mmie.Mmie(samples.mmie(tmp_path))
  samples.put(tmp_path / 'them' / 'data.json', [
      {'id': 'SA-1', 'answer': [{'text': 'look', 'image': 'images/gone.png'}]}, {'id': 'PBL-1', 'answer': 'bare text'},
      {'id': 'MSR-1', 'answer': [{'text': 'out', 'image': '../mmie.json'}]}])
  given = of.submission(tmp_path / 'them')
  assert given.get('PBL-1') == (Text('bare text'),)
  with pytest.raises(suite.Unreadable, match='picture is missing'):
    given.get('SA-1')
  with pytest.raises(suite.Unreadable, match='picture cannot be read'):
    given.get('MSR-1')
  found = suite.judge_all(of, given, lambda items: [samples.scored(score=1.0)] * len(items), look=KEEP, window=8)
  assert [found[n].reason for n in found] == ['picture is missing', '', 'picture cannot be read']
  assert not found['SA-1'].missing


def test_a_question_that_cannot_be_read_is_missing_and_named(tmp_path):
  path = samples.mmie(tmp_path)
  (tmp_path / 'images' / 'q.png').unlink()
  of = mmie.Mmie(path)
  found = suite.judge_all(of, samples.Answers({'SA-1': (Text('x'),)}), lambda items: [], look=KEEP, window=8)
  assert {v.reason for v in found.values()} == {suite.UNUSABLE} and all(v.missing for v in found.values())
  assert 'q.png' in of.unusable['SA-1']


def test_files_that_are_none_of_the_suite(tmp_path):
  with pytest.raises(UserError, match='is not there'):
    mmie.Mmie(tmp_path / 'none.json')
  with pytest.raises(UserError, match=r'holds no question of mmie \(x.json entry 1: field id'):
    mmie.Mmie(samples.put(tmp_path / 'x.json', [{'a': 1}]))
  with pytest.raises(UserError, match='--images=.* is no folder'):
    mmie.Mmie(samples.mmie(tmp_path), tmp_path / 'nowhere')
  of = mmie.Mmie(samples.mmie(tmp_path))
  with pytest.raises(UserError, match='--answers=.* is no folder'):
    of.submission(tmp_path / 'nowhere')
  with pytest.raises(UserError, match='has 2 files'):
    of.submission(samples.put(tmp_path / 'two' / 'b.json', samples.put(tmp_path / 'two' / 'a.json', []) and []).parent)


def test_a_repeated_id_is_rejected(tmp_path):
  of = mmie.Mmie(samples.mmie(tmp_path, ('SA-1', 'SA-1')))
  assert list(of.entries) == ['SA-1'] and 'stands already at mmie.json entry 1' in of.rejected[0].reason


def test_pictures_are_as_large_as_they_are_asked_for(tmp_path):
  of = mmie.Mmie(samples.mmie(tmp_path, ('SA-1',)))
  shapes = [images.pixels(s.data).shape[:2] for look in (KEEP, suite.Look(16)) for c in of.conversations(look)
            for s in c.turns[0].question if isinstance(s, Image)]
  assert shapes == [(12, 8), (16, 16)]
