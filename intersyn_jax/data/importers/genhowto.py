"""Importer of actions in three pictures, as GenHowTo has them: before, during and after (Unified GRPO, warm-up data).

    {"id", "initial": file, "action": file, "final": file, "action_prompt": text, "final_prompt": text,
     "category": text, "question": text}

The last three are optional. The release lists videos, times and prompts, and holds no pictures: docs/importing.md says how such
rows are made of it.

The question is the first picture and what is to be done; the answer has two steps, the action and its result.
"""

from __future__ import annotations

import os
from typing import Any

from intersyn_jax.data.importers import questions, rows, segments
from intersyn_jax.interleave.types import Conversation, Text, Turn

QUESTION = 'What is done here, and how does it look afterwards?'
RESULT = 'This is the result.'
"""Where a row has no question, and no text of its last picture."""


def conversations(path: str | os.PathLike[str], reject: rows.Reject, *, pixels: int,
                  folder: str | os.PathLike[str] | None = None, encoding: str = 'PNG',
                  fit: str = 'crop') -> rows.Conversations:
  """The usable rows as conversations; the others go to `reject`. Arguments as in `importers.intersyn`."""
  importer = segments.Importer(path, folder, pixels=pixels, encoding=encoding, fit=fit)
  return importer.conversations(rows.read(path, reject), _conversation, reject, key='id')


def _conversation(importer: segments.Importer, row: dict[str, Any]) -> Conversation:
  name = segments.identity(row, 'id')
  action, final = rows.string(row, 'action_prompt'), segments.optional(row, 'final_prompt')
  question = questions.ask(questions.REASON, name, segments.optional(row, 'question') or QUESTION, steps=2)
  turn = Turn(
      (*importer.text(question, 'question'), *importer.picture(row.get('initial'), 'initial')),
      (*importer.text(action, 'action_prompt'), *importer.picture(row.get('action'), 'action', caption=action),
       Text(final or RESULT), *importer.picture(row.get('final'), 'final', caption=final)))
  return Conversation(id=name, topic=segments.optional(row, 'category'), turns=(turn,), generator='genhowto')
