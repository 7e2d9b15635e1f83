"""The generated conversations."""

import collections
import hashlib

import numpy as np
import pytest

from intersyn_jax.data.storyworld import language, story
from intersyn_jax.data.storyworld.render import decode, read
from intersyn_jax.data.storyworld.topics import parse_topic, split_of
from intersyn_jax.interleave.types import Image, Text, images_of, steps_of, text_of


def _digest(conversations):
  state = hashlib.sha256()
  for one in conversations:
    state.update(f'{one.id} {one.topic}'.encode())
    for turn in one.turns:
      for segment in (*turn.question, *turn.answer):
        state.update(segment.text.encode() if isinstance(segment, Text) else segment.data + segment.caption.encode())
  return state.hexdigest()


@pytest.mark.parametrize('make', [story.conversation, story.understanding, story.text_to_image])
def test_deterministic_and_different(make):
  first = [make(3, i, 'policy') for i in range(30)]
  assert _digest(first) == _digest([make(3, i, 'policy') for i in range(30)])
  assert _digest(first) != _digest([make(4, i, 'policy') for i in range(30)])
  assert len({_digest([one]) for one in first}) == 30
  assert len({one.id for one in first}) == 30


def test_scenes_are_deterministic_and_do_not_depend_on_the_batch():
  many = story.scenes(0, 0, 20)
  assert many.shape == (20, 32, 32, 3)
  assert np.array_equal(many[10:], story.scenes(0, 10, 10))
  assert not np.array_equal(many, story.scenes(1, 0, 20))
  clean = story.scenes(0, 0, 50, damaged=0)
  counts = [len(reading.scene.objects) for reading in read(clean)]
  assert min(counts) >= 4
  assert max(counts) <= 10


@pytest.mark.parametrize('steps', [1, 2, 3])
@pytest.mark.parametrize('objects', [1, 2, 3])
def test_steps_and_objects_are_as_asked(steps, objects):
  for i in range(60):
    one = story.conversation(0, i, 'policy', turns=2, steps=steps, objects=objects)
    assert len(one.turns) == 2
    for k, turn in enumerate(one.turns):
      question = text_of(turn.question)
      request = language.parse_question(question)
      parts = steps_of(turn.answer)
      assert len(parts) == request.count == steps
      assert (request.scene is None) == (k > 0)
      assert len(question.split()) <= language.WORD_LIMIT
      for text, image in parts:
        assert language.parse_telling(text) is not None
        # Captions, pictures and their order agree exactly.
        assert read(decode(image.data)[None])[0].scene == language.parse_caption(image.caption)


def test_questions_keep_to_the_split_and_the_topic():
  for split in ('roles', 'policy', 'validation', 'test'):
    for i in range(40):
      topic = parse_topic(story.conversation(0, i, split).topic)
      assert split_of(topic) == split


def test_two_step_questions_are_short():
  lengths = [len(text_of(story.conversation(0, i, 'policy', steps=2).turns[0].question).split()) for i in range(300)]
  assert np.mean(lengths) <= 35


def test_answers_are_short():
  for i in range(300):
    for text, image in steps_of(story.conversation(0, i, 'policy', steps=2).turns[0].answer):
      assert len(text.split()) <= 15
      assert len(image.caption.split()) <= 20


def test_some_questions_leave_sizes_and_places_open():
  kinds = collections.Counter()
  for i in range(400):
    request = language.parse_question(text_of(story.conversation(0, i, 'policy').turns[0].question))
    kinds['size'] += any(item.size is None for item in request.scene.objects)
    kinds['place'] += any(item.cell is None for item in request.scene.objects)
    kinds['add'] += any(action.kind == 'add' and action.value is None for action in request.actions)
  assert min(kinds[key] for key in ('size', 'place', 'add')) > 5


def test_understanding_answers_are_true():
  for i in range(300):
    one = story.understanding(0, i, 'policy')
    image, asked = one.turns[0].question
    assert isinstance(image, Image)
    view = read(decode(image.data)[None])[0].scene
    answer = text_of(one.turns[0].answer)
    if asked.text == 'how many shapes ?':
      assert answer == language.count_of(len(view.objects))
    elif asked.text == 'describe the picture .':
      assert language.parse_caption(answer) == view
    elif asked.text.startswith('where is'):
      assert f'{asked.text.removeprefix("where is the ").removesuffix(" ?")} {answer}' in language.caption(view)
    elif asked.text.startswith('what shape is at'):
      assert f'{answer} {asked.text.removeprefix("what shape is at ").removesuffix(" ?")}' in language.caption(view)
    elif asked.text.startswith('what colour is'):
      shape = asked.text.split()[-2]
      assert language.caption(view).count(shape) == 1
      assert f'{answer} {shape}' in language.caption(view)


def test_text_to_image_draws_its_caption():
  for i in range(50):
    turn = story.text_to_image(0, i, 'policy').turns[0]
    caption = text_of(turn.question).removeprefix('draw ').removesuffix(' .')
    (image,) = images_of(turn.answer)
    assert read(decode(image.data)[None])[0].scene == language.parse_caption(caption)
