"""Facts of texts: which are wrong."""

import contextlib

from intersyn_jax.data.storyworld import flaws, language, marks, story
from intersyn_jax.data.storyworld.render import read
from intersyn_jax.data.storyworld.score import claims, item_of, its_of, score_answers
from intersyn_jax.data.storyworld.world import PLACES, Object, scene
from intersyn_jax.interleave.types import text_of


def asked_of(conversation):
  return score_answers([item_of(conversation)])[0].asked


def ends(text, found, wrong):
  return [text[:end].split(' . ')[0].split()[-1] for end, is_wrong in found if is_wrong == wrong]


def test_gold_texts_and_pictures_have_nothing_wrong():
  for number in range(40):
    conversation = story.conversation(0, number, 'roles', steps=(1, 2, 3))
    steps = item_of(conversation).steps
    for (text, picture), asked in zip(steps, asked_of(conversation), strict=True):
      text = language.normalise(text)
      assert not any(wrong for _, wrong in marks.facts(text, asked)), text
      assert all(holds for _, holds in marks.statements(text, read(picture[None])[0].scene)), text


def test_a_changed_fact_is_the_wrong_one():
  conversation = next(c for c in (story.conversation(1, n, 'roles', steps=1) for n in range(200))
                      if asked_of(c)[0].action.kind == 'move')
  asked = asked_of(conversation)[0]
  text = language.normalise(text_of(conversation.turns[0].answer))
  told = language.parse_telling(text)
  other = PLACES[(told.facts['to'] + 5) % 16]
  start, end = told.spans['to']
  changed = text[:start] + other + text[end:]
  wrong = [where for where, is_wrong in marks.facts(changed, asked) if is_wrong]
  assert wrong == [start + len(other)]


def test_another_kind_of_step_and_no_wording_are_wrong_at_the_end():
  conversation = story.conversation(2, 3, 'roles', steps=2)
  first, second = asked_of(conversation)
  text = language.normalise(item_of(conversation).steps[0][0])
  assert marks.facts(text, first)[-1] == (len(text), False) and marks.facts(text, second)[-1] == (len(text), True)
  cut = ' '.join(text.split()[:2])
  assert marks.facts(cut, first)[-1] == (len(cut), True)


def test_statements_say_what_its_is_made_of():
  """ITS is 1 and 4 times the share of statements that hold, of right and of wrong texts alike; their words end in order."""
  for number in range(200):
    conversation = story.conversation(0, number, 'roles', steps=(1, 2, 3))
    rng = story.keyed(0, number)
    for text, picture in item_of(conversation).steps:
      view = read(picture[None])[0].scene
      texts = [text]
      for change, arguments in ((flaws.redundant, (language.normalise(text), view, rng)), (flaws.wrong_text, (text, rng)),
                                (flaws.retold, (view, rng))):
        with contextlib.suppress(flaws.Unfit):
          texts.append(change(*arguments))
      for said in map(language.normalise, texts):
        found = marks.statements(said, view)
        told = language.parse_telling(said)
        assert [end for end, _ in found] == sorted(end for end, _ in found)
        assert len(found) == len(claims(told, view)) + len(told.extras)
        # Facts of both, and of a removal the name as well, which must be gone.
        assert {slot for slot, _ in claims(told, view)} <= {*language.FACTS[told.kind]['both'], 'name'}
        held = sum(holds for _, holds in found)
        assert its_of(said, view) == (min(4.0 if told.extras else 5.0, 1 + 4 * held / len(found)) if held else 0.0), said


def test_statements_end_where_their_words_do():
  red, blue = Object(0, 0, 0, 5), Object(1, 1, 1, 9)
  view = scene(0, [red, blue])
  name = language.name_of(red.name)

  def denied(text):
    return [text[:end].split()[-1] for end, holds in marks.statements(text, view) if not holds]

  assert not denied(f'the {name} moves from top left to {PLACES[5]} .')
  assert denied(f'the {name} moves from top left to {PLACES[6]} .') == [PLACES[6].split()[-1]]
  assert denied(f'the {name} leaves {PLACES[5]} , now one shape .') == [name.split()[-1], 'shape']
  assert denied('the ground turns from sky to night .') == ['night']
  # Text that follows no wording: its objects and its ground.
  assert denied(f'a {name} and a green ring on night') == ['ring', 'night']
  assert marks.statements('nothing of the kind', view) == []
