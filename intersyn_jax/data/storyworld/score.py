"""The ground truth: reads any answer or question back and scores it on the papers' rubric.

Answers get TCC, ICC, IQ and ITS in 0-5 (InterSyn, rubric), as a whole and per asked step; questions get 0-10. The
numbers come from parsing the text and reading the pixels, from nothing else. They are real numbers: the share of facts
that are right, laid over the rubric.

What a step asks comes from the question. Where that leaves sizes or places open, the answer's first picture settles
them. A step is judged given the steps before: what fits either the question's own plan or the scene shown just before is
right. The whole answer is judged by the question alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from intersyn_jax.data.storyworld import language
from intersyn_jax.data.storyworld.language import Request, Telling, normalise, parse_question, parse_telling
from intersyn_jax.data.storyworld.render import Reading, decode, read
from intersyn_jax.data.storyworld.topics import Topic, parse_topic
from intersyn_jax.data.storyworld.world import (
    GROUNDS,
    PLACES,
    Action,
    Impossible,
    Name,
    Object,
    Scene,
    apply,
    bind,
    check,
    touched,
)
from intersyn_jax.interleave.types import Conversation, Score, images_of, steps_of, text_of

StepParts = tuple[str | None, np.ndarray | None]
"""Text and picture uint8[H, W, 3] of one answer step; None where it is missing."""

_CREDIT = (1.0, 0.35, 0.1, 0.0)
"""What an object is worth with none, one, two or three of colour, shape and place wrong."""
_WRONG_SIZE = 0.7
_TOUCHED_WEIGHT, _GROUND_WEIGHT = 2.0, 0.75
_LOOSE = 0.7
"""What right facts are worth in a text that follows no wording (nonsense around them, or cut off)."""
_EXTRA_STEP = 0.2
"""Share of TCC, ICC and ITS lost for each step that was not asked for."""
_TRUSTED = 3.0
"""A picture below this IQ settles nothing that the question leaves open: it may be misread."""
_TOO_LONG = 40
"""Words beyond which a step's text counts as far too long (the rubric's 2)."""


class Asked(NamedTuple):
  """What one step asks: the action (None: show the scene) between two scenes, open where the question is."""

  action: Action | None
  before: Scene | None
  after: Scene


class AnswerScore(NamedTuple):
  """Scores of a whole answer (`step` -1) and of each asked step, what those steps ask, and the scene that each step's picture
  is held against, None without one: open where the question is and the picture settles nothing."""

  whole: Score
  steps: tuple[Score, ...]
  asked: tuple[Asked, ...]
  goals: tuple[Scene | None, ...]


class Item(NamedTuple):
  """One answer to score: the questions of the conversation up to this one, the steps, the last picture before them."""

  questions: Sequence[str]
  steps: Sequence[StepParts]
  previous: np.ndarray | None = None


def _plan(requests: Sequence[Request], shown: Scene | None) -> list[Asked]:
  """The steps that the last question asks for. Raises Impossible when the questions contradict themselves."""
  request = requests[-1]
  view, last = request.scene, None
  if view is None:
    view, last = language.replay(requests[:-1])
    view = bind(view, shown)
  check(view)
  actions, _ = language.resolve(request.actions, last)
  steps = [Asked(None, None, view)] if request.count > len(actions) else []
  for action in actions:
    after = apply(view, action)
    steps.append(Asked(action, view, after))
    view = after
  return steps


# Images.


def _credit(goal: Object, seen: Object) -> float:
  wrong = (goal.colour != seen.colour) + (goal.shape != seen.shape)
  wrong += goal.cell is not None and goal.cell != seen.cell
  return _CREDIT[wrong] * (1.0 if goal.size is None or goal.size == seen.size else _WRONG_SIZE)


def _icc(goal: Scene, action: Action | None, seen: Scene) -> float:
  """1-5: the share of what is asked for that is shown; the object acted on counts double."""
  focus = touched(action) if action is not None and action.kind != 'remove' else None
  ground_weight = _TOUCHED_WEIGHT if action is not None and action.kind == 'reground' else _GROUND_WEIGHT
  right = ground_weight * (goal.ground == seen.ground)
  total = ground_weight
  pairs = sorted(((_credit(item, other), i, j) for i, item in enumerate(goal.objects)
                  for j, other in enumerate(seen.objects)), reverse=True)
  left, unseen = set(range(len(goal.objects))), set(range(len(seen.objects)))
  for credit, i, j in pairs:
    if credit > 0 and i in left and j in unseen:
      left.remove(i)
      unseen.remove(j)
      right += credit * (_TOUCHED_WEIGHT if goal.objects[i].name == focus else 1.0)
  total += sum(_TOUCHED_WEIGHT if item.name == focus else 1.0 for item in goal.objects)
  removed = action.name if action is not None and action.kind == 'remove' else None
  total += sum(_TOUCHED_WEIGHT if seen.objects[j].name == removed else 1.0 for j in unseen)
  return 1 + 4 * right / total


# Texts.


def _says(text: str, words: str) -> bool:
  return f' {words} ' in f' {text} '


def same_facts(told: Telling, facts: dict[str, Any]) -> float:
  """Share of the facts that a text of the right kind tells rightly (the kind itself is one of them)."""
  right, total = 1.0, 1.0
  for slot, value in facts.items():
    if slot == 'names':
      given, wanted = set(told.facts['names']), set(value)
      right += len(given & wanted)
      total += max(len(wanted), len(told.facts['names']))
    else:
      right += value is None or told.facts[slot] == value
      total += 1
  return right / total


def right_facts(asked: Asked) -> list[dict[str, Any]]:
  """The facts that a step's text must tell, by slot: the ways to be right (of a swap, either partner may be named first)."""
  ways = [language.facts_of(*asked)]
  if asked.action is not None and asked.action.kind == 'swap':
    other = asked.after.find(asked.action.other)
    ways.append({'name': other.name, 'other': asked.action.name, 'to': other.cell})
  return ways


def extra_holds(extra: str, view: Scene) -> bool:
  """Whether an added clause (`with a red circle top left`, `on sand`) is true of the scene."""
  if extra.startswith('on '):
    return GROUNDS.index(extra.removeprefix('on ')) == view.ground
  item = language.items_in(extra)[0]
  return any(other.name == item.name and (item.cell is None or other.cell in (None, item.cell)) and
             (item.size is None or other.size in (None, item.size)) for other in view.objects)


def _tcc(text: str, asked: Asked) -> float:
  """1-5: the share of the step's text facts that are told rightly, less where the text follows no wording."""
  kind = 'show' if asked.action is None else asked.action.kind
  facts = language.facts_of(*asked)
  told = parse_telling(text)
  if told is not None and told.kind == kind:
    share = max(same_facts(told, right) for right in right_facts(asked))
    lies = sum(not extra_holds(extra, asked.after) for extra in told.extras)
    return 1 + 4 * share / (1 + 0.25 * lies)
  right, total = 0, 1
  for slot, value in facts.items():
    if slot == 'names':
      right += sum(_says(text, language.name_of(name)) for name in value)
      total += len(value)
    else:
      total += 1
      choices = [language.phrase(kind, slot, value)] if value is not None else PLACES
      right += any(_says(text, choice) for choice in choices)
  score = 1 + 4 * _LOOSE * right / total
  return min(score, 2.0) if len(text.split()) > _TOO_LONG else score


def has(view: Scene, name: Name, cell: int | None = None, size: int | None = None) -> bool:
  return any(item.name == name and cell in (None, item.cell) and size in (None, item.size) for item in view.objects)


def claims(told: Telling, view: Scene) -> list[tuple[str, bool]]:
  """The text's statements about the picture (facts of both, see language.FACTS): the slot of each, and whether it holds."""
  kind, facts = told.kind, told.facts
  count = len(view.objects)
  if kind == 'show':
    return [('names', has(view, name)) for name in facts['names']] + [('count', facts['count'] == count)]
  if kind == 'move':
    return [('name', has(view, facts['name'])), ('to', has(view, facts['name'], facts['to']))]
  if kind == 'recolour':
    return [('new', has(view, (facts['new'], facts['shape'])))]
  if kind == 'reshape':
    return [('new', has(view, (facts['colour'], facts['new'])))]
  if kind == 'resize':
    return [('name', has(view, facts['name'])), ('new', has(view, facts['name'], size=facts['new']))]
  if kind == 'add':
    return [('name', has(view, facts['name'])), ('to', has(view, facts['name'], facts['to'])),
            ('count', facts['count'] == count)]
  if kind == 'remove':
    return [('name', not has(view, facts['name'])), ('count', facts['count'] == count)]
  if kind == 'swap':
    return [('name', has(view, facts['name'])), ('other', has(view, facts['other'])),
            ('to', has(view, facts['name'], facts['to']))]
  return [('new', facts['new'] == view.ground)]


def its_of(text: str, view: Scene) -> float:
  """ITS of a step, 0-5, by its normalised text and what its picture shows: the share of the text's statements about the picture
  that hold; 5 only where each adds to the other."""
  told = parse_telling(text)
  if told is not None:
    held = [holds for _, holds in claims(told, view)] + [extra_holds(extra, view) for extra in told.extras]
    most = 4.0 if told.extras else 5.0
  else:
    held = [has(view, item.name, item.cell, item.size) for item in language.items_in(text)]
    held += [GROUNDS[view.ground] == ground for ground in GROUNDS if _says(text, f'on {ground}')]
    most = 4.0 if language.parse_caption(text) is not None else 3.0
  if not any(held):
    return 0.0
  return min(most, 1 + 4 * sum(held) / len(held))


# Whole answers.


def _after_shown(asked: Asked, shown: Scene) -> Scene | None:
  """What the action makes of the scene shown just before, or None where it does not fit that scene."""
  if asked.action is None:
    return None
  try:
    return apply(shown, asked.action)
  except Impossible:
    return None


def score_readings(item: Item, readings: Sequence[Reading | None], previous: Reading | None,
                   turn: int = 0) -> AnswerScore | None:
  """`score_answers` of one answer whose pictures, and the one before them, are read already."""
  requests = [parse_question(question) for question in item.questions]
  if not requests or None in requests:
    return None
  trusted = previous.scene if previous is not None and previous.quality >= _TRUSTED else None
  try:
    plan = _plan(requests, trusted)
  except Impossible:
    return None
  steps, values, goals = [], [], []
  goal, shown = plan[0].before, previous.scene if previous is not None else None
  for j, asked in enumerate(plan):
    text, reading = (item.steps[j][0], readings[j]) if j < len(item.steps) else (None, None)
    text = normalise(text) if text is not None else ''
    if asked.action is None:
      goal = asked.after
    else:
      try:
        goal = apply(goal, asked.action)
      except Impossible:  # what the pictures settled leaves this action no place: the question's own plan stands
        goal = asked.after
    tcc = _tcc(text, asked) if text else 0.0
    icc = given = iq = its = 0.0
    held = None
    if reading is not None:
      iq = reading.quality
      given = icc = _icc(goal, asked.action, reading.scene)
      held = goal
      local = _after_shown(asked, shown) if shown is not None else None
      if local is not None and (fit := _icc(local, asked.action, reading.scene)) > icc:
        given, held = fit, local
      held = bind(held, reading.scene)
      its = its_of(text, reading.scene) if text else 0.0
    steps.append(Score(turn, j, tcc, given, iq, its))
    values.append((tcc, icc, iq, its))
    goals.append(held)
    if reading is not None:
      shown = reading.scene
      if reading.quality >= _TRUSTED:
        goal = bind(goal, shown)
  kept = max(0.0, 1 - _EXTRA_STEP * max(0, len(item.steps) - len(plan)))
  means = np.mean(values, axis=0) * (kept, kept, 1.0, kept)
  return AnswerScore(Score(turn, -1, *(float(value) for value in means)), tuple(steps), tuple(plan), tuple(goals))


def score_answers(items: Sequence[Item], *, jitter: int = 0, turn: int = 0) -> list[AnswerScore | None]:
  """Scores many answers; all pictures of one size are read together.

  Args:
    items: questions, steps and (for a later turn) the last picture shown before.
    jitter: the one the pictures are drawn with (see render).
    turn: number written into the scores.
  Returns:
    One AnswerScore an item, or None where the questions cannot be understood or contradict themselves: no score is made
    up for those. Steps beyond the asked ones lower the whole; a missing text or picture gives the rubric's zeros.
  """
  pictures: list[np.ndarray] = []
  for item in items:
    pictures += [image for _, image in item.steps if image is not None]
    pictures += [] if item.previous is None else [item.previous]
  by_shape: dict[tuple[int, ...], list[int]] = {}
  for i, image in enumerate(pictures):
    by_shape.setdefault(image.shape, []).append(i)
  readings: list[Reading | None] = [None] * len(pictures)
  for places in by_shape.values():
    for i, reading in zip(places, read(np.stack([pictures[i] for i in places]), jitter), strict=True):
      readings[i] = reading
  queue = iter(readings)
  result = []
  for item in items:
    of_steps = [None if image is None else next(queue) for _, image in item.steps]
    previous = None if item.previous is None else next(queue)
    result.append(score_readings(item, of_steps, previous, turn))
  return result


def score_answer(questions: Sequence[str], steps: Sequence[StepParts], *, previous: np.ndarray | None = None,
                 jitter: int = 0, turn: int = 0) -> AnswerScore | None:
  """Scores one answer; see `score_answers`."""
  return score_answers([Item(questions, steps, previous)], jitter=jitter, turn=turn)[0]


def item_of(conversation: Conversation, turn: int = -1) -> Item:
  """The item to score for one turn of a conversation whose images are encoded."""
  turn = turn % len(conversation.turns)
  earlier = [image for t in conversation.turns[:turn] for image in images_of(t.answer)]
  steps = [(text, None if image is None else decode(image.data))
           for text, image in steps_of(conversation.turns[turn].answer)]
  return Item([text_of(t.question) for t in conversation.turns[:turn + 1]], steps,
              decode(earlier[-1].data) if earlier else None)


# Questions.


def _on_topic(topic: Topic, request: Request, first: bool, view: Scene, actions: Sequence[Action]) -> float:
  """0-1: share of kind, colour, shape and ground that the question takes from the topic."""
  if not first:  # a later turn only has to stay near
    return float(any(topic.stays(action) for action in actions))
  fitting = [action for action in actions if action.kind == topic.kind]
  if topic.kind == 'reground':
    names = [item.name for item in view.objects]
  else:
    names = [name for action in fitting for name in (action.name, action.other) if name is not None]
  if not fitting:
    names = [item.name for item in view.objects]
  best = max((sum(a == b for a, b in zip(name, topic.name, strict=True)) for name in names), default=0)
  ground = request.scene is not None and request.scene.ground == topic.ground
  return (bool(fitting) + best + ground) / 4


def score_question(question: str, topic: Topic | str, earlier: Sequence[str] = ()) -> float:
  """Scores a question 0-10, given the topic and the earlier questions of its conversation.

  Points: 2 parses, 3 on topic, 1 asks for a picture, 2 answerable (no contradiction), 1 within the word limit, 1 no
  repeat of an earlier question. Raises ValueError when `topic` is none.
  """
  topic = parse_topic(topic) if isinstance(topic, str) else topic
  text = normalise(question)
  if not text:
    return 0.0
  score = 1.0 * any(_says(text, word) for word in ('picture', 'pictures'))
  score += len(text.split()) <= language.WORD_LIMIT
  score += text not in {normalise(other) for other in earlier}
  request = parse_question(text)
  if request is None:
    return score
  score += 2
  before = [parse_question(other) for other in earlier]
  requests = [other for other in before if other is not None] if None in before else before
  try:
    _plan([*requests, request], None)
    view, last = language.replay(requests) if request.scene is None else (request.scene, None)
    actions, _ = language.resolve(request.actions, last)
  except Impossible:
    view, actions = request.scene, request.actions
  else:
    score += 2
  if view is not None:
    score += 3 * _on_topic(topic, request, request.scene is not None, view, actions)
  return score
