"""The TFDS builder of Storyworld: which splits there are, and how each is made."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from intersyn_jax.data.importers import rows
from intersyn_jax.data.sources import ConversationBuilder
from intersyn_jax.data.storyworld import role_examples, story
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Turn


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a split of Storyworld is made.

  Attributes:
    generate: (seed, index, topics, *, pixels, jitter, ...) -> Conversation.
    topics: the split of the topics it draws from (DESIGN 4: 1 roles, 2 policy, 3 validation, 4 test).
    first: first index; two splits of one generator and the same topics stay apart by it.
    options: names of the further fields that `generate` takes.
  """

  generate: Callable[..., Conversation]
  topics: str
  first: int = 0
  options: tuple[str, ...] = ()


def question(*args, **options) -> Conversation:
  """The first question of a story, its answer left out: all that a prompt of GRPO may hold."""
  whole = story.conversation(*args, **options)
  return dataclasses.replace(whole, turns=(Turn(whole.turns[0].question),))


_STORY = ('objects', 'steps', 'turns')

RECIPES: dict[str, Recipe] = {
    'interleaved': Recipe(story.conversation, 'policy', options=_STORY),
    'understanding': Recipe(story.understanding, 'policy'),
    'text_to_image': Recipe(story.text_to_image, 'policy'),
    'roles': Recipe(role_examples.role_example, 'roles', options=_STORY),
    'roles_interleaved': Recipe(story.conversation, 'roles', options=_STORY),
    'gold': Recipe(story.conversation, 'policy', first=10_000_000, options=_STORY),
    'questions': Recipe(question, 'policy', first=20_000_000, options=_STORY),
    'validation': Recipe(story.conversation, 'validation', options=_STORY),
    'test': Recipe(story.conversation, 'test', options=_STORY),
}
"""The splits that `data.counts` can name; `gold` and `questions` hold other stories than `interleaved`."""


class Storyworld(ConversationBuilder, skip_registration=True):
  """The procedural corpus (DESIGN 4)."""

  description = 'Storyworld: procedural interleaved stories on a grid, whose answers can be checked exactly.'

  def __init__(self, *, counts: Mapping[str, int], seed: int, pixels: int = 32, jitter: int = 0,
               objects: int | Sequence[int] = 2, steps: int | Sequence[int] = (1, 2, 3), turns: int | Sequence[int] = 1,
               **kwargs):
    """
    Args:
      counts: records of each split; see RECIPES. A split of 0 records is not made.
      seed: of everything.
      pixels, jitter, objects, steps, turns: see `storyworld.story`.
    """
    self._counts = {split: count for split, count in counts.items() if count}
    self._seed = seed
    self._fields = {'pixels': pixels, 'jitter': jitter, 'objects': objects, 'steps': steps, 'turns': turns}
    for split, count in self._counts.items():
      if split not in RECIPES:
        raise UserError(f'data.counts.{split} is no split of Storyworld; there are {", ".join(RECIPES)}')
      if not isinstance(count, int) or count < 0:
        raise UserError(f'data.counts.{split} is {count!r}; give a whole number, 0 to leave the split out')
    if not self._counts:
      raise UserError('data.counts asks for no record at all; give at least one split a number')
    super().__init__(**kwargs)

  def sizes(self) -> dict[str, int | None]:
    return dict(self._counts)

  def _options(self, split: str) -> dict[str, Any]:
    return {name: self._fields[name] for name in ('pixels', 'jitter', *RECIPES[split].options)}

  def settings(self, split: str) -> dict[str, Any]:
    recipe = RECIPES[split]
    made = {'seed': self._seed, 'records': self._counts[split], 'topics': recipe.topics, 'first': recipe.first}
    return self._options(split) | made

  def conversations(self, split: str) -> rows.Conversations:
    self.rejected[split] = []
    recipe = RECIPES[split]
    indices = ((f'index {index}', index) for index in range(recipe.first, recipe.first + self._counts[split]))
    make = functools.partial(_make, recipe.generate, self._seed, recipe.topics, self._options(split))
    return rows.Conversations(indices, make, self.rejected[split].append, key='', strict=True)


def _make(generate: Callable[..., Conversation], seed: int, topics: str, options: Mapping[str, Any], where: str,
          index: int) -> Conversation:
  del where
  return generate(seed, index, topics, **options)
