"""Answers: what is written, kept and read back; the same whatever the batch."""

import jax
import numpy as np
import pytest

from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import Decoder
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation import answers, skills
from intersyn_jax.evaluation.truth import truth
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.types import Image, Text, images_of, steps_of, text_of
from tests import small_model
from tests.evaluation import world


@pytest.fixture(scope='module')
def codec():
  return world.Codec()


@pytest.fixture(scope='module')
def conversations(codec):
  return world.gold(12, codec)


def test_documents_come_back_as_answers(conversations):
  layout_ = world.small_layout()
  documents = [layout.tokenise(c, layout_) for c in conversations]
  made = answers.of_documents(documents, layout_, 200)
  assert made.well_formed.all()
  np.testing.assert_array_equal(made.steps, [len(steps_of(c.turns[0].answer)) for c in conversations])
  for conversation, said in zip(conversations, made.segments(layout_)):
    gold = conversation.turns[0].answer
    assert [s.text for s in said if isinstance(s, Text)] == [s.text for s in gold if isinstance(s, Text)]
    for a, b in zip(images_of(said), images_of(gold), strict=True):
      np.testing.assert_array_equal(a.codes, b.codes)


def test_joined_rows_are_the_tokenised_conversations(conversations):
  layout_ = world.small_layout()
  documents = [layout.tokenise(c, layout_) for c in conversations]
  prompts = [layout.prompt(c, layout_) for c in conversations]
  length = answers.room(prompts, 16)
  assert length % 16 == 0 and length >= max(len(p.text) for p in prompts)
  rows = answers.joined(prompts, answers.of_documents(documents, layout_, 200), length)
  for i, document in enumerate(documents):
    real = rows.modality[i] != layout.PADDING
    for name in ('text', 'codes', 'modality', 'forced', 'document', 'position', 'turn'):
      np.testing.assert_array_equal(getattr(rows, name)[i][real], getattr(document, name), err_msg=name)
    # The grammar, which reads completions, counts the closing </s> with the last step.
    np.testing.assert_array_equal(rows.step[i][real][:-1], document.step[:-1])


def test_batches_do_not_matter_and_requests_do(conversations):
  layout_ = world.small_layout()
  definition = small_model.definition(layout_)
  params = small_model.eager(definition.init(jax.random.key(0), small_model.one_device()), layout_)
  prompts = [layout.prompt(c, layout_) for c in conversations[:5]]
  length = answers.room(prompts, 16)
  made, seen = [], []
  decoders = {rows: Decoder(definition, layout_, small_model.one_device(), DecodeConfig(max_positions=16, rows=rows))
              for rows in (5, 2)}
  for rows, requests in ((5, range(5)), (2, range(5)), (5, range(10, 15))):
    made.append(answers.write(decoders[rows], params, prompts, list(requests), length=length, seed=3, tick=seen.append))
  assert len(made[1]) == 5 and seen == [5, 2, 4, 5, 5]
  for name, array in made[0].arrays().items():
    np.testing.assert_array_equal(array, made[1].arrays()[name], err_msg=name)
  assert (made[0].text != made[2].text).any()


def test_chance_fits_and_repeats(conversations):
  layout_ = world.small_layout()
  made = answers.chance(conversations, layout_, 40, 60, 0)
  assert len(made) == 40 and made.well_formed.all() and made.text.shape[1] == 60
  np.testing.assert_array_equal(made.text, answers.chance(conversations, layout_, 40, 60, 0).text)
  with pytest.raises(UserError, match='max_positions'):
    answers.chance(conversations, layout_, 4, 3, 0)


def test_files_are_whole_or_an_error(tmp_path, conversations):
  layout_ = world.small_layout()
  made = answers.of_documents([layout.tokenise(conversations[0], layout_)], layout_, 200)
  path = tmp_path / 'a' / 'x.npz'
  answers.save(path, made.arrays() | {'truth': np.ones((1, 4), np.float32)})
  again, rest = answers.split(answers.load(path))
  assert set(rest) == {'truth'}
  for name, array in made.arrays().items():
    np.testing.assert_array_equal(array, again.arrays()[name])
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(UserError, match='x.npz'):
    answers.load(path)


def test_truth_of_gold_answers_is_5(codec):
  found = world.gold(80, codec)
  scores = truth([text_of(c.turns[0].question) for c in found], [c.turns[0].answer for c in found], codec.decode)
  assert scores.shape == (80, 4) and (scores.min(axis=1) > 4.99).mean() >= 0.99


def test_truth_sees_what_is_wrong(codec):
  one, other = (world.gold(2, codec, steps=2)[i] for i in range(2))
  question, answer = text_of(one.turns[0].question), one.turns[0].answer
  swapped = tuple(b if isinstance(a, Image) else a for a, b in zip(answer, other.turns[0].answer))
  silent = tuple(s for s in answer if isinstance(s, Image))
  scores = truth([question] * 4 + ['what is the time ?'], [answer, swapped, silent, (), answer], codec.decode)
  assert scores[1, 0] == scores[0, 0] and scores[1, 1] < 4 and scores[1, 2] == scores[0, 2]
  assert scores[2, 0] == 0 and scores[2, 1] == scores[0, 1] and scores[2, 3] == 0
  assert (scores[3] == 0).all() and np.isnan(scores[4]).all()


def test_skills_of_gold_answers_are_perfect(codec):
  probes = skills.probes(5, 30, codec.encode, pixels=32, jitter=0)
  gold = [c.turns[0].answer for c in probes.understanding]
  assert skills.understood(probes.understanding, gold).all()
  assert skills.understood(probes.understanding, [(Text('no idea'),), *gold[1:]]).sum() == 29
  shown = [[codec.decode(np.stack([i.codes for i in images_of(c.turns[0].answer)]))[0]] for c in probes.drawing]
  icc, objects = skills.drawn(probes.drawing, shown)
  assert (icc > 4.99).all() and (objects == 1).all()
  icc, objects = skills.drawn(probes.drawing, [[], *shown[2:], shown[0]])
  assert icc[0] == 0 and objects[0] == 0 and icc.mean() < 4 and objects.mean() < 0.5


def test_diversity_counts_what_differs():
  def answer(word, code):
    return (Text(word), Image(codes=np.full((4, 1), code, np.int32)))
  same = [answer('a', 1)] * 4
  mixed = [answer('a', 1), answer('b', 1), answer('b', 2), answer('c', 1)]
  assert skills.diversity(same, 4) == {'texts': 0.25, 'pictures': 0.25}
  assert skills.diversity(mixed, 4) == {'texts': 0.75, 'pictures': 0.5}
  assert skills.diversity(same + mixed, 4) == {'texts': 0.5, 'pictures': 0.375}
