"""OpenING: criteria and their files, answers in the official folder."""

import json

import pytest

from intersyn_jax.data import images
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites import opening, suite
from intersyn_jax.evaluation.suites.opening import CRITERIA, DIMENSIONS, Opening
from intersyn_jax.interleave.types import Image, Text
from tests.evaluation.suites import samples


def score(name, model, *scores, **more):
  """A row of the official file of scores."""
  return {'data_id': name, 'model': {'id': '1', 'name': model},
          'score': {c: {'Score': s, 'Justification': ''} for c, s in zip(CRITERIA, scores, strict=True)}} | more


def test_dimensions_are_the_criteria_in_their_order():
  assert DIMENSIONS[0] == 'correctness' and DIMENSIONS[1] == 'image_text_coherency' and len(DIMENSIONS) == 7


def test_the_submission_is_in_the_official_layout_and_reads_back(tmp_path):
  of = Opening(samples.opening(tmp_path))
  answers = {'0101001': (*samples.step(1), Image(samples.png(9)), Text('the end'))}
  out = tmp_path / of.folder('ours')
  assert out.name == 'ours_output'
  out.mkdir()
  of.submit(out, 'ours', samples.Answers(answers))
  assert sorted(p.name for p in out.iterdir()) == ['0101001-o-0.png', '0101001-o-1.png', '0101001.json']
  row = json.loads((out / '0101001.json').read_text())
  assert row['conversations'][0]['input'] == [{'image': './images/i.png', 'text': '<BEGIN> tell 0101001 <image>'}]
  output = row['conversations'][1]['output']
  # The official scripts strip every text, so that none may be null.
  assert output == [{'text': 'step 1', 'image': '0101001-o-0.png'}, {'text': '', 'image': '0101001-o-1.png'},
                    {'text': 'the end', 'image': None}]
  assert row['meta_task_id'] == '1' and row['data_id'] == '001'
  assert samples.same(of.submission(out).get('0101001'), answers['0101001'])


def test_answers_of_other_scripts_are_read(tmp_path):
  of = Opening(samples.opening(tmp_path))
  output = [{'text': 'look <image>', 'image': '/mnt/them/0101001-o-0.jpg'}, {'text': 'and', 'image': 'gone.jpg'}]
  whole = {'conversations': [{'input': []}, {'output': output[:1]}]}
  samples.put(tmp_path / 'M_output' / '0101001.jsonl', json.dumps(whole, indent=1))
  samples.put(tmp_path / 'M_output' / '0101001-o-0.jpg', samples.png(3))
  given = of.submission(tmp_path / 'M_output')
  text, image = given.get('0101001')
  assert text == Text('look') and images.pixels(image.data).shape == (12, 8, 3)
  with pytest.raises(suite.Missing):
    given.get('0101002')
  samples.put(tmp_path / 'M_output' / '0101002.json', {'conversations': [{'input': []}, {'output': output}]})
  with pytest.raises(suite.Unreadable, match='picture is missing'):  # the official scripts judge what is left
    given.get('0101002')
  for content in ('{', [1], {'conversations': []}, {'conversations': [{'output': [1]}]},
                  {'conversations': [{'output': {'a': 1}}]}):
    samples.put(tmp_path / 'M_output' / '0101002.json', content)
    with pytest.raises(suite.Unreadable):
      given.get('0101002')
  with pytest.raises(UserError, match='holds no UID.json'):
    of.submission(tmp_path / 'images')


@pytest.mark.parametrize('name', ['../x', 'a/b', '', '.hidden', 'a\\b'])
def test_a_uid_is_a_file_name(name):
  with pytest.raises(UserError, match='no file name'):
    opening.file_stem(name)


def test_official_scores_of_several_models(tmp_path):
  of = Opening(samples.opening(tmp_path))
  path = samples.put(tmp_path / 'gpt-score_results.json', [
      score('0101001', 'Anole', 8, 8, 8, 8, 8, 8, 1), score('0101001', 'Human', *[9] * 7),
      score('0101002', 'Anole', 6, 6, 6, 6, 6, 6, None), score('0101001', 'Human', *[7] * 7),
      score('0101002', 'Human', *[5] * 7) | {'score': {'scores': {'Score': None}}}])
  found = of.by_model(path)
  assert set(found) == {'Anole', 'Human'}
  assert found['Anole']['0101002'].reason == 'score is null' and found['Human']['0101002'].reason == 'scores missing'
  told = of.scores(found['Anole'], samples.BOOT)
  assert told['overall'] == 7 and told['content_richness'] == 1 and told['overall.n'] == 1
  assert of.scores(found['Human'], samples.BOOT)['overall'] == 8  # two judgements of one answer are averaged
  with pytest.raises(UserError, match='scores the models Anole, Human'):
    of.verdicts_in(path)
  one = samples.put(tmp_path / 'one.json', [{'id': '0101001', **dict.fromkeys(DIMENSIONS, 3)}])
  assert of.summary(of.verdicts_in(one), samples.BOOT)['Story_Making.missing'] == 1


def test_files_of_other_questions_are_refused(tmp_path):
  of = Opening(samples.opening(tmp_path))
  with pytest.raises(UserError, match="such as '9999999'"):
    of.by_model(samples.put(tmp_path / 's.json', [score('9999999', 'Anole', *[1] * 7)]))
  with pytest.raises(UserError, match=r's t.json, entry 1: field model has no name'):
    of.by_model(samples.put(tmp_path / 's t.json', [score('0101001', '', *[1] * 7)]))
