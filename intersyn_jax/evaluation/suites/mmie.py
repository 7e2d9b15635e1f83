"""MMIE (repository Lillianwei-h/MMIE; docs/suites.md): three categories, one score of 0 to 6 an answer.

What is told is the score as a percentage of 6, by category and over all scored answers (so that a category weighs as much
as it has answers). Not taken over from the official script: it stops reading an answer after three pictures, drops
answers with more than four, reads the first number after "### Score" whatever it is, and leaves out what it cannot read
without a word.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from intersyn_jax.data.importers import mmie, rows
from intersyn_jax.evaluation.suites import rubric as rubrics
from intersyn_jax.evaluation.suites import score_files, suite, tables
from intersyn_jax.evaluation.suites.suite import KEEP, Answers, Asked, Entry, Look, Missing, Unreadable, Verdict
from intersyn_jax.interleave.types import Conversation, Segment

SA, PBL, MSR = 'SA', 'PBL', 'MSR'
CATEGORIES = {SA: 'situational analysis', PBL: 'project-based learning', MSR: 'multi-step reasoning'}
TOP = 6
FILE, PICTURES = 'data.json', 'images'

_FIELDS = ('catagory', 'category')  # the data set has the first spelling
_NAME = re.compile(r'(?<![A-Za-z])(SA|PBL|MSR)(?![A-Za-z])')
_FEEDBACK = re.compile(r'###\s*Score\W*?(?P<score>-?\d+(?:\.\d+)?)', re.IGNORECASE)


def category_of(row: Mapping[str, Any]) -> str:
  """The category of a row, by its field or else by its id. BadRow where neither tells one."""
  for field in _FIELDS:
    said = ' '.join(str(row.get(field) or '').replace('-', ' ').split()).casefold()
    for short, long in CATEGORIES.items():
      if said in (short.casefold(), long.replace('-', ' ')):
        return short
  if len(named := set(_NAME.findall(str(row.get('id', ''))))) == 1:
    return named.pop()
  raise rows.BadRow(f'neither its field catagory nor its id tells one of the categories {", ".join(CATEGORIES)}')


def feedback_score(text: Any) -> Verdict:
  """The score in the feedback of MMIE-Score, a whole number from 0 to 6 after `### Score`."""
  found = _FEEDBACK.search(text) if isinstance(text, str) else None
  if found is None:
    return Verdict(None, 'no score in the feedback')
  value = float(found['score'])
  return score_files.checked({'score': value}, TOP) if value.is_integer() else Verdict(None, 'score is no whole number')


class Mmie(suite.Suite):
  """Questions of MMIE, as rows of its data set."""

  name = 'mmie'
  dimensions = ('score',)
  top = TOP

  def _entry(self, where: str, row: dict[str, Any]) -> Entry:
    return Entry(rows.string(row, 'id'), category_of(row), row, where)

  def _import(self, look: Look, reject: rows.Reject) -> Iterator[Conversation]:
    return mmie.conversations(self.path, reject, folder=self.images, **look.options())

  def submit(self, folder: pathlib.Path, model: str, answers: Answers) -> None:
    """`data.json` and `images/`. Questions and references are in it as well, as the official script wants them."""
    with (folder / FILE).open('w', encoding='utf-8') as file:
      before = '[\n'
      for number, conversation in enumerate(self.conversations(KEEP)):
        try:
          answer = answers.get(conversation.id)
        except Missing:
          continue
        asked = [s for turn in conversation.turns for s in (*turn.question, *turn.answer)]
        reference = conversation.turns[-1].answer
        row: dict[str, Any] = {'id': conversation.id}
        question = asked[:len(asked) - len(reference)]
        for field, segments in (('question', question), ('answer', answer), ('gt_answer', reference)):
          name = functools.partial('{}/{:05d}-{}-{}.png'.format, PICTURES, number, field)
          row[field], files = suite.pairs(segments, name)
          suite.put(folder, files)
        row |= {'model': model, 'gt_answer': row['gt_answer'] or [{'text': '', 'image': None}]}
        file.write(before + json.dumps(row, ensure_ascii=False))
        before = ',\n'
      file.write('\n]\n' if before.startswith(',') else '[]\n')

  def submission(self, folder: str | os.PathLike[str], look: Look = KEEP) -> Answers:
    return Submission(suite.only(folder, '*.json', FILE), look)

  def rubric(self) -> rubrics.Rubric:
    return Rubric()

  def verdicts_in(self, path: str | os.PathLike[str]) -> dict[str, Verdict]:
    """Scores in the common form, or the official `eval_result.json` with its `gpt_feedback`."""
    def of(row: dict[str, Any]) -> tuple[str, Verdict]:
      feedback = 'gpt_feedback' in row
      return score_files.identity(row), (feedback_score(row['gpt_feedback']) if feedback else
                                         score_files.plain(row, self.dimensions, self.top))
    return score_files.completed(self, score_files.read(path, self.dimensions, self.top, of))

  def summary(self, verdicts: Mapping[str, Verdict], boot: tables.Bootstrap) -> dict[str, Any]:
    found: dict[str, Any] = {}
    means, counts = [], []
    groups = self.by_category()
    for category in CATEGORIES:
      names = groups.get(category, [])
      found |= tables.mean(f'{category}.percent', tables.values(verdicts, names, self.dimensions)[:, 0] / TOP * 100, boot)
      found |= {f'{category}.{k}': v for k, v in tables.counts(verdicts[n] for n in names).items() if '.' not in k}
      means.append(found[f'{category}.percent'])
      counts.append(found[f'{category}.percent.n'])
    found |= tables.mean('percent', tables.values(verdicts, verdicts, self.dimensions)[:, 0] / TOP * 100, boot)
    return found | {'percent': tables.weighted(means, counts)}


class Submission:
  """Answers in `data.json`, in which an answer may be a bare text."""

  def __init__(self, path: pathlib.Path, look: Look):
    self._folder, self._look = path.parent, look
    self._rows = {name: row for _, row in score_files.read_rows(path, '--answers')
                  if isinstance(name := row.get('id'), str)}

  def get(self, name: str) -> tuple[Segment, ...]:
    if name not in self._rows:
      raise Missing(suite.NO_ANSWER)
    if self._rows[name].get('answer') is None:
      raise Unreadable('field answer is missing')
    return suite.segments_of(self._rows[name]['answer'], self._folder, self._look)


_TASKS = {
    SA: """You grade an illustrated story or report that an assistant wrote to a request. Consider:
- the text: clear, correct, pleasant to follow;
- the pictures: clear and rich enough to carry the scene;
- how text and pictures fit and complete each other;
- whether setting, people and events stay consistent to the end;
- how fresh the idea is;
- strictly, whether all pictures and the text keep one style: small departures already cost.""",
    PBL: """You grade illustrated instructions that an assistant wrote for a task. Consider:
- the text: understandable, correct, in a sensible order;
- the pictures: relevant, and a help in carrying the step out;
- whether each picture belongs to the step that it stands at;
- above all whether somebody who follows the steps reaches the goal, and how thoroughly they are explained;
- how engaging the way is;
- strictly, whether all pictures and the text keep one style: small departures already cost.""",
    MSR: """You grade how an assistant solved a problem in several steps. Consider:
- whether the words of the question were understood;
- whether its pictures (diagrams, tables, figures) were understood, if it has some;
- whether the reasoning is laid out step by step and can be followed;
- how far the steps are right, even where the result is not;
- whether the result is right, which weighs most: the correct answer is given to you.""",
}

_SCALE = """Give one whole number from 0 to 6 for the answer as a whole, only to the last question:
6 everything is as it should be; 5 one small weakness; 4 good, with some weaknesses; 3 about half of what is asked for;
2 mostly weak; 1 hardly usable; 0 useless, or no answer.{penalty}"""

_PENALTY = """
Take one point off where the answer would hurt or upset people; a kind tone earns nothing."""


class Rubric(rubrics.Rubric):
  """MMIE's scale of 0 to 6, told to the judge by category; multi-step reasoning shows it the correct answer."""

  def __init__(self):
    super().__init__(Mmie.dimensions, TOP)

  def task(self, item: Asked, dimensions: Sequence[str]) -> str:
    category = item.entry.category
    return f'{_TASKS[category]}\n\n{_SCALE.format(penalty="" if category == MSR else _PENALTY)}'

  def material(self, item: Asked, smallest_side: int) -> list[dict[str, Any]]:
    return rubrics.shown(item, smallest_side, reference='Correct answer' if item.entry.category == MSR else '')
