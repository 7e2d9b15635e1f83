"""What every suite is: questions of an official file, answers in an official layout, and how judgements become scores.

A question is read twice. Its row (id, category, reference) is small, and all rows are held. Its pictures are read when
they are needed, one window of questions at a time, by the importer of the data set.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from intersyn_jax.data import images, manifest, shards
from intersyn_jax.data.importers import rows
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites import tables
from intersyn_jax.interleave.types import DIMENSIONS, Conversation, Image, Segment, Text, Turn, steps_of

SYNJUDGE, ENDPOINT, FILE = 'synjudge', 'endpoint', 'a file'
"""Who may judge."""

NO_ANSWER, NO_VERDICT, UNUSABLE = 'no answer', 'no judgement in the file', 'question cannot be read'

Item = TypeVar('Item')


class Missing(Exception):
  """There is no answer; the message is the reason, a few words."""


class Unreadable(Exception):
  """There is an answer that nobody can judge, as its picture is not there; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Entry:
  """One question as the official file has it.

  Attributes:
    id: unique in the suite.
    category: by which scores are told apart.
    row: of the file.
    where: in it.
  """

  id: str
  category: str
  row: Mapping[str, Any]
  where: str


class Look(NamedTuple):
  """How pictures are read: `pixels` wide and high by a fit of `data.images`, or in their own shape where `pixels` is 0."""

  pixels: int = 0
  fit: str = 'crop'

  def options(self) -> dict[str, Any]:
    """For an importer."""
    return {'pixels': self.pixels} | ({} if self.fit == 'crop' else {'fit': self.fit})


KEEP = Look()
"""Pictures keep their shape."""


class Verdict(NamedTuple):
  """What became of one question: scores by dimension (NaN where one is left out), or None and the reason.

  `missing` tells a question without an answer from one whose judgement failed.
  """

  scores: Mapping[str, float] | None
  reason: str = ''
  missing: bool = False


class Asked(NamedTuple):
  """An answer for a judge: the question's entry, the conversation that ends with the answer, and the reference, if any."""

  entry: Entry
  conversation: Conversation
  reference: tuple[Segment, ...] = ()


class Answers(Protocol):
  """Answers by the id of their question."""

  def get(self, name: str) -> tuple[Segment, ...]:
    """Raises Missing or Unreadable."""


class Suite:
  """Questions of one benchmark; see the classes of `SUITES`.

  Args:
    questions: the official file, or folder where a suite has several.
    images: folder of the pictures; where the suite's authors put them beside the file if ''.

  Attributes:
    entries: all questions by id, in the order of the file.
    rejected: rows of the file that are no question.
    unusable: reasons by id, of questions whose pictures or texts the importer refused (after `conversations` has run).
  """

  name: ClassVar[str]
  dimensions: ClassVar[tuple[str, ...]] = ()
  top: ClassVar[float] = 1.0
  """The best score of a dimension; the worst is 0."""
  judges: ClassVar[tuple[str, ...]] = (SYNJUDGE, ENDPOINT, FILE)
  answered: ClassVar[bool] = True
  """Whether a model answers; False where the rows hold the answers."""
  pictures: ClassVar[int] = 1
  """Answers to each question, where the command does not say."""
  likelihood: ClassVar[bool] = False
  """Whether a policy answers by how likely it finds the choices, instead of writing."""

  def __init__(self, questions: str | os.PathLike[str], images: str | os.PathLike[str] = ''):
    self.path = pathlib.Path(questions)
    if not self.path.exists():
      raise UserError(f'--questions={questions} is not there; name the file of {self.name}')
    if os.fspath(images) and not pathlib.Path(images).is_dir():
      raise UserError(f'--images={images} is no folder; name the one that holds the pictures of {self.name}')
    self.images = pathlib.Path(images) if os.fspath(images) else self._images()
    self.rejected: list[manifest.Rejected] = []
    self.unusable: dict[str, str] = {}
    self.entries: dict[str, Entry] = {}
    for entry in self._entries():
      if entry.id in self.entries:
        self._reject(entry.where, entry.id, f'its id stands already at {self.entries[entry.id].where}')
      else:
        self.entries[entry.id] = entry
    if not self.entries:
      reason = f'{self.rejected[0].where}: {self.rejected[0].reason}' if self.rejected else 'it is empty'
      raise UserError(f'--questions={questions} holds no question of {self.name} ({reason}); docs/suites.md shows its form')

  # What a suite says about itself.

  def _entries(self) -> Iterator[Entry]:
    """The questions of `path`; rows that are none go to `_reject`."""
    for where, row in self._rows():
      try:
        yield self._entry(where, row)
      except ValueError as error:
        self._reject(where, str(row.get('id', ''))[:200], str(error))

  def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
    return rows.read(self.path, self.rejected.append, '--questions')

  def _entry(self, where: str, row: dict[str, Any]) -> Entry:
    raise NotImplementedError

  def _images(self) -> pathlib.Path:
    return self.path if self.path.is_dir() else self.path.parent

  def _import(self, look: Look, reject: rows.Reject) -> Iterator[Conversation]:
    """The questions with their pictures."""
    raise NotImplementedError

  def files(self) -> list[pathlib.Path]:
    """The files that hold the questions."""
    return [self.path]

  def submit(self, folder: pathlib.Path, model: str, answers: Answers) -> None:
    """Writes the official layout into an empty folder; questions without an answer are left out of it."""
    raise NotImplementedError

  def submission(self, folder: str | os.PathLike[str], look: Look = KEEP) -> Answers:
    """Reads the official layout. Raises UserError where the folder has none."""
    raise NotImplementedError

  def rubric(self) -> Any:
    """The suite's rubric as a prompt, see `rubric.Rubric`."""
    raise NotImplementedError

  def names(self) -> list[str]:
    """What the answers are called: as their questions, where each has one."""
    return list(self.entries)

  def verdict(self, name: str, answer: Sequence[Segment]) -> Verdict:
    """Scores an answer where that needs no judge; where it does, a verdict without scores: there is an answer."""
    return Verdict({})

  def verdicts_in(self, path: str | os.PathLike[str]) -> dict[str, Verdict]:
    """Scores of a file, by id; questions that it does not name are missing."""
    from intersyn_jax.evaluation.suites import score_files
    return score_files.completed(self, score_files.read(path, self.dimensions, self.top))

  def summary(self, verdicts: Mapping[str, Verdict], boot: tables.Bootstrap) -> dict[str, Any]:
    """The suite's own scores, flat."""
    raise NotImplementedError

  def folder(self, model: str) -> str:
    """What the folder of a submission is called."""
    return 'submission'

  # What all of them do.

  def _reject(self, where: str, name: str, reason: str) -> None:
    self.rejected.append(manifest.Rejected(where, ascii(name)[1:-1], reason))

  def conversations(self, look: Look) -> Iterator[Conversation]:
    """The questions that can be asked, in the order of the file; the others stand in `unusable` afterwards."""
    by_place = {entry.where: entry.id for entry in self.entries.values()}
    refused: dict[str, str] = {}
    for conversation in self._import(look, lambda r: refused.setdefault(by_place.get(r.where, ''), r.reason)):
      if conversation.id in self.entries:
        yield conversation
    self.unusable = {name: refused[name] for name in self.entries if name in refused}

  def digest(self) -> str:
    """Names the content of the questions' files."""
    return hashlib.sha256(''.join(shards.sha256(file) for file in self.files()).encode()).hexdigest()[:16]

  def by_category(self) -> dict[str, list[str]]:
    """Ids of each category, in the order of the file."""
    found: dict[str, list[str]] = {}
    for entry in self.entries.values():
      found.setdefault(entry.category, []).append(entry.id)
    return found


def windows(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
  """The items, `size` at a time."""
  iterator = iter(items)
  while group := list(itertools.islice(iterator, size)):
    yield group


def answered(conversation: Conversation, answer: Sequence[Segment]) -> Conversation:
  """The conversation with another last answer."""
  *earlier, last = conversation.turns
  return dataclasses.replace(conversation, turns=(*earlier, Turn(last.question, tuple(answer))))


def judge_all(suite: Suite, answers: Answers | None, judge: Callable[[list[Asked]], list[Verdict]], *, look: Look,
              window: int, tick: Callable[[int], None] = lambda done: None) -> dict[str, Verdict]:
  """Judgements of all questions, by id in the order of the file.

  Args:
    answers: None where the rows of the suite hold them.
    judge: gives the verdicts of a window of answers.
    look: of the pictures in questions.
    tick: called with how many questions are done.
  """
  found: dict[str, Verdict] = {}
  for group in windows(suite.conversations(look), window):
    ready: list[Asked] = []
    for conversation in group:
      try:
        given = conversation.turns[-1].answer if answers is None else answers.get(conversation.id)
      except (Missing, Unreadable) as error:
        found[conversation.id] = Verdict(None, str(error), isinstance(error, Missing))
        continue
      ready.append(Asked(suite.entries[conversation.id], answered(conversation, given), conversation.turns[-1].answer))
    found |= zip((asked.entry.id for asked in ready), judge(ready), strict=True)
    tick(len(found))
  return {name: found.get(name, Verdict(None, UNUSABLE, True)) for name in suite.entries}


def synjudge_summary(suite: Suite, verdicts: Mapping[str, Verdict], boot: tables.Bootstrap) -> dict[str, Any]:
  """SynJudge's four dimensions and their mean, 0 to 5, over all questions and by category."""
  found: dict[str, Any] = {}
  groups = {'': list(verdicts)} | {f'{tables.slug(category)}.': names for category, names in suite.by_category().items()}
  for prefix, names in groups.items():
    columns = tables.values(verdicts, names, DIMENSIONS)
    for dimension, column in zip(DIMENSIONS, columns.T, strict=True):
      found |= tables.mean(f'{prefix}{dimension}', column, boot)
    found |= tables.statistic(f'{prefix}mean', columns, lambda means: means.mean(axis=-1), boot)
  return found


def score_all(suite: Suite, answers: Answers) -> dict[str, Verdict]:
  """What the suite itself says of all answers, by their names (see `Suite.verdict`)."""
  found: dict[str, Verdict] = {}
  for name in suite.names():
    try:
      found[name] = suite.verdict(name, answers.get(name))
    except (Missing, Unreadable) as error:
      found[name] = Verdict(None, str(error), isinstance(error, Missing))
  return found


# Files of texts and pictures.


def document(path: str | os.PathLike[str], field: str) -> Any:
  """What a JSON file holds. Raises UserError where it is none; `field` is the flag that named it."""
  path = pathlib.Path(path)
  try:
    return json.loads(path.read_text('utf-8-sig'))
  except OSError as error:
    raise UserError(f'{path} cannot be read ({error.strerror}); set {field} to the right file') from error
  except UnicodeDecodeError as error:
    raise UserError(f'{path} is no UTF-8 text (byte {error.start}); set {field} to a JSON file') from error
  except json.JSONDecodeError as error:
    raise UserError(f'{path} is no JSON at line {error.lineno} ({error.msg}); mend that line, or set {field} to another '
                    'file') from error
  except RecursionError as error:
    raise UserError(f'{path} is nested too deeply to read; set {field} to a flat JSON file') from error


def only(folder: str | os.PathLike[str], pattern: str, wanted: str = '') -> pathlib.Path:
  """The file `wanted` of a folder of answers, else the only one of a pattern. Raises UserError."""
  base = pathlib.Path(folder)
  if not base.is_dir():
    raise UserError(f'--answers={folder} is no folder; name the one that holds the answers')
  if wanted and (base / wanted).is_file():
    return base / wanted
  found = sorted(base.glob(pattern))
  if len(found) != 1:
    raise UserError(f'--answers={folder} has {len(found)} files {pattern}; put the answers into one'
                    + (f' that is called {wanted}' if wanted else ''))
  return found[0]


def pairs(segments: Sequence[Segment], name: Callable[[int], str]) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
  """Segments as the rows `{"text", "image"}` of several benchmarks, and the files of their pictures by name."""
  listed: list[dict[str, Any]] = []
  files: dict[str, bytes] = {}
  for text, image in steps_of(segments):
    file = None
    if image is not None:
      file = name(len(files))
      files[file] = image.data
    listed.append({'text': text, 'image': file})
  return listed, files


def segments_of(items: Any, folder: pathlib.Path, look: Look) -> tuple[Segment, ...]:
  """Reads rows `{"text", "image"}`, or a bare text. Raises Unreadable where a picture, or the form, is not right."""
  if isinstance(items, str):
    items = [{'text': items}]
  if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
    raise Unreadable('answer is no list of objects')
  found: list[Segment] = []
  for item in items:
    text, image = item.get('text'), item.get('image')
    if not isinstance(text, str | None) or not isinstance(image, str | None):
      raise Unreadable('text or image is no text')
    if text and text.strip():
      found.append(Text(text.strip()))
    if image:
      found.append(picture(image, folder, look))
  return tuple(found)


def picture(name: str, folder: pathlib.Path, look: Look) -> Image:
  """A picture of an answer. Raises Unreadable: an answer is never judged without a picture that it names."""
  try:
    return Image(images.load(name, folder, look.pixels, fit=look.fit))
  except ValueError as error:
    raise Unreadable('picture is missing' if str(error).endswith('is missing') else 'picture cannot be read') from error


def put(folder: pathlib.Path, files: Mapping[str, bytes]) -> None:
  """Writes files below a folder."""
  for name, data in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
