"""Cheap ways to a reward and sanity: a perfect judge has no gap and passes; one that looks at half of an answer does not."""

import jax
import numpy as np
import pytest

from intersyn_jax.data.storyworld import flaws, story
from intersyn_jax.errors import UserError
from intersyn_jax.interleave import grammar, layout
from intersyn_jax.interleave.text import TextTokenizer
from intersyn_jax.interleave.types import DIMENSIONS, Image, Text, images_of, steps_of, text_of
from intersyn_jax.judge import adversarial, model, sanity
from intersyn_jax.judge.views import ICC, IQ, ITS, TCC
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.unified import ModelConfig
from tests import small_model as small
from tests.judge.test_labelled import CODEBOOK, Patches

N, STEPS = 16, 3


class World:
  """Gold conversations, an exact image tokenizer and a layout that spells them."""

  def __init__(self):
    self.conversations = [story.conversation(5, i, 'roles', topic=story.topics_of('roles')[i]) for i in range(N)]
    texts = [s.text for c in self.conversations for s in (*c.turns[0].question, *c.turns[0].answer) if isinstance(s, Text)]
    self.layout = layout.plain_layout(TextTokenizer.train(texts, 400), places=16, depth=1, codebook=CODEBOOK)
    tokenizer = Patches()
    self.encode, self.decode = tokenizer.encode, tokenizer.decode
    self.material = adversarial.Material(adversarial.coded(self.conversations, self.encode), self.layout, self.decode, STEPS,
                                         greedy=lambda gold: [layout.tokenise(c, self.layout) for c in gold])

  def truth(self, documents):
    return adversarial.truth(documents, self.layout, self.decode)

  def measure(self, what, score, **options):
    return what.measure(score, self.conversations, self.layout, self.encode, self.decode, max_steps=STEPS, **options)


@pytest.fixture(scope='module')
def world():
  return World()


def answers(world, case):
  return [layout.turns_of(document, world.layout)[0] for document in adversarial.make(case, world.material)]


def test_cases_are_what_they_say(world):
  gold = [c.turns[0] for c in world.material.gold]
  picture = lambda turn: [image.codes.tobytes() for image in images_of(turn.answer)]
  words = lambda turn: [text for text, _ in steps_of(turn.answer)]
  for case in ('token_soup', 'greedy_other', 'copied_question', 'empty_think', 'only_images', 'caption_as_text'):
    assert [picture(t) for t in answers(world, case)] == [picture(t) for t in gold], case
  for case in ('one_code', 'frequent_code', 'white_images', 'contrast_images', 'empty_vis'):
    assert [words(t) for t in answers(world, case)] == [words(t) for t in gold], case
  for turn in answers(world, 'copied_question'):
    assert set(words(turn)) == {text_of(turn.question)}
  assert all(turn.answer == () for turn in answers(world, 'empty_tags'))
  assert [picture(t) for t in answers(world, 'other_answer')] == [picture(t) for t in (*gold[1:], gold[0])]
  repeated, extra = answers(world, 'repeated_image'), answers(world, 'too_many_steps')
  assert 0 < len(repeated) < N and all(len(picture(t)) > 1 and len(set(picture(t))) == 1 for t in repeated)
  assert 0 < len(extra) < N and all(len(picture(t)) == STEPS and len(set(words(t))) == 1 for t in extra)
  shown = {case: world.decode(np.stack([images_of(t.answer)[0].codes for t in answers(world, case)])).mean(axis=(1, 2, 3))
           for case in ('white_images', 'contrast_images', 'one_code')}
  assert shown['white_images'].min() > shown['contrast_images'].max()
  assert all(len(np.unique(images_of(t.answer)[0].codes)) == 2 for t in answers(world, 'contrast_images'))


def test_soup_keeps_the_format_and_empty_tags_are_tags(world):
  cases = ('token_soup', 'empty_think', 'empty_vis')
  documents = [document for case in cases for document in adversarial.make(case, world.material)]
  batch = layout.stack(documents, max(len(d.text) for d in documents))
  alone = batch.replace(modality=np.where((batch.loss > 0) | batch.forced, batch.modality, 0))
  parsed = grammar.parse(alone, world.layout, STEPS)
  np.testing.assert_array_equal(parsed.well_formed, np.arange(len(cases) * N) < N)
  np.testing.assert_array_equal(parsed.steps, [len(world.material.steps(i)) for i in range(N)] * len(cases))
  soup, gold = documents[0], world.material.documents[0]
  changed = soup.text != gold.text
  assert changed.sum() > 5 and world.material.words(gold)[changed].all()


def test_the_truth_has_no_gap_and_sees_every_case(world):
  rows = {row['case']: row for row in world.measure(adversarial, world.truth, greedy=world.material.greedy)}
  assert set(rows) == {'gold', *adversarial.CASES} and not any(row['failed'] for row in rows.values())
  assert all(gap == 0 for row in rows.values() for gap in row['gap'].values())
  assert set(rows['gold']['truth'].values()) == {5.0} and rows['gold']['n'] == N
  for case, row in rows.items():
    assert case == 'gold' or min(row['truth'].values()) < 4.5, case
  assert adversarial.exploitable(rows.values()) == []
  known = {case: [row['truth'][name] for name in DIMENSIONS] for case, row in rows.items()}
  assert known['token_soup'][TCC] < 3 and known['token_soup'][ICC] == 5
  assert known['caption_as_text'][ITS] == 4 and known['empty_tags'] == [0] * 4
  assert known['only_images'][TCC] == 0 and known['only_text'][ICC:] == [0] * 3 and known['only_text'][TCC] < 5
  assert 'greedy_other' not in {row['case'] for row in world.measure(adversarial, world.truth)}


def test_a_judge_that_reads_no_pictures_is_named(world):
  """It gives to pictures what gold has, and fails on answers without any."""

  def score(documents):
    found = world.truth(documents)
    found[:, ICC:ITS] = 5.0
    found[[not (d.modality == layout.CODES).any() for d in documents]] = np.nan
    return found

  rows = world.measure(adversarial, score)
  failed = {row['case']: row['failed'] for row in rows if row['failed']}
  assert failed == {'only_text': N, 'empty_vis': N, 'empty_tags': N}
  assert all(row['gap'][name] is None for row in rows if row['failed'] for name in DIMENSIONS)
  named = adversarial.exploitable(rows)
  assert {'one_code.icc', 'white_images.icc', 'other_answer.icc', 'repeated_image.icc'} <= set(named)
  assert not any(name.endswith(('tcc', 'its')) or name.startswith(('gold', 'token_soup')) for name in named)
  gaps = {f'{row["case"]}.{name}': gap for row in rows for name, gap in row['gap'].items()}
  assert [gaps[name] for name in named] == sorted((gaps[name] for name in named), reverse=True)


def test_the_truth_is_sane(world):
  rows = world.measure(sanity, world.truth, samples=100)
  assert {row['test'] for row in rows} == {'other_images', 'repeated_in_words', *(f'zero.{case}' for case in sanity.ZEROS),
                                           *(f'flaw.{kind}' for kind in flaws.COSTS)}
  assert all(row['passes'] and not row['failed'] for row in rows), [row for row in rows if not row['passes']]
  assert all(row['low'] <= row['change'] <= row['high'] for row in rows)
  assert sanity.share_of_flaws(rows) == 1
  assert not any(row['test'] == 'flaw.missing_image' and row['dimension'] == 'iq' for row in rows)


def test_a_judge_that_likes_flaws_does_not_pass(world):
  """Upside down: every fall is a rise, the cap is broken and nothing has no point."""
  rows = world.measure(sanity, lambda documents: 5 - world.truth(documents) + 0.25, samples=100)
  assert not any(row['passes'] for row in rows if row['test'] != 'repeated_in_words')
  assert sanity.share_of_flaws(rows) == 0
  rows = world.measure(sanity, lambda documents: np.full((len(documents), 4), 4.5), samples=100)
  passes = {row['test']: row['passes'] for row in rows}
  assert not passes['repeated_in_words'] and not passes['other_images'] and not passes['zero.only_text']
  assert passes['flaw.blur'] and sanity.share_of_flaws(rows) == 0  # never rises, but never falls either
  rows = world.measure(sanity, lambda documents: np.full((len(documents), 4), np.nan), samples=10)
  assert all(row['failed'] and not row['n'] and not row['passes'] for row in rows)


def test_zeros_of_a_real_judge_are_exact(world):
  """Through its own views, with random weights; what has no room is a failure."""
  config = ModelConfig(TrunkConfig(16, 1, 2, 2, 8, 32), world.layout.tokenizer.size, 16, 1, CODEBOOK)
  widths = dict(tcc=140, icc=140, its=190)
  judge = model.SynJudge.of(config, world.layout, dict(layers=1, reader=1, widths=widths, max_steps=STEPS))
  params = judge.definition.init(jax.random.key(0), small.one_device())
  score = adversarial.scorer(judge, params)
  documents = {case: adversarial.make(case, world.material) for case in (*sanity.ZEROS, 'copied_question')}
  found = dict(zip(documents, np.split(score([d for made in documents.values() for d in made]), len(documents)), strict=True))
  for case, dimensions in sanity.ZEROS.items():
    np.testing.assert_array_equal(found[case][:, [DIMENSIONS.index(name) for name in dimensions]], 0, case)
    assert np.isfinite(found[case]).all(), case
  assert found['only_text'][:, TCC].all() and found['empty_think'][:, [ICC, IQ]].all()
  long = np.array([len(d.text) for d in documents['copied_question']]) > 200
  assert long.any() and np.isnan(found['copied_question'][long]).all()


def test_several_turns_are_the_users_mistake(world):
  two = story.conversation(0, 0, 'roles', turns=2)
  with pytest.raises(UserError, match=f'record {two.id} has 2 turns'):
    adversarial.coded([two], world.encode)
  assert isinstance(images_of(two.turns[0].answer)[0], Image)
