"""The ground truth is itself checked: gold is perfect, each flaw costs what it should, garbage costs all."""

import dataclasses
import random

import numpy as np
import pytest

from intersyn_jax.data.storyworld import flaws, language, story
from intersyn_jax.data.storyworld.language import Request
from intersyn_jax.data.storyworld.render import render
from intersyn_jax.data.storyworld.score import Item, claims, item_of, score_answer, score_answers, score_question
from intersyn_jax.data.storyworld.topics import parse_topic
from intersyn_jax.data.storyworld.world import MOST_OBJECTS, Action, Object, scene
from intersyn_jax.interleave.types import DIMENSIONS, Text, Turn, text_of

KINDS = [(32, 0), (64, 1)]


@pytest.mark.parametrize(('pixels', 'jitter'), KINDS)
@pytest.mark.parametrize('split', ['roles', 'test'])
def test_gold_scores_five(pixels, jitter, split):
  made = [story.conversation(1, i, split, pixels=pixels, jitter=jitter, turns=(1, 2, 3), objects=(1, 2, 3))
          for i in range(200)]
  items = [item_of(one, turn) for one in made for turn in range(len(one.turns))]
  scores = score_answers(items, jitter=jitter)
  for item, score in zip(items, scores, strict=True):
    for one in (score.whole, *score.steps):
      assert one.values() == pytest.approx((5, 5, 5, 5)), item.questions
    assert len(score.steps) == len(item.steps)


def _flaw_table(pixels, jitter, count):
  """Mean change of each score by each flaw, on answers where the flaw fits."""
  table = {}
  for kind in flaws.COSTS:
    clean, flawed = [], []
    for i in range(count):
      gold = story.conversation(2, i, 'roles', pixels=pixels, jitter=jitter, turns=(1, 2))
      made, names = flaws.inject(gold, random.Random(i), [kind], jitter=jitter)
      if names:
        assert names == [kind]
        clean.append(item_of(gold))
        flawed.append(item_of(made))
    before, after = (np.array([score.whole.values() for score in score_answers(items, jitter=jitter)])
                     for items in (clean, flawed))
    table[kind] = ((after - before).mean(0), len(clean))
  return table


@pytest.mark.parametrize(('pixels', 'jitter', 'count'), [(32, 0, 100), (64, 1, 45)])
def test_every_flaw_lowers_its_scores_and_no_other(pixels, jitter, count):
  table = _flaw_table(pixels, jitter, count)
  print(f'\n{pixels} pixels{"":14} {"n":>4} ' + ' '.join(f'{dimension:>6}' for dimension in DIMENSIONS))
  for kind, (change, number) in table.items():
    print(f'{kind:24} {number:4} ' + ' '.join(f'{value:6.2f}' for value in change))
  for kind, (change, number) in table.items():
    assert number >= count // 3, kind
    for dimension, value in zip(DIMENSIONS, change, strict=True):
      if dimension in flaws.COSTS[kind]:
        assert value < -0.25, (kind, dimension)
      else:
        assert abs(value) < 0.12, (kind, dimension)


def test_two_flaws_and_unknown_flaws():
  gold = story.conversation(0, 1, 'roles', steps=3)
  made, names = flaws.inject(gold, random.Random(0), ['blur', 'missing_text'], count=2)
  assert len(names) == 2
  assert made.generator == 'flawed'
  again, _ = flaws.inject(gold, random.Random(0), ['blur', 'missing_text'], count=2)
  assert made == again
  with pytest.raises(ValueError, match='unknown flaw'):
    flaws.inject(gold, random.Random(0), ['rot'])


# A codec with one code a tile stands in for a trained image tokenizer.


def _codec():
  items = [None] + [Object(colour, shape, size, 0) for colour in range(6) for shape in range(5) for size in range(2)]
  tiles = np.stack([render(scene(ground, [item] if item else []))[:8, :8] for ground in range(4) for item in items])

  def encode(picture):
    cells = picture.reshape(4, 8, 4, 8, 3).transpose(0, 2, 1, 3, 4).reshape(16, 1, -1).astype(np.float32)
    return ((cells - tiles.reshape(1, len(tiles), -1)) ** 2).mean(-1).argmin(-1)[:, None].astype(np.int32)

  def decode(codes):
    return tiles[codes[:, 0]].reshape(4, 4, 8, 8, 3).transpose(0, 2, 1, 3, 4).reshape(32, 32, 3)

  return encode, decode, len(tiles)


@pytest.mark.parametrize('kind', list(flaws.CODE_FLAWS))
def test_damaged_codes_cost_icc(kind):
  encode, decode, size = _codec()
  icc, changed = [], []
  for i in range(80):
    item = item_of(story.conversation(3, i, 'roles'))
    clean = [encode(image) for _, image in item.steps]
    assert all(np.array_equal(decode(codes), image) for codes, (_, image) in zip(clean, item.steps, strict=True))
    before = [codes.copy() for codes in clean]
    codes = [flaws.CODE_FLAWS[kind](codes, size, random.Random(i)) for codes in clean]
    for old, kept, new in zip(before, clean, codes, strict=True):
      assert np.array_equal(old, kept)  # damage makes a copy
      assert new.shape == old.shape
      assert new.dtype == old.dtype
      assert new.min() >= 0
      assert new.max() < size
      changed.append((old != new).mean())
    steps = [(text, decode(code)) for (text, _), code in zip(item.steps, codes, strict=True)]
    icc.append(score_answer(item.questions, steps).whole.icc)
  print(f'\n{kind}: share of codes changed {np.mean(changed):.3f}, ICC {np.mean(icc):.2f}')
  assert np.mean(changed) > 0.05
  assert np.mean(icc) < 4.3


# The rubric, case by case.

CIRCLE, SQUARE = Object(0, 0, 1, 0), Object(1, 1, 0, 5)
START = scene(0, [CIRCLE, SQUARE])
MOVED = scene(0, [CIRCLE._replace(cell=9), SQUARE])
QUESTION = ('show a large red circle top left and a small blue square upper midleft on sand , '
            'then move the red circle to lower midleft . use two pictures .')
TEXTS = ('two shapes , a red circle and a blue square .', 'the red circle moves from top left to lower midleft .')


def _steps(first=START, second=MOVED, texts=TEXTS):
  return [(texts[0], None if first is None else render(first)), (texts[1], None if second is None else render(second))]


def test_wordings_and_layouts_are_free():
  assert score_answer([QUESTION], _steps()).whole.values() == (5, 5, 5, 5)
  texts = ('We see two shapes, a blue square and a red circle.', 'From top left the red circle moves to lower midleft')
  assert score_answer([QUESTION], _steps(texts=texts)).whole.values() == (5, 5, 5, 5)
  open_question = 'show a red circle and a blue square on sand , then paint it blue . use two pictures .'
  assert score_answer([open_question], _steps()) is None  # `it` means nothing yet
  open_question = 'show a red circle and a blue square on sand , then paint the red circle green . use two pictures .'
  for cells in ((0, 5), (15, 2)):
    for size in (0, 1):
      first = scene(0, [Object(0, 0, size, cells[0]), Object(1, 1, 0, cells[1])])
      second = scene(0, [Object(2, 0, size, cells[0]), Object(1, 1, 0, cells[1])])
      texts = (TEXTS[0], 'the red circle turns green .')
      free = score_answer([open_question], _steps(first, second, texts))
      assert free.whole.values() == (5, 5, 5, 5)
      assert free.goals == (first, second)  # what the question leaves open is as the pictures show it
      elsewhere = scene(0, [Object(2, 0, size, 7), Object(1, 1, 0, cells[1])])
      assert score_answer([open_question], _steps(first, elsewhere, texts)).whole.icc < 4.6  # it did not stay


def test_missing_parts_give_zeros():
  score = score_answer([QUESTION], [(None, render(START)), (TEXTS[1], None)])
  assert score.steps[0].values() == (0, 5, 5, 0)
  assert score.steps[1].values() == (5, 0, 0, 0)
  assert score.goals == (START, None)
  empty = score_answer([QUESTION], [])
  assert empty.whole.values() == (0, 0, 0, 0)
  assert len(empty.steps) == 2
  assert score_answer([QUESTION], _steps()[:1]).whole.values() == (2.5, 2.5, 2.5, 2.5)
  assert score_answer([QUESTION], _steps(texts=('', '  '))).whole.tcc == 0


def test_extra_steps_cost():
  score = score_answer([QUESTION], _steps() + _steps())
  assert max(score.whole.tcc, score.whole.icc, score.whole.its) <= 3.5
  assert all(step.values() == (5, 5, 5, 5) for step in score.steps)


def test_a_step_is_judged_given_the_steps_before():
  wrong = scene(0, [CIRCLE, SQUARE._replace(cell=10)])
  carried = scene(0, [CIRCLE._replace(cell=9), SQUARE._replace(cell=10)])
  kept = score_answer([QUESTION], _steps(wrong, carried))
  assert kept.steps[0].icc < 4.5
  assert kept.steps[1].icc == 5  # it does what it should to the scene shown before
  assert kept.goals == (START, carried)
  back = score_answer([QUESTION], _steps(wrong, MOVED))
  assert back.steps[1].icc == 5  # or goes back to what was asked
  assert back.goals == (START, MOVED)
  assert kept.whole.icc < back.whole.icc < 5


def test_redundant_text_caps_its_at_four():
  for added in (' , on sand .', ' , with a small blue square upper midleft .'):
    score = score_answer([QUESTION], _steps(texts=(TEXTS[0], TEXTS[1].replace(' .', added))))
    assert score.steps[1].values() == (5, 5, 5, 4)
  repeat = score_answer([QUESTION], _steps(texts=(TEXTS[0], language.caption(MOVED))))
  assert repeat.steps[1].its == 4
  assert repeat.steps[1].tcc < 4
  false = score_answer([QUESTION], _steps(texts=(TEXTS[0], TEXTS[1].replace(' .', ' , on sky .'))))
  assert false.steps[1].tcc < 5
  assert false.steps[1].its < 4


def test_texts_told_anew_are_right_and_wrong():
  """Of every picture that a model may draw, objects of one name among them; what shows nothing, or too much, is not told."""
  rng, held, unfit = random.Random(0), [], 0
  for _ in range(600):
    objects = [Object(rng.randrange(3), rng.randrange(3), rng.randrange(2), rng.randrange(16)) for _ in range(rng.randrange(8))]
    view = scene(rng.randrange(4), objects)
    try:
      text = flaws.retold(view, rng)
    except flaws.Unfit:
      unfit += 1
      continue
    assert 1 <= len(objects) <= MOST_OBJECTS
    holds = [one for _, one in claims(language.parse_telling(language.normalise(text)), view)]
    held.append(sum(holds) / len(holds))
  held = np.array(held)
  assert len(held) > 150 and unfit > 50
  assert 0.25 < (held == 1).mean() < 0.6 and (held == 0).mean() > 0.1 and ((held > 0) & (held < 1)).mean() > 0.1


def test_text_and_picture_that_agree_in_error_keep_its():
  second = scene(0, [CIRCLE._replace(cell=15), SQUARE])
  score = score_answer([QUESTION], _steps(second=second, texts=(TEXTS[0], TEXTS[1].replace(
      'lower midleft', 'bottom right'))))
  assert score.steps[1].its == 5
  assert score.steps[1].tcc < 5
  assert score.steps[1].icc < 4.6


def test_scores_fall_with_the_number_of_errors():
  seen = [MOVED, scene(0, [CIRCLE._replace(cell=9, colour=3), SQUARE]),
          scene(0, [CIRCLE._replace(cell=12, colour=3), SQUARE]), scene(1, [Object(4, 4, 0, 15)]), scene(1, [])]
  scores = [score_answer([QUESTION], _steps(second=view)).steps[1].icc for view in seen]
  assert scores == sorted(scores, reverse=True)
  assert scores[-1] == 1


def test_tcc_and_iq_do_not_see_what_they_must_not():
  clean = score_answer([QUESTION], _steps())
  pictures = score_answer([QUESTION], _steps(first=scene(2, []), second=None))
  assert [step.tcc for step in pictures.steps] == [step.tcc for step in clean.steps]
  texts = score_answer([QUESTION], _steps(texts=('green', None)))
  assert [(step.icc, step.iq) for step in texts.steps] == [(step.icc, step.iq) for step in clean.steps]


def test_a_later_turn_goes_on_from_the_last_scene():
  follow = 'now move it to top right . show one picture .'
  text = 'the red circle moves from lower midleft to top right .'
  after = scene(0, [CIRCLE._replace(cell=3), SQUARE])
  score = score_answer([QUESTION, follow], [(text, render(after))], previous=render(MOVED))
  assert score.whole.values() == (5, 5, 5, 5)
  assert score_answer([follow], [(text, render(after))]) is None  # no scene to start from


def test_garbage_neither_crashes_nor_scores():
  rng = np.random.default_rng(0)
  words = sorted(language.vocabulary())
  items = []
  for i in range(100):
    question = text_of(story.conversation(4, i, 'policy').turns[0].question)
    steps = []
    for _ in range(rng.integers(1, 5)):
      text = ' '.join(rng.choice(words, rng.integers(1, 40)))
      picture = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
      steps.append((text if rng.random() < 0.8 else None, picture if rng.random() < 0.8 else None))
    items.append(Item([question], steps))
  items.append(Item([QUESTION], [('\x00 <vis> {}' * 400, np.full((32, 32, 3), 255, np.uint8))]))
  values = np.array([score.whole.values() for score in score_answers(items)])
  assert np.isfinite(values).all()
  assert values.min() >= 0
  assert (values.mean(0) < (2, 1.5, 1.2, 0.8)).all(), values.mean(0)
  assert score_answer(['what is love ?'], _steps()) is None
  assert score_answer([], _steps()) is None


def test_contradictions_are_not_answerable():
  for action in ('remove the green ring', 'move the red circle to upper midleft', 'make the ground sand'):
    question = QUESTION.replace('move the red circle to lower midleft', action)
    assert language.parse_question(question) is not None
    assert score_answer([question], _steps()) is None
    assert score_question(question, 'moving a red circle on sand') <= 8



# Questions.


def test_gold_questions_score_ten():
  for i in range(300):
    one = story.conversation(5, i, 'test', turns=3)
    asked = [text_of(turn.question) for turn in one.turns]
    for k, question in enumerate(asked):
      assert score_question(question, one.topic, asked[:k]) == 10, (one.topic, asked[:k + 1])


def test_questions_lose_what_they_lack():
  topic = parse_topic('moving a red circle on sand')
  assert score_question(QUESTION, topic) == 10
  assert score_question(QUESTION, topic, [QUESTION]) == 9  # a repeat
  assert score_question('', topic) == 0
  assert score_question('tell me of cats', topic) == 2
  assert score_question('show pictures of cats', topic) == 3
  assert score_question('cats ' * 60, topic) == 1  # too long as well
  far = 'moving a white ring on night'
  assert score_question(QUESTION, far) < 8.5
  other = Request(2, START, (Action('remove', (1, 1)),))
  assert score_question(language.write_question(other, language.SERIES[0]), topic) < 10
  with pytest.raises(ValueError, match='topic'):
    score_question(QUESTION, 'cats')


def test_item_of_reads_encoded_images():
  one = story.conversation(0, 0, 'roles', turns=2, steps=2)
  item = item_of(one)
  assert len(item.questions) == 2
  assert item.previous is not None
  assert item_of(one, 0).previous is None
  bare = dataclasses.replace(one, turns=(Turn(one.turns[0].question, (Text('hello'),)),))
  assert item_of(bare).steps == [('hello', None)]
