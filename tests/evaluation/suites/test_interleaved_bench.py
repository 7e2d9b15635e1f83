"""InterleavedBench: the aspects of text that do not count, answers in and out."""

import json

import pytest

from intersyn_jax.evaluation.suites import interleaved_bench, suite
from intersyn_jax.evaluation.suites.interleaved_bench import ASPECTS, InterleavedBench, aspects_of
from intersyn_jax.interleave.types import Text
from tests.evaluation.suites import samples

PICTURES_ONLY = ('perceptual_quality', 'image_coherence', 'helpfulness')


@pytest.mark.parametrize('task, counted', [
    ('wikihow_next_step', ASPECTS), ('storytelling_generation', ASPECTS), ('report_generation', ASPECTS),
    ('sequential_image_editing', PICTURES_ONLY), ('Image Editing', PICTURES_ONLY),
    ('subject-driven generation', PICTURES_ONLY), ('multi_concept_image_composition', PICTURES_ONLY)])
def test_aspects_of_a_task(task, counted):
  assert aspects_of(task) == counted


def test_zeros_of_text_in_an_edit_are_not_averaged(tmp_path):
  """The official script writes them; whoever averages them in halves the scores of text."""
  of = InterleavedBench(samples.interleaved_bench(tmp_path))
  scores = samples.put(tmp_path / 'scores.json', [
      {'id': 'story_completion_0', **dict.fromkeys(ASPECTS, 4)},
      {'id': 'image_editing_0', **dict.fromkeys(ASPECTS, 3), 'text_quality': 0, 'text_image_coherence': 0},
      {'id': 'subject_driven_generation_0', **dict.fromkeys(PICTURES_ONLY, 2), 'text_quality': None}])
  verdicts = of.verdicts_in(scores)
  assert verdicts['image_editing_0'].scores == dict.fromkeys(PICTURES_ONLY, 3.0)
  assert verdicts['subject_driven_generation_0'].scores == dict.fromkeys(PICTURES_ONLY, 2.0)
  told = of.summary(verdicts, samples.BOOT)
  assert (told['text_quality'], told['text_quality.n'], told['helpfulness'], told['helpfulness.n']) == (4, 1, 3, 3)
  assert told['average'] == pytest.approx((4 + 3 + 3 + 4 + 3) / 5)
  assert 'image_editing.text_quality' not in told and told['image_editing.average'] == 3


def test_a_null_of_an_aspect_that_counts_has_failed(tmp_path):
  of = InterleavedBench(samples.interleaved_bench(tmp_path, ('story_completion',)))
  scores = samples.put(tmp_path / 'scores.jsonl', [{'id': 'story_completion_0', 'scores': dict.fromkeys(ASPECTS, 4) | {
      'helpfulness': None}}])
  (verdict,) = of.verdicts_in(scores).values()
  assert verdict.scores is None and verdict.reason == 'score is null' and not verdict.missing
  assert of.summary({'story_completion_0': verdict}, samples.BOOT)['average'] is None


def test_only_aspects_that_count_are_asked_for(tmp_path):
  of = InterleavedBench(samples.interleaved_bench(tmp_path))
  asked = {}

  def judge(items):
    asked.update({item.entry.category: of.rubric().asked(item) for item in items})
    return [samples.FAILED for _ in items]

  answers = samples.Answers(dict.fromkeys(of.entries, samples.step(1)))
  suite.judge_all(of, answers, judge, look=suite.KEEP, window=8)
  assert asked == {'story_completion': ASPECTS, 'image_editing': PICTURES_ONLY, 'subject_driven_generation': PICTURES_ONLY}
  words = interleaved_bench.Rubric().task(None, PICTURES_ONLY)
  assert 'text_quality' not in words and 'helpfulness' in words


def test_answers_are_written_and_read_back(tmp_path):
  of = InterleavedBench(samples.interleaved_bench(tmp_path))
  answers = {'story_completion_0': samples.step(1) + samples.step(2), 'image_editing_0': samples.step(3)[1:]}
  out = tmp_path / 'out'
  out.mkdir()
  of.submit(out, 'ours', samples.Answers(answers))
  rows = json.loads((out / 'predictions.json').read_text())
  assert [row['task_name'] for row in rows] == ['story_completion', 'image_editing']
  assert rows[1]['answer'] == [{'text': None, 'image': 'images/00001-0.png'}]
  back = of.submission(out)
  assert all(samples.same(back.get(name), answer) for name, answer in answers.items())
  (out / 'images' / '00001-0.png').write_bytes(b'no picture')
  with pytest.raises(suite.Unreadable, match='cannot be read'):
    of.submission(out).get('image_editing_0')
  assert Text('step 1') in back.get('story_completion_0')
