"""Repeated questions: the same words, or nearly the same (MinHash of word triples, then the true Jaccard similarity)."""

from __future__ import annotations

import re
from collections.abc import Iterable

import datasketch

from intersyn_jax.interleave.types import Conversation, text_of

PERMUTATIONS = 64
BANDS = (16, 4)
"""Bands of the index and rows of each: questions of similarity 0.7 meet with 99 %, of 0.9 always."""


def normalise(text: str) -> str:
  """Lower case, words and numbers only, single spaces."""
  return ' '.join(re.findall(r'\w+', text.lower()))


def triples(text: str) -> frozenset[str]:
  """All runs of three words of a normalised text (the whole text where it is shorter)."""
  words = text.split()
  return frozenset(' '.join(words[i:i + 3]) for i in range(max(1, len(words) - 2)))


def similarity(a: frozenset[str], b: frozenset[str]) -> float:
  """Jaccard similarity."""
  return len(a & b) / max(1, len(a | b))


class Seen:
  """The questions so far.

  Args:
    threshold: share of word triples in common from which two questions count as one; 1 finds only equal words.
  """

  def __init__(self, threshold: float):
    self._threshold = threshold
    self._exact: dict[str, str] = {}
    self._triples: dict[str, frozenset[str]] = {}
    # The index only offers candidates, more than needed; the true similarity decides.
    self._index = datasketch.MinHashLSH(num_perm=PERMUTATIONS, params=BANDS) if threshold < 1 else None

  def earlier(self, name: str, question: str) -> str:
    """Name of an earlier question that this one repeats; otherwise '' and the question is remembered."""
    text = normalise(question)
    if text in self._exact:
      return self._exact[text]
    parts = triples(text)
    if self._index is not None:
      sketch = datasketch.MinHash(PERMUTATIONS)
      sketch.update_batch([part.encode() for part in sorted(parts)])
      near = [other for other in sorted(self._index.query(sketch))
              if similarity(parts, self._triples[other]) >= self._threshold]
      if near:
        return near[0]
      self._index.insert(name, sketch)
      self._triples[name] = parts
    self._exact[text] = name
    return ''


def repeats(conversations: Iterable[Conversation], threshold: float) -> dict[str, str]:
  """Conversations, by id, whose first question repeats that of an earlier one (whose id is the value)."""
  seen = Seen(threshold)
  found = {}
  for conversation in conversations:
    earlier = seen.earlier(conversation.id, text_of(conversation.turns[0].question))
    if earlier:
      found[conversation.id] = earlier
  return found


def repeated_turns(conversation: Conversation, threshold: float) -> list[int]:
  """Turns whose question repeats that of an earlier turn of the same conversation."""
  parts = [triples(normalise(text_of(turn.question))) for turn in conversation.turns]
  return [i for i, mine in enumerate(parts) if any(similarity(mine, other) >= threshold for other in parts[:i])]
