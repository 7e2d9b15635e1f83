"""MM-Vet (repository yuweihao/MM-Vet): open questions about a picture, graded 0 to 1 against a known answer.

The answers are one JSON object `{id: text}`. A language model grades them in tenths; it sees question, known answer and
prediction, and no picture. Scores are told in percent, over all questions, by capability and by combination of
capabilities. Not taken over from the official script: a grade that it cannot read after five tries becomes 0, and its
sums are divided by the number of all questions.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from intersyn_jax.data import images, manifest
from intersyn_jax.data.importers import rows
from intersyn_jax.endpoint import words
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites import rubric as rubrics
from intersyn_jax.evaluation.suites import score_files, suite, tables
from intersyn_jax.evaluation.suites.suite import KEEP, Answers, Asked, Entry, Look, Missing, Unreadable, Verdict
from intersyn_jax.interleave.types import Conversation, Image, Segment, Text, Turn, text_of
from intersyn_jax.judge.served import Judgement

PICTURES = 'images'
TENTHS = 10


class MmVet(suite.Suite):
  """Questions of `mm-vet.json`, an object of objects."""

  name = 'mm_vet'
  dimensions = ('correctness',)
  judges = (suite.ENDPOINT, suite.FILE)

  def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, name, row in rows.read_members(self.path, '--questions'):
      if isinstance(row, dict):
        yield where, {**row, 'id': name}
      else:
        self._reject(where, name, 'is no JSON object')

  def _entry(self, where: str, row: dict[str, Any]) -> Entry:
    abilities = row.get('capability')
    if not isinstance(abilities, list) or not abilities or not all(isinstance(a, str) and a.strip() for a in abilities):
      raise rows.BadRow('field capability is missing or no list of texts')
    for field in ('question', 'answer', 'imagename'):
      rows.string(row, field)
    return Entry(row['id'], '+'.join(sorted({tables.slug(a) for a in abilities})), row, where)

  def _images(self) -> pathlib.Path:
    beside = self.path.parent / PICTURES
    return beside if beside.is_dir() else self.path.parent

  def _import(self, look: Look, reject: rows.Reject) -> Iterator[Conversation]:
    return with_picture(self.entries.values(), 'imagename', 'question', self.images, look, reject)

  def submit(self, folder: pathlib.Path, model: str, answers: Answers) -> None:
    """MODEL.json: `{id: text}`."""
    found = {}
    for name in self.entries:
      try:
        found[name] = text_of(answers.get(name))
      except Missing:
        continue
    (folder / f'{model}.json').write_text(json.dumps(found, indent=4, ensure_ascii=False), encoding='utf-8')

  def submission(self, folder: str | os.PathLike[str], look: Look = KEEP) -> Answers:
    return Submission(suite.only(folder, '*.json'))

  def rubric(self) -> rubrics.Rubric:
    return Rubric()

  def verdicts_in(self, path: str | os.PathLike[str]) -> dict[str, Verdict]:
    """Scores in the common form (0 to 1), or the official grades, `{id: {"score": [a number of each run]}}`."""
    try:
      content = suite.document(path, score_files.FLAG)
    except UserError:  # JSON Lines, or no JSON at all, which is told there
      content = None
    if not isinstance(content, dict) or 'id' in content:
      return super().verdicts_in(path)
    return score_files.completed(self, {name: _runs(row) for name, row in content.items()})

  def summary(self, verdicts: Mapping[str, Verdict], boot: tables.Bootstrap) -> dict[str, Any]:
    percent = lambda names: tables.values(verdicts, names, self.dimensions)[:, 0] * 100
    found = tables.mean('percent', percent(verdicts), boot)
    groups = self.by_category()
    for ability in sorted({a for category in groups for a in category.split('+')}):
      names = [n for category, members in groups.items() if ability in category.split('+') for n in members]
      found |= tables.mean(f'{ability}.percent', percent(names), boot)
    for category, names in groups.items():
      if '+' in category:
        found |= tables.mean(f'{category}.percent', percent(names), boot)
    return found


def with_picture(entries: Any, picture: str, text: str, folder: pathlib.Path, look: Look,
                 reject: rows.Reject) -> Iterator[Conversation]:
  """Questions about one picture: the picture, then the text, as two fields of a row have them."""
  for entry in entries:
    try:
      image = Image(images.load(rows.string(entry.row, picture), folder, look.pixels, fit=look.fit))
    except ValueError as error:
      reject(manifest.Rejected(entry.where, entry.id, str(error)))
      continue
    yield Conversation(entry.id, entry.category, (Turn((image, Text(rows.string(entry.row, text)))),))


def _runs(row: Any) -> Verdict:
  """The mean of an answer's grades, of those runs that brought one."""
  scores = row.get('score') if isinstance(row, dict) else None
  if not isinstance(scores, list) or not scores:
    return Verdict(None, 'scores missing')
  return score_files.merged([score_files.checked({'correctness': s}, 1) for s in scores])


class Submission:
  """Answers as a JSON object `{id: text}`."""

  def __init__(self, path: pathlib.Path):
    self._texts = suite.document(path, '--answers')
    if not isinstance(self._texts, dict):
      raise UserError(f'{path} is no JSON object of answers by id; set --answers to another folder')

  def get(self, name: str) -> tuple[Segment, ...]:
    if name not in self._texts:
      raise Missing(suite.NO_ANSWER)
    if not isinstance(self._texts[name], str):
      raise Unreadable('answer is no text')
    return (Text(self._texts[name]),) if self._texts[name].strip() else ()


_TASK = """You compare what a model predicted with the known answer to a question, and say how much of the known answer the \
prediction has right. In the known answer <AND> stands between parts that are all needed, and <OR> between parts of which \
one is enough. Give "tenths", a whole number from 0 to 10: 10 wholly right, 5 half of it (one of two parts that are both \
needed), 0 wholly wrong. Other words for the same thing are right; a prediction that leaves the choice between right and \
wrong open is not."""


class Rubric(rubrics.Rubric):
  """Tenths of the known answer."""

  def __init__(self):
    super().__init__(('tenths',), TENTHS)

  def task(self, item: Asked, dimensions: Sequence[str]) -> str:
    return _TASK

  def material(self, item: Asked, smallest_side: int) -> list[dict[str, Any]]:
    known = item.entry.row['answer'].replace('<AND>', ' <AND> ').replace('<OR>', ' <OR> ')
    said = text_of(item.conversation.turns[-1].answer)
    return [words(f'[Question]\n{item.entry.row["question"]}'), words(f'[Known answer]\n{known}'),
            words(f'[Prediction]\n{said}' if said.strip() else '[the prediction is empty]')]

  def verdict(self, judgement: Judgement) -> Verdict:
    found = super().verdict(judgement)
    return found if found.scores is None else Verdict({'correctness': found.scores['tenths'] / TENTHS})
