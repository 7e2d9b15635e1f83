"""What is wrong where: labels for single facts of a text, beside the scores of `score`.

A fact of the text is wrong for TCC where it is not what the question asks to be told, and for ITS where the picture does not
show it; the mark stands at the end of the fact's words, where a reader knows all of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from intersyn_jax.data.storyworld import language, score
from intersyn_jax.data.storyworld.language import Telling, parse_telling
from intersyn_jax.data.storyworld.score import Asked, right_facts, same_facts
from intersyn_jax.data.storyworld.world import Scene


def facts(text: str, asked: Asked) -> list[tuple[int, bool]]:
  """The facts of a normalised text: where the words of each end, and whether it is wrong. The last one, at the end of the
  text, is wrong where this is no step of the asked kind, or follows no wording."""
  told = parse_telling(text)
  found = list(_of_telling(told, text, asked) if told is not None else _of_words(text, asked))
  return [*found, (len(text), told is None or told.kind != _kind(asked))]


def claims(text: str, view: Scene) -> list[tuple[int, bool]]:
  """The statements of a normalised text about its picture (`score.claims`), in the order of the text: where the words of each
  end, and whether it holds in the scene."""
  told = parse_telling(text)
  if told is None:
    return [(end, score.has(view, item.name, item.cell, item.size)) for item, end in language.items_at(text)]
  names = [end for _, end in language.items_at(text, *told.spans['names'])] if 'names' in told.spans else []
  ends = {slot: [end] for slot, (_, end) in told.spans.items()} | {'names': names}
  if told.kind == 'remove':  # that it is gone is not yet said where its name ends, but before what is left is counted
    ends['name'] = [text.rindex(',', 0, told.spans['count'][0]) + 1]
  found = [(ends[slot].pop(0), holds) for slot, holds in score.claims(told, view)]
  found += [(end, score.extra_holds(extra, view)) for end, extra in _extras(told, text)]
  return sorted(found)


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
    yield end, not score.extra_holds(extra, asked.after)


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
