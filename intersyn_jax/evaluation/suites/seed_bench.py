"""SEED-Bench (repository AILab-CVC/SEED-Bench), its questions about one picture: four choices, the likeliest is the answer.

    {"questions": [{"question_id", "question_type_id", "data_type": "image", "data_id": file, "question",
                    "choice_a": text, ..., "choice_d": text, "answer": "A"}, ...], "question_type": {name: id, ...}}

Nobody has to say a letter: a policy answers with the choice that it finds most probable. The official interfaces differ
in what that means, so that both are told: `accuracy` by the mean log-probability of a position (LLaVA's interface),
`accuracy_sum` by that of the whole choice (InstructBLIP's). Not taken over: a type of which no answer is right ends the
official script, and a choice without a finite probability takes part in its ranking.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from intersyn_jax.data.importers import rows
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites import score_files, suite, tables
from intersyn_jax.evaluation.suites.likelihood import Scorer
from intersyn_jax.evaluation.suites.mm_vet import with_picture
from intersyn_jax.evaluation.suites.suite import KEEP, Answers, Entry, Look, Missing, Verdict, answered
from intersyn_jax.interleave.types import Conversation, Segment, Text, text_of

CHOICES = ('A', 'B', 'C', 'D')
ONE_PICTURE = ('image', 'single image')
FILE = 'results.json'


class SeedBench(suite.Suite):
  """Questions of SEED-Bench (1 or 2) about one picture; those about videos or several pictures are left out and counted."""

  name = 'seed_bench'
  dimensions = ('accuracy', 'accuracy_sum')
  judges = ()
  likelihood = True

  def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
    content = suite.document(self.path, '--questions')
    listed = content.get('questions') if isinstance(content, dict) else content
    if not isinstance(listed, list):
      raise UserError(f'--questions={self.path} has no list of questions; name the file SEED-Bench.json')
    types = content.get('question_type') if isinstance(content, dict) else None
    names = {str(v): str(k) for k, v in types.items()} if isinstance(types, dict) else {}
    self.others = 0
    for number, row in enumerate(listed, start=1):
      where = f'{self.path.name} question {number}'
      if not isinstance(row, dict):
        self._reject(where, '', 'is no JSON object')
      elif str(row.get('data_type')).lower() not in ONE_PICTURE:
        self.others += 1
      else:
        kind = str(row.get('question_type_id', ''))
        yield where, {**row, 'id': str(row.get('question_id', '')), 'kind': names.get(kind, kind)}

  def _entry(self, where: str, row: dict[str, Any]) -> Entry:
    for field in ('id', 'question', 'data_id', *(f'choice_{c.lower()}' for c in CHOICES)):
      rows.string(row, field)
    if row.get('answer') not in CHOICES:
      raise rows.BadRow(f'field answer is none of {", ".join(CHOICES)}')
    return Entry(row['id'], row['kind'], row, where)

  def _import(self, look: Look, reject: rows.Reject) -> Iterator[Conversation]:
    return with_picture(self.entries.values(), 'data_id', 'question', self.images, look, reject)

  def choose(self, scorer: Scorer, conversations: Sequence[Conversation]) -> list[Conversation]:
    """Questions with the log-probabilities of their choices as answers, for `verdict` to read."""
    asked = [answered(c, (Text(rows.string(self.entries[c.id].row, f'choice_{letter.lower()}')),))
             for c in conversations for letter in CHOICES]
    found = scorer.score(asked)
    told = []
    for place, conversation in enumerate(conversations):
      mine = slice(place * len(CHOICES), (place + 1) * len(CHOICES))
      totals = [t if np.isfinite(t) else None for t in found.total[mine].tolist()]
      said = json.dumps({'log_prob': totals, 'positions': found.positions[mine].tolist()})
      told.append(answered(conversation, (Text(said),)))
    return told

  def submit(self, folder: pathlib.Path, model: str, answers: Answers) -> None:
    """`results.json`, lines `{"q_id", "prediction", "gt", "q_type_id"}` as the official script writes them."""
    with (folder / FILE).open('w', encoding='utf-8') as file:
      for entry in self.entries.values():
        try:
          said = predictions(answers.get(entry.id))
        except Missing:
          continue
        if isinstance(said, tuple):
          file.write(json.dumps({'q_id': entry.id, 'prediction': said[0], 'gt': entry.row['answer'],
                                 'q_type_id': entry.row.get('question_type_id')}) + '\n')

  def submission(self, folder: str | os.PathLike[str], look: Look = KEEP) -> Answers:
    return Submission(suite.only(folder, '*.json', FILE))

  def verdict(self, name: str, answer: Sequence[Segment]) -> Verdict:
    said = predictions(answer)
    if isinstance(said, str):
      return Verdict(None, said)
    right = self.entries[name].row['answer']
    return Verdict({d: float(letter == right) for d, letter in zip(self.dimensions, said, strict=False)})

  def summary(self, verdicts: Mapping[str, Verdict], boot: tables.Bootstrap) -> dict[str, Any]:
    found: dict[str, Any] = {'other_questions': self.others}
    groups = {'': list(verdicts)} | {f'{tables.slug(kind)}.': names for kind, names in self.by_category().items()}
    for prefix, names in groups.items():
      columns = tables.values(verdicts, names, self.dimensions)
      for dimension, column in zip(self.dimensions, columns.T, strict=True):
        if dimension == 'accuracy' or np.isfinite(columns[:, 1]).any():  # letters alone have no sums
          found |= tables.mean(f'{prefix}{dimension}', column, boot)
    return found


def predictions(answer: Sequence[Segment]) -> tuple[str, ...] | str:
  """The chosen letters: by mean and by sum of the log-probabilities that `choose` wrote, or one letter; else why not.

  Of equal choices the first is taken, as in the official script.
  """
  text = text_of(answer).strip()
  if text in CHOICES:
    return (text,)
  try:
    told = json.loads(text)
    totals, positions = np.array(told['log_prob'], np.float64), np.array(told['positions'], np.float64)
  except (ValueError, TypeError, KeyError):
    return 'answer is none of the letters'
  if not np.isfinite(totals).all():
    return 'log-probability is not finite'
  return tuple(CHOICES[int(np.argmax(scores))] for scores in (totals / positions, totals))


class Submission:
  """Letters of another model: the official lines, or a list of `{"question_id", "prediction"}`."""

  def __init__(self, path: pathlib.Path):
    self._said = {str(row.get('q_id', row.get('question_id'))): row.get('prediction')
                  for _, row in score_files.read_rows(path, '--answers')}

  def get(self, name: str) -> tuple[Segment, ...]:
    if name not in self._said:
      raise Missing(suite.NO_ANSWER)
    return (Text(str(self._said[name]).strip()),)
