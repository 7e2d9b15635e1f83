"""Test sets of SynJudge: answers that people have scored. Not the answers are tested here, but whoever judges them.

The rows are those of `data.importers.judged` (docs/data.md); their labels are the mean of all votes. Told are RMSE, the
share within one point, and the other measures of `judge.metrics`, by dimension, over all answers and by their generator.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from intersyn_jax.data.importers import judged, rows
from intersyn_jax.evaluation.suites import score_files, suite, tables
from intersyn_jax.evaluation.suites.suite import Entry, Look, Verdict
from intersyn_jax.interleave.types import DIMENSIONS, Conversation
from intersyn_jax.judge import metrics


class Rated(suite.Suite):
  """Scored answers. They are read with their pictures, once for each size that is asked for."""

  name = 'synjudge'
  dimensions = DIMENSIONS
  top = judged.TOP
  answered = False

  def _entries(self) -> Iterator[Entry]:
    """Rows of one answer need not stand together, so that the importer reads them, with pictures of a pixel."""
    for row in judged.rated(self.path, self.rejected.append, pixels=1, folder=self.images):
      yield Entry(row.conversation.id, row.conversation.generator, {'votes': row.votes}, row.where)

  def files(self) -> list[pathlib.Path]:
    return sorted(self.path.glob('*.array_record')) if self.path.is_dir() else [self.path]

  def _import(self, look: Look, reject: rows.Reject) -> Iterator[Conversation]:
    for row in judged.rated(self.path, reject, pixels=look.pixels, folder=self.images):
      yield row.conversation

  def verdicts_in(self, path: str | os.PathLike[str]) -> dict[str, Verdict]:
    """Scores in the common form, or rows of the released judges, whose `labels` are the four scores (-1: it failed)."""
    def of(row: dict[str, Any]) -> tuple[str, Verdict]:
      name, labels = score_files.identity(row), row.get('labels')
      if (whole := f'{row.get("generator")}/{name}') in self.entries:  # as the importer calls it
        name = whole
      if labels is None:
        return name, score_files.plain(row, DIMENSIONS, self.top)
      if not isinstance(labels, list) or len(labels) != len(DIMENSIONS):
        return name, Verdict(None, 'labels are no four scores')
      return name, score_files.checked(dict(zip(DIMENSIONS, labels, strict=True)), self.top)
    return score_files.completed(self, score_files.read(path, DIMENSIONS, self.top, of))

  def summary(self, verdicts: Mapping[str, Verdict], boot: tables.Bootstrap) -> dict[str, Any]:
    truth = np.array([np.mean(self.entries[name].row['votes'], axis=0) for name in verdicts], np.float64)
    judge = tables.values(verdicts, verdicts, DIMENSIONS)
    options = dict(samples=boot.resamples, seed=boot.seed)
    found: dict[str, Any] = {}
    for prefix, table in {'': metrics.table(truth, judge, **options),
                          **metrics.by_group(truth, judge, [self.entries[n].category for n in verdicts], **options)}.items():
      found |= {f'{tables.slug(prefix)}.{k}' if prefix else k: v if np.isfinite(v) else None  # the correlation of a constant
                for k, v in table.items() if k not in ('n', 'failed')}
    for measure in ('rmse', 'a1'):
      each = [found.get(f'{d}.{measure}') for d in DIMENSIONS]
      found[f'mean.{measure}'] = None if None in each else float(np.mean(each))
    return found

