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
      assert not marks.contradictions(text, view).any(), text
      told = language.parse_telling(text)
      here = {item.name for item in view.objects}
      assert told.kind == 'remove' or marks.named(text) <= here


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


def test_contradictions_are_where_the_text_places_things():
  red, blue = Object(0, 0, 0, 5), Object(1, 1, 1, 9)
  view = scene(0, [red, blue])
  name = language.name_of(red.name)
  right = f'the {name} moves from top left to {PLACES[5]} .'
  wrong = f'the {name} moves from top left to {PLACES[6]} .'
  assert not marks.contradictions(right, view).any()
  assert marks.contradictions(wrong, view).nonzero()[0].tolist() == [5, 6]
  gone = f'the {name} leaves {PLACES[5]} , now one shape .'
  assert marks.contradictions(gone, view).nonzero()[0].tolist() == [5]
  small, ground = f'the {name} goes from large to small .', 'the ground turns from sky to night .'
  assert not marks.contradictions(small, view).any() and not marks.contradictions(f'{right[:-2]} , on sand .', view).any()
  assert marks.contradictions(f'the {name} goes from small to large .', view).nonzero()[0].tolist() == [5]
  for other in (ground, f'{right[:-2]} , on night .'):  # all but the objects
    assert (~marks.contradictions(other, view)).nonzero()[0].tolist() == [5, 9]
  assert marks.named(right) == {red.name} and marks.named('nothing of the kind') == set()


def test_claims_are_as_many_as_the_score_looks_up():
  for number in range(40):
    conversation = story.conversation(0, number, 'roles', steps=(1, 2, 3))
    for text, picture in item_of(conversation).steps:
      text = language.normalise(text)
      told, view = language.parse_telling(text), read(picture[None])[0].scene
      found = marks.claims(text)
      assert len(found) == len(claims(told, view)) and found == sorted(found)
      more = flaws.redundant(text, view, story.keyed(0, number)) if told.kind != 'reground' else text
      assert len(marks.claims(language.normalise(more))) == len(found) + (more != text)
