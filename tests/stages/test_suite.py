"""The stage `suite`: flags, whole passes from questions to summary, and a policy that goes on after a cut."""

import ast
import json
import pathlib
import re
import types

import jax
import ml_collections
import numpy as np
import pytest

from intersyn_jax import __main__ as cli
from intersyn_jax import endpoint
from intersyn_jax.data import images
from intersyn_jax.decoding import generator
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.generator import Eyes
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation import suites
from intersyn_jax.evaluation.suites import arena, opening
from intersyn_jax.stages import settings, suite, suite_models
from intersyn_jax.stages.common import Run
from tests import small_model
from tests.evaluation.suites import samples
from tests.loopback import Server, completion

LAYOUT = small_model.plain()
CONFIG = {
    'seed': 3, 'family': '', 'data': {'pixels': 8}, 'decode': {'rows': 2, 'max_positions': 24}, 'judge': {'rows': 4},
    'warmup': {'row_length': 96}, 'finetune': {'row_length': 96},
    'evaluate': {'bootstrap': 40, 'endpoint': dict(url='', model='m', key_variable='', samples=1, bad_replies=0, retries=0)}}


class Parts:
  """Stands for `stages.parts.Parts`: a random small model as every policy."""

  layout, mesh = LAYOUT, small_model.one_device()
  model = small_model.definition(LAYOUT, layers=1)
  params = small_model.eager(model.init(jax.random.key(0), mesh), LAYOUT, begin=3.0)

  def __init__(self, run):
    self.run = run

  def policy(self, name):
    return self.params

  def eyes(self):
    read = lambda data: images.pixels(data)[:2, :2, 0].reshape(4, 1) % 16
    return Eyes(lambda found: np.stack([read(data) for data in found]).astype(np.int32))

  def judge(self):
    return None, None


def pictures(codes):
  return np.repeat(codes.reshape(-1, 2, 2, 1), 3, -1).astype(np.uint8) * 10


GENERATOR = generator.Generator(Parts.model, Parts.params, LAYOUT, pictures, Parts.mesh,
                                DecodeConfig(max_positions=24, max_images=2, rows=1, bucket=96), Parts(None).eyes())


@pytest.fixture
def start(monkeypatch, tmp_path):
  monkeypatch.setattr(endpoint, 'FIRST_WAIT', 0.01)
  monkeypatch.setattr(suite_models, 'Parts', Parts)
  monkeypatch.setattr(suite_models, 'identity', lambda folder: 'weights')
  monkeypatch.setattr(suite_models.Generator, 'of', classmethod(lambda cls, parts, policy, **decode: GENERATOR))
  monkeypatch.setattr(suite_models, 'judge_all', lambda judge, params, documents, rows: types.SimpleNamespace(
      whole=np.array([[1, 2, 3, 4] if i else [np.nan] * 4 for i in range(len(documents))], np.float32)))
  monkeypatch.setattr(Run, 'require', lambda self, *stages: None)

  def run(url='', **options):
    config = ml_collections.ConfigDict(CONFIG)
    config.evaluate.endpoint.url = url
    folder = suite.run(Run(config.lock(), tmp_path / 'work', options))
    return folder, json.loads((folder / 'summary.json').read_text())

  return run


@pytest.mark.parametrize('options, words', [
    ({}, '--suite is missing; there are mmie, '), ({'suite': 'mmmu'}, '--suite=mmmu is no suite'),
    ({'suite': 'mmie'}, '--questions is missing'), ({'suite': 'mmie', 'questions': 'q'}, '--policy or --answers is missing'),
    ({'suite': 'mmie', 'questions': 'q', 'policy': 'grpo', 'answers': 'a'}, 'both given'),
    ({'suite': 'mmie', 'questions': 'q', 'policy': 'grpo', 'judge': 'gpt-4o'}, '--judge=gpt-4o is neither synjudge'),
    ({'suite': 'pope', 'questions': 'q', 'policy': 'grpo', 'judge': 'endpoint'}, 'which needs no judge'),
    ({'suite': 'mm_vet', 'questions': 'q', 'policy': 'grpo', 'judge': 'synjudge'}, 'takes endpoint, a file'),
    ({'suite': 'synjudge', 'questions': 'q'}, '--judge is missing'),
    ({'suite': 'synjudge', 'questions': 'q', 'judge': 'endpoint', 'policy': 'grpo'}, 'holds the answers itself'),
    ({'suite': 'mmie', 'questions': 'q', 'answers': 'a', 'against': 'b', 'judge': 'endpoint'}, '--against needs'),
    ({'suite': 'mmie', 'questions': 'q', 'answers': 'a', 'people': 'b'}, '--people needs'),
    ({'suite': 'mmie', 'questions': 'q', 'policy': 'grpo', 'pictures': '2'}, '--pictures is for geneval'),
    ({'suite': 'mmie', 'questions': 'q', 'answers': 'a', 'seed': '2'}, '--seed says how a policy answers'),
    ({'suite': 'geneval', 'questions': 'q', 'policy': 'grpo', 'pictures': '0'}, '--pictures=0 is not a whole number'),
    ({'suite': 'geneval', 'questions': 'q', 'policy': 'grpo', 'greedy': 'true'}, '--greedy draws the same picture'),
    ({'suite': 'mmie', 'questions': 'q', 'policy': 'grpo', 'greedy': 'perhaps'}, '--greedy=perhaps: write true or false'),
    ({'suite': 'mmie', 'questions': 'q', 'policy': 'grpo', 'seed': 'x'}, '--seed=x is not a whole number'),
    ({'suite': 'mmie', 'questions': 'q', 'policy': 'best'}, "no policy 'best'"),
    ({'suite': 'mmie', 'questions': 'q', 'policy': 'grpo', 'judge': 'endpoint'}, 'endpoint.url, which is empty'),
    ({'suite': 'mmie', 'questions': 'none', 'policy': 'grpo'}, '--questions=.*none is not there')])
def test_mistakes(start, tmp_path, monkeypatch, options, words):
  files = {'mmie': samples.mmie, 'geneval': samples.geneval}.get(options.get('suite'), samples.mmie)(tmp_path / 'q')
  if options.get('questions') == 'q':
    options = options | {'questions': str(files)}
  with pytest.raises(UserError, match=words):
    start(**options)
  assert not (tmp_path / 'work' / 'suites').exists()


def test_a_policy_answers_is_judged_and_goes_on_after_a_cut(start, tmp_path, monkeypatch):
  questions = samples.mmie(tmp_path / 'q', (*(f'SA-{n}' for n in range(9)), 'MSR-1'))
  options = dict(suite='mmie', questions=str(questions), policy='grpo')
  real, calls = GENERATOR.generate, []

  def generate(group, **more):
    calls.append([c.id for c in group])
    if len(calls) == 2:
      raise KeyboardInterrupt
    return real(group, **more)

  monkeypatch.setattr(GENERATOR, 'generate', generate)
  with pytest.raises(KeyboardInterrupt):
    start(**options)
  folder = tmp_path / 'work' / 'suites' / 'mmie' / 'grpo'
  assert not (folder / 'summary.json').exists() and not (folder / 'submission').exists()
  _, plain = start(**options)
  assert [len(group) for group in calls] == [8, 2, 2]
  assert plain['answered'] == 10 and plain['judge'] == 'nobody' and plain['missing'] == 0
  rows = json.loads((folder / 'submission' / 'data.json').read_text())
  assert len(rows) == 10 and all(row['model'] == 'grpo' for row in rows)
  assert any(item['image'] for row in rows for item in row['answer'])
  # Judged later, by a server, then by SynJudge: nothing is written again.
  with Server([completion('{"score": 3}'), completion('{"score": 9}'), completion('{"score": 6}')]) as server:
    _, told = start(server.url, judge='endpoint', **options)
  assert len(calls) == 3 and told['endpoint.requests'] == 10
  assert told['judged'] == 9 and told['failed.score out of range'] == 1
  assert told['percent'] == pytest.approx((50 + 8 * 100) / 9) and told['percent.n'] == 9 and told['MSR.questions'] == 1
  _, told = start(judge='synjudge', **options)
  assert told['icc'] == 2 and told['icc.n'] == 9 and told['failed'] == 1 and 'percent' not in told and told['SA.iq'] == 3
  assert all(isinstance(v, int | float | str | None) for v in told.values())
  lines = [json.loads(line) for line in (folder / 'judgements.jsonl').read_text().splitlines()]
  assert len(lines) == 10 and lines[0]['scores'] is None and lines[1]['category'] == 'SA'
  # The same folder read as another model's answers gives the same pictures.
  out, other = start(suite='mmie', questions=str(questions), answers=str(folder / 'submission'), judge='synjudge')
  assert other['answers_of'] == 'submission' and other['judged'] == 9 and out != folder
  with pytest.raises(UserError, match='holds answers with decoding=sampled, not greedy'):
    start(greedy='true', **options)


def test_scores_of_a_file_need_no_answers(start, tmp_path):
  questions = samples.mmie(tmp_path / 'q')
  scores = samples.put(tmp_path / 'official.json', [{'id': 'SA-1', 'gpt_feedback': '### Score\n3'},
                                                    {'id': 'PBL-1', 'gpt_feedback': 'none'}])
  folder, told = start(suite='mmie', questions=str(questions), judge=str(scores))
  assert folder.name == 'official' and told['percent'] == 50
  assert (told['questions'], told['judged'], told['failed'], told['missing']) == (3, 1, 1, 1)
  assert told['missing.no judgement in the file'] == 1 and told['failed.no score in the feedback'] == 1


def test_rows_left_out_are_listed(start, tmp_path):
  questions = samples.mmie(tmp_path / 'q', ('SA-1', 'unknown', 'MSR-1'))
  rows = json.loads(questions.read_text())
  rows[2]['conversations'][0]['content'][1]['image'] = 'images/gone.png'
  samples.put(questions, rows)
  folder, told = start(suite='mmie', questions=str(questions), policy='grpo')
  assert (told['rejected'], told['unusable'], told['answered'], told['missing']) == (1, 1, 1, 1)
  assert told['missing.question cannot be read'] == 1
  left = json.loads((folder / 'rejected.json').read_text())
  assert [row['where'] for row in left] == ['mmie.json entry 2', 'mmie.json entry 3'] and 'gone.png' in left[1]['reason']
  _, again = start(suite='mmie', questions=str(questions), policy='grpo')  # complete: the same is told without a second look
  assert again == told


def test_a_question_that_is_too_long_is_not_asked(start, tmp_path):
  questions = samples.mmie(tmp_path / 'q', ('SA-1', 'SA-2'))
  rows = json.loads(questions.read_text())
  rows[0]['conversations'][0]['content'][0]['text'] = 'move the blue square ' * 40
  _, told = start(suite='mmie', questions=str(samples.put(questions, rows)), policy='grpo')
  assert told['missing.question too long'] == 1 and told['answered'] == 1


def test_pope_and_seed_bench_need_no_judge(start, tmp_path):
  folder, told = start(suite='pope', questions=str(samples.pope(tmp_path / 'p')), policy='grpo')
  assert told['questions'] == 6 and told['judged'] + told['failed'] == 6 and told['missing'] == 0
  assert len((folder / 'submission' / 'coco_pope_random_answers.json').read_text().splitlines()) == 2
  folder, told = start(suite='seed_bench', questions=str(samples.seed_bench(tmp_path / 's', 'ABCD')), policy='grpo')
  assert told['judged'] == 4 and told['accuracy.n'] == 4 and told['accuracy_sum.n'] == 4 and told['other_questions'] == 1
  lines = [json.loads(line) for line in (folder / 'submission' / 'results.json').read_text().splitlines()]
  assert {line['prediction'] for line in lines} <= set('ABCD') and len(lines) == 4
  right = sum(line['prediction'] == line['gt'] for line in lines)
  assert told['accuracy'] == right / 4
  _, again = start(suite='seed_bench', questions=str(tmp_path / 's' / 'SEED-Bench.json'), answers=str(folder / 'submission'))
  assert again['accuracy'] == told['accuracy'] and 'accuracy_sum' not in again


def test_geneval_draws_several_pictures(start, tmp_path):
  questions = samples.geneval(tmp_path / 'g')
  folder, told = start(suite='geneval', questions=str(questions), policy='grpo', pictures='2')
  drawn = list((folder / 'submission').rglob('samples/*.png'))
  assert told['questions'] == 6 and told['answered'] == len(drawn) > 0 and told['answered'] + told['missing'] == 6
  results = samples.put(tmp_path / 'results.jsonl', [
      {'filename': str(path), 'tag': 't', 'prompt': 'p', 'correct': True, 'metadata': '{}'} for path in drawn])
  _, told = start(suite='geneval', questions=str(questions), pictures='2', judge=str(results))
  assert told['correct_pictures'] == 1 and told['judged'] == len(drawn) and told['missing'] == 6 - len(drawn)


def test_mm_vet_and_scored_answers_at_a_server(start, tmp_path):
  vet = str(samples.mm_vet(tmp_path / 'v'))
  with Server([completion('{"tenths": 5}')]) as server:
    folder, told = start(server.url, suite='mm_vet', questions=vet, policy='grpo', judge='endpoint')
  assert told['percent'] == 50 and told['math.percent.n'] == 2
  assert set(json.loads((folder / 'submission' / 'grpo.json').read_text())) == {'v1_0', 'v1_1', 'v1_2'}
  rated = str(samples.rated(tmp_path / 'r'))
  reply = completion('{"text_content": 3, "image_content": 3, "image_quality": 3, "image_text_synergy": 3}')
  with Server([reply]) as server:
    _, told = start(server.url, suite='synjudge', questions=rated, judge='endpoint')
  assert told['judged'] == 3 and told['tcc.rmse'] == pytest.approx((8 / 3) ** 0.5) and told['two.tcc.rmse'] == 0
  _, told = start(suite='synjudge', questions=rated, judge='synjudge')
  assert told['judged'] == 2 and told['failed'] == 1


def test_battles_against_another_model(start, tmp_path):
  questions = samples.opening(tmp_path / 'o', ('0101001', '0101002', '0101003'))
  options = dict(suite='opening', questions=str(questions), policy='grpo', judge='endpoint')
  for name in ('0101001', '0101002'):
    answer = {'conversations': [{'input': []}, {'output': [{'text': 'theirs', 'image': None}]}]}
    samples.put(tmp_path / 'them_output' / f'{name}.json', answer)

  def play(request):  # theirs is better, wherever it stands
    told = [part.get('text', '') for part in request.body['messages'][1]['content']]
    place = told.index('theirs')
    return completion(json.dumps({'verdict': 'A' if told[place - 1] == '[Answer of A]' else 'B'}))

  people = samples.put(tmp_path / 'people.json', [
      {'data_id': '0101001', 'model_A': {'name': 'them_output'}, 'model_B': {'name': 'grpo'}, 'winner': 'A'}])
  with Server(play) as server:
    folder, told = start(server.url, against=str(tmp_path / 'them_output'), people=str(people), **options)
  assert (folder / 'grpo_output' / '0101003.json').is_file()
  assert told['judged'] == 2 and told['missing.other model: no answer'] == 1 and told['battles'] == 2
  assert told['grpo.fdt'] == 0 and told['them_output.ties_0'] == 1 and told['agreement.fdt'] == 1
  battles = arena.read(folder / 'battles.json')
  assert [b.question for b in battles] == ['0101001', '0101002']
  # The official forms of several models need no answers.
  _, told = start(suite='opening', questions=str(questions), judge=str(folder / 'battles.json'))
  assert told['them_output.fdt'] == 1 and told['battles'] == 2
  scores = samples.put(tmp_path / 'gpt.json', [{'data_id': '0101001', 'model': {'name': m}, 'score': {
      c: {'Score': s} for c in opening.CRITERIA}} for m, s in (('X', 4), ('Y', 8))])
  _, told = start(suite='opening', questions=str(questions), judge=str(scores))
  assert told['X.overall'] == 4 and told['Y.overall'] == 8 and told['Y.missing'] == 2


def flags(text):
  return set(re.findall(r'--([a-z]+)(?==|\s|`)', text)) - {'config', 'workdir', 'help'}


def test_help_docs_and_flags_agree(capsys):
  assert cli.main(['suite', '--help']) == 0
  help_ = capsys.readouterr().out
  own = ast.get_docstring(ast.parse(pathlib.Path(suite.__file__).read_text()))
  assert own in help_ and 'usage' not in own.lower()
  known = set(settings.OPTIONS['suite'])
  assert flags(own) == known
  docs = (pathlib.Path(__file__).parents[2] / 'docs' / 'suites.md').read_text()
  assert flags(docs) == known
  for name in suites.SUITES:
    assert f'`{name}`' in docs and name in own


def test_every_suite_can_be_named():
  for name in suites.SUITES:
    assert suites.named(name).name == name
