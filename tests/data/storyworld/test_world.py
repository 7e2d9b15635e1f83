"""Scenes and actions."""

import pytest

from intersyn_jax.data.storyworld.world import Action, Impossible, Object, Scene, apply, bind, check, scene, undo

RED_CIRCLE = Object(0, 0, 1, 0)
BLUE_SQUARE = Object(1, 1, 0, 5)
START = scene(0, [BLUE_SQUARE, RED_CIRCLE])


def test_canonical_order():
  assert START.objects == (RED_CIRCLE, BLUE_SQUARE)
  assert scene(0, [Object(0, 0, None, None), BLUE_SQUARE]).objects[0] == BLUE_SQUARE


@pytest.mark.parametrize(('action', 'expected'), [
    (Action('move', (0, 0), value=9), [BLUE_SQUARE, RED_CIRCLE._replace(cell=9)]),
    (Action('recolour', (0, 0), value=3), [RED_CIRCLE._replace(colour=3), BLUE_SQUARE]),
    (Action('reshape', (1, 1), value=4), [RED_CIRCLE, BLUE_SQUARE._replace(shape=4)]),
    (Action('resize', (1, 1), value=1), [RED_CIRCLE, BLUE_SQUARE._replace(size=1)]),
    (Action('add', (2, 2), value=7), [RED_CIRCLE, BLUE_SQUARE, Object(2, 2, None, 7)]),
    (Action('remove', (0, 0)), [BLUE_SQUARE]),
    (Action('swap', (0, 0), (1, 1)), [BLUE_SQUARE._replace(cell=0), RED_CIRCLE._replace(cell=5)]),
])
def test_apply(action, expected):
  assert apply(START, action) == scene(0, expected)


@pytest.mark.parametrize('action', [
    Action('move', (0, 0), value=9), Action('recolour', (0, 0), value=3), Action('reshape', (1, 1), value=4),
    Action('resize', (1, 1), value=1), Action('add', (2, 2), value=7), Action('remove', (0, 0)), Action('swap', (0, 0), (1, 1)),
    Action('reground', value=2)])
def test_undone_all_is_as_before(action):
  back = apply(apply(START, action), undo(START, action))
  sizes_aside = lambda view: (view.ground, [item._replace(size=None) for item in view.objects])  # an added one's is left open
  assert sizes_aside(back) == sizes_aside(START) and (action.kind == 'remove' or back == START)


def test_reground_keeps_the_objects():
  assert apply(START, Action('reground', value=2)) == Scene(2, START.objects)


@pytest.mark.parametrize('action', [
    Action('move', (0, 0), value=5),  # taken
    Action('move', (0, 0), value=0),  # where it is
    Action('move', (3, 3), value=9),  # absent
    Action('recolour', (0, 0), value=0),
    Action('resize', (0, 0), value=1),
    Action('add', (0, 0), value=9),  # there already
    Action('add', (2, 2), value=5),  # taken
    Action('swap', (0, 0), (0, 0)),
    Action('swap', (0, 0), (2, 2)),
    Action('reground', value=0),
])
def test_impossible(action):
  with pytest.raises(Impossible):
    apply(START, action)


def test_the_last_object_stays():
  with pytest.raises(Impossible):
    apply(scene(0, [RED_CIRCLE]), Action('remove', (0, 0)))


def test_check_finds_contradictions():
  with pytest.raises(Impossible):
    check(Scene(0, (RED_CIRCLE, RED_CIRCLE._replace(cell=3))))
  with pytest.raises(Impossible):
    check(Scene(0, (RED_CIRCLE, BLUE_SQUARE._replace(cell=0))))


def test_bind_fills_only_what_is_open():
  goal = scene(0, [Object(0, 0, None, None), BLUE_SQUARE])
  seen = scene(1, [Object(0, 0, 1, 8), BLUE_SQUARE._replace(cell=9)])
  assert bind(goal, seen) == scene(0, [Object(0, 0, 1, 8), BLUE_SQUARE])
