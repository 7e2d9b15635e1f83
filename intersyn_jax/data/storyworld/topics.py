"""Topic hierarchy domain / category / topic by composition, and the splits by topic.

domain = what is done (8), category = done to which shape (40), topic = also its colour and the ground (960).
"""

from __future__ import annotations

import functools
import hashlib
from typing import NamedTuple

from intersyn_jax.data.storyworld.world import COLOURS, GROUNDS, KINDS, SHAPES, Action, Name

DOMAINS = ('moving', 'painting', 'reshaping', 'resizing', 'adding', 'removing', 'swapping', 'regrounding')
"""Names of the action kinds, in the order of KINDS."""

SPLITS = {'roles': 40, 'policy': 40, 'validation': 8, 'test': 12}
"""Percent of the topics: 1 roles and judge, 2 policy training, 3 validation, 4 test (DESIGN 4)."""


class Topic(NamedTuple):
  """What a conversation is about."""

  kind: str
  colour: int
  shape: int
  ground: int

  @property
  def name(self) -> Name:
    return (self.colour, self.shape)

  @property
  def phrase(self) -> str:
    """The topic alone, as prompts call it: `moving a red circle on sand`."""
    domain = DOMAINS[KINDS.index(self.kind)]
    return f'{domain} a {COLOURS[self.colour]} {SHAPES[self.shape]} on {GROUNDS[self.ground]}'

  def stays(self, action: Action) -> bool:
    """Whether an action of a later turn stays with the topic: same kind, or an object of its colour or shape."""
    return action.kind == self.kind or (action.name is not None and (
        action.name[0] == self.colour or action.name[1] == self.shape))

  def __str__(self) -> str:
    """`domain/category/topic`."""
    domain = DOMAINS[KINDS.index(self.kind)]
    return f'{domain}/{domain} a {SHAPES[self.shape]}/{self.phrase}'


def parse_topic(text: str) -> Topic:
  """Reads a topic from `domain/category/topic` or from the topic phrase alone. Raises ValueError on anything else."""
  words = text.rsplit('/', 1)[-1].split()
  try:
    domain, _, colour, shape, _, ground = words
    topic = Topic(KINDS[DOMAINS.index(domain)], COLOURS.index(colour), SHAPES.index(shape), GROUNDS.index(ground))
  except ValueError as error:
    raise ValueError(f'no Storyworld topic: {text!r}') from error
  if text not in (topic.phrase, str(topic)):
    raise ValueError(f'no Storyworld topic: {text!r}')
  return topic


@functools.cache
def all_topics() -> tuple[Topic, ...]:
  """All 960 topics in a fixed order."""
  return tuple(Topic(kind, colour, shape, ground) for kind in KINDS for shape in range(len(SHAPES))
               for colour in range(len(COLOURS)) for ground in range(len(GROUNDS)))


@functools.cache
def split_of(topic: Topic) -> str:
  """The split a topic belongs to: by a hash of its phrase, so it never moves."""
  place = int.from_bytes(hashlib.blake2b(topic.phrase.encode(), digest_size=8).digest(), 'big') % 100
  for split, share in SPLITS.items():
    place -= share
    if place < 0:
      return split
  raise AssertionError('shares of the splits do not sum to 100')


@functools.cache
def topics_of(split: str) -> tuple[Topic, ...]:
  """All topics of a split. Raises ValueError on an unknown name."""
  if split not in SPLITS:
    raise ValueError(f'unknown split {split!r}; there are {", ".join(SPLITS)}')
  return tuple(topic for topic in all_topics() if split_of(topic) == split)
