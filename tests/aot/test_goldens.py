"""Every case of `goldens.py`, compiled again: memory and collectives within 5 % of what they were; minutes a program."""

from __future__ import annotations

import pytest

from intersyn_jax.stages.aot import report
from tests.aot import goldens


@pytest.mark.parametrize('name', goldens.CASES)
def test_memory_and_collectives_are_what_they_were(name):
  case = goldens.CASES[name]
  then = goldens.golden(case).get(report.versions())
  if then is None:
    pytest.skip(f'nothing to compare with for {report.versions()}: python tests/aot/goldens.py {name}')
  assert not list(goldens.differences(goldens.found(case), then))


def test_what_is_too_large_for_a_pod_does_not_fit():
  case = goldens.CASES['vila_u-7b-256-v5e-warmup-v5e-4x4']
  found = goldens.found(case._replace(flags=('--config.warmup.rows=256',)))
  assert not found['warmup']['fits']
