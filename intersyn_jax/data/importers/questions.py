"""Questions for data sets that have none: templates of the two kinds that Unified GRPO has, in words of our own.

The paper's query is an instruction, then the content so far: a text and a picture. Some of ours say how many steps the answer
has and some leave that to the model, as both occur in its figures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

CONTINUE = (
    'This is how an event begins, told with a text and a picture. Go on with it in {steps}, each a text and then its picture. '
    'The beginning: {content}',
    'Read the first part of an event and look at its picture. What happens next? Tell and show it step by step. '
    'First part: {content}',
    'The opening of an event is given in words and as an image. Write the rest in {steps} and draw an image after each. '
    'Opening: {content}',
    'Here are the first words and the first picture of something that goes on. Complete it, every text followed by the picture '
    'that belongs to it. So far: {content}')
"""For events in time: the answer carries on."""

REASON = (
    'A question comes with a picture. Think it through in {steps}: for each write what is done, then draw what is seen. '
    'Question: {content}',
    'Answer the question about this picture step by step, in words and pictures by turns. Question: {content}',
    'Solve this with text and images together: {steps}, each explained in words and then shown. Question: {content}',
    'Look at the picture and answer. After every step of your explanation show the state that it leads to. Question: {content}')
"""For tasks: the answer works something out."""


def ask(templates: Sequence[str], name: str, content: str, steps: int) -> str:
  """A question by one of the templates; which one, the id `name` decides.

  Args:
    templates: CONTINUE or REASON.
    name: of the conversation.
    content: what comes after the instruction.
    steps: of the answer.
  """
  chosen = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) % len(templates)
  return templates[chosen].replace('{steps}', 'one step' if steps == 1 else f'{steps} steps').replace('{content}', content)
