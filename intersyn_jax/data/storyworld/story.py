"""Storyworld conversations: deterministic from (seed, index, split, purpose), any number of them.

`conversation` is the gold interleaved one; `understanding` and `text_to_image` feed the hybrid mix of the warm-up;
`scenes` draws dense and damaged pictures for the image tokenizer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from intersyn_jax.data.storyworld import language
from intersyn_jax.data.storyworld.render import DEGRADATIONS, degrade, encode_png, render
from intersyn_jax.data.storyworld.topics import Topic, topics_of
from intersyn_jax.data.storyworld.world import (
    CELLS,
    COLOURS,
    GROUNDS,
    IT,
    KINDS,
    PLACES,
    SHAPES,
    SIZES,
    Action,
    Impossible,
    Name,
    Object,
    Scene,
    apply,
    scene,
    touched,
)
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn

OPEN_SIZE = 0.6
"""Share of sizes that a question does not mention."""
OPEN_SCENE = 0.1
"""Share of first scenes whose places the question does not mention."""
OPEN_ADD = 0.4
"""Share of added objects whose place the question does not mention."""
SAY_IT = 0.4
"""How often `it` stands for an object that `it` can mean."""

_NAMES = tuple((colour, shape) for colour in range(len(COLOURS)) for shape in range(len(SHAPES)))


def keyed(seed: int, index: int, *purpose: str) -> random.Random:
  """A random source that depends on nothing but its arguments."""
  return random.Random(f'{seed}/{index}/{"/".join(purpose)}')


def one_of(rng: random.Random, value: int | Sequence[int]) -> int:
  """A number, or one drawn from several."""
  return value if isinstance(value, int) else rng.choice(list(value))


def picture(view: Scene, pixels: int, jitter: int = 0, salt: int = 0) -> Image:
  """A full scene as an encoded image that carries its caption."""
  return Image(encode_png(render(view, pixels, jitter, salt)), caption=language.caption(view))


def random_scene(rng: random.Random, count: int, ground: int | None = None, first: Name | None = None,
                 without: Name | None = None) -> Scene:
  """A full scene of `count` objects, the object `first` among them and the object `without` not."""
  names = rng.sample(_NAMES, min(count + 2, len(_NAMES)))
  names = [name for name in names if name not in (first, without)][:count - (first is not None)]
  if first is not None:
    names.append(first)
  cells = rng.sample(range(CELLS), count)
  objects = [Object(*name, rng.randrange(len(SIZES)), cell) for name, cell in zip(names, cells, strict=True)]
  return scene(rng.randrange(len(GROUNDS)) if ground is None else ground, objects)


def random_action(rng: random.Random, view: Scene, kind: str | None = None, name: Name | None = None) -> Action:
  """An action that the scene allows, of the kind and on the object given. Raises Impossible where there is none."""
  for _ in range(50):
    this = kind or rng.choice(KINDS)
    target = name
    if this == 'reground':
      target = None
    elif target is None:
      target = rng.choice(_NAMES) if this == 'add' else rng.choice(view.objects).name
    other = rng.choice(view.objects).name if this == 'swap' else None
    limits = {'move': CELLS, 'recolour': len(COLOURS), 'reshape': len(SHAPES), 'resize': len(SIZES), 'add': CELLS,
              'reground': len(GROUNDS)}
    action = Action(this, target, other, rng.randrange(limits[this]) if this in limits else None)
    try:
      apply(view, action)
      return action
    except Impossible:
      continue
  raise Impossible(f'no {kind or "action"} fits this scene')


def perform(rng: random.Random, view: Scene, action: Action) -> Scene:
  """Applies an action and settles, at random, what it leaves open (the size of an added object)."""
  after = apply(view, action)
  if action.kind == 'add':
    after = scene(after.ground, [item._replace(size=rng.randrange(len(SIZES))) if item.size is None else item
                                 for item in after.objects])
  return after


def _opened(rng: random.Random, view: Scene, actions: Sequence[Action]) -> Scene:
  """The first scene as the question gives it: some sizes, and now and then all places, left open."""
  sized = {action.name for action in actions if action.kind == 'resize'}
  # A move could go where an open object happens to stand; only actions without a target place leave places open.
  places = rng.random() < OPEN_SCENE and all(action.kind not in ('move', 'add') for action in actions)
  objects = []
  for item in view.objects:
    size = None if item.name not in sized and rng.random() < OPEN_SIZE else item.size
    objects.append(item._replace(size=size, cell=None if places else item.cell))
  return scene(view.ground, objects)


def _with_it(rng: random.Random, actions: Sequence[Action], last: Name | None) -> tuple[tuple[Action, ...], Name | None]:
  """Says `it` now and then where that is clear; returns what `it` means afterwards too."""
  said = []
  for action in actions:
    if action.name is not None and action.name == last and action.kind != 'add' and rng.random() < SAY_IT:
      said.append(action._replace(name=IT))
    else:
      said.append(action)
    if action.kind == 'remove':
      last = None
    elif action.kind != 'reground':
      last = touched(action)
  return tuple(said), last


class _Story:
  """The running scene of one conversation."""

  def __init__(self, rng: random.Random, topic: Topic, objects: int, pixels: int, jitter: int, salt: int):
    self.rng, self.topic, self.pixels, self.jitter, self.salt = rng, topic, pixels, jitter, salt
    self.last: Name | None = None
    count = max(objects, 2) if topic.kind in ('swap', 'remove') else objects
    absent = topic.kind == 'add'
    self.view = random_scene(rng, count, topic.ground, None if absent else topic.name, topic.name if absent else None)

  def turn(self, steps: int, first: bool) -> Turn:
    """One question and its gold answer; the scene moves on."""
    rng = self.rng
    start, view = self.view, self.view
    actions: list[Action] = []
    segments: list[Text | Image] = []
    if first and steps > 1:
      segments += self._step(None, None, view)
    while len(actions) < steps - (first and steps > 1):
      if first and not actions:
        action = random_action(rng, view, self.topic.kind, self.topic.name)
      else:
        action = self._next(view, stay=not first and not actions)
      after = perform(rng, view, action)
      segments += self._step(action, view, after)
      view = after
      actions.append(action)
    self.view = view
    said, self.last = _with_it(rng, actions, self.last)
    # A later move or add of the same turn must not meet the place that this add was free to take.
    targets = sum(action.kind in ('move', 'add') for action in actions)
    said = tuple(action._replace(value=None) if action.kind == 'add' and targets == 1 and rng.random() < OPEN_ADD
                 else action for action in said)
    request = language.Request(steps, _opened(rng, start, actions) if first else None, said)
    templates = (language.SERIES if steps > 1 else language.SINGLE) if first else language.FOLLOW
    question = language.write_question(request, rng.choice(templates), [rng.randrange(6) for _ in actions])
    return Turn((Text(question),), tuple(segments))

  def _next(self, view: Scene, stay: bool) -> Action:
    """A further action, often on the topic's kind or the object touched last; one near the topic when it must `stay`."""
    rng, topic = self.rng, self.topic
    choices: list[tuple[str | None, Name | None]] = [(None, self.last), (topic.kind, None), (None, None)]
    rng.shuffle(choices)
    # What always exists comes last: an object of the topic's colour can be added while there is room, or one removed.
    for kind, name in (*choices, (topic.kind, None), *((None, item.name) for item in view.objects), ('add', topic.name)):
      if name is not None and kind is None and view.find(name) is None:
        continue
      try:
        action = random_action(rng, view, rng.choice(KINDS[:4]) if name and not kind else kind, name)
      except Impossible:
        continue
      if not stay or topic.stays(action):
        return action
    raise AssertionError(f'no action stays with {topic.phrase} in {view}')

  def _step(self, action: Action | None, before: Scene | None, after: Scene) -> list[Text | Image]:
    text = language.tell(action, before, after, self.rng.randrange(6))
    return [Text(text), picture(after, self.pixels, self.jitter, self.salt)]


def conversation(seed: int, index: int, split: str, *, pixels: int = 32, jitter: int = 0,
                 turns: int | Sequence[int] = 1, steps: int | Sequence[int] = (1, 2, 2, 3),
                 objects: int | Sequence[int] = 2, topic: Topic | None = None) -> Conversation:
  """A gold interleaved conversation.

  Args:
    seed, index, split: what it depends on (with the other arguments); `split` names a split of `topics.SPLITS`.
    pixels: side of the pictures; a multiple of 4, at least 32.
    jitter: most pixels by which an object is off the middle of its cell.
    turns, steps, objects: a number, or several to draw from (steps of each turn; objects of the first scene, 1-3).
    topic: instead of one drawn from the split.
  """
  rng = keyed(seed, index, split, 'conversation')
  subject = topic or rng.choice(topics_of(split))
  story = _Story(rng, subject, one_of(rng, objects), pixels, jitter, rng.getrandbits(24))
  made = tuple(story.turn(one_of(rng, steps), first=i == 0) for i in range(one_of(rng, turns)))
  return Conversation(f'{split}-{seed}-{index}', str(subject), made, generator='gold', seed=seed)


def _scene_of(rng: random.Random, split: str, objects: int | Sequence[int]) -> tuple[Topic, Scene]:
  topic = rng.choice(topics_of(split))
  return topic, random_scene(rng, one_of(rng, objects), topic.ground, topic.name)


def understanding(seed: int, index: int, split: str, *, pixels: int = 32, jitter: int = 0,
                  objects: int | Sequence[int] = (1, 2, 2, 3)) -> Conversation:
  """A question about a picture, answered by a few words or the full description."""
  rng = keyed(seed, index, split, 'understanding')
  topic, view = _scene_of(rng, split, objects)
  item = rng.choice(view.objects)
  form = rng.choice(language.UNDERSTANDING + language.UNDERSTANDING[-1:] * 2)
  if '{shape}' in form and sum(other.shape == item.shape for other in view.objects) > 1:
    form = language.UNDERSTANDING[1]
  question = form.format(shape=SHAPES[item.shape], place=PLACES[item.cell], name=language.name_of(item.name))
  answer = dict(zip(language.UNDERSTANDING, (
      COLOURS[item.colour], SHAPES[item.shape], PLACES[item.cell], language.count_of(len(view.objects)),
      GROUNDS[view.ground], SIZES[item.size], language.caption(view)), strict=True))[form]
  segments = (picture(view, pixels, jitter, rng.getrandbits(24)), Text(question))
  return Conversation(f'{split}-u-{seed}-{index}', str(topic), (Turn(segments, (Text(answer),)),), generator='gold',
                      seed=seed)


def text_to_image(seed: int, index: int, split: str, *, pixels: int = 32, jitter: int = 0,
                  objects: int | Sequence[int] = (1, 2, 2, 3)) -> Conversation:
  """A caption in, its picture out."""
  rng = keyed(seed, index, split, 'text_to_image')
  topic, view = _scene_of(rng, split, objects)
  question = language.DRAW.format(caption=language.caption(view))
  answer = picture(view, pixels, jitter, rng.getrandbits(24))
  return Conversation(f'{split}-t-{seed}-{index}', str(topic), (Turn((Text(question),), (answer,)),),
                      generator='gold', seed=seed)


def scenes(seed: int, start: int, count: int, *, pixels: int = 32, jitter: int = 0,
           objects: Sequence[int] = tuple(range(4, 11)), damaged: float = 0.25) -> np.ndarray:
  """Dense pictures uint8[count, pixels, pixels, 3] for the image tokenizer; a share of them damaged.

  Objects may repeat here: the tokenizer must learn every tile, not every story.
  """
  result = np.empty((count, pixels, pixels, 3), np.uint8)
  for i in range(count):
    rng = keyed(seed, start + i, 'scenes')
    cells = rng.sample(range(CELLS), rng.choice(objects))
    items = [Object(*rng.choice(_NAMES), rng.randrange(len(SIZES)), cell) for cell in cells]
    view = Scene(rng.randrange(len(GROUNDS)), tuple(items))
    result[i] = render(view, pixels, jitter, rng.getrandbits(24))
    if rng.random() < damaged:
      result[i] = degrade(result[i], rng.choice(DEGRADATIONS), rng)
  return result
