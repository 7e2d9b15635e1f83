"""What is wrong where: labels for single facts of a text and single places of a picture, beside the scores of `score`.

A fact of the text is wrong for TCC where it is not what the question asks to be told; the mark stands at the end of the
fact's words, where a reader knows all of it. A place of the picture contradicts the text (ITS) where the text puts another
object there, or puts the object that is there elsewhere, or of another size, or on another ground.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from intersyn_jax.data.storyworld import language
from intersyn_jax.data.storyworld.language import Telling, parse_telling
from intersyn_jax.data.storyworld.score import Asked, extra_holds, right_facts, same_facts
from intersyn_jax.data.storyworld.world import CELLS, GROUNDS, Name, Scene


def facts(text: str, asked: Asked) -> list[tuple[int, bool]]:
  """The facts of a normalised text: where the words of each end, and whether it is wrong. The last one, at the end of the
  text, is wrong where this is no step of the asked kind, or follows no wording."""
  told = parse_telling(text)
  found = list(_of_telling(told, text, asked) if told is not None else _of_words(text, asked))
  return [*found, (len(text), told is None or told.kind != _kind(asked))]


def claims(text: str) -> list[int]:
  """Where the words of each statement of a normalised text about the picture end (`score.claims`)."""
  told = parse_telling(text)
  if told is None:
    return [end for _, end in language.items_at(text)]
  ends = []
  for slot in _CLAIMED[told.kind]:
    start, end = told.spans[slot]
    ends += [stop for _, stop in language.items_at(text, start, end)] if slot == 'names' else [end]
  return sorted(ends + [end for end, _ in _extras(told, text)])


def named(text: str) -> set[Name]:
  """The objects that a normalised text says the picture shows; what is repainted or reshaped by its new name."""
  names = {item.name for item in language.items_in(text)}
  told = parse_telling(text)
  if told is not None and told.kind == 'recolour':
    names = {(told.facts['new'], told.facts['shape'])}
  if told is not None and told.kind == 'reshape':
    names = {(told.facts['colour'], told.facts['new'])}
  return names


def contradictions(text: str, view: Scene) -> np.ndarray:
  """bool[cells] of the picture's scene: the cells that contradict a normalised text, by what stands there, by its size, or by the
  ground between the objects."""
  out = np.zeros(CELLS, bool)
  told, items = parse_telling(text), language.items_in(text)
  kind, facts_ = (told.kind, told.facts) if told is not None else (None, {})
  gone = facts_['name'] if kind == 'remove' else None
  placed = {item.name: item.cell for item in items if item.cell is not None}
  sized = {item.name: item.size for item in items if item.size is not None}
  if 'to' in facts_:
    placed[facts_['name']] = facts_['to']
  if kind == 'resize':
    sized[facts_['name']] = facts_['new']
  grounds = {facts_['new']} if kind == 'reground' else {i for i, word in enumerate(GROUNDS) if f' on {word} ' in f' {text} '}
  for name, cell in placed.items():
    there = view.at(cell)
    out[cell] |= there is None or there.name != name
  for item in view.objects:
    out[item.cell] |= (item.name == gone or placed.get(item.name, item.cell) != item.cell or
                       sized.get(item.name, item.size) != item.size)
  if grounds - {view.ground}:
    out |= np.array([view.at(cell) is None for cell in range(CELLS)])
  return out


_CLAIMED = {kind: facts['both'] if kind != 'remove' else ('name', 'count') for kind, facts in language.FACTS.items()}
_CLAIMED |= {'recolour': ('new',), 'reshape': ('new',)}
"""The slots that `score.claims` looks up in the picture."""


def _extras(told: Telling, text: str) -> Iterator[tuple[int, str]]:
  """What a text adds to its wording, and where each ends."""
  at = told.spans['extra'][0]
  for extra in told.extras:
    at = text.index(extra, at) + len(extra)
    yield at, extra


def _kind(asked: Asked) -> str:
  return 'show' if asked.action is None else asked.action.kind


def _of_telling(told: Telling, text: str, asked: Asked) -> Iterator[tuple[int, bool]]:
  ways = right_facts(asked)
  same = told.kind == _kind(asked)
  right = max(ways, key=lambda way: same_facts(told, way)) if same else {}
  phrases = _phrases(asked)
  for slot, (start, end) in told.spans.items():
    if slot == 'names':
      for item, stop in language.items_at(text, start, end):
        yield stop, not (item.name in right['names'] if same else language.name_of(item.name) in phrases)
    elif slot != 'extra':
      value = right.get(slot)
      yield end, not ((value is None or told.facts[slot] == value) if same else text[start:end] in phrases)
  for end, extra in _extras(told, text):
    yield end, not extra_holds(extra, asked.after)


def _of_words(text: str, asked: Asked) -> Iterator[tuple[int, bool]]:
  """Text that follows no wording: the objects that it names."""
  phrases = _phrases(asked)
  for item, end in language.items_at(text):
    yield end, language.name_of(item.name) not in phrases


def _phrases(asked: Asked) -> set[str]:
  """The words of all facts that the step's text must tell; the names of several objects one by one."""
  told = right_facts(asked)[0]
  names = {language.name_of(name) for name in told.get('names', ())}
  return names | {language.phrase(_kind(asked), slot, value) for slot, value in told.items()
                  if slot != 'names' and value is not None}
