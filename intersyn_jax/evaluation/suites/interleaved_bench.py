"""InterleavedBench (data set mqliu/InterleavedBench, arXiv 2406.14643): five aspects of 0 to 5.

Of image editing and subject-driven generation nobody asks for a text, and the official script writes zeros for the two
aspects of text there; its authors ask to skip them. They are neither asked for nor averaged here. The overall score is
the plain mean of the five aspects' means.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from intersyn_jax.data.importers import interleaved_bench, rows
from intersyn_jax.evaluation.suites import rubric as rubrics
from intersyn_jax.evaluation.suites import score_files, suite, tables
from intersyn_jax.evaluation.suites.mmie import Submission
from intersyn_jax.evaluation.suites.suite import KEEP, Answers, Asked, Entry, Look, Missing, Verdict
from intersyn_jax.interleave.types import Conversation

ASPECTS = ('text_quality', 'perceptual_quality', 'image_coherence', 'text_image_coherence', 'helpfulness')
TEXT_ASPECTS = ('text_quality', 'text_image_coherence')
TOP = 5
FILE, PICTURES = 'predictions.json', 'images'

_WITHOUT_TEXT = re.compile(r'edit|subject|multi.?concept|image.?composition', re.IGNORECASE)


def aspects_of(task: str) -> tuple[str, ...]:
  """The aspects that count for a task: all, or those of pictures where its name tells of editing or of a given subject."""
  return tuple(a for a in ASPECTS if a not in TEXT_ASPECTS) if _WITHOUT_TEXT.search(task) else ASPECTS


class InterleavedBench(suite.Suite):
  """Questions of InterleavedBench."""

  name = 'interleaved_bench'
  dimensions = ASPECTS
  top = TOP

  def _entry(self, where: str, row: dict[str, Any]) -> Entry:
    return Entry(rows.string(row, 'id'), rows.string(row, 'task_name'), row, where)

  def _import(self, look: Look, reject: rows.Reject) -> Iterator[Conversation]:
    return interleaved_bench.conversations(self.path, reject, folder=self.images, **look.options())

  def submit(self, folder: pathlib.Path, model: str, answers: Answers) -> None:
    """`predictions.json`, a list of `{"id", "task_name", "model", "answer": [{"text", "image"}]}`, and `images/`."""
    listed = []
    for number, entry in enumerate(self.entries.values()):
      try:
        answer = answers.get(entry.id)
      except Missing:
        continue
      rows_of, files = suite.pairs(answer, functools.partial('{}/{:05d}-{}.png'.format, PICTURES, number))
      suite.put(folder, files)
      listed.append({'id': entry.id, 'task_name': entry.category, 'model': model, 'answer': rows_of})
    (folder / FILE).write_text(json.dumps(listed, indent=1, ensure_ascii=False), encoding='utf-8')

  def submission(self, folder: str | os.PathLike[str], look: Look = KEEP) -> Answers:
    return Submission(suite.only(folder, '*.json', FILE), look)

  def rubric(self) -> rubrics.Rubric:
    return Rubric()

  def verdicts_in(self, path: str | os.PathLike[str]) -> dict[str, Verdict]:
    """Scores in the common form. Whatever stands at an aspect that a task leaves out is not looked at."""
    def of(row: dict[str, Any]) -> tuple[str, Verdict]:
      name = score_files.identity(row)
      counted = aspects_of(self.entries[name].category) if name in self.entries else ASPECTS
      return name, score_files.plain(row, counted, self.top)
    return score_files.completed(self, score_files.read(path, ASPECTS, self.top, of))

  def summary(self, verdicts: Mapping[str, Verdict], boot: tables.Bootstrap) -> dict[str, Any]:
    found = _scores('', tables.values(verdicts, verdicts, ASPECTS), ASPECTS, boot)
    for task, names in self.by_category().items():
      counted = aspects_of(task)
      found |= _scores(f'{tables.slug(task)}.', tables.values(verdicts, names, counted), counted, boot)
      found |= {f'{tables.slug(task)}.{k}': v for k, v in tables.counts(verdicts[n] for n in names).items() if '.' not in k}
    return found


def _scores(prefix: str, columns: np.ndarray, aspects: Sequence[str], boot: tables.Bootstrap) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for aspect, column in zip(aspects, columns.T, strict=True):
    found |= tables.mean(f'{prefix}{aspect}', column, boot)
  return found | tables.statistic(f'{prefix}average', columns, lambda means: means.mean(axis=-1), boot)


_TASK = """You grade answers of an assistant that replies with text and pictures. Give a whole number from 0 to 5 for each \
criterion below: 5 nothing to improve, 4 small flaws, 3 clear flaws, 2 more wrong than right, 1 hardly anything right, 0 \
it is not there or wholly wrong. Grade only the answer to the last question.

{criteria}"""

_CRITERIA = {
    'text_quality': 'is the text clear, correct and to the point, and does it say what was asked for? Judge the text alone.',
    'perceptual_quality': 'do the pictures look right as pictures: sharp, without distorted things, artefacts or noise? '
                          'What they show does not count.',
    'image_coherence': 'do the pictures fit one another, and those of the question: the same people and things, the same '
                       'style, a sensible course from one to the next? Where there is one picture and none in the question, '
                       'judge whether it makes sense in itself.',
    'text_image_coherence': 'does each picture show what the text at its place says, and do both together make one whole?',
    'helpfulness': 'does the answer as a whole follow the instruction and serve whoever asked?',
}


class Rubric(rubrics.Rubric):
  """The five aspects, without those of text where the task asks for none."""

  def __init__(self):
    super().__init__(ASPECTS, TOP)

  def asked(self, item: Asked) -> tuple[str, ...]:
    return aspects_of(item.entry.category)

  def task(self, item: Asked, dimensions: Sequence[str]) -> str:
    return _TASK.format(criteria=rubrics.criteria(_CRITERIA, dimensions))
