"""POPE (repository RUCAIBox/POPE): is there such a thing in the picture, yes or no, in three settings.

    coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json
    {"question_id": 1, "image": file, "text": "Is there a person in the image?", "label": "yes"}

Accuracy, precision, recall and F1 (of "yes"), and the share of answers that say yes; for each setting, and the plain mean
of the settings. Not taken over from the official script: whatever is no "no" counts as "yes" there, an empty answer too,
and answers are matched by their place alone; nor from lmms-eval, whose share of yes is that of the labels.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from intersyn_jax.data.importers import rows
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites import score_files, suite, tables
from intersyn_jax.evaluation.suites.mm_vet import with_picture
from intersyn_jax.evaluation.suites.suite import KEEP, Answers, Entry, Look, Missing, Unreadable, Verdict
from intersyn_jax.interleave.types import Conversation, Segment, Text, text_of

SETTINGS = ('random', 'popular', 'adversarial')
MEASURES = ('accuracy', 'precision', 'recall', 'f1', 'yes_rate')
NEITHER = 'neither yes nor no'
ENDING = '_answers.json'

_YES_NO = re.compile(r"\b(?:(yes)|no|not|(?:is|are|does|do)n['’]t)\b", re.IGNORECASE)


def said_yes(answer: str) -> bool | None:
  """What an answer says: the first yes, or no, in it; None where it says neither."""
  found = _YES_NO.search(answer)
  return None if found is None else found[1] is not None


class Pope(suite.Suite):
  """Questions of POPE: the file of one setting, or a folder with those of all."""

  name = 'pope'
  dimensions = ('yes', 'label')
  judges = ()

  def files(self) -> list[pathlib.Path]:
    if self.path.is_file():
      return [self.path]
    found = {s: [f for f in self.path.glob(f'*{s}.json') if not f.name.endswith(ENDING)] for s in SETTINGS}
    if not any(found.values()) or any(len(files) > 1 for files in found.values()):
      raise UserError(f'--questions={self.path} has no file of POPE, or two of a setting; name one file, or a folder with '
                      'at most one file *_random.json, *_popular.json and *_adversarial.json each')
    return [file for files in found.values() for file in files]

  def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in self.files():
      for where, row in rows.read(file, self.rejected.append, '--questions'):
        yield where, {**row, 'setting': _setting(file) or file.stem, 'file': file.stem}

  def _entry(self, where: str, row: dict[str, Any]) -> Entry:
    number = row.get('question_id')
    if isinstance(number, bool) or not isinstance(number, int | str) or number == '':
      raise rows.BadRow('field question_id is missing or no number')
    if str(row.get('label')).strip().lower() not in ('yes', 'no'):
      raise rows.BadRow('field label is neither yes nor no')
    rows.string(row, 'text'), rows.string(row, 'image')
    return Entry(f'{row["setting"]}/{number}', row['setting'], row, where)

  def _import(self, look: Look, reject: rows.Reject) -> Iterator[Conversation]:
    return with_picture(self.entries.values(), 'image', 'text', self.images, look, reject)

  def submit(self, folder: pathlib.Path, model: str, answers: Answers) -> None:
    """For each file of questions FILE_answers.json, lines `{"question_id", "question", "answer"}` in their order.

    A question without an answer has null there: a line less would shift all others, and the official script stops at it.
    """
    for stem in dict.fromkeys(entry.row['file'] for entry in self.entries.values()):
      with (folder / f'{stem}{ENDING}').open('w', encoding='utf-8') as file:
        for entry in self.entries.values():
          if entry.row['file'] == stem:
            try:
              said = text_of(answers.get(entry.id))
            except Missing:
              said = None
            line = {'question_id': entry.row['question_id'], 'question': entry.row['text'], 'answer': said}
            file.write(json.dumps(line) + '\n')

  def submission(self, folder: str | os.PathLike[str], look: Look = KEEP) -> Answers:
    return Submission(pathlib.Path(folder), list(self.entries.values()))

  def verdict(self, name: str, answer: Sequence[Segment]) -> Verdict:
    said = said_yes(text_of(answer))
    if said is None:
      return Verdict(None, NEITHER)
    return Verdict({'yes': float(said), 'label': float(self.entries[name].row['label'].strip().lower() == 'yes')})

  def summary(self, verdicts: Mapping[str, Verdict], boot: tables.Bootstrap) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for setting, names in self.by_category().items():
      yes, label = tables.values(verdicts, names, self.dimensions).T
      cells = np.stack([yes * label, yes * (1 - label), (1 - yes) * label, (1 - yes) * (1 - label)], axis=1)
      for measure in MEASURES:
        found |= tables.statistic(f'{setting}.{measure}', cells, lambda means, measure=measure: rates(means)[measure], boot)
      found |= {f'{setting}.{k}': v for k, v in tables.counts(verdicts[n] for n in names).items() if '.' not in k}
    for measure in MEASURES:
      each = [found[f'{setting}.{measure}'] for setting in self.by_category()]
      found[measure] = None if None in each else float(np.mean(each))
    return found


def rates(cells: np.ndarray) -> dict[str, np.ndarray]:
  """The five measures of shares [...,4] of true yes, false yes, false no and true no; NaN for a share of nothing."""
  true, false, missed, _ = np.moveaxis(cells, -1, 0)
  with np.errstate(invalid='ignore', divide='ignore'):
    precision, recall = true / (true + false), true / (true + missed)
    f1 = 2 * true / (2 * true + false + missed)
  return {'accuracy': 1 - false - missed, 'precision': precision, 'recall': recall, 'f1': f1, 'yes_rate': true + false}


def _setting(file: pathlib.Path) -> str:
  """The setting that a file's name ends with, '' for none."""
  return next((setting for setting in SETTINGS if file.stem.endswith(setting)), '')


class Submission:
  """Answers line by line: by `question_id` where lines have one, else by their order, as the official script has them."""

  def __init__(self, folder: pathlib.Path, entries: Sequence[Entry]):
    self._said: dict[str, Any] = {}
    for stem in dict.fromkeys(entry.row['file'] for entry in entries):
      mine = [entry for entry in entries if entry.row['file'] == stem]
      path = self._file(folder, stem, mine[0].category)
      found = [row for _, row in score_files.read_rows(path, '--answers')]
      self._said |= self._matched(path, mine, found)

  @staticmethod
  def _file(folder: pathlib.Path, stem: str, setting: str) -> pathlib.Path:
    if (folder / f'{stem}{ENDING}').is_file():
      return folder / f'{stem}{ENDING}'
    found = sorted(f for f in folder.glob('*.json*') if setting in f.stem) if folder.is_dir() else []
    if len(found) != 1:
      raise UserError(f'--answers={folder} has {len(found)} files of the setting {setting}; give it one, {stem}{ENDING}')
    return found[0]

  @staticmethod
  def _matched(path: pathlib.Path, entries: Sequence[Entry], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    answer = lambda row: row['answer'] if 'answer' in row else row.get('text')
    if all('question_id' in row for row in found):
      by = {str(row['question_id']): row for row in found}
      if len(by) < len(found):
        raise UserError(f'{path} has a question_id twice; keep one line of each')
      return {e.id: answer(by[number]) for e in entries if (number := str(e.row['question_id'])) in by}
    if len(found) != len(entries):
      raise UserError(f'{path} has {len(found)} lines for {len(entries)} questions and no question_id; give a line for each')
    for number, (entry, row) in enumerate(zip(entries, found, strict=True), start=1):
      if _plain(row.get('question', entry.row['text'])) != _plain(entry.row['text']):
        raise UserError(f'{path}, line {number} answers {str(row["question"])[:80]!a} where the question is '
                        f'{entry.row["text"][:80]!a}; bring the lines into the order of the questions')
    return {entry.id: answer(row) for entry, row in zip(entries, found, strict=True)}

  def get(self, name: str) -> tuple[Segment, ...]:
    said = self._said.get(name)
    if said is None:
      raise Missing(suite.NO_ANSWER)
    if not isinstance(said, str):
      raise Unreadable('answer is no text')
    return (Text(said),) if said.strip() else ()


def _plain(text: Any) -> str:
  return ' '.join(re.findall(r'\w+', str(text).casefold()))
