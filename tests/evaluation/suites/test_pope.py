"""POPE: what an answer says, the five measures, settings, and lines that must not shift."""

import json

import numpy as np
import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites import pope, suite
from intersyn_jax.evaluation.suites.pope import Pope
from intersyn_jax.interleave.types import Text
from tests.evaluation.suites import samples


@pytest.mark.parametrize('answer, said', [
    ('Yes', True), ('yes, there is a dog.', True), ('No.', False), ('no', False), ('There is no dog in the image.', False),
    ("There isn't a dog", False), ('It is not there', False), ('Yes, there is no doubt', True), ('', None), ('A dog.', None),
    ('yesterday nothing', None), ('I cannot tell', None)])
def test_what_an_answer_says(answer, said):
  assert pope.said_yes(answer) is said


def test_measures_by_hand():
  # 3 true yes, 1 false yes, 2 false no, 4 true no.
  found = pope.rates(np.array([0.3, 0.1, 0.2, 0.4]))
  assert {k: pytest.approx(v) for k, v in found.items()} == {
      'accuracy': 0.7, 'precision': 0.75, 'recall': 0.6, 'f1': 2 * 0.75 * 0.6 / 1.35, 'yes_rate': 0.4}


def verdicts_of(of, said):
  answers = {name: (Text(text),) for name, text in zip(of.entries, said, strict=True) if text is not None}
  return suite.score_all(of, samples.Answers(answers))


def test_settings_and_their_mean(tmp_path):
  of = Pope(samples.pope(tmp_path, labels=('yes', 'yes', 'no', 'no')))
  assert list(of.by_category()) == ['random', 'popular', 'adversarial'] and len(of.entries) == 12
  said = ['yes', 'no', 'no', 'no', 'yes', 'yes', 'yes', 'no', 'no', 'no', 'no', 'no']
  told = of.summary(verdicts_of(of, said), samples.BOOT)
  assert told['random.accuracy'] == 0.75 and told['random.precision'] == 1 and told['random.recall'] == 0.5
  assert told['random.f1'] == pytest.approx(2 / 3) and told['random.yes_rate'] == 0.25
  assert told['popular.f1'] == pytest.approx(0.8) and told['popular.yes_rate'] == 0.75
  # Nobody said yes: precision is a share of nothing. F1 is 0, as every yes was missed.
  assert told['adversarial.precision'] is None and told['adversarial.recall'] == 0 and told['adversarial.f1'] == 0
  assert told['accuracy'] == pytest.approx((0.75 + 0.75 + 0.5) / 3) and told['precision'] is None


def test_an_empty_answer_is_no_yes(tmp_path):
  """The official script counts whatever is no "no" as "yes"."""
  of = Pope(samples.pope(tmp_path, ('random',), labels=('yes', 'yes', 'no', 'no')))
  found = verdicts_of(of, ['yes', '', 'a dog', None])
  assert [v.reason for v in found.values()] == ['', pope.NEITHER, pope.NEITHER, suite.NO_ANSWER]
  told = of.summary(found, samples.BOOT)
  assert told['random.accuracy'] == 1 and told['random.accuracy.n'] == 1
  assert (told['random.judged'], told['random.failed'], told['random.missing']) == (1, 2, 1)


def test_the_share_of_yes_is_that_of_the_answers(tmp_path):
  """lmms-eval tells the share of the labels."""
  of = Pope(samples.pope(tmp_path, ('random',), labels=('yes', 'no', 'no', 'no')))
  assert of.summary(verdicts_of(of, ['yes'] * 4), samples.BOOT)['random.yes_rate'] == 1


def test_answers_are_written_in_the_order_of_the_questions(tmp_path):
  of = Pope(samples.pope(tmp_path / 'q'))
  out = tmp_path / 'out'
  out.mkdir()
  of.submit(out, 'ours', samples.Answers({'random/2': (Text('No'),), 'popular/1': (Text('Yes'),)}))
  lines = [json.loads(line) for line in (out / 'coco_pope_random_answers.json').read_text().splitlines()]
  assert [(line['question'], line['answer']) for line in lines] == [
      ('Is there a thing 1 in the image?', None), ('Is there a thing 2 in the image?', 'No')]
  back = of.submission(out)
  assert back.get('random/2') == (Text('No'),)
  with pytest.raises(suite.Missing):
    back.get('random/1')


def test_answers_without_numbers_are_matched_by_order_and_checked(tmp_path):
  of = Pope(samples.pope(tmp_path / 'q', ('random',)))
  lines = [{'question': f'is there a thing {n} in the image', 'answer': said} for n, said in ((1, 'yes'), (2, 'no'))]
  write = lambda rows: samples.put(tmp_path / 'a' / 'my_random.jsonl', rows).parent
  assert of.submission(write(lines)).get('random/2') == (Text('no'),)
  with pytest.raises(UserError, match='line 1 answers'):  # the official script would compare them with other labels
    of.submission(write(lines[::-1]))
  with pytest.raises(UserError, match='1 lines for 2 questions'):
    of.submission(write(lines[:1]))
  with pytest.raises(UserError, match='line 2: is no JSON'):
    of.submission(samples.put(tmp_path / 'a' / 'my_random.jsonl', json.dumps(lines[0]) + '\nx\n').parent)
  with pytest.raises(UserError, match='a question_id twice'):
    of.submission(write([{'question_id': 1, 'text': 'yes'}, {'question_id': 1, 'text': 'no'}]))
  shuffled = of.submission(write([{'question_id': 2, 'text': 'no'}, {'question_id': 1, 'text': 'yes'}]))
  assert shuffled.get('random/1') == (Text('yes'),)


def test_a_question_is_a_picture_and_a_text(tmp_path):
  of = Pope(samples.pope(tmp_path, ('random',)))
  first, _ = of.conversations(suite.KEEP)
  assert first.turns[0].question[1] == Text('Is there a thing 1 in the image?') and first.turns[0].answer == ()
  (tmp_path / 'p.png').unlink()
  assert list(of.conversations(suite.KEEP)) == [] and set(of.unusable) == {'random/1', 'random/2'}


def test_folders_that_are_not_clear(tmp_path):
  with pytest.raises(UserError, match='has no file of POPE'):
    Pope(tmp_path)
  samples.pope(tmp_path, ('random',))
  samples.put(tmp_path / 'aokvqa_pope_random.json', '')
  with pytest.raises(UserError, match='two of a setting'):
    Pope(tmp_path)
  one = Pope(tmp_path / 'coco_pope_random.json')
  assert list(one.by_category()) == ['random']
  bad = samples.put(tmp_path / 'x_popular.json', '{"question_id": 1, "text": "t", "image": "p.png", "label": "maybe"}\n')
  with pytest.raises(UserError, match='field label is neither yes nor no'):
    Pope(bad)
