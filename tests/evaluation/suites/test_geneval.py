"""GenEval: folders of pictures for the official detector, and its results counted as the official summary counts them."""

import json

import pytest

from intersyn_jax.data import images
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites import geneval, suite
from intersyn_jax.evaluation.suites.geneval import GenEval
from intersyn_jax.interleave.types import Image, Text
from tests.evaluation.suites import samples


def result(prompt, place, correct, tag='counting'):
  return {'filename': f'/mnt/images/{prompt:05d}/samples/{place:04d}.png', 'tag': tag, 'prompt': 'p', 'correct': correct,
          'reason': '', 'metadata': '{}', 'details': '{}'}


def test_pictures_are_written_for_the_official_detector(tmp_path):
  of = GenEval(samples.geneval(tmp_path))
  of.pictures = 2
  drawn = {f'0000{p}/000{k}': (Text('here'), Image(samples.png(10 * p + k))) for p in range(2) for k in range(2)}
  drawn['00001/0001'] = (Text('I cannot draw'),)
  out = tmp_path / 'out'
  out.mkdir()
  of.submit(out, 'ours', samples.Answers(drawn))
  assert sorted(str(p.relative_to(out)) for p in out.rglob('*.png')) == [
      '00000/samples/0000.png', '00000/samples/0001.png', '00001/samples/0000.png']
  rows = (tmp_path / 'evaluation_metadata.jsonl').read_text().splitlines()
  for number, row in enumerate(rows):
    assert json.loads((out / f'{number:05d}' / 'metadata.jsonl').read_text()) == json.loads(row)
  # What was not drawn is told, as the official summary only sees what is there.
  found = suite.score_all(of, samples.Answers(drawn))
  assert [name for name, v in found.items() if v.missing] == ['00001/0001', '00002/0000', '00002/0001']
  assert found['00001/0001'].reason == geneval.NO_PICTURE and found['00002/0000'].reason == suite.NO_ANSWER
  back = of.submission(out)
  assert images.pixels(back.get('00000/0001')[0].data).shape == (12, 8, 3)
  drawn = out / '00000' / 'samples' / '0001.png'
  drawn.rename(drawn.with_name('00001.png'))  # as the official generator has it
  assert back.get('00000/0001')
  with pytest.raises(suite.Missing):
    back.get('00001/0001')


def test_results_are_counted_as_the_official_summary_does(tmp_path):
  of = GenEval(samples.geneval(tmp_path))
  of.pictures = 2
  results = samples.put(tmp_path / 'results.jsonl', [
      result(0, 0, True, 'single_object'), result(0, 1, False, 'single_object'), result(1, 0, False), result(1, 1, False),
      result(2, 0, True), result(2, 1, False)])
  told = of.summary(of.verdicts_in(results), samples.BOOT)
  assert told['single_object.correct'] == 0.5 and told['counting.correct'] == 0.25
  assert told['overall'] == pytest.approx((0.5 + 0.25) / 2)  # the mean of the tags, not of the pictures
  assert told['correct_pictures'] == pytest.approx(2 / 6) and told['correct_prompts'] == pytest.approx(2 / 3)
  assert told['overall.low'] < told['overall'] < told['overall.high']


def test_pictures_without_a_result_are_missing_and_no_zero(tmp_path):
  of = GenEval(samples.geneval(tmp_path))
  of.pictures = 2
  results = samples.put(tmp_path / 'results.jsonl', [result(0, 0, True), result(1, 0, 1), result(1, 1, None)])
  verdicts = of.verdicts_in(results)
  told = of.summary(verdicts, samples.BOOT)
  assert told['counting.correct'] == 1 and told['counting.correct.n'] == 1
  assert (told['counting.judged'], told['counting.failed'], told['counting.missing']) == (1, 1, 2)
  assert verdicts['00002/0000'].reason == geneval.NO_RESULT
  extra = of.verdicts_in(samples.put(tmp_path / 'r.jsonl', [result(0, 3, True)]))
  assert extra['00000/0003'].scores == {'correct': 1} and len(extra) == 7  # more pictures than were asked for count as well


def test_files_that_do_not_belong_together(tmp_path):
  of = GenEval(samples.geneval(tmp_path))
  with pytest.raises(UserError, match='results of prompt 00017'):
    of.verdicts_in(samples.put(tmp_path / 'r.jsonl', [result(17, 0, True)]))
  with pytest.raises(UserError, match='r.jsonl, line 1: field filename does not end like'):
    of.verdicts_in(samples.put(tmp_path / 'r.jsonl', [result(0, 0, True) | {'filename': 'x.png'}]))
  with pytest.raises(UserError, match='line 2: is no JSON'):  # a line less would shift the folders
    GenEval(samples.put(tmp_path / 'm.jsonl', json.dumps({'prompt': 'p', 'tag': 't'}) + '\nx\n'))
