"""OpenING (repository LanceZPF/OpenING; docs/suites.md): seven criteria of 0 to 10, or pairs of answers.

Pointwise, an answer gets seven scores; the overall score is the plain mean of the criteria's means, as in the official
summary (which rounds the means first). Pairwise, two models' answers to a question make a battle, see `arena`.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from intersyn_jax.data.importers import opening, rows
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites import arena, score_files, suite, tables
from intersyn_jax.evaluation.suites import rubric as rubrics
from intersyn_jax.evaluation.suites.suite import KEEP, Answers, Asked, Entry, Look, Missing, Unreadable, Verdict
from intersyn_jax.interleave.types import Conversation, Segment, Text

CRITERIA = ('Correctness', 'Image-Text Coherency', 'Multi-step Consistency', 'Content Quality', 'Human Preference Alignment',
            'Completeness', 'Content Richness')
"""As the official files call them, the most important first."""
DIMENSIONS = tuple(name.lower().replace(' ', '_').replace('-', '_') for name in CRITERIA)
TOP = 10


class Opening(suite.Suite):
  """Questions of OpenING."""

  name = 'opening'
  dimensions = DIMENSIONS
  top = TOP

  def _entry(self, where: str, row: dict[str, Any]) -> Entry:
    task = next((str(row[f]) for f in ('meta_task_name', 'subtask_name') if isinstance(row.get(f), str) and row[f]), '')
    return Entry(rows.string(row, 'total_uid'), task, row, where)

  def _import(self, look: Look, reject: rows.Reject) -> Iterator[Conversation]:
    return opening.conversations(self.path, reject, folder=self.images, **look.options())

  def folder(self, model: str) -> str:
    return f'{model}_output'

  def submit(self, folder: pathlib.Path, model: str, answers: Answers) -> None:
    """A file UID.json for each question: its row with the answer as output, and pictures UID-o-K.png beside it."""
    for entry in self.entries.values():
      try:
        answer = answers.get(entry.id)
      except Missing:
        continue
      stem = file_stem(entry.id)
      listed, files = suite.pairs(answer, functools.partial('{}-o-{}.png'.format, stem))
      suite.put(folder, files)
      # The official scripts strip each text, so that it must be one.
      output = [{'text': item['text'] or '', 'image': item['image']} for item in listed]
      asked = entry.row['conversations'][:-1]
      row = {**entry.row, 'conversations': [*asked, {'output': output}]}
      (folder / f'{stem}.json').write_text(json.dumps(row, indent=4, ensure_ascii=False), encoding='utf-8')

  def submission(self, folder: str | os.PathLike[str], look: Look = KEEP) -> Answers:
    return Submission(folder, look)

  def rubric(self) -> rubrics.Rubric:
    return Rubric()

  def verdicts_in(self, path: str | os.PathLike[str]) -> dict[str, Verdict]:
    """Scores in the common form, or of one model in the official form (see `by_model`)."""
    found = self.by_model(path)
    if len(found) != 1:
      raise UserError(f'{path} scores the models {", ".join(sorted(found))}; leave --policy and --answers out to have all '
                      'of them in one summary')
    return next(iter(found.values()))

  def by_model(self, path: str | os.PathLike[str]) -> dict[str, dict[str, Verdict]]:
    """Verdicts of each model in a file of scores: the official `gpt-score_results.json` has several, others one ('')."""
    by: dict[str, dict[str, list[Verdict]]] = {}
    for where, row in score_files.read_rows(path):
      try:
        model, name, verdict = _row(row)
      except ValueError as error:
        raise score_files.bad_row(path, where, str(error)) from None
      by.setdefault(model, {}).setdefault(name, []).append(verdict)
    return {model: score_files.completed(self, {name: score_files.merged(verdicts) for name, verdicts in found.items()})
            for model, found in by.items()}

  def scores(self, verdicts: Mapping[str, Verdict], boot: tables.Bootstrap) -> dict[str, Any]:
    """The seven criteria and the overall score."""
    columns = tables.values(verdicts, verdicts, DIMENSIONS)
    found: dict[str, Any] = {}
    for dimension, column in zip(DIMENSIONS, columns.T, strict=True):
      found |= tables.mean(dimension, column, boot)
    return found | tables.statistic('overall', columns, lambda means: means.mean(axis=-1), boot)

  def summary(self, verdicts: Mapping[str, Verdict], boot: tables.Bootstrap) -> dict[str, Any]:
    found = self.scores(verdicts, boot)
    for task, names in self.by_category().items():
      found |= tables.statistic(f'{tables.slug(task)}.overall', tables.values(verdicts, names, DIMENSIONS),
                                lambda means: means.mean(axis=-1), boot)
      found |= {f'{tables.slug(task)}.{k}': v for k, v in tables.counts(verdicts[n] for n in names).items() if '.' not in k}
    return found


def file_stem(name: str) -> str:
  """The uid as a file name. Raises UserError where it is none, since a file must be found by it."""
  if not name or name != os.path.basename(name) or name.startswith('.') or '\\' in name:
    raise UserError(f'question {name!a} has a total_uid that is no file name; the layout of OpenING cannot hold its answer')
  return name


class Submission:
  """Answers as a folder of UID.json (or UID.jsonl), pictures beside them."""

  def __init__(self, folder: str | os.PathLike[str], look: Look):
    self._folder, self._look = pathlib.Path(folder), look
    if not self._folder.is_dir() or not any(f.suffix in ('.json', '.jsonl') for f in self._folder.iterdir()):
      raise UserError(f'--answers={folder} holds no UID.json; name the folder MODEL_output that holds the answers')

  def get(self, name: str) -> tuple[Segment, ...]:
    path = next((p for ending in ('.json', '.jsonl') if (p := self._folder / f'{file_stem(name)}{ending}').is_file()), None)
    if path is None:
      raise Missing(suite.NO_ANSWER)
    try:
      row = suite.document(path, '--answers')
    except UserError:
      raise Unreadable('file is no JSON') from None
    try:
      output = row['conversations'][-1]['output']
      items = [{'text': item.get('text'), 'image': item.get('image')} for item in output]
    except (TypeError, KeyError, IndexError, AttributeError):
      raise Unreadable('file has no list of outputs') from None
    for item in items:  # other scripts write whole paths, and look for the name beside the file
      if isinstance(item['image'], str):
        item['image'] = item['image'].replace('\\', '/').rsplit('/', 1)[-1]
    found = suite.segments_of(items, self._folder, self._look)
    clean = (Text(s.text.replace(opening.IMAGE, '').strip()) if isinstance(s, Text) else s for s in found)
    return tuple(s for s in clean if not isinstance(s, Text) or s.text)


def _row(row: dict[str, Any]) -> tuple[str, str, Verdict]:
  """Model, id and verdict of a row of scores."""
  if 'data_id' not in row:
    return '', score_files.identity(row), score_files.plain(row, DIMENSIONS, TOP)
  model = row.get('model')
  name = model.get('name') if isinstance(model, dict) else model
  if not isinstance(name, str) or not name:
    raise ValueError('field model has no name')
  scores = row.get('score')
  if isinstance(scores, dict) and isinstance(scores.get('scores'), dict):
    scores = scores['scores']
  if not isinstance(scores, dict) or set(CRITERIA) - scores.keys():
    return name, score_files.identity(row, 'data_id'), Verdict(None, 'scores missing')
  each = {d: scores[c].get('Score') if isinstance(scores[c], dict) else scores[c]
          for d, c in zip(DIMENSIONS, CRITERIA, strict=True)}
  return name, score_files.identity(row, 'data_id'), score_files.checked(each, TOP)


_MEANINGS = {
    'correctness': 'does the answer do what was asked: sound and true in its text, sensible and true in its pictures, both '
                   'there where both are wanted?',
    'image_text_coherency': 'does each picture show and complete what the text at its place says?',
    'multi_step_consistency': 'do the steps hang together? First of all, do things and style stay the same from picture to '
                              'picture; then, does the text go on from step to step?',
    'content_quality': 'are the pictures clear and realistic, and is the language right?',
    'human_preference_alignment': 'is the text free of what people would not want to read, and are the pictures pleasing?',
    'completeness': 'is every step there that was asked for?',
    'content_richness': 'do the pictures vary, and is the text as detailed as it can be without padding?',
}
_TASK = """You grade answers of an assistant that replies with text and pictures. Give a whole number from 0 to 10 for each \
criterion below: 9 or 10 an example to others, 6 to 8 good with something to improve, 3 to 5 with flaws, 0 to 2 badly \
lacking. Grade only the answer to the last question.

{criteria}"""


class Rubric(rubrics.Rubric):
  """The seven criteria for one answer."""

  def __init__(self):
    super().__init__(DIMENSIONS, TOP)

  def task(self, item: Asked, dimensions: Sequence[str]) -> str:
    return _TASK.format(criteria=rubrics.criteria(_MEANINGS, dimensions))


class PairRubric(arena.PairRubric):
  """The seven criteria for two answers: which is better."""

  def __init__(self):
    super().__init__('\n'.join(f'{place}. {d}: {_MEANINGS[d]}' for place, d in enumerate(DIMENSIONS, start=1)))
