"""The InterSyn generator's JSON and pictures (InterSyn, released data), as `importers.intersyn` reads them."""

from __future__ import annotations

from intersyn_jax.data.exporters import shared
from intersyn_jax.interleave.types import Conversation


def carry(conversation: Conversation) -> shared.Carried:
  """One row with its messages; the fields of a picture are '' where an answer has none, as the generator leaves them."""
  messages, pictures = [], {}
  for number, (question, answer, image) in enumerate(shared.single_turns(conversation)):
    name = shared.picture_name(conversation.id, number, image.data) if image else ''
    messages += [{'from': 'human', 'value': question},
                 {'from': 'gpt', 'value': answer, 'caption': image.caption if image else '', 'image': name}]
    if image:
      pictures[name] = image.data
  return shared.Carried([{'id': conversation.id, 'topic': conversation.topic, 'conversations': messages}], pictures)
