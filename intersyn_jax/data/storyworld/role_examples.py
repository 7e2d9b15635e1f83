"""What the writer's SEIR roles learn from: gold and flawed questions, answers, captions and pictures of split 1.

About half of what a critic sees is clean (it says `none`); the rest has one known flaw, and the suggestion names the mend.
Every revise example is flawed text and suggestion in, gold out.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

from intersyn_jax.data import roles
from intersyn_jax.data.roles import AnswerStep, Critique
from intersyn_jax.data.storyworld import flaws, language, story
from intersyn_jax.data.storyworld.render import DEGRADATIONS, decode, degrade, encode_png, render
from intersyn_jax.data.storyworld.topics import Topic, parse_topic
from intersyn_jax.data.storyworld.world import (
    COLOURS,
    GROUNDS,
    IT,
    PLACES,
    SHAPES,
    SIZES,
    Impossible,
    Object,
    Scene,
    bind,
)
from intersyn_jax.interleave.types import Conversation, Image, Segment, Text, Turn, images_of, steps_of, text_of

CLEAN = 0.5
"""Share of clean cases among what critics see."""
SHARPER = 'the picture must be clear'
"""The suggestion for a degraded picture."""
_ORDINALS = ('one', 'two', 'three', 'four')
_ANSWER_FLAWS = ('unchanged', 'unchanged', 'unchanged', 'doubled', 'caption', 'text', 'cut', 'redundant', 'repeat', 'step')
"""What a writer gets wrong most is told most: texts are soon right, but captions forget to do what their text says."""
_SCENE_FLAWS = ('wrong_colour', 'wrong_shape', 'wrong_place', 'wrong_size', 'wrong_count', 'missing_object',
                'wrong_ground')


class _Unfit(Exception):
  """The flaw drawn has no place here; another one is tried."""


def suggest(goal: Scene, seen: Scene) -> str:
  """The first thing to mend in a picture (or caption) so that it shows `goal`; '' when nothing is wrong."""
  if goal.ground != seen.ground:
    return f'the ground must be {GROUNDS[goal.ground]}'
  extra = [item for item in seen.objects if item not in goal.objects]
  for item in goal.objects:
    if item in seen.objects:
      continue
    here = next((other for other in extra if other.cell == item.cell), None)
    if here is not None:
      if here.name == item.name:
        return f'the {language.name_of(item.name)} must be {SIZES[item.size]}'
      return f'the shape {PLACES[item.cell]} must be a {language.name_of(item.name)}'
    if any(other.name == item.name for other in extra):
      return f'the {language.name_of(item.name)} must be {PLACES[item.cell]}'
    return f'a {language.name_of(item.name)} is missing {PLACES[item.cell]}'
  if extra:
    return f'there must be no {language.name_of(extra[0].name)} {PLACES[extra[0].cell]}'
  return ''


def _damaged_scene(rng: random.Random, view: Scene, kinds: Sequence[str] = _SCENE_FLAWS) -> tuple[str, Scene]:
  """Which fact is wrong, and the scene with it."""
  kind = rng.choice(kinds)
  items = list(view.objects)
  item = rng.choice(items)
  free = [cell for cell in range(len(PLACES)) if view.at(cell) is None]

  def other(count: int, old: int) -> int:
    return (old + rng.randrange(1, count)) % count

  if kind == 'wrong_ground':
    return kind, Scene(other(len(GROUNDS), view.ground), view.objects)
  if kind == 'wrong_count':
    new = Object(rng.randrange(len(COLOURS)), rng.randrange(len(SHAPES)), rng.randrange(len(SIZES)), rng.choice(free))
    items.append(new)
  else:
    items.remove(item)
    if kind == 'wrong_colour':
      items.append(item._replace(colour=other(len(COLOURS), item.colour)))
    elif kind == 'wrong_shape':
      items.append(item._replace(shape=other(len(SHAPES), item.shape)))
    elif kind == 'wrong_place':
      items.append(item._replace(cell=rng.choice(free)))
    elif kind == 'wrong_size':
      items.append(item._replace(size=1 - item.size))
  names = [one.name for one in items]
  if not items or len(set(names)) < len(names):
    raise _Unfit
  return kind, story.scene(view.ground, items)


def _doubled_scene(rng: random.Random, view: Scene) -> tuple[str, Scene]:
  """The suggestion, and the scene with one object shown as another one of it: the commonest slip of a writer's captions."""
  if len(view.objects) < 2:
    raise _Unfit
  item, other = rng.sample(view.objects, 2)
  wrong = tuple(one._replace(colour=other.colour, shape=other.shape) if one is item else one for one in view.objects)
  return f'the shape {PLACES[item.cell]} must be a {language.name_of(item.name)}', Scene(view.ground, wrong)


class _Case:
  """The last turn of a gold conversation, with what the roles need of it."""

  def __init__(self, rng: random.Random, conversation: Conversation, jitter: int):
    self.rng, self.jitter = rng, jitter
    self.topic: Topic = parse_topic(conversation.topic)
    turn = conversation.turns[-1]
    self.question = text_of(turn.question)
    last = [(text_of(t.question), images_of(t.answer)[-1]) for t in conversation.turns[:-1]]
    pictures = rng.random() < 0.5  # both forms of the history are learnt
    self.history = [roles.Shown(question, image.caption, image if pictures else None) for question, image in last]
    self.images = images_of(turn.answer)
    self.steps = [AnswerStep(text, image.caption) for text, image in steps_of(turn.answer)]
    self.pixels = decode(self.images[0].data).shape[0]
    self.clean = rng.random() < CLEAN
    self.flaw = ''

  def before(self, j: int) -> Scene:
    """The scene that the action of step j changes: what the question tells of it, with the sizes and places of the picture after
    it. Raises _Unfit where the step only shows a scene."""
    if j:
      return language.parse_caption(self.steps[j - 1].caption)
    if self.history:
      return language.parse_caption(self.history[-1].caption)
    request = language.parse_question(self.question)
    if request.count > len(request.actions):
      raise _Unfit
    view = bind(request.scene, language.parse_caption(self.steps[0].caption))
    objects = []
    for item in view.objects:
      free = [cell for cell in range(len(PLACES)) if view.at(cell) is None and all(cell != one.cell for one in objects)]
      objects.append(item._replace(size=self.rng.randrange(len(SIZES)) if item.size is None else item.size,
                                   cell=self.rng.choice(free) if item.cell is None else item.cell))
    return story.scene(view.ground, objects)

  def unchanged(self, j: int, view: Scene) -> tuple[str, Scene]:
    """The suggestion, and the scene with the action of step j left undone."""
    wrong = self.before(j)
    if not suggest(view, wrong):
      raise _Unfit
    return suggest(view, wrong), wrong

  # Each flawed_* gives something wrong and the suggestion that mends it, and names the flaw.

  def flawed_question(self) -> tuple[str, str]:
    rng, text = self.rng, self.question
    request = language.parse_question(text)
    pictures = language.pictures_of(request.count)
    kind = self.flaw = rng.choice(('topic', 'ground', 'number', 'absent', 'cut'))
    about = f'it must be about {self.topic.phrase}'
    if kind == 'number':
      wrong = language.pictures_of(rng.choice([n for n in (1, 2, 3, 4) if n != request.count]))
      return text.replace(pictures, rng.choice((wrong, 'it'))), f'it must ask for {pictures}'
    if kind == 'cut':
      words = text.split()
      return ' '.join(words[:rng.randint(len(words) // 3, len(words) - 4)]), f'it must end and ask for {pictures}'
    if kind == 'ground':
      if request.scene is None:
        raise _Unfit
      ground = GROUNDS[(self.topic.ground + rng.randrange(1, len(GROUNDS))) % len(GROUNDS)]
      old = f' on {GROUNDS[self.topic.ground]}'
      return text.replace(old, f' on {ground}'), f'it must be on {GROUNDS[self.topic.ground]}'
    if kind == 'topic':
      if request.scene is None:
        raise _Unfit
      name = language.name_of(self.topic.name)
      new = language.name_of((rng.randrange(len(COLOURS)), rng.randrange(len(SHAPES))))
      if new in text or name not in text:
        raise _Unfit
      return text.replace(name, new), about
    named = [i for i, action in enumerate(request.actions)
             if action.name not in (None, IT) and action.kind not in ('add', 'swap')]
    if not named:
      raise _Unfit
    name = language.name_of(request.actions[rng.choice(named)].name)
    new = language.name_of((rng.randrange(len(COLOURS)), rng.randrange(len(SHAPES))))
    at = text.rfind(f'the {name}')
    if new in text or at < 0:
      raise _Unfit
    return f'{text[:at]}the {new}{text[at + 4 + len(name):]}', f'there is no {new} , say the {name}'

  def flawed_answer(self) -> tuple[list[AnswerStep], str]:
    rng = self.rng
    steps = list(self.steps)
    j = rng.randrange(len(steps))
    text, caption = steps[j].text, steps[j].caption
    view = language.parse_caption(caption)
    kind = self.flaw = rng.choice(_ANSWER_FLAWS)
    where = f'step {_ORDINALS[j]} :'
    if kind == 'step':
      steps.pop()
      return steps, f'it must have {_ORDINALS[len(steps)]} step{"s" if len(steps) else ""}'
    if kind in ('unchanged', 'doubled'):
      suggestion, wrong = self.unchanged(j, view) if kind == 'unchanged' else _doubled_scene(rng, view)
      steps[j] = AnswerStep(text, language.caption(wrong))
      return steps, f'{where} {suggestion}'
    if kind == 'caption':
      # Not the size: questions often leave it open, and then no size is wrong.
      _, wrong = _damaged_scene(rng, view, [flaw for flaw in _SCENE_FLAWS if flaw != 'wrong_size'])
      steps[j] = AnswerStep(text, language.caption(wrong))
      return steps, f'{where} {suggest(view, wrong)}'
    if kind == 'text':
      wrong_text = flaws.wrong_text(text, rng)
      old = next(a for a, b in zip(text.split(), wrong_text.split(), strict=True) if a != b)
      steps[j] = AnswerStep(wrong_text, caption)
      return steps, f'{where} say {old}'
    if kind == 'cut':
      steps[j] = AnswerStep(flaws.truncated(text, rng), caption)
      return steps, f'{where} the text must end'
    if kind == 'redundant':
      steps[j] = AnswerStep(flaws.redundant(text, view, rng), caption)
      return steps, f'{where} the text must not repeat the picture'
    steps[j] = AnswerStep(f'{caption} .', caption)
    return steps, f'{where} the text must not repeat the picture'

  def flawed_image(self) -> tuple[AnswerStep, Image, str]:
    """A step whose picture is wrong, half of the time because its caption is."""
    rng = self.rng
    j = rng.randrange(len(self.steps))
    step, image = self.steps[j], self.images[j]
    view = language.parse_caption(step.caption)
    kind = rng.random()
    if kind < 0.15:
      self.flaw = 'degraded'
      pixels = degrade(decode(image.data), rng.choice(DEGRADATIONS), rng)
      return step, Image(encode_png(pixels)), SHARPER
    told = language.parse_telling(step.text)
    if kind < 0.65:
      self.flaw = 'unchanged' if kind < 0.5 else 'doubled'
      suggestion, wrong = self.unchanged(j, view) if kind < 0.5 else _doubled_scene(rng, view)
      return AnswerStep(step.text, language.caption(wrong)), self._drawn(wrong), suggestion
    if told is not None and told.kind == 'show' and rng.random() < 0.4:
      # The caption is wrong too; the text, which names every object, gives it away.
      self.flaw, wrong = _damaged_scene(rng, view, ('wrong_colour', 'wrong_shape', 'missing_object', 'wrong_count'))
      self.flaw = f'caption_{self.flaw}'
      step = AnswerStep(step.text, language.caption(wrong))
    else:
      self.flaw, wrong = _damaged_scene(rng, view)
    return step, self._drawn(wrong), suggest(view, wrong)

  def _drawn(self, view: Scene) -> Image:
    return Image(encode_png(render(view, self.pixels, self.jitter, self.rng.getrandbits(24))))

  def flawed_caption(self) -> tuple[str, str, str]:
    """A caption, a suggestion, the mended caption."""
    rng = self.rng
    j = rng.randrange(len(self.steps))
    caption = self.steps[j].caption
    view = language.parse_caption(caption)
    kind = rng.random()
    if kind < 0.1:
      self.flaw = 'degraded'
      return caption, SHARPER, caption
    if kind < 0.55:
      self.flaw = 'unchanged' if kind < 0.4 else 'doubled'
      suggestion, wrong = self.unchanged(j, view) if kind < 0.4 else _doubled_scene(rng, view)
      return language.caption(wrong), suggestion, caption
    self.flaw, wrong = _damaged_scene(rng, view)
    # The suggestion names what the picture lacks; where the caption had it already, it stands.
    return (language.caption(wrong) if kind < 0.9 else caption), suggest(view, wrong), caption


def _template(question: str) -> str:
  """The template a question follows, with `*` for all but the number of pictures."""
  found = language.template_of(question)
  if found is None:
    raise AssertionError(f'gold question without template: {question}')
  return found


def _question_write(case: _Case) -> tuple[Sequence[Segment], str]:
  return roles.question_write(case.topic.phrase, _template(case.question), case.history), case.question


def _question_critique(case: _Case) -> tuple[Sequence[Segment], str]:
  question, suggestion = (case.question, '') if case.clean else case.flawed_question()
  return roles.question_critique(case.topic.phrase, question, case.history), _verdict(suggestion)


def _question_revise(case: _Case) -> tuple[Sequence[Segment], str]:
  question, suggestion = case.flawed_question()
  return roles.question_revise(question, suggestion), case.question


def _answer_write(case: _Case) -> tuple[Sequence[Segment], str]:
  return roles.answer_write(case.question, case.history), roles.write_answer(case.steps)


def _answer_critique(case: _Case) -> tuple[Sequence[Segment], str]:
  steps, suggestion = (case.steps, '') if case.clean else case.flawed_answer()
  return roles.answer_critique(case.question, steps, case.history), _verdict(suggestion)


def _answer_revise(case: _Case) -> tuple[Sequence[Segment], str]:
  steps, suggestion = case.flawed_answer()
  return roles.answer_revise(case.question, steps, suggestion), roles.write_answer(case.steps)


def _image_critique(case: _Case) -> tuple[Sequence[Segment], str]:
  if case.clean:
    j = case.rng.randrange(len(case.steps))
    step, image, suggestion = case.steps[j], case.images[j], ''
  else:
    step, image, suggestion = case.flawed_image()
  return roles.image_critique(case.question, step.text, step.caption, image), _verdict(suggestion)


def _caption_revise(case: _Case) -> tuple[Sequence[Segment], str]:
  caption, suggestion, mended = case.flawed_caption()
  return roles.caption_revise(caption, suggestion), mended


def _verdict(suggestion: str) -> str:
  return roles.write_critique(Critique(not suggestion, suggestion))


_MAKERS: dict[str, Callable[[_Case], tuple[Sequence[Segment], str]]] = {
    'question_write': _question_write,
    'question_critique': _question_critique,
    'question_revise': _question_revise,
    'answer_write': _answer_write,
    'answer_critique': _answer_critique,
    'answer_revise': _answer_revise,
    'image_critique': _image_critique,
    'caption_revise': _caption_revise,
}

_SHARES = {'question_write': 3, 'question_critique': 2, 'question_revise': 2, 'answer_write': 3, 'answer_critique': 4,
           'answer_revise': 3, 'image_critique': 4, 'caption_revise': 2}
"""How often a role is drawn. Critics have the least to learn from in each example, a few words; and to compare is hard."""


def role_example(seed: int, index: int, split: str = 'roles', *, pixels: int = 32, jitter: int = 0,
                 turns: int | Sequence[int] = (1, 1, 2), steps: int | Sequence[int] = (1, 2, 2, 3),
                 objects: int | Sequence[int] = 2, names: Sequence[str] | None = None) -> Conversation:
  """One example of one role (`names`: of which; default all), a conversation of a single turn.

  The question is the role's prompt, the answer its right completion as text; `trace` names the role, and behind a `/` the flaw
  where there is one. Deterministic from its arguments. Raises ValueError on an unknown role.
  """
  rng = story.keyed(seed, index, split, 'role')
  names = list(names or _MAKERS)
  if unknown := set(names) - set(_MAKERS):
    raise ValueError(f'unknown role {min(unknown)!r}; there are {", ".join(_MAKERS)}')
  role = rng.choices(names, [_SHARES[name] for name in names])[0]
  gold = story.conversation(seed, index, split, pixels=pixels, jitter=jitter, turns=turns, steps=steps, objects=objects)
  case = _Case(rng, gold, jitter)
  for _ in range(100):  # a flaw that has no place in this case is drawn again
    try:
      prompt, completion = _MAKERS[role](case)
    except (_Unfit, flaws.Unfit, Impossible):
      continue
    turn = Turn(tuple(prompt), (Text(completion),))
    return dataclasses.replace(gold, id=f'{split}-r-{seed}-{index}', turns=(turn,), generator='gold',
                               trace=f'{role}/{case.flaw}'.rstrip('/'))
  raise AssertionError(f'no flaw fits {gold.id}')
