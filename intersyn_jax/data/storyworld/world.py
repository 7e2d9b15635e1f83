"""Scenes and actions: what can be in a Storyworld picture and what can happen to it.

A scene may be *open*: a size or a cell that a question does not mention is None, and any value is then right in the
answer, as long as later steps keep it. `apply` works on open and on full scenes alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

COLOURS = ('red', 'blue', 'green', 'yellow', 'white', 'purple')
SHAPES = ('circle', 'square', 'triangle', 'cross', 'ring')
SIZES = ('small', 'large')
GROUNDS = ('sand', 'sky', 'night', 'grass')
ROWS = ('top', 'upper', 'lower', 'bottom')
COLUMNS = ('left', 'midleft', 'midright', 'right')
PLACES = tuple(f'{row} {column}' for row in ROWS for column in COLUMNS)
NUMBERS = ('zero', 'one', 'two', 'three', 'four')
SIDE = 4
"""Cells along each side of a scene."""
CELLS = SIDE * SIDE
MOST_OBJECTS = 4

KINDS = ('move', 'recolour', 'reshape', 'resize', 'add', 'remove', 'swap', 'reground')

Name = tuple[int, int]
"""How sentences call an object: (colour, shape). No two objects of a scene share one."""

IT: Name = (-1, -1)
"""The word `it`: the object that the action before touched."""


class Impossible(ValueError):
  """An action that the scene does not allow (object absent, cell taken, nothing would change)."""


class Object(NamedTuple):
  """One object: indices into COLOURS, SHAPES, SIZES and PLACES; None where the question leaves it open."""

  colour: int
  shape: int
  size: int | None
  cell: int | None

  @property
  def name(self) -> Name:
    return (self.colour, self.shape)


class Scene(NamedTuple):
  """A ground and its objects, kept in canonical order (see `scene`)."""

  ground: int
  objects: tuple[Object, ...]

  def find(self, name: Name | None) -> Object | None:
    for item in self.objects:
      if (item.colour, item.shape) == name:
        return item
    return None

  def at(self, cell: int) -> Object | None:
    for item in self.objects:
      if item.cell == cell:
        return item
    return None


class Action(NamedTuple):
  """One change. `value` indexes what the kind changes: a cell (move, add), colour, shape, size or ground.

  An `add` with value None leaves the place open; `other` is the partner of a swap; `reground` has no name.
  """

  kind: str
  name: Name | None = None
  other: Name | None = None
  value: int | None = None


def scene(ground: int, objects: Iterable[Object]) -> Scene:
  """A scene with its objects in canonical order: by cell from top left, open cells last, then colour and shape."""
  def key(item: Object) -> tuple[int, int, int]:
    return (CELLS if item.cell is None else item.cell, item.colour, item.shape)
  return Scene(ground, tuple(sorted(objects, key=key)))


def check(value: Scene) -> None:
  """Raises Impossible when two objects share a name or a cell."""
  names = [item.name for item in value.objects]
  cells = [item.cell for item in value.objects if item.cell is not None]
  if len(set(names)) < len(names):
    raise Impossible('two objects share colour and shape')
  if len(set(cells)) < len(cells):
    raise Impossible('two objects share a place')


def apply(start: Scene, action: Action) -> Scene:
  """The scene after the action. Raises Impossible when the scene does not allow it."""
  kind, value = action.kind, action.value
  if kind == 'reground':
    if value == start.ground:
      raise Impossible('the ground is so already')
    return Scene(value, start.objects)
  item = start.find(action.name)
  if kind == 'add':
    if item is not None or len(start.objects) >= MOST_OBJECTS:
      raise Impossible('no room for this object')
    if value is not None and start.at(value) is not None:
      raise Impossible('the place is taken')
    return scene(start.ground, (*start.objects, Object(*action.name, None, value)))
  if item is None:
    raise Impossible('the object is not there')
  rest = [other for other in start.objects if other is not item]
  if kind == 'remove':
    if not rest:
      raise Impossible('nothing would be left')
    return Scene(start.ground, tuple(rest))
  if kind == 'swap':
    other = start.find(action.other)
    if other is None or other is item:
      raise Impossible('there is no partner to swap with')
    rest.remove(other)
    rest.append(other._replace(cell=item.cell))
    return scene(start.ground, (*rest, item._replace(cell=other.cell)))
  field = {'move': 'cell', 'recolour': 'colour', 'reshape': 'shape', 'resize': 'size'}[kind]
  if getattr(item, field) == value:
    raise Impossible('nothing would change')
  if kind == 'move' and start.at(value) is not None:
    raise Impossible('the place is taken')
  changed = item._replace(**{field: value})
  if kind in ('recolour', 'reshape') and start.find(changed.name) is not None:
    raise Impossible('two objects would share colour and shape')
  return scene(start.ground, (*rest, changed))


def undo(start: Scene, action: Action) -> Action:
  """What leads back to `start` from the scene after the action."""
  kind, item = action.kind, start.find(action.name)
  if kind == 'reground':
    return action._replace(value=start.ground)
  if kind in ('recolour', 'reshape'):
    return Action(kind, touched(action), None, item.colour if kind == 'recolour' else item.shape)
  if kind in ('add', 'remove'):
    return Action('remove', action.name) if kind == 'add' else Action('add', action.name, None, item.cell)
  return action._replace(value={'move': item.cell, 'resize': item.size}.get(kind))


def touched(action: Action) -> Name | None:
  """Name of the object that the action touched, as it is called afterwards; None for the ground."""
  if action.kind == 'recolour':
    return (action.value, action.name[1])
  if action.kind == 'reshape':
    return (action.name[0], action.value)
  return action.name


def bind(goal: Scene, shown: Scene | None) -> Scene:
  """Fills what `goal` leaves open with what `shown` settles: the answer was free there, and must now keep to it."""
  if shown is None:
    return goal
  taken = {item.cell for item in goal.objects if item.cell is not None}
  objects = []
  for item in goal.objects:
    seen = shown.find(item.name)
    if seen is not None:
      if item.size is None:
        item = item._replace(size=seen.size)
      if item.cell is None and seen.cell not in taken:
        item = item._replace(cell=seen.cell)
        taken.add(seen.cell)
    objects.append(item)
  return scene(goal.ground, objects)
