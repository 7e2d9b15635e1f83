"""Importer of answers that people have scored (InterSyn, SynJudge), one answer a row of JSON or JSON Lines.

    {"id": ..., "question": text, "answer": text, "image": file, "labels": [TCC, ICC, IQ, ITS]}

Labels are whole numbers 0-5; 4.0 counts as 4, since tables write whole numbers so, but a true, a 3.5 or a -1 (the
released scripts' mark of a reply they could not read) is no label. An answer without text or without picture leaves that
field out, or has null or '' there; the rubric's zeros (no text: TCC and ITS, no picture: ICC, IQ and ITS) must then stand
in its labels.

Ours on top of the released format: `generator` names who wrote the answer; `answer` and `image` may be lists, the first
text before the first picture and so on, null where a step lacks one; and there may be several annotators. Either `labels`
is a list of such lists, or several rows have the same `id`, `generator`, question, answer and picture, each with labels of
its own and, if you like, the name of an `annotator`.

Records of our own shards are read too: of each turn, every `Score` of the whole answer (step -1) is the vote of one
annotator. Scores of steps are left aside, and so a model's scores, which are no whole numbers, are never taken for votes.

Letters: A annotators.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from intersyn_jax.data import images, manifest, shards
from intersyn_jax.data.importers import rows
from intersyn_jax.interleave.types import DIMENSIONS, Conversation, Image, Segment, Text, Turn, images_of, text_of

TOP = 5
UNKNOWN = 'unknown'
"""The generator of rows that name none."""

Vote = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class RatedRow:
  """One answer and what people said of it.

  Attributes:
    conversation: its last answer is the one that was scored.
    votes: int32[A,4], 0-5, one row an annotator, in the order of DIMENSIONS.
    where: the (first) place in the source, for the list of what is left out.
  """

  conversation: Conversation
  votes: np.ndarray
  where: str


def rated(path: str | os.PathLike[str], reject: rows.Reject, *, pixels: int,
          folder: str | os.PathLike[str] | None = None, encoding: str = 'PNG') -> Iterator[RatedRow]:
  """Yields the scored answers of a file, or of a folder of shards, in their order; the rest goes to `reject`.

  Args:
    path: JSON or JSON Lines file, or a folder of our shards, of which every split is read.
    reject: takes a row that is left out.
    pixels: side of the pictures; those of shards stay as they are.
    folder: where the pictures of a file lie; the folder of `path` if None. Nothing outside it is read.
    encoding: of the pictures, 'PNG' or 'JPEG'.

  Raises:
    UserError: the file, or a shard, cannot be read.
  """
  if pathlib.Path(path).is_dir():
    return _of_shards(path, reject)
  return _of_file(path, reject, pathlib.Path(path).parent if folder is None else folder, pixels, encoding)


# Rows of a file. Those of one answer need not stand together, so that all are read before the first picture is.


@dataclasses.dataclass
class _Answer:
  """An answer and the votes of its rows."""

  id: str
  generator: str
  question: str
  texts: tuple[str, ...]  # of each step, '' for none
  pictures: tuple[str, ...]  # files
  votes: list[Vote]
  rows: list[str]
  annotators: dict[str, str]  # name and row

  def add(self, other: _Answer) -> None:
    """Takes the votes of another row; BadRow where it is about something else, or its annotator was here before."""
    for field in ('question', 'texts', 'pictures'):
      if getattr(self, field) != getattr(other, field):
        word = {'texts': 'answer', 'pictures': 'image'}.get(field, field)
        raise rows.BadRow(f'its id stands already at {self.rows[0]} with another {word}; only rows of the same answer share '
                          'an id, unless they have different generators')
    if twice := self.annotators.keys() & other.annotators.keys():
      raise rows.BadRow(f'annotator {min(twice)!r} has scored it already at {self.annotators[min(twice)]}')
    self.votes += other.votes
    self.rows += other.rows
    self.annotators |= other.annotators


def _of_file(path: str | os.PathLike[str], reject: rows.Reject, folder: str | os.PathLike[str], pixels: int,
             encoding: str) -> Iterator[RatedRow]:
  answers: dict[tuple[str, str], _Answer] = {}
  for where, row in rows.read(path, reject, 'judge.source'):
    try:
      answer = _answer(row, where)
      first = answers.setdefault((answer.generator, answer.id), answer)
      if first is not answer:
        first.add(answer)
    except ValueError as error:
      reject(manifest.Rejected(where, _name(row), str(error)))
  for answer in answers.values():
    try:
      conversation = _conversation(answer, folder, pixels, encoding)
    except ValueError as error:
      for where in answer.rows:
        reject(manifest.Rejected(where, ascii(answer.id)[1:-1], str(error)))
      continue
    yield RatedRow(conversation, np.array(answer.votes, np.int32), answer.rows[0])


def _answer(row: dict[str, Any], where: str) -> _Answer:
  name = rows.string(row, 'id')
  if name == 'id' or str(row.get('question', '')).startswith('The question from'):
    raise rows.BadRow('placeholder row: its fields describe the format instead of holding data')
  question = rows.string(row, 'question')
  texts, pictures = _slots(row, 'answer'), _slots(row, 'image')
  generator, annotator = (rows.string(row, key) if row.get(key) else '' for key in ('generator', 'annotator'))
  labels = row.get('labels')
  if not isinstance(labels, list) or not labels:
    raise rows.BadRow('field labels is missing or no list of four scores')
  votes = [_vote(vote) for vote in (labels if all(isinstance(v, list) for v in labels) else [labels])]
  if annotator and len(votes) > 1:
    raise rows.BadRow(f'field annotator names one person, field labels has {len(votes)} lists of scores')
  _check_zeros(votes, any(texts), any(pictures))
  return _Answer(name, generator, question, texts, pictures, votes, [where], {annotator: where} if annotator else {})


def _slots(row: dict[str, Any], field: str) -> tuple[str, ...]:
  """The texts or files of the steps, '' where there is none."""
  value = row.get(field)
  missing = lambda entry: entry is None or (isinstance(entry, str) and not entry.strip())
  return tuple('' if missing(entry) else rows.string({field: entry}, field)
               for entry in (value if isinstance(value, list) else [value]))


def _conversation(answer: _Answer, folder: str | os.PathLike[str], pixels: int, encoding: str) -> Conversation:
  segments: list[Segment] = []
  for text, picture in itertools.zip_longest(answer.texts, answer.pictures, fillvalue=''):
    if text:
      segments.append(Text(text))
    if picture:
      segments.append(Image(images.load(picture, folder, pixels, encoding=encoding)))
  if segments and not images_of(segments):
    segments = [Text(text_of(segments))]  # tokens cannot tell texts without a picture between them from one text
  name = f'{answer.generator}/{answer.id}' if answer.generator else answer.id
  return Conversation(id=name, topic='', turns=(Turn((Text(answer.question),), tuple(segments)),),
                      generator=answer.generator or UNKNOWN)


# Records of shards.


def _of_shards(folder: str | os.PathLike[str], reject: rows.Reject) -> Iterator[RatedRow]:
  seen: dict[str, str] = {}
  for split in shards.splits(folder):
    for number, conversation in enumerate(shards.open_split(folder, split)):
      where = f'{split} record {number}'
      first = seen.setdefault(conversation.id, where)
      scored = sorted({score.turn for score in conversation.scores if score.step < 0})
      if first != where or not scored:
        reason = f'its id stands already at {first}' if first != where else 'has no scores of a whole answer'
        reject(manifest.Rejected(where, conversation.id, reason))
        continue
      for turn in scored:
        try:
          yield _of_turn(conversation, turn, where)
        except rows.BadRow as error:
          reject(manifest.Rejected(where, conversation.id, f'turn {turn}: {error}'))


def _of_turn(conversation: Conversation, turn: int, where: str) -> RatedRow:
  """The conversation up to a turn, with the votes for its answer. The last turn keeps the id."""
  if not 0 <= turn < len(conversation.turns):
    raise rows.BadRow(f'has scores, but the record has {len(conversation.turns)} turns')
  turns = conversation.turns[:turn + 1]
  votes = [_vote(score.values()) for score in conversation.scores if score.step < 0 and score.turn == turn]
  answer = turns[-1].answer
  _check_zeros(votes, bool(text_of(answer).strip()), bool(images_of(answer)))
  name = conversation.id if len(turns) == len(conversation.turns) else f'{conversation.id}/turn-{turn}'
  kept = dataclasses.replace(conversation, id=name, turns=turns, scores=(), generator=conversation.generator or UNKNOWN)
  return RatedRow(kept, np.array(votes, np.int32), where)


# Labels.


def _vote(scores: Sequence[Any]) -> Vote:
  if len(scores) != len(DIMENSIONS):
    raise rows.BadRow(f'field labels has {len(scores)} scores instead of the four TCC, ICC, IQ, ITS')
  for name, score in zip(DIMENSIONS, scores, strict=True):
    if score == -1:
      raise rows.BadRow(f'labels: {name.upper()} is -1, the mark of a judgement that failed; it is no score')
    whole = score.is_integer() if isinstance(score, float) else isinstance(score, int) and not isinstance(score, bool)
    if not whole:
      raise rows.BadRow(f'labels: {name.upper()} is {str(score)[:40]!a}; an annotator gives whole numbers 0 to {TOP}')
    if not 0 <= score <= TOP:
      raise rows.BadRow(f'labels: {name.upper()} is {str(score)[:40]}; scores go from 0 to {TOP}')
  return tuple(int(score) for score in scores)


def _check_zeros(votes: Sequence[Vote], text: bool, image: bool) -> None:
  """BadRow where something that is not there got points (InterSyn, rubric)."""
  for there, what, zeros in ((text, 'text', ('tcc', 'its')), (image, 'image', ('icc', 'iq', 'its'))):
    for vote in votes if not there else ():
      for name, score in zip(DIMENSIONS, vote, strict=True):
        if name in zeros and score:
          raise rows.BadRow(f'labels: {name.upper()} is {score}, but the answer has no {what}; the rubric then gives 0')


def _name(row: dict[str, Any]) -> str:
  name = row.get('id')
  return ascii(name)[1:-1] if isinstance(name, str) else ''
