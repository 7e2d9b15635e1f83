"""What Storyworld writes and reads: questions from templates, answer texts in several wordings, captions.

Words are lower case, separated by single spaces, punctuation as words of its own. `normalise` brings any text there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from intersyn_jax.data.storyworld.world import (
    COLOURS,
    COLUMNS,
    GROUNDS,
    IT,
    KINDS,
    NUMBERS,
    PLACES,
    ROWS,
    SHAPES,
    SIZES,
    Action,
    Impossible,
    Name,
    Object,
    Scene,
    apply,
    check,
    scene,
    touched,
)

WORD_LIMIT = 50
"""Most words of a question (InterSyn, SEIR's prompts)."""

# Questions. {n} is `two pictures`, {scene} the first scene, {do} the actions.
SINGLE = (
    'given {scene} , {do} . show {n} .',
    'take {scene} and {do} . show {n} .',
    'there is {scene} . {do} in {n} .',
    'picture {scene} . {do} and show {n} .',
    'for {scene} , {do} . give me {n} .',
    'we have {scene} . please {do} in {n} .',
    'from {scene} , {do} . i want {n} .',
    'please {do} , given {scene} . show {n} .',
    '{do} , given {scene} . draw {n} .',
    'i have {scene} . {do} and draw {n} .',
    'can you {do} in {n} , given {scene} ?',
    'draw {n} : take {scene} and {do} .',
    'show {n} : from {scene} , {do} .',
    'i want {n} : for {scene} , {do} .',
    'if there is {scene} , {do} . draw {n} .',
    'what does it look like if you {do} , given {scene} ? show {n} .',
)
"""One step: the action is applied at once to the scene described."""

SERIES = (
    'show {scene} , then {do} . use {n} .',
    'draw {scene} , then {do} . use {n} .',
    'first {scene} , then {do} . show {n} .',
    'start with {scene} , then {do} . show {n} .',
    'in {n} , show {scene} , then {do} .',
    'in {n} , draw {scene} , then {do} .',
    'show {n} : {scene} , then {do} .',
    'draw {n} : {scene} , then {do} .',
    'give me {n} : first {scene} , then {do} .',
    'i want {n} : {scene} , then {do} .',
    'please show {scene} , then {do} . give {n} .',
    'please draw {n} : first {scene} , then {do} .',
    'can you show {scene} , then {do} in {n} ?',
    'can you draw {n} : {scene} , then {do} ?',
    'begin with {scene} . then {do} . draw {n} .',
    'tell a story in {n} : {scene} , then {do} .',
    'make {n} : {scene} , then {do} .',
    'i want to see {scene} , then {do} . use {n} .',
    'use {n} to show {scene} , then {do} .',
    'what happens if i draw {scene} , then {do} ? show {n} .',
)
"""Two or more steps: the first shows the scene, each later one applies one action."""

FOLLOW = (
    'now {do} . show {n} .',
    'now {do} in {n} .',
    'next , {do} . show {n} .',
    'please {do} now . show {n} .',
    'then {do} . use {n} .',
    'can you now {do} ? show {n} .',
    'now show {n} : {do} .',
    'go on and {do} . draw {n} .',
    'next , draw {n} : {do} .',
    'and now {do} . give me {n} .',
    'i want to {do} now . show {n} .',
    'go on in {n} : {do} .',
    'what if you {do} now ? show {n} .',
    'now please {do} . i want {n} .',
    'use {n} to {do} now .',
    'next , please {do} in {n} .',
    'show me {n} : now {do} .',
    'keep going : {do} . draw {n} .',
)
"""A later turn: every step applies one action to the last scene."""

ASK = {
    'move': ('move {the} to {place}', 'put {the} at {place}', 'bring {the} to {place}'),
    'recolour': ('paint {the} {colour}', 'colour {the} {colour}', 'make {the} {colour}'),
    'reshape': ('turn {the} into a {shape}', 'make {the} a {shape}', 'change {the} to a {shape}'),
    'resize': ('make {the} {size}', 'change {the} to {size}'),
    'add': ('add a {name}{at}', 'put a {name}{at}', 'place a {name}{at}'),
    'remove': ('remove {the}', 'delete {the}', 'take {the} away'),
    'swap': ('swap {the} with the {other}', 'swap {the} and the {other}'),
    'reground': ('make the ground {ground}', 'change the ground to {ground}'),
}
"""How questions ask for each action."""

# The facts of an answer step: in the text only, in the image only, or in both (the rubric's "complementary").
FACTS = {
    'show': {'text': (), 'both': ('count', 'names'), 'image': ('places', 'sizes', 'ground')},
    'move': {'text': ('from',), 'both': ('name', 'to'), 'image': ('others', 'sizes', 'ground')},
    'recolour': {'text': ('old',), 'both': ('shape', 'new'), 'image': ('others', 'places', 'sizes', 'ground')},
    'reshape': {'text': ('old',), 'both': ('colour', 'new'), 'image': ('others', 'places', 'sizes', 'ground')},
    'resize': {'text': ('old',), 'both': ('name', 'new'), 'image': ('others', 'places', 'ground')},
    'add': {'text': ('act',), 'both': ('name', 'to', 'count'), 'image': ('others', 'sizes', 'ground')},
    'remove': {'text': ('name', 'from'), 'both': ('count',), 'image': ('others', 'sizes', 'ground')},
    'swap': {'text': ('act',), 'both': ('name', 'other', 'to'), 'image': ('others', 'sizes', 'ground')},
    'reground': {'text': ('old',), 'both': ('new',), 'image': ('others', 'places', 'sizes')},
}

WORDINGS = {
    'show': ('we see {count} , {names} .', 'here come {count} , {names} .', '{count} , {names} .'),
    'move': ('the {name} moves from {from} to {to} .', 'the {name} goes from {from} to {to} .',
             'from {from} the {name} moves to {to} .'),
    'recolour': ('the {old} {shape} turns {new} .', 'the {old} {shape} is now {new} .',
                 'the {shape} turns from {old} to {new} .'),
    'reshape': ('the {colour} {old} becomes a {new} .', 'the {colour} {old} turns into a {new} .',
                'the {colour} {old} is now a {new} .'),
    'resize': ('the {name} goes from {old} to {new} .', 'the {old} {name} becomes {new} .',
               'the {old} {name} is now {new} .'),
    'add': ('a {name} joins at {to} , making {count} .', 'a {name} appears at {to} , now {count} .',
            'a new {name} at {to} makes {count} .'),
    'remove': ('the {name} is gone from {from} , leaving {count} .', 'the {name} leaves {from} , now {count} .',
               'from {from} the {name} goes away , leaving {count} .'),
    'swap': ('the {name} swaps with the {other} , now at {to} .', 'the {name} and the {other} swap , now at {to} .',
             'the {name} trades places with the {other} , now at {to} .'),
    'reground': ('the ground turns from {old} to {new} .', 'the ground goes from {old} to {new} .',
                 'the ground was {old} and is now {new} .'),
}
"""How answers tell each kind of step. In a swap, `now at` speaks of the object named first."""


class Request(NamedTuple):
  """What a question asks: how many steps, the first scene (None in a later turn), the actions."""

  count: int
  scene: Scene | None
  actions: tuple[Action, ...]


class Telling(NamedTuple):
  """What an answer text says: kind of step, its facts by slot, the extra scene facts it adds, and where each slot stands."""

  kind: str
  facts: dict[str, Any]
  extras: tuple[str, ...]
  spans: dict[str, tuple[int, int]]


def normalise(text: str) -> str:
  """Lower case, punctuation as words, single spaces; at most 2,000 characters."""
  return ' '.join(re.sub(r'([.,:;?!])', r' \1 ', text[:2000].lower()).split())


def name_of(name: Name) -> str:
  return f'{COLOURS[name[0]]} {SHAPES[name[1]]}'


def name_from(text: str) -> Name:
  colour, shape = text.split()
  return (COLOURS.index(colour), SHAPES.index(shape))


def count_of(count: int) -> str:
  return f'{NUMBERS[count]} shape{"s" if count != 1 else ""}'


def pictures_of(count: int) -> str:
  return f'{NUMBERS[count]} picture{"s" if count != 1 else ""}'


def join(parts: Sequence[str]) -> str:
  """`x`, `x and y`, `x , y and z`."""
  return parts[0] if len(parts) == 1 else f'{" , ".join(parts[:-1])} and {parts[-1]}'


# Writing.


def caption(view: Scene) -> str:
  """The full description of a picture, objects in canonical order; open fields are left out."""
  parts = []
  for item in view.objects:
    words = [] if item.size is None else [SIZES[item.size]]
    words.append(name_of(item.name))
    words += [] if item.cell is None else [PLACES[item.cell]]
    parts.append(' '.join(words))
  return f'{" , ".join(parts)} on {GROUNDS[view.ground]}'


def describe(view: Scene) -> str:
  """The scene as a question gives it."""
  parts = []
  for item in view.objects:
    size = '' if item.size is None else f'{SIZES[item.size]} '
    cell = '' if item.cell is None else f' {PLACES[item.cell]}'
    parts.append(f'a {size}{name_of(item.name)}{cell}')
  return f'{join(parts)} on {GROUNDS[view.ground]}'


def ask(action: Action, wording: int = 0) -> str:
  """An action as a question asks for it."""
  slots = {'at': ''}
  if action.name is not None:
    slots['the'] = 'it' if action.name == IT else f'the {name_of(action.name)}'
    slots['name'] = '' if action.name == IT else name_of(action.name)
  if action.kind == 'swap':
    slots['other'] = name_of(action.other)
  elif action.kind == 'add':
    slots['at'] = '' if action.value is None else f' at {PLACES[action.value]}'
  elif action.value is not None:
    field, words = {'move': ('place', PLACES), 'recolour': ('colour', COLOURS), 'reshape': ('shape', SHAPES),
                    'resize': ('size', SIZES), 'reground': ('ground', GROUNDS)}[action.kind]
    slots[field] = words[action.value]
  wordings = ASK[action.kind]
  return wordings[wording % len(wordings)].format(**slots)


def write_question(request: Request, template: str, wordings: Sequence[int] = (0,)) -> str:
  """Fills a template of SINGLE, SERIES or FOLLOW."""
  do = ' , then '.join(ask(action, wordings[i % len(wordings)]) for i, action in enumerate(request.actions))
  return template.format(n=pictures_of(request.count), do=do,
                         scene='' if request.scene is None else describe(request.scene))


def facts_of(action: Action | None, before: Scene | None, after: Scene) -> dict[str, Any]:
  """The facts a step's text must tell, by slot; None where the question leaves the value open."""
  if action is None:
    return {'count': len(after.objects), 'names': tuple(item.name for item in after.objects)}
  kind = action.kind
  if kind == 'reground':
    return {'old': before.ground, 'new': action.value}
  old, new = before.find(action.name), after.find(touched(action))
  if kind == 'move':
    return {'name': action.name, 'from': old.cell, 'to': action.value}
  if kind == 'recolour':
    return {'old': action.name[0], 'shape': action.name[1], 'new': action.value}
  if kind == 'reshape':
    return {'colour': action.name[0], 'old': action.name[1], 'new': action.value}
  if kind == 'resize':
    return {'name': action.name, 'old': 1 - action.value, 'new': action.value}
  if kind == 'add':
    return {'name': action.name, 'to': new.cell, 'count': len(after.objects)}
  if kind == 'remove':
    return {'name': action.name, 'from': old.cell, 'count': len(after.objects)}
  return {'name': action.name, 'other': action.other, 'to': new.cell}


_OLD_WORDS = {'recolour': COLOURS, 'reshape': SHAPES, 'resize': SIZES, 'reground': GROUNDS}


def phrase(kind: str, slot: str, value: Any) -> str:
  """The words of one fact."""
  if slot in ('name', 'other'):
    return name_of(value)
  if slot in ('from', 'to'):
    return PLACES[value]
  if slot == 'count':
    return count_of(value)
  if slot == 'names':
    return join([f'a {name_of(name)}' for name in value])
  if slot == 'colour':
    return COLOURS[value]
  if slot == 'shape':
    return SHAPES[value]
  return _OLD_WORDS[kind][value]


def tell(action: Action | None, before: Scene | None, after: Scene, wording: int = 0) -> str:
  """The text of an answer step (full scenes only)."""
  kind = 'show' if action is None else action.kind
  slots = {slot: phrase(kind, slot, value) for slot, value in facts_of(action, before, after).items()}
  wordings = WORDINGS[kind]
  return wordings[wording % len(wordings)].format(**slots)


# Reading.


def _any(words: Sequence[str]) -> str:
  return f'(?:{"|".join(words)})'


_NAME = f'{_any(COLOURS)} {_any(SHAPES)}'
_PLACE = f'{_any(ROWS)} {_any(COLUMNS)}'
_THING = f'a (?:{_any(SIZES)} )?{_NAME}(?: {_PLACE})?'
_SCENE = f'{_THING}(?:(?: ,| and) {_THING})* on {_any(GROUNDS)}'
_COUNT = f'{_any(NUMBERS[1:])} shapes?'
_ITEM = re.compile(f'(?:({_any(SIZES)}) )?({_any(COLOURS)}) ({_any(SHAPES)})(?: ({_PLACE}))?')
_CAPTION_ITEM = f'(?:a )?{_any(SIZES)} {_NAME} {_PLACE}'
_CAPTION = re.compile(f'{_CAPTION_ITEM}(?: , {_CAPTION_ITEM})* on {_any(GROUNDS)}(?: \\.)?')


def _compile(template: str, slots: dict[str, str]) -> re.Pattern:
  pattern = re.escape(template).replace('\\ ', ' ')
  for slot, inside in slots.items():
    pattern = pattern.replace(f'\\{{{slot}\\}}', f'(?P<{slot}_>{inside})')
  return re.compile(pattern)


_QUESTIONS = tuple(
    (group, _compile(template, {'n': f'{_any(NUMBERS[1:])} pictures?', 'scene': _SCENE, 'do': '[^.?:]+?'}))
    for group, templates in (('single', SINGLE), ('series', SERIES), ('follow', FOLLOW)) for template in templates)
_ASK = tuple(
    (kind, _compile(template, {'the': f'the {_NAME}|it', 'place': _PLACE, 'colour': _any(COLOURS),
                               'shape': _any(SHAPES), 'size': _any(SIZES), 'name': _NAME, 'other': _NAME,
                               'at': f'(?: at {_PLACE})?', 'ground': _any(GROUNDS)}))
    for kind in KINDS for template in ASK[kind])
_EXTRA = f'(?P<extra_>(?: , with {_THING})*(?: , on {_any(GROUNDS)})?)'


def _telling_pattern(kind: str, template: str) -> re.Pattern:
  words = _any(_OLD_WORDS.get(kind, ('',)))
  names = f'a {_NAME}(?:(?: ,| and) a {_NAME})*'
  body = _compile(template.removesuffix(' .'), {
      'name': _NAME, 'other': _NAME, 'from': _PLACE, 'to': _PLACE, 'count': _COUNT, 'names': names,
      'colour': _any(COLOURS), 'shape': _any(SHAPES), 'old': words, 'new': words}).pattern
  return re.compile(f'{body}{_EXTRA}(?: \\.)?')


_TELLINGS = tuple((kind, _telling_pattern(kind, template)) for kind in WORDINGS for template in WORDINGS[kind])


def items_in(text: str) -> list[Object]:
  """Every `[size] colour shape [place]` that occurs in a normalised text, in order."""
  return [item for item, _ in items_at(text)]


def items_at(text: str, start: int = 0, end: int | None = None) -> list[tuple[Object, int]]:
  """The same within a part of the text, each with where its name ends."""
  return [(Object(COLOURS.index(m[2]), SHAPES.index(m[3]), SIZES.index(m[1]) if m[1] else None,
                  PLACES.index(m[4]) if m[4] else None), m.end(3))
          for m in _ITEM.finditer(text, start, len(text) if end is None else end)]


def parse_caption(text: str) -> Scene | None:
  """Reads a caption back; None when it is not one, or describes no possible scene."""
  text = normalise(text)
  if not _CAPTION.fullmatch(text):
    return None
  ground = GROUNDS.index(text.removesuffix(' .').rsplit(' ', 1)[-1])
  view = scene(ground, items_in(text))
  try:
    check(view)
  except Impossible:
    return None
  return view


def _parse_action(text: str) -> Action | None:
  for kind, pattern in _ASK:
    match = pattern.fullmatch(text)
    if match is None:
      continue
    found = {key[:-1]: value for key, value in match.groupdict().items()}
    if kind == 'reground':
      return Action(kind, value=GROUNDS.index(found['ground']))
    if kind == 'add':
      at = found['at'].removeprefix(' at ')
      return Action(kind, name_from(found['name']), value=PLACES.index(at) if at else None)
    name = IT if found['the'] == 'it' else name_from(found['the'].removeprefix('the '))
    if kind == 'swap':
      return Action(kind, name, name_from(found['other']))
    for slot, words in (('place', PLACES), ('colour', COLOURS), ('shape', SHAPES), ('size', SIZES)):
      if slot in found:
        return Action(kind, name, value=words.index(found[slot]))
    return Action(kind, name)
  return None


def parsings(text: str) -> list[Request]:
  """Every different reading of a question that some template allows (a sound question has exactly one)."""
  text = normalise(text)
  found: list[Request] = []
  for group, pattern in _QUESTIONS:
    match = pattern.fullmatch(text)
    if match is None:
      continue
    actions = tuple(_parse_action(part.removeprefix('then ')) for part in match['do_'].split(' , then '))
    if None in actions:
      continue
    view = None
    if group != 'follow':
      described = match['scene_']
      view = scene(GROUNDS.index(described.rsplit(' ', 1)[-1]), items_in(described))
    request = Request(NUMBERS.index(match['n_'].split()[0]), view, actions)
    if request.count == len(actions) + (group == 'series') and request not in found:
      found.append(request)
  return found


@functools.lru_cache(maxsize=1 << 14)
def parse_question(text: str) -> Request | None:
  """What a question asks, or None when it follows no template or its number of pictures does not fit its actions."""
  found = parsings(text)
  return found[0] if found else None


@functools.lru_cache(maxsize=1 << 14)
def parse_telling(text: str) -> Telling | None:
  """What an answer text says, or None when it follows no wording. `text` must be normalised."""
  for kind, pattern in _TELLINGS:
    match = pattern.fullmatch(text)
    if match is None:
      continue
    facts: dict[str, Any] = {}
    for key, value in match.groupdict().items():
      slot = key[:-1]
      if slot in ('name', 'other'):
        facts[slot] = name_from(value)
      elif slot in ('from', 'to'):
        facts[slot] = PLACES.index(value)
      elif slot == 'count':
        facts[slot] = NUMBERS.index(value.split()[0])
      elif slot == 'names':
        facts[slot] = tuple(item.name for item in items_in(value))
      elif slot == 'colour':
        facts[slot] = COLOURS.index(value)
      elif slot == 'shape':
        facts[slot] = SHAPES.index(value)
      elif slot != 'extra':
        facts[slot] = _OLD_WORDS[kind].index(value)
    return Telling(kind, facts, tuple(part for part in match['extra_'].split(' , ') if part.strip()),
                   {key[:-1]: match.span(key) for key in match.groupdict()})
  return None


def templates(first: bool, steps: Sequence[int] = (1, 2, 3)) -> tuple[str, ...]:
  """Every template of a first or later turn for these numbers of steps, as prompts give it (see `template_of`)."""
  return tuple(_starred(template, count) for count in steps
               for template in ((SINGLE if count == 1 else SERIES) if first else FOLLOW))


def _starred(template: str, count: int) -> str:
  return re.sub(r'\{[a-z]+\}', '*', template.replace('{n}', pictures_of(count)))


def template_of(question: str) -> str | None:
  """The template a question follows, `*` for the scene and the actions, the number of pictures kept; None without."""
  text = normalise(question)
  request = parse_question(question)
  for (_, pattern), template in zip(_QUESTIONS, SINGLE + SERIES + FOLLOW, strict=True):
    if request is not None and pattern.fullmatch(text):
      return _starred(template, request.count)
  return None


def resolve(actions: Sequence[Action], last: Name | None) -> tuple[tuple[Action, ...], Name | None]:
  """Replaces `it` by the object touched before. Raises Impossible where there is none."""
  result = []
  for action in actions:
    if action.name == IT:
      if last is None:
        raise Impossible('nothing that `it` could mean')
      action = action._replace(name=last)
    if action.kind == 'remove':
      last = None
    elif action.kind != 'reground':
      last = touched(action)
    result.append(action)
  return tuple(result), last


def replay(requests: Sequence[Request]) -> tuple[Scene, Name | None]:
  """The scene after all turns as the questions settle it (open where they do not), and what `it` means then.

  Raises Impossible when the first question gives no scene or an action does not fit.
  """
  view, last = None, None
  for request in requests:
    if request.scene is not None:
      check(request.scene)
      view, last = request.scene, None
    if view is None:
      raise Impossible('no scene to start from')
    actions, last = resolve(request.actions, last)
    for action in actions:
      view = apply(view, action)
  if view is None:
    raise Impossible('no question')
  return view, last


@functools.cache
def vocabulary() -> frozenset[str]:
  """Every word that Storyworld questions, answers and captions can hold."""
  words: set[str] = set()
  templates = [*SINGLE, *SERIES, *FOLLOW, *(t for ts in ASK.values() for t in ts),
               *(t for ts in WORDINGS.values() for t in ts), 'shape shapes picture pictures on with a and the it then at']
  for text in [*templates, *COLOURS, *SHAPES, *SIZES, *GROUNDS, *PLACES, *NUMBERS[1:], *UNDERSTANDING, DRAW]:
    words.update(re.sub(r'\{[a-z]+\}', ' ', text).split())
  return frozenset(words)


UNDERSTANDING = (
    'what colour is the {shape} ?', 'what shape is at {place} ?', 'where is the {name} ?', 'how many shapes ?',
    'what is the ground ?', 'how large is the {name} ?', 'describe the picture .')
"""Questions about a picture; answered by a few words, or by the caption."""

DRAW = 'draw {caption} .'
"""The text-to-image question."""
