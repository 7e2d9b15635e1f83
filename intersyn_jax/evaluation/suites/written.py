"""Answers that a policy has written, kept in windows of questions, so that a killed job goes on where it was.

    OUT/answers/facts.json                       what the answers were made with; other values need another folder
    OUT/answers/window_00003-*.array_record      the answers of a window
    OUT/answers/window_00003.json                their ids, and reasons of questions that could not be asked; written last
    OUT/answers/complete.json                    all windows are there; and the questions that could not even be read

Windows are cut from the questions in their order, and what is drawn depends on the seed, the window and the place in it
alone: a window that was cut short is written again, the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from intersyn_jax.data import shards
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites.suite import NO_ANSWER, UNUSABLE, Look, Missing, Suite, windows
from intersyn_jax.interleave.types import Conversation, Image, Segment, Text, Turn
from intersyn_jax.training.metrics import replace_text

FACTS, COMPLETE = 'facts.json', 'complete.json'

Ask = Callable[[list[Conversation], int], list[list[Conversation]]]
"""Questions and a seed to `pictures` conversations each, with answers."""


class Written:
  """Answers in a folder.

  Args:
    folder: made if it is not there.
    facts: everything that the answers depend on, JSON values.
    active: False on processes that write nothing.

  Raises:
    UserError: the folder holds answers that were made with other values.
  """

  def __init__(self, folder: pathlib.Path, facts: Mapping[str, Any], *, active: bool = True):
    self._folder, self._active = folder, active
    path = folder / FACTS
    if path.exists():
      before = json.loads(path.read_text())
      for name in facts:
        if before.get(name) != facts[name]:
          raise UserError(f'{folder} holds answers with {name}={before.get(name)}, not {facts[name]}; name another --out, '
                          'or remove the folder')
    elif active:
      folder.mkdir(parents=True, exist_ok=True)
      replace_text(path, json.dumps(dict(facts), indent=1))
    self._where: dict[str, tuple[str, int]] = {}  # window and place of each answer
    self._unanswered: dict[str, str] = {}
    self._open: tuple[str, shards.Split] | None = None
    self.done: set[int] = set()
    self.unusable: dict[str, str] = json.loads((folder / COMPLETE).read_text()) if self.complete else {}
    for note in sorted(folder.glob('window_*.json')):
      self._note(note.stem, json.loads(note.read_text()))

  def __len__(self) -> int:
    return len(self._where)

  @property
  def complete(self) -> bool:
    """Whether all questions were gone through."""
    return (self._folder / COMPLETE).exists()

  def finish(self, unusable: Mapping[str, str]) -> None:
    """Notes that all questions were gone through, and which of them the importer refused, with its reasons."""
    self.unusable = dict(unusable)
    if self._active:
      replace_text(self._folder / COMPLETE, json.dumps(self.unusable))

  def keep(self, number: int, answers: Mapping[str, Conversation], unanswered: Mapping[str, str]) -> None:
    """Keeps a window, whole or not at all."""
    name = f'window_{number:05d}'
    if self._active:
      shards.write_split(self._folder, name, [_bare(key, answer) for key, answer in answers.items()])
      told = {'answers': list(answers), 'unanswered': dict(unanswered)}
      replace_text(self._folder / f'{name}.json', json.dumps(told))
      self._note(name, told)

  def get(self, name: str) -> tuple[Segment, ...]:
    """An answer; its pictures have bytes and codes. Raises Missing."""
    if name not in self._where:
      raise Missing(UNUSABLE if name in self.unusable else self._unanswered.get(name, NO_ANSWER))
    window, place = self._where[name]
    if self._open is None or self._open[0] != window:
      self._open = (window, shards.open_split(self._folder, window))
    return self._open[1][place].turns[-1].answer

  def _note(self, name: str, told: Mapping[str, Any]) -> None:
    self.done.add(int(name.rsplit('_', 1)[1]))
    self._where |= {key: (name, place) for place, key in enumerate(told['answers'])}
    self._unanswered |= told['unanswered']


def write(suite: Suite, written: Written, ask: Ask, refuse: Callable[[Conversation], str], *, look: Look, window: int,
          seed: int, instruction: str = '', tick: Callable[[int], None] = lambda done: None) -> None:
  """Has all questions answered that are not yet.

  Args:
    ask: writes the answers of a window.
    refuse: the reason why a question cannot be asked, '' for none.
    look: of the pictures in questions.
    window: questions at a time.
    seed: of all draws.
    instruction: said after every question.
    tick: called with how many questions were gone through.
  """
  for number, group in enumerate(windows(suite.conversations(look), window)):
    if number not in written.done:
      asked = [instructed(c, instruction) for c in group]
      reasons = {c.id: reason for c in asked if (reason := refuse(c))}
      ready = [c for c in asked if c.id not in reasons]
      found = ask(ready, window_seed(seed, number)) if ready else []
      written.keep(number, {name: answer for c, answers in zip(ready, found, strict=True)
                            for name, answer in zip(names(c.id, len(answers)), answers, strict=True)}, reasons)
    tick(number * window + len(group))
  written.finish(suite.unusable)


def names(question: str, count: int) -> list[str]:
  """What the answers to a question are called: as the question, or with a number where there are several."""
  return [question] if count == 1 else [f'{question}/{place:04d}' for place in range(count)]


def window_seed(seed: int, number: int) -> int:
  """31 bits that differ from window to window."""
  return int.from_bytes(hashlib.blake2b(f'{seed}/{number}'.encode(), digest_size=4).digest(), 'big') >> 1


def instructed(conversation: Conversation, instruction: str) -> Conversation:
  """The conversation with an instruction behind its last question."""
  if not instruction:
    return conversation
  *earlier, last = conversation.turns
  question = list(last.question)
  said = question.pop().text + '\n' if question and isinstance(question[-1], Text) else ''
  return dataclasses.replace(conversation, turns=(*earlier, Turn((*question, Text(said + instruction)), last.answer)))


def _bare(name: str, answer: Conversation) -> Conversation:
  """The answer alone: the pictures of questions are in the suite's own files."""
  question = tuple(s for s in answer.turns[-1].question if not isinstance(s, Image)) or (Text(''),)
  kept: Sequence[Segment] = answer.turns[-1].answer
  return Conversation(name, '', (Turn(question, tuple(kept)),), generator=answer.generator, seed=answer.seed)
