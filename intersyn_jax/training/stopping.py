"""SIGTERM, by which clouds and schedulers announce that a machine will be taken: what was learnt is saved, then the program ends.

    with stopping.held():
      while ...:
        state = update(state)
        if stopping.wanted():
          save(state)
          raise stopping.Stopped

Outside `held` nothing needs to be saved, because what stages write is whole or absent at any moment; there the program ends at
once. With several processes the signal may reach one of them only: jax spreads the news, and `wanted` turns true in all of
them at the same call.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

CODE = 128 + signal.SIGTERM
"""Exit code of a program that SIGTERM ended, as shells give it; `launch/` starts such a job again."""


class Stopped(BaseException):
  """SIGTERM came, and all that has to be kept is on disk. No `Exception`: nobody mends this on the way up."""


class _Signal:
  came = False
  held = 0
  calls = 0


def install() -> None:
  """Listens to SIGTERM, from the main thread and after `jax.distributed` has begun, which listens by itself."""
  if jax.process_count() == 1:
    signal.signal(signal.SIGTERM, _heard)


def _heard(*_) -> None:
  _Signal.came = True
  if not _Signal.held:
    raise Stopped


@contextlib.contextmanager
def held() -> Iterator[None]:
  """Inside, the signal waits until `wanted` is asked, or until the end of the block."""
  _Signal.held += 1
  try:
    yield
  finally:
    _Signal.held -= 1
  if _Signal.came and not _Signal.held:
    raise Stopped


def wanted() -> bool:
  """Whether to save and end now. All processes must ask equally often."""
  if jax.process_count() > 1:
    _Signal.calls += 1
    _Signal.came = _Signal.came or multihost_utils.reached_preemption_sync_point(_Signal.calls)
  return _Signal.came
