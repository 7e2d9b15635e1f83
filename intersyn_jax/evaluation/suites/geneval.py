"""GenEval (repository djghosh13/geneval): pictures drawn to prompts about objects, checked by its object detector.

Pictures are written as the official evaluation wants them: `00000/metadata.jsonl` with the line of the prompt,
`00000/samples/0000.png` and so on. The detector is no part of this program; its `results.jsonl` is read back and counted
as the official summary does: the share of right pictures of each tag, and the plain mean of the tags.

The official summary only knows the pictures that it finds: a prompt that was not drawn makes its tag no worse. Here a
picture that was asked for and has no result is `missing`, and counted.
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
from intersyn_jax.evaluation.suites.suite import FILE, KEEP, Answers, Entry, Look, Missing, Verdict
from intersyn_jax.interleave.types import Conversation, Segment, Text, Turn, images_of

_PLACE = re.compile(r'(?:^|[/\\])(\d+)[/\\]samples[/\\](\d+)\.png$')
NO_PICTURE, NO_RESULT = 'no picture in the answer', 'no result of the picture'


class GenEval(suite.Suite):
  """Prompts of `evaluation_metadata.jsonl`; the id of a prompt is its number, as of a picture `00012/0003`."""

  name = 'geneval'
  dimensions = ('correct',)
  judges = (FILE,)
  pictures = 4

  def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
    self._lines: dict[str, str] = {}
    for number, (where, row) in enumerate(super()._rows()):
      name = f'{number:05d}'
      self._lines[name] = json.dumps(row)
      yield where, {**row, 'id': name}
    if self.rejected:  # the number of a line is the name of a folder
      first = self.rejected[0]
      raise UserError(f'--questions={self.path}, {first.where}: {first.reason}; mend it: each line is a folder of pictures')

  def _entry(self, where: str, row: dict[str, Any]) -> Entry:
    rows.string(row, 'prompt')
    return Entry(row['id'], rows.string(row, 'tag'), row, where)

  def _import(self, look: Look, reject: rows.Reject) -> Iterator[Conversation]:
    for entry in self.entries.values():
      yield Conversation(entry.id, entry.category, (Turn((Text(entry.row['prompt']),)),))

  def submit(self, folder: pathlib.Path, model: str, answers: Answers) -> None:
    for entry in self.entries.values():
      (folder / entry.id / 'samples').mkdir(parents=True)
      (folder / entry.id / 'metadata.jsonl').write_text(self._lines[entry.id], encoding='utf-8')
      for place in range(self.pictures):
        try:
          drawn = images_of(answers.get(f'{entry.id}/{place:04d}'))
        except Missing:
          continue
        if drawn:
          (folder / entry.id / 'samples' / f'{place:04d}.png').write_bytes(drawn[0].data)

  def submission(self, folder: str | os.PathLike[str], look: Look = KEEP) -> Answers:
    return Submission(pathlib.Path(folder), look)

  def names(self) -> list[str]:
    """All pictures that were asked for."""
    return [f'{name}/{place:04d}' for name in self.entries for place in range(self.pictures)]

  def verdict(self, name: str, answer: Sequence[Segment]) -> Verdict:
    return Verdict({}) if images_of(answer) else Verdict(None, NO_PICTURE, True)

  def verdicts_in(self, path: str | os.PathLike[str]) -> dict[str, Verdict]:
    """The official `results.jsonl`, `{"filename": ".../00000/samples/0000.png", "correct": true, ...}` a line."""
    def of(row: dict[str, Any]) -> tuple[str, Verdict]:
      place = _PLACE.search(row['filename']) if isinstance(row.get('filename'), str) else None
      if place is None:
        raise ValueError('field filename does not end like 00000/samples/0000.png')
      correct = row.get('correct')
      right = isinstance(correct, bool) or correct in (0, 1)
      verdict = Verdict({'correct': float(correct)}) if right else Verdict(None, 'field correct is neither true nor false')
      return f'{int(place[1]):05d}/{int(place[2]):04d}', verdict

    found = score_files.read(path, self.dimensions, self.top, of)
    if strange := {name.split('/')[0] for name in found} - self.entries.keys():
      raise UserError(f'{score_files.FLAG}={path} has results of prompt {min(strange)}, which --questions does not have; '
                      'name the files that belong together')
    return {name: found.get(name, Verdict(None, NO_RESULT, True)) for name in dict.fromkeys([*self.names(), *found])}

  def summary(self, verdicts: Mapping[str, Verdict], boot: tables.Bootstrap) -> dict[str, Any]:
    groups = {tag: [n for n in verdicts if self.entries[n.split('/')[0]].category == tag] for tag in self.by_category()}
    # One column a tag, so that the bootstrap draws pictures of all tags.
    by_tag = np.full((len(verdicts), len(groups)), np.nan)
    places = {name: row for row, name in enumerate(verdicts)}
    found: dict[str, Any] = {}
    for column, (tag, names) in enumerate(groups.items()):
      correct = tables.values(verdicts, names, self.dimensions)[:, 0]
      by_tag[[places[n] for n in names], column] = correct
      found |= tables.mean(f'{tables.slug(tag)}.correct', correct, boot)
      found |= {f'{tables.slug(tag)}.{k}': v for k, v in tables.counts(verdicts[n] for n in names).items() if '.' not in k}
    found |= tables.statistic('overall', by_tag, lambda means: means.mean(axis=-1), boot)
    found |= tables.mean('correct_pictures', tables.values(verdicts, verdicts, self.dimensions)[:, 0], boot)
    prompts: dict[str, list[float]] = {}
    for name, verdict in verdicts.items():
      if verdict.scores is not None:
        prompts.setdefault(name.split('/')[0], []).append(verdict.scores['correct'])
    return found | tables.mean('correct_prompts', np.array([max(scores) for scores in prompts.values()]), boot)


class Submission:
  """Pictures in the official folders, one answer each."""

  def __init__(self, folder: pathlib.Path, look: Look):
    if not folder.is_dir():
      raise UserError(f'--answers={folder} is no folder; name the one that holds 00000/samples/0000.png')
    self._folder, self._look = folder, look

  def get(self, name: str) -> tuple[Segment, ...]:
    prompt, place = name.split('/')
    # Other generators write the numbers with more digits, or fewer.
    samples = (self._folder / prompt / 'samples').glob('*.png')
    found = [f for f in samples if f.stem.isdecimal() and int(f.stem) == int(place)]
    if not found:
      raise Missing(suite.NO_ANSWER)
    return (suite.picture(os.path.relpath(found[0], self._folder), self._folder, self._look),)
