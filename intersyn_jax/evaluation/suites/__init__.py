"""Public benchmarks: questions in their files, answers in their layouts, judgements, and scores (docs/suites.md).

A suite is a class of `SUITES`. It knows the files of its authors; who answers and who judges is the stage's business. An
answer that is not there is *missing*, a judgement that brought no number has *failed*; both are counted and neither is a
zero.
"""

from __future__ import annotations

import importlib
import os

from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites.suite import Suite

SUITES = {
    'mmie': 'mmie:Mmie',
    'interleaved_bench': 'interleaved_bench:InterleavedBench',
    'opening': 'opening:Opening',
    'synjudge': 'rated:Rated',
    'pope': 'pope:Pope',
    'seed_bench': 'seed_bench:SeedBench',
    'mm_vet': 'mm_vet:MmVet',
    'geneval': 'geneval:GenEval',
}
"""Every suite and where its class is."""


def named(name: str) -> type[Suite]:
  """The class of a suite. Raises UserError where there is none."""
  if name not in SUITES:
    raise UserError(f'--suite={name} is no suite; there are {", ".join(SUITES)}')
  module, _, attribute = SUITES[name].partition(':')
  return getattr(importlib.import_module(f'{__name__}.{module}'), attribute)


def opened(name: str, questions: str | os.PathLike[str], images: str | os.PathLike[str] = '') -> Suite:
  """A suite with its questions read. Raises UserError where the file is none of the suite's."""
  return named(name)(questions, images)
