"""Where the wall time of training goes, how much of it was useful, and a profiler's trace of some steps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from intersyn_jax.errors import UserError

USEFUL = ('rollout', 'reward', 'update')
"""Parts of the time in which a policy gets better; the others are its price."""

_COMPILING = ('/jax/core/compile/jaxpr_to_mlir_module_duration', '/jax/core/compile/backend_compile_duration')


class _Compiler:
  """Seconds that jax has spent on lowering and compiling in this process."""

  def __init__(self):
    self.seconds = 0.0
    jax.monitoring.register_event_duration_secs_listener(self._heard)

  def _heard(self, event: str, seconds: float, **_: Any) -> None:
    if event in _COMPILING:
      self.seconds += seconds


_COMPILER = _Compiler()


class Times:
  """Seconds by what they went to since they were last taken; compilation, wherever it happens, is `compile`.

      times = Times()
      with times.of('data'):
        batch = next(batches)
      row = times.take()        # {'seconds.data': 0.01}

  A part inside another one counts for both, as rewards on the host are a part of all rewards.
  """

  def __init__(self):
    self._spent: dict[str, float] = {}
    self._depth = 0

  @contextlib.contextmanager
  def of(self, name: str) -> Iterator[None]:
    """What runs inside goes to `name`."""
    began, compiled = time.monotonic(), _COMPILER.seconds
    self._depth += 1
    try:
      yield
    finally:
      self._depth -= 1
      spent = time.monotonic() - began
      compiling = min(spent, _COMPILER.seconds - compiled)
      self._add(name, spent - compiling)
      if compiling and not self._depth:
        self._add('compile', compiling)

  def _add(self, name: str, seconds: float) -> None:
    self._spent[name] = self._spent.get(name, 0.0) + seconds

  def take(self) -> dict[str, float]:
    """`seconds.NAME` of every part since the last call."""
    spent, self._spent = self._spent, {}
    return {f'seconds.{name}': seconds for name, seconds in spent.items()}


def goodput(rows: Sequence[Mapping[str, Any]], seconds: float) -> float | None:
  """Share of `seconds`, all starts of a stage, that went to updates which were kept; None where no row tells times.

  What a killed start did behind its last checkpoint is not in `rows` any more, and so counts as lost; so do compilation, waiting
  for data, checkpoints and starting again.
  """
  useful = [row[name] or 0.0 for row in rows for name in (f'seconds.{part}' for part in USEFUL) if name in row]
  return sum(useful) / seconds if useful and seconds > 0 else None


def device_memory() -> dict[str, float]:
  """`device_gib` and `device_peak_gib` of the fullest of this process's devices; nothing where they do not tell, as CPUs."""
  found = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
  most = lambda name: max(stats.get(name, 0) for stats in found) / 2**30
  return {'device_gib': most('bytes_in_use'), 'device_peak_gib': most('peak_bytes_in_use')} if found else {}


class Profile:
  """A trace of some steps for TensorBoard's or XProf's profile view.

  Args:
    steps: `FIRST:LAST`, counted from 1; '' for none.
    folder: where the trace is written.

  Raises:
    UserError: `steps` is not like that.
  """

  def __init__(self, steps: str, folder: epath.PathLike):
    self._first = self._last = 0
    self._folder = epath.Path(folder)
    self._traces = False
    if steps:
      first, _, last = steps.partition(':')
      if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UserError(f'config.profile_steps is {steps!r}; give the first and the last step, such as 10:12')
      self._first, self._last = int(first), int(last)

  def step(self, number: int, state: Any) -> jax.profiler.StepTraceAnnotation:
    """To be entered around step `number`; `state` is what the step before it gave."""
    if self._traces and number > self._last:
      self.close(state)
    if self._first <= number <= self._last and not self._traces:
      jax.block_until_ready(state)
      jax.profiler.start_trace(str(self._folder))
      self._traces = True
    return jax.profiler.StepTraceAnnotation('step', step_num=number)

  def close(self, state: Any) -> None:
    """Ends a trace that is open."""
    if self._traces:
      jax.block_until_ready(state)
      jax.profiler.stop_trace()
      self._traces = False
