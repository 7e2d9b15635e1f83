"""Every sentence that is written reads back."""

import random

import pytest

from intersyn_jax.data.storyworld import language, story
from intersyn_jax.data.storyworld.language import Request
from intersyn_jax.data.storyworld.world import CELLS, IT, KINDS, Action, Impossible, Object, scene
from intersyn_jax.interleave.types import Image, Text

TEMPLATES = [*((t, 1, True) for t in language.SINGLE), *((t, n, True) for t in language.SERIES for n in (2, 3)),
             *((t, n, False) for t in language.FOLLOW for n in (1, 2, 3))]


def test_there_are_at_least_fifty_templates():
  templates = set(language.SINGLE + language.SERIES + language.FOLLOW)
  assert len(templates) >= 50
  assert len(templates) == len(language.SINGLE) + len(language.SERIES) + len(language.FOLLOW)


@pytest.mark.parametrize(('template', 'steps', 'first'), TEMPLATES)
def test_every_template_parses_back_with_every_action(template, steps, first):
  rng = random.Random(template)
  for kind in KINDS:
    for wording in range(6):
      view = story.random_scene(rng, rng.choice((2, 3)))
      opened = scene(view.ground, [item._replace(size=rng.choice((None, item.size)),
                                                 cell=item.cell if wording % 3 else None) for item in view.objects])
      actions, now = [], view
      while len(actions) < steps - (first and steps > 1):
        action = story.random_action(rng, now, None if actions else kind)
        now = story.perform(rng, now, action)
        if action.kind == 'add' and wording % 2:
          action = action._replace(value=None)
        elif action.kind not in ('add', 'reground') and rng.random() < 0.3:
          action = action._replace(name=IT)
        actions.append(action)
      request = Request(steps, opened if first else None, tuple(actions))
      question = language.write_question(request, template, [wording, wording + 1])
      assert language.parsings(question) == [request], question
      assert len(question.split()) <= language.WORD_LIMIT + 15


@pytest.mark.parametrize('kind', ['show', *KINDS])
def test_every_wording_reads_back(kind):
  rng = random.Random(kind)
  seen = set()
  for i in range(60):
    before = story.random_scene(rng, rng.choice((2, 3)))
    action = None if kind == 'show' else story.random_action(rng, before, kind)
    after = before if action is None else story.perform(rng, before, action)
    text = language.tell(action, before, after, i)
    told = language.parse_telling(text)
    assert told is not None, text
    assert told.kind == kind
    assert told.facts == language.facts_of(action, before, after)
    assert not told.extras
    seen.add(i % len(language.WORDINGS[kind]))
    assert language.parse_caption(language.caption(after)) == after
  assert len(seen) == len(language.WORDINGS[kind]) >= 3


def test_texts_of_different_meaning_differ():
  rng = random.Random(0)
  meanings: dict[str, tuple] = {}
  for i in range(3000):
    before = story.random_scene(rng, 2)
    action = story.random_action(rng, before)
    after = story.perform(rng, before, action)
    meaning = (action.kind, tuple(language.facts_of(action, before, after).items()))
    assert meanings.setdefault(language.tell(action, before, after, i), meaning) == meaning


@pytest.mark.parametrize('text', [
    '', 'show', 'show two pictures .', 'a red circle', 'now move the red circle . show one picture .',
    'now move the pink circle to top left . show one picture .',
    'now remove the red circle . show three pictures .',  # the number does not fit
    'now remove the red circle . show one picture . now remove the red circle . show one picture .',
    '\x00\xff ??? <vis>', 'show ' * 5000,
])
def test_other_text_does_not_parse(text):
  assert language.parse_question(text) is None
  assert language.parse_telling(language.normalise(text)) is None
  assert language.parse_caption(text) is None


def test_captions_that_no_scene_fits():
  assert language.parse_caption('large red circle top left , small blue ring top left on sand') is None
  assert language.parse_caption('large red circle top left , small red circle top right on sand') is None
  assert language.parse_caption('Large red circle top left on sand.') == scene(0, [Object(0, 0, 1, 0)])


def test_it_means_the_object_touched_last():
  actions = (Action('recolour', (0, 0), value=1), Action('move', IT, value=3), Action('reground', value=1),
             Action('resize', IT, value=0))
  resolved, last = language.resolve(actions, None)
  assert [action.name for action in resolved] == [(0, 0), (1, 0), None, (1, 0)]
  assert last == (1, 0)
  with pytest.raises(Impossible):
    language.resolve((Action('remove', (0, 0)), Action('move', IT, value=2)), None)


def test_every_word_written_is_in_the_small_vocabulary():
  words: set[str] = set()
  for i in range(1500):
    made = [story.conversation(0, i, 'roles', turns=(1, 2), objects=(1, 2, 3)),
            story.understanding(0, i, 'roles'), story.text_to_image(0, i, 'roles')]
    for turn in (turn for one in made for turn in one.turns):
      for segment in (*turn.question, *turn.answer):
        text = segment.text if isinstance(segment, Text) else segment.caption
        assert language.normalise(text) == text
        words.update(text.split())
  assert words <= language.vocabulary()
  assert len(language.vocabulary()) <= 150


def test_templates_as_prompts():
  question = 'show a red circle top left on sand , then remove the red circle . use two pictures .'
  assert language.template_of(question) == 'show * , then * . use two pictures .'
  assert language.template_of(question) in language.templates(True, (2,))
  assert language.template_of('hello') is None
  assert len(language.templates(True)) == len(language.SINGLE) + 2 * len(language.SERIES)


def test_facts_table_covers_every_telling():
  for kind, facts in language.FACTS.items():
    told = {slot for part in ('text', 'both') for slot in facts[part]} - {'act'}
    slots = {slot for wording in language.WORDINGS[kind] for slot in told if f'{{{slot}}}' in wording}
    assert slots == told
    assert not set(facts['text']) & set(facts['both'])


def test_all_cells_have_two_words():
  assert len(set(language.PLACES)) == CELLS
  assert all(len(place.split()) == 2 for place in language.PLACES)
  assert isinstance(story.text_to_image(0, 0, 'roles').turns[0].answer[0], Image)
