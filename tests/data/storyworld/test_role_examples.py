"""What the SEIR roles learn from."""

import random

import pytest

from intersyn_jax.data import roles
from intersyn_jax.data.storyworld import language, role_examples, story
from intersyn_jax.data.storyworld.render import decode, read
from intersyn_jax.data.storyworld.role_examples import role_example, suggest
from intersyn_jax.data.storyworld.score import score_question
from intersyn_jax.data.storyworld.world import Object, scene
from intersyn_jax.interleave.types import Text, images_of, text_of

EXAMPLES = [role_example(0, i) for i in range(800)]


def _role(one):
  return one.trace.partition('/')[0]


def _of(role):
  return [one for one in EXAMPLES if _role(one) == role]


def test_all_roles_occur_and_are_tagged():
  assert {_role(one) for one in EXAMPLES} == set(roles.TAGS)
  for one in EXAMPLES:
    (turn,) = one.turns
    assert text_of(turn.question).startswith(roles.TAGS[_role(one)])
    assert isinstance(turn.answer[0], Text)


def test_deterministic():
  assert [role_example(0, i) for i in range(20)] == EXAMPLES[:20]
  assert role_example(0, 3, names=['caption_revise']).trace.startswith('caption_revise/')
  with pytest.raises(ValueError, match='unknown role'):
    role_example(0, 0, names=['boss'])


@pytest.mark.parametrize('role', ['question_critique', 'answer_critique', 'image_critique'])
def test_about_half_of_what_critics_see_is_clean(role):
  stops = [roles.parse_critique(text_of(one.turns[0].answer)).stop for one in _of(role)]
  assert 0.35 < sum(stops) / len(stops) < 0.65


def test_the_trace_names_the_flaw_where_there_is_one():
  for one in EXAMPLES:
    role, _, flaw = one.trace.partition('/')
    if role.endswith('critique'):
      assert bool(flaw) != roles.parse_critique(text_of(one.turns[0].answer)).stop
    else:
      assert bool(flaw) == role.endswith('revise')


def test_completions_parse():
  for one in _of('answer_write') + _of('answer_revise'):
    for step in roles.parse_answer(text_of(one.turns[0].answer)):
      assert language.parse_telling(step.text) is not None
      assert language.parse_caption(step.caption) is not None
  for one in _of('caption_revise'):
    assert language.parse_caption(roles.parse_caption(text_of(one.turns[0].answer))) is not None
  for one in _of('question_write') + _of('question_revise'):
    question = roles.parse_question(text_of(one.turns[0].answer))
    assert language.parse_question(question) is not None


def test_flawed_questions_score_lower_than_gold():
  for i in range(150):
    rng = random.Random(i)
    one = story.conversation(9, i, 'roles')
    case = role_examples._Case(rng, one, 0)
    try:
      flawed, suggestion = case.flawed_question()
    except role_examples._Unfit:
      continue
    assert flawed != case.question
    assert suggestion
    assert score_question(flawed, one.topic) < 10, (flawed, suggestion)


def test_image_critics_say_none_exactly_on_right_pictures():
  for one in _of('image_critique'):
    (turn,) = one.turns
    critique = roles.parse_critique(text_of(turn.answer))
    (image,) = images_of(turn.question)
    reading = read(decode(image.data)[None])[0]
    caption = text_of(turn.question).rsplit(' caption : ', 1)[1]
    if critique.stop:
      assert reading.scene == language.parse_caption(caption)
      assert reading.quality == 5
    elif critique.suggestion == role_examples.SHARPER:
      assert reading.quality < 5


def test_suggestions_name_the_mend():
  goal = scene(0, [Object(0, 0, 1, 0), Object(1, 1, 0, 5)])
  cases = {
      'the red circle must be top left': scene(0, [Object(0, 0, 1, 7), Object(1, 1, 0, 5)]),
      'the shape top left must be a red circle': scene(0, [Object(3, 0, 1, 0), Object(1, 1, 0, 5)]),
      'the blue square must be small': scene(0, [Object(0, 0, 1, 0), Object(1, 1, 1, 5)]),
      'a blue square is missing upper midleft': scene(0, [Object(0, 0, 1, 0)]),
      'the ground must be sand': scene(3, goal.objects),
      'there must be no green ring bottom right': scene(0, [*goal.objects, Object(2, 4, 0, 15)]),
      '': goal,
  }
  for expected, seen in cases.items():
    assert suggest(goal, seen) == expected
