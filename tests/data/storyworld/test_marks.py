"""Facts of texts and places of pictures: which are wrong."""

from intersyn_jax.data.storyworld import flaws, language, marks, story
from intersyn_jax.data.storyworld.render import read
from intersyn_jax.data.storyworld.score import claims, item_of, score_answers
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
      view = read(picture[None])[0].scene
      assert all(holds for _, holds in marks.claims(text, view)), text


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


def test_claims_are_denied_where_the_text_says_so():
  """By the words that each claim ends with: an object at another place, one that is still there, a count, a ground."""
  red, blue = Object(0, 0, 0, 5), Object(1, 1, 1, 9)
  view = scene(0, [red, blue])
  name, other = language.name_of(red.name), language.name_of((3, 2))
  told = lambda text: [(text[:end].split()[-1], holds) for end, holds in marks.claims(text, view)]
  assert told(f'the {name} moves from top left to {PLACES[5]} .') == [(name.split()[-1], True), (PLACES[5].split()[-1], True)]
  assert told(f'the {name} moves from top left to {PLACES[6]} .') == [(name.split()[-1], True), (PLACES[6].split()[-1], False)]
  assert told(f'the {name} leaves {PLACES[5]} , now one shape .') == [(',', False), ('shape', False)]
  assert told(f'from {PLACES[5]} the {other} goes away , leaving two shapes .') == [(',', True), ('shapes', True)]
  assert told(f'we see two shapes , a {name} and a {other} , on grass .') == [
      ('shapes', True), (name.split()[-1], True), (other.split()[-1], False), ('grass', False)]
  assert told(f'nothing but a {other} and a {name}') == [(other.split()[-1], False), (name.split()[-1], True)]
  assert marks.claims('nothing of the kind', view) == []


def test_claims_are_as_many_as_the_score_looks_up():
  for number in range(40):
    conversation = story.conversation(0, number, 'roles', steps=(1, 2, 3))
    for text, picture in item_of(conversation).steps:
      text = language.normalise(text)
      told, view = language.parse_telling(text), read(picture[None])[0].scene
      found = marks.claims(text, view)
      assert len(found) == len(claims(told, view)) and found == sorted(found)
      more = flaws.redundant(text, view, story.keyed(0, number)) if told.kind != 'reground' else text
      assert len(marks.claims(language.normalise(more), view)) == len(found) + (more != text)
