"""Questions in, conversations out: in order, independent of batching, with pictures."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from intersyn_jax import sharding
from intersyn_jax.data import images
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.generator import Eyes, Generator
from intersyn_jax.interleave.types import Image, Text, Turn, images_of
from tests import small_model

CONFIG = DecodeConfig(max_positions=20, max_images=2, rows=8, bucket=32)
QUESTIONS = ['a red circle at the top left, and then move the blue square', 'a', 'move', 'a red', 'the blue square']


def pictures(codes: np.ndarray) -> np.ndarray:
  """A stand-in for the image tokenizer: 2x2 grey pixels."""
  assert codes.dtype == np.int32 and codes.shape[1:] == (4, 1) and len(codes).bit_count() == 1
  return np.repeat(codes.reshape(-1, 2, 2, 1), 3, -1).astype(np.uint8) * 10


@pytest.fixture(scope='module')
def parts():
  layout_ = small_model.plain()
  definition = small_model.definition(layout_)
  params = small_model.eager(definition.init(jax.random.key(0), small_model.one_device()), layout_)
  return definition, params, layout_


@pytest.fixture(scope='module')
def generator(parts):
  return Generator(*parts, pictures, small_model.one_device(), CONFIG)


def test_results_come_in_the_order_of_the_requests_whatever_the_batches(parts, generator):
  together = generator.generate(QUESTIONS, n=4, seed=5)
  assert [len(answers) for answers in together] == [4] * 5
  for question, answers in zip(QUESTIONS, together, strict=True):
    assert all(c.turns[0].question == (Text(question),) and c.generator == 'decoder' and c.seed == 5 for c in answers)
    assert len({str(c.turns[0].answer) for c in answers}) > 1
  wide = Generator(*parts, pictures, small_model.one_device(), dataclasses.replace(CONFIG, rows=20))
  assert wide.generate(QUESTIONS, n=4, seed=5) == together


def test_images_carry_codes_and_png(generator):
  found = [i for answers in generator.generate(QUESTIONS, n=4) for c in answers for i in images_of(c.turns[-1].answer)]
  assert len(found) > 5
  for image in found:
    np.testing.assert_array_equal(images.pixels(image.data)[..., 0], image.codes.reshape(2, 2) * 10)


def test_a_conversation_keeps_its_earlier_turns(parts, generator):
  conversation = small_model.conversation(parts[2])
  ((answered,),) = generator.generate(conversation)
  assert answered.turns[0] == conversation.turns[0] and answered.turns[1].question == conversation.turns[1].question
  assert answered.id == conversation.id and answered.scores == ()
  ((again,),) = generator.generate(dataclasses.replace(
      conversation, turns=(conversation.turns[0], Turn(conversation.turns[1].question))))
  assert again == answered


def test_questions_may_hold_images_and_there_may_be_none(parts, generator):
  question = (small_model.image(parts[2]), Text('a'))
  ((answer,),) = generator.generate([question])
  assert answer.turns[0].question == question
  assert generator.generate([]) == []


def test_pictures_without_codes_are_read_by_the_eyes(parts):
  seen = []

  def codes(found: list[bytes]) -> np.ndarray:
    seen.extend(found)
    return np.stack([images.pixels(data)[..., 0].reshape(4, 1) // 10 for data in found]).astype(np.int32)

  given = small_model.image(parts[2])
  bare = Image(data=images.png(pictures(given.codes[None])[0]))
  looking = Generator(*parts, pictures, small_model.one_device(), CONFIG, Eyes(codes))
  ((answer,),) = looking.generate([(bare, Text('move'))])
  ((expected,),) = looking.generate([(given, Text('move'))])
  assert answer.turns[-1].answer == expected.turns[-1].answer and seen == [bare.data]
  assert answer.turns[0].question == (bare, Text('move'))


def test_without_an_image_decoder_codes_remain_and_rows_fit_the_mesh(parts):
  definition, params, layout_ = parts
  mesh = sharding.make_mesh({'fsdp': 8})
  spread = jax.device_put(jax.device_get(params), definition.shardings(mesh))
  generator = Generator(definition, spread, layout_, None, mesh, dataclasses.replace(CONFIG, rows=3))
  assert generator.server.rows == 8
  answers = generator.generate(QUESTIONS, n=3)
  found = [i for row in answers for c in row for i in images_of(c.turns[0].answer)]
  assert found and all(isinstance(i, Image) and i.data == b'' and i.codes.shape == (4, 1) for i in found)


def test_segments_come_as_they_are_completed(parts, generator):
  whole = generator.generate(QUESTIONS[:3], n=3, seed=2)
  chunked = Generator(*parts, pictures, small_model.one_device(), dataclasses.replace(CONFIG, chunk=4))
  streamed, order = {}, []
  for said in chunked.stream(QUESTIONS[:3], n=3, seed=2):
    streamed.setdefault((said.question, said.answer), []).append(said.segment)
    order.append((said.question, said.answer))
  for (i, g), segments in streamed.items():
    assert tuple(segments) == whole[i][g].turns[-1].answer
  assert sum(len(c.turns[-1].answer) > 0 for answers in whole for c in answers) == len(streamed)
  assert order != sorted(order), 'answers should grow side by side'


def test_a_picture_for_pillow(generator):
  found = [i for answers in generator.generate(QUESTIONS, n=2) for c in answers for i in images_of(c.turns[-1].answer)]
  assert found[0].pil().size == (2, 2)
  with pytest.raises(ValueError, match='only codes'):
    Image(codes=found[0].codes).pil()
