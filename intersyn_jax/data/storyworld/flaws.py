"""Known damage with a known cost: what the judge and the critics learn to notice.

Every flaw names the scores it lowers on average; it lowers no other (a test). Picture flaws change the scene or degrade
the pixels before encoding; code flaws change int32[places, D] codes after it, and what they cost is read by the scorer
from the decoded picture.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

import numpy as np

from intersyn_jax.data.storyworld import language, story
from intersyn_jax.data.storyworld.render import DEGRADATIONS, decode, degrade, encode_png, render
from intersyn_jax.data.storyworld.world import (
    CELLS,
    COLOURS,
    GROUNDS,
    MOST_OBJECTS,
    PLACES,
    SHAPES,
    SIZES,
    Impossible,
    Object,
    Scene,
    scene,
    undo,
)
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn, steps_of

Step = tuple[str | None, Image | None]

COSTS: dict[str, tuple[str, ...]] = {
    'wrong_colour': ('icc', 'its'),
    'wrong_shape': ('icc', 'its'),
    'wrong_place': ('icc',),
    'wrong_count': ('icc', 'its'),
    'missing_object': ('icc', 'its'),
    'wrong_ground': ('icc',),
    'swapped_image': ('icc', 'its'),
    'foreign_image': ('icc', 'its'),
    'blur': ('iq',),
    'noise': ('iq',),
    'low_contrast': ('iq',),
    'blocks': ('iq',),
    'missing_image': ('icc', 'iq', 'its'),
    'wrong_text': ('tcc', 'its'),
    'truncated_text': ('tcc', 'its'),
    'off_topic_text': ('tcc', 'its'),
    'repeating_text': ('tcc', 'its'),
    'redundant_text': ('its',),
    'missing_text': ('tcc', 'its'),
    'missing_step': ('tcc', 'icc', 'iq', 'its'),
}
"""Each flaw of `inject` with the scores it lowers."""


class Unfit(Exception):
  """The flaw has no place in this answer; another one is tried."""


# Codes.


def random_codes(codes: np.ndarray, codebook: int, rng: random.Random, share: float = 0.3) -> np.ndarray:
  """A share of the places gets random codes (all D of a place)."""
  source = np.random.default_rng(rng.getrandbits(32))
  chosen = source.permutation(len(codes))[:max(1, round(share * len(codes)))]
  result = codes.copy()
  result[chosen] = source.integers(0, codebook, (len(chosen), codes.shape[1]))
  return result


def shifted_codes(codes: np.ndarray, codebook: int, rng: random.Random) -> np.ndarray:
  """All codes move on by one to three places in reading order, around the end."""
  del codebook
  return np.roll(codes, rng.randint(1, 3), axis=0)


def half_object_codes(codes: np.ndarray, codebook: int, rng: random.Random) -> np.ndarray:
  """Every second place that differs from the commonest code takes its neighbour's codes: objects are cut or lost."""
  del codebook
  side = int(round(len(codes) ** 0.5))
  values, counts = np.unique(codes, axis=0, return_counts=True)
  occupied = np.nonzero((codes != values[counts.argmax()]).any(1))[0]
  result = codes.copy()
  step = rng.choice((1, -1, side, -side))
  for place in occupied[rng.randrange(2) if len(occupied) > 1 else 0::2]:
    result[place] = codes[(place + step) % len(codes)]
  return result


CODE_FLAWS: dict[str, Callable[[np.ndarray, int, random.Random], np.ndarray]] = {
    'random_codes': random_codes, 'shifted_codes': shifted_codes, 'half_object_codes': half_object_codes}
"""Damage in code space: (codes int32[places, D], codebook size, rng) -> codes."""


# Scenes.


def _swap_object(view: Scene, old: Object, new: Object | None) -> Scene:
  rest = [item for item in view.objects if item is not old]
  return scene(view.ground, rest if new is None else [*rest, new])


def _other(rng: random.Random, count: int, old: int) -> int:
  return (old + rng.randrange(1, count)) % count


def _named(text: str | None, view: Scene) -> list[Object]:
  """Objects of the picture that the text names."""
  names = {item.name for item in language.items_in(text or '')}
  told = language.parse_telling(text or '')
  if told and told.kind == 'recolour':
    names.add((told.facts['new'], told.facts['shape']))
  if told and told.kind == 'reshape':
    names.add((told.facts['colour'], told.facts['new']))
  return [item for item in view.objects if item.name in names]


def _changed_scene(kind: str, text: str | None, view: Scene, rng: random.Random) -> Scene:
  """The scene with one flaw. Raises Unfit where the text or the scene gives it no place."""
  named = _named(text, view)
  told = language.parse_telling(text or '')
  if kind == 'wrong_count':
    free = [cell for cell in range(CELLS) if view.at(cell) is None]
    new = Object(rng.randrange(len(COLOURS)), rng.randrange(len(SHAPES)), rng.randrange(len(SIZES)), rng.choice(free))
    if told is None or 'count' not in told.facts or view.find(new.name) is not None:
      raise Unfit
    return scene(view.ground, (*view.objects, new))
  if kind == 'wrong_ground':
    if told is None or told.kind == 'reground':
      raise Unfit
    return Scene(_other(rng, len(GROUNDS), view.ground), view.objects)
  if kind == 'wrong_place':
    # Only what the text does not place: otherwise text and picture would also disagree.
    placed = told.facts['name'] if told is not None and 'to' in told.facts else None
    items = [item for item in view.objects if item.name != placed]
    if told is None or not items:
      raise Unfit
    free = [cell for cell in range(CELLS) if view.at(cell) is None]
    item = rng.choice(items)
    return _swap_object(view, item, item._replace(cell=rng.choice(free)))
  if not named:
    raise Unfit
  item = rng.choice(named)
  if kind == 'missing_object':
    return _swap_object(view, item, None)
  if kind == 'wrong_colour':
    new = item._replace(colour=_other(rng, len(COLOURS), item.colour))
  else:
    new = item._replace(shape=_other(rng, len(SHAPES), item.shape))
  if view.find(new.name) is not None:
    raise Unfit
  return _swap_object(view, item, new)


# Texts.


def wrong_text(text: str, rng: random.Random) -> str:
  """One fact of the text is changed into another of its sort."""
  told = language.parse_telling(text)
  if told is None:
    raise Unfit
  words = text.split()
  spots = [(i, group) for i, word in enumerate(words) for group in (COLOURS, SHAPES, SIZES, GROUNDS) if word in group]
  # Facts of the picture: the last such word is always the new state (see language.WORDINGS), old ones are text-only.
  if told.kind in ('move', 'swap', 'add', 'remove', 'show'):
    spots = [(i, group) for i, group in spots if group is COLOURS or group is SHAPES]
  else:
    spots = spots[-1:]
  if told.kind == 'remove':
    where = words.index('shape') if 'shape' in words else words.index('shapes')
    words[where - 1] = rng.choice([n for n in ('one', 'two', 'three') if n != words[where - 1]])
    words[where] = 'shape' if words[where - 1] == 'one' else 'shapes'
    return ' '.join(words)
  if not spots:
    raise Unfit
  i, group = rng.choice(spots)
  words[i] = group[_other(rng, len(group), group.index(words[i]))]
  return ' '.join(words)


def _off_topic(text: str, rng: random.Random) -> str:
  """A sentence about something else: another random story's, that shares neither kind nor objects with this one."""
  kind = language.parse_telling(text)
  mine = {item.name for item in language.items_in(text)}
  while True:
    view = story.random_scene(rng, 2)
    action = story.random_action(rng, view, rng.choice(('move', 'swap', 'remove')))
    other = language.tell(action, view, story.perform(rng, view, action), rng.randrange(6))
    if (kind is None or kind.kind != action.kind) and not mine & {item.name for item in language.items_in(other)}:
      return other


def redundant(text: str, view: Scene, rng: random.Random) -> str:
  """Adds, rightly, what the picture alone should tell: an object with its place, or the ground."""
  told = language.parse_telling(text)
  if told is None:
    raise Unfit
  named = {item.name for item in _named(text, view)}
  others = [item for item in view.objects if item.name not in named or told.kind == 'show']
  if others and (told.kind == 'reground' or rng.random() < 0.5):
    item = rng.choice(others)
    added = f'with a {language.name_of(item.name)} {PLACES[item.cell]}'
  elif told.kind != 'reground':
    added = f'on {GROUNDS[view.ground]}'
  else:
    raise Unfit
  return f'{text.removesuffix(" .")} , {added} .'


def truncated(text: str, rng: random.Random) -> str:
  """The beginning of the text."""
  words = text.removesuffix(' .').split()
  if len(words) < 4:
    raise Unfit
  return ' '.join(words[:rng.randint(2, max(2, len(words) * 2 // 3))])


def retold(view: Scene, rng: random.Random) -> str:
  """A text of some step that may have led to this scene; of every three, one is right, one has a fact wrong, and one tells of a
  step that has yet to come. Raises Unfit where nothing can be told: a model's picture may show nothing, or too much."""
  kind, right = rng.choice(list(language.WORDINGS)), rng.randrange(3)
  if not 1 <= len(view.objects) <= MOST_OBJECTS:
    raise Unfit
  if kind == 'show':
    text = language.tell(None, None, view, rng.randrange(6))
  else:
    # The step back from here, and what it undoes.
    back = {'add': 'remove', 'remove': 'add'}.get(kind, kind)
    try:
      action = story.random_action(rng, view, back if right else kind)
      other = story.perform(rng, view, action)
    except Impossible:
      raise Unfit from None
    told = (undo(view, action), other, view) if right else (action, view, other)
    text = language.tell(*told, rng.randrange(6))
  return wrong_text(text, rng) if right == 1 else text


# Injection.


@dataclasses.dataclass
class _Answer:
  """One answer under damage: its steps, and how pictures are drawn."""

  steps: list[Step]
  pixels: int
  jitter: int
  salt: int


def _draw(view: Scene, answer: _Answer) -> Image:
  return Image(encode_png(render(view, answer.pixels, answer.jitter, answer.salt)), caption=language.caption(view))


def _foreign(answer: _Answer, rng: random.Random) -> Image:
  return _draw(story.random_scene(rng, rng.choice((1, 2, 3))), answer)


def _damage(kind: str, answer: _Answer, rng: random.Random) -> None:
  """Applies one flaw to the answer in place. Raises Unfit where it has no place in it."""
  steps = answer.steps
  if not steps:
    raise Unfit
  j = rng.randrange(len(steps))
  text, image = steps[j]
  if kind == 'missing_step':
    steps.pop()
  elif kind == 'swapped_image':
    others = [i for i in range(len(steps)) if i != j and steps[i][1] is not None]
    if image is None or not others:
      raise Unfit
    i = rng.choice(others)
    steps[j], steps[i] = (text, steps[i][1]), (steps[i][0], image)
  elif kind == 'foreign_image':
    steps[j] = (text, _foreign(answer, rng))
  elif kind == 'missing_image':
    if image is None or text is None:
      raise Unfit
    steps[j] = (text, None)
  elif kind in DEGRADATIONS:
    if image is None:
      raise Unfit
    steps[j] = (text, Image(encode_png(degrade(decode(image.data), kind, rng)), caption=image.caption))
  elif kind == 'missing_text':
    if text is None or image is None:
      raise Unfit
    steps[j] = (None, image)
  else:
    view = language.parse_caption(image.caption) if image is not None else None
    if text is None or view is None:
      raise Unfit
    if kind == 'wrong_text':
      steps[j] = (wrong_text(text, rng), image)
    elif kind == 'truncated_text':
      steps[j] = (truncated(text, rng), image)
    elif kind == 'off_topic_text':
      steps[j] = (_off_topic(text, rng), image)
    elif kind == 'repeating_text':
      steps[j] = (f'{language.caption(view)} .', image)
    elif kind == 'redundant_text':
      steps[j] = (redundant(text, view, rng), image)
    elif kind in COSTS:
      steps[j] = (text, _draw(_changed_scene(kind, text, view, rng), answer))
    else:
      raise ValueError(f'unknown flaw {kind!r}; there are {", ".join(COSTS)}')


def inject(conversation: Conversation, rng: random.Random, kinds: Sequence[str] | None = None, count: int = 1, *,
           jitter: int = 0) -> tuple[Conversation, list[str]]:
  """Injects `count` flaws into the last answer of a gold interleaved conversation.

  Returns the flawed conversation and the names of the flaws (fewer than `count` where no more fit). `jitter` is the one
  the pictures were drawn with. The caption of a changed picture describes the changed picture.
  """
  turn = conversation.turns[-1]
  steps = steps_of(turn.answer)
  first = next((image for _, image in steps if image is not None), None)
  pixels = decode(first.data).shape[0] if first is not None else 32
  answer = _Answer(steps, pixels, jitter, rng.getrandbits(24))
  names: list[str] = []
  for _ in range(40 * count):
    if len(names) == count:
      break
    kind = rng.choice(list(kinds or COSTS))
    try:
      _damage(kind, answer, rng)
    except Unfit:
      continue
    names.append(kind)
  segments: list[Text | Image] = []
  for text, image in answer.steps:
    segments += [] if text is None else [Text(text)]
    segments += [] if image is None else [image]
  turns = (*conversation.turns[:-1], Turn(turn.question, tuple(segments)))
  flawed = dataclasses.replace(conversation, turns=turns, generator='flawed' if names else conversation.generator)
  return flawed, names
