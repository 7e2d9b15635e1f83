"""What is wrong where in a text: labels for its single facts, beside the scores of `score`.

A fact is wrong for TCC where it is not what the question asks to be told, and a statement about the picture for ITS where the
picture does not bear it out. The mark stands at the end of the words, where a reader knows all of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from intersyn_jax.data.storyworld import language
from intersyn_jax.data.storyworld.language import Telling, parse_telling
from intersyn_jax.data.storyworld.score import Asked, claims, extra_holds, has, right_facts, same_facts
from intersyn_jax.data.storyworld.world import GROUNDS, Scene


def facts(text: str, asked: Asked) -> list[tuple[int, bool]]:
  """The facts of a normalised text: where the words of each end, and whether it is wrong. The last one, at the end of the
  text, is wrong where this is no step of the asked kind, or follows no wording."""
  told = parse_telling(text)
  found = list(_of_telling(told, text, asked) if told is not None else _of_words(text, asked))
  return [*found, (len(text), told is None or told.kind != _kind(asked))]


def statements(text: str, view: Scene) -> list[tuple[int, bool]]:
  """Where the words of each statement of a normalised text about its picture end, and whether it holds of the picture's scene
  (`score.its_of`)."""
  told = parse_telling(text)
  if told is None:
    found = [(end, has(view, item.name, item.cell, item.size)) for item, end in language.items_at(text)]
    at = [f' {text} '.find(f' on {word} ') for word in GROUNDS]
    found += [(start + len(f'on {word}'), view.ground == ground)
              for ground, (word, start) in enumerate(zip(GROUNDS, at, strict=True)) if start >= 0]
    return sorted(found)
  names = (end for _, end in language.items_at(text, *told.spans['names'])) if 'names' in told.spans else iter(())
  found = [(next(names) if slot == 'names' else told.spans[slot][1], holds) for slot, holds in claims(told, view)]
  return sorted(found + [(end, extra_holds(extra, view)) for end, extra in _extras(told, text)])


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
