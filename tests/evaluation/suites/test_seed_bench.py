"""SEED-Bench: the likeliest of four choices, by a model's own probabilities, and answers in the official lines."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax.data import images
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites import seed_bench, suite
from intersyn_jax.evaluation.suites.likelihood import Scorer
from intersyn_jax.evaluation.suites.seed_bench import SeedBench
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn, images_of
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.unified import ModelConfig, define
from tests import small_model
from tests.evaluation.suites import samples


@pytest.fixture(scope='module')
def parts():
  layout_ = small_model.plain()
  definition = small_model.definition(layout_, layers=1)
  return definition, definition.init(jax.random.key(0), small_model.one_device()), layout_


@pytest.fixture(scope='module')
def scorer(parts):
  return Scorer(*parts, rows=4, bucket=64)


def asked(text, answer):
  return Conversation('c', '', (Turn((small_model.image(small_model.plain()), Text(text)), (Text(answer),)),))


def test_log_probs_are_those_of_one_position_at_a_time(parts, scorer):
  """Against the logits of the text head, position by position."""
  definition, params, layout_ = parts
  conversations = [asked('what', 'a red circle'), asked('what is it at the top', 'blue'), asked('a', 'move the square')]
  found = scorer.score(conversations * 2)  # more than a batch
  np.testing.assert_allclose(found.total[:3], found.total[3:], rtol=1e-5)
  documents = [layout.tokenise(c, layout_) for c in conversations]
  width = max(len(d.text) for d in documents)
  words = jax.jit(lambda batch: jax.nn.log_softmax(definition.bind(params).text_logits(definition.bind(params)(batch))))(
      layout.stack(documents, width))
  for number, document in enumerate(documents):
    places = range(layout.answer_begins(document, 0), len(document.text))
    expected = sum(float(words[number, t - 1, document.text[t]]) for t in places)
    assert found.total[number] == pytest.approx(expected, abs=1e-3)
    assert found.positions[number] == len(places)  # the token that closes the answer counts


def test_pictures_that_are_read_as_features_count():
  layout_ = dataclasses.replace(small_model.plain(), features=True)
  definition = define(ModelConfig(TrunkConfig(32, 1, 4, 2, 8, 64), layout_.tokenizer.size, 4, 1, small_model.CODEBOOK,
                                  image_embedding='table', features=6))
  params = definition.init(jax.random.key(0), small_model.one_device())
  eyes = lambda c: np.concatenate([np.tile(images.pixels(i.data)[:1, :2].reshape(1, 6) / 255, (4, 1))
                                   for i in images_of(c.turns[0].question)] or [np.zeros((0, 0))]).astype(np.float32)
  scorer = Scorer(definition, params, layout_, rows=3, bucket=32, features=eyes)
  seen = [Conversation('c', '', (Turn((*shown, Text('what')), (Text('red'),)),))
          for shown in ((Image(samples.png(0)),), (), (Image(samples.png(1)),))]
  mixed = scorer.score(seen).total
  assert np.isfinite(mixed).all() and len(set(np.round(mixed, 4))) == 3
  np.testing.assert_allclose(scorer.score(seen[::-1]).total, mixed[::-1], rtol=1e-4)  # each has its own pictures


def test_a_probability_that_is_not_finite_is_no_choice(parts, scorer, monkeypatch):
  broken = jax.tree.map(lambda a: a, parts[1])
  broken['text_head'] = broken['text_head'].at[0, 0].set(jnp.nan)
  monkeypatch.setattr(scorer, '_params', broken)
  assert np.isnan(scorer.score([asked('a', 'red')]).total).all()


def test_a_policy_chooses_and_its_choice_is_scored(scorer, tmp_path):
  of = SeedBench(samples.seed_bench(tmp_path))
  choices = [of.entries['0'].row[f'choice_{c}'] for c in 'abcd']
  conversations = [Conversation(name, '', (Turn((Text(f'question {name}'),)),)) for name in of.entries]
  told = of.choose(scorer, conversations)
  direct = scorer.score([suite.answered(conversations[0], (Text(choice),)) for choice in choices])
  said = json.loads(told[0].turns[-1].answer[0].text)
  np.testing.assert_allclose(said['log_prob'], direct.total, rtol=1e-4)
  best = 'ABCD'[int(np.argmax(direct.total / direct.positions))]
  assert seed_bench.predictions(told[0].turns[-1].answer)[0] == best
  verdicts = suite.score_all(of, samples.Answers({c.id: c.turns[-1].answer for c in told}))
  assert verdicts['0'].scores['accuracy'] == float(best == 'A')


def test_mean_and_sum_may_choose_differently():
  answer = lambda **more: (Text(json.dumps({'log_prob': [-4.0, -3.0, -8.0, -9.0], 'positions': [4, 1, 2, 3]} | more)),)
  assert seed_bench.predictions(answer()) == ('A', 'B')
  assert seed_bench.predictions(answer(log_prob=[-1.0, None, -2.0, -3.0])) == 'log-probability is not finite'
  assert seed_bench.predictions((Text('C'),)) == ('C',)
  for text in ('E', '[1]', '{"log_prob": []}', '', 'AB'):
    assert seed_bench.predictions((Text(text),)) == 'answer is none of the letters'


def test_accuracy_by_type_and_questions_about_videos(tmp_path):
  of = SeedBench(samples.seed_bench(tmp_path, 'ABCD'))
  assert of.others == 1 and list(of.by_category()) == ['Scene Understanding', 'Instance Identity']
  told = of.summary({'0': samples.scored(accuracy=0.0), '1': samples.scored(accuracy=0.0), '2': samples.scored(accuracy=0.0),
                     '3': samples.FAILED}, samples.BOOT)
  # No right answer of a type ends the official script.
  assert told['accuracy'] == 0 and told['Scene_Understanding.accuracy'] == 0 and told['Instance_Identity.accuracy.n'] == 1
  assert told['other_questions'] == 1 and 'accuracy_sum' not in told


def test_answers_are_the_official_lines(tmp_path):
  of = SeedBench(samples.seed_bench(tmp_path))
  out = tmp_path / 'out'
  out.mkdir()
  of.submit(out, 'ours', samples.Answers({'1': (Text('B'),), '0': (Text('?'),)}))
  assert json.loads((out / 'results.json').read_text()) == {'q_id': '1', 'prediction': 'B', 'gt': 'B', 'q_type_id': 2}
  verdicts = suite.score_all(of, of.submission(out))
  assert verdicts['1'].scores == {'accuracy': 1} and verdicts['0'].missing
  lmms = samples.put(tmp_path / 'lmms' / 'submission.json', [{'question_id': '0', 'prediction': 'A'}, {'question_id': 1}])
  verdicts = suite.score_all(of, of.submission(lmms.parent))
  assert verdicts['0'].scores == {'accuracy': 1} and verdicts['1'].reason == 'answer is none of the letters'


def test_questions_of_one_picture(tmp_path):
  of = SeedBench(samples.seed_bench(tmp_path))
  first = next(iter(of.conversations(suite.KEEP)))
  assert isinstance(first.turns[0].question[0], Image) and first.turns[0].question[1] == Text('how many 0?')
  with pytest.raises(UserError, match='has no list of questions'):
    SeedBench(samples.put(tmp_path / 'x.json', {'a': 1}))
  bad = json.loads((tmp_path / 'SEED-Bench.json').read_text())
  bad['questions'][0]['answer'] = 'E'
  assert 'field answer is none' in SeedBench(samples.put(tmp_path / 'y.json', bad)).rejected[0].reason
