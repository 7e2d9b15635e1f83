"""A progress line: how far, how fast, how long still. One line that rewrites itself on a terminal, else one every 5 s."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar('T')


def duration(seconds: float) -> str:
  """`8 s`, `3:05` or `2:03:40`."""
  seconds = int(seconds + 0.5)
  if seconds < 60:
    return f'{seconds} s'
  if seconds < 3600:
    return f'{seconds // 60}:{seconds % 60:02d}'
  return f'{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}'


def amount(value: float) -> str:
  """Three figures, with k or M where the number is large."""
  for unit, size in (('M', 1e6), ('k', 1e4)):
    if abs(value) >= size:
      return f'{value / (1e6 if unit == "M" else 1e3):.3g}{unit}'
  return f'{value:.0f}' if abs(value) >= 1000 else f'{value:.3g}'


class Progress:
  """Progress of `total` equal pieces of work.

  The rate is the one of the last half minute, so that compilation at the start does not spoil the time left.

  Args:
    label: what is being done.
    total: pieces in all; 0 where nobody knows.
    done: pieces that an earlier start had done.
    unit: what a piece is called.
    stream: where to write; standard error if not given.
    tick: called at each update (the stage's clock).
    active: False on all processes but one, which write nothing.
  """

  def __init__(self, label: str, total: int, done: int = 0, unit: str = 'step', stream=None,
               tick: Callable[[], None] | None = None, active: bool = True):
    self._label, self._total, self._unit, self._tick, self._active = label, total, unit, tick, active
    self._stream = stream if stream is not None else sys.stderr
    self._tty = self._stream.isatty()
    self._every = 0.2 if self._tty else 5.0
    self._begin = time.monotonic()
    self._shown = 0.0
    self._width = 0
    self._recent: deque[tuple[float, int]] = deque([(self._begin, done)])
    self.done = done
    self._first = done
    self._closed = False

  def update(self, done: int, **values: float | str) -> None:
    """Says that `done` pieces are complete; values are shown behind (a loss, a reward). The last piece closes the line."""
    now = time.monotonic()
    if self._tick is not None:
      self._tick()
    if done > self.done or len(self._recent) == 1:
      self._recent.append((now, done))
    # The start itself leaves the window with the first finished piece: that piece held the compilation.
    while len(self._recent) > 2 and (now - self._recent[0][0] > 30 or self._recent[0][1] == self._first):
      self._recent.popleft()
    self.done = done
    if done >= self._total > 0:
      self.close(**values)
    elif self._active and now - self._shown >= self._every:
      self._shown = now
      self._show(now, values)

  def __call__(self, step: int, steps: int, rate: float, left: float, metrics: dict[str, float]) -> None:
    """As the callback of `training.loop.fit`: shows the loss and the reward among the metrics."""
    self._total = steps
    self.update(step, **{name: metrics[name] for name in ('loss', 'reward') if name in metrics})

  def close(self, **values: float | str) -> None:
    """Writes the last line, with the whole time; once."""
    if not self._active or self._closed:
      return
    self._closed = True
    seconds = time.monotonic() - self._begin
    tail = ''.join(f'  {k} {v if isinstance(v, str) else amount(float(v))}' for k, v in values.items())
    self._write(f'{self._label}: {self._count()} {self._unit}s in {duration(seconds)}{tail}', last=True)

  def _count(self) -> str:
    return f'{self.done}/{self._total}' if self._total > 0 else f'{self.done}'

  def _show(self, now: float, values: dict[str, float | str]) -> None:
    (then, before), rate, left = self._recent[0], '', ''
    if self.done > before and now - then > 0.2:  # less says nothing of the rate
      speed = (self.done - before) / (now - then)
      rate = f'  {amount(speed)} {self._unit}s/s' if speed >= 1 else f'  {amount(1 / speed)} s/{self._unit}'
      left = f'  {duration((self._total - self.done) / speed)} left' if self._total > 0 else ''
    tail = ''.join(f'  {k} {v if isinstance(v, str) else amount(float(v))}' for k, v in values.items())
    share = f' ({100 * self.done // self._total} %)' if self._total > 0 else ''
    self._write(f'{self._label}: {self._count()}{share}{rate}{left}{tail}')

  def _write(self, line: str, last: bool = False) -> None:
    if self._tty:
      end = '\n' if last else ''
      self._stream.write('\r' + line.ljust(self._width) + end)
      self._width = len(line)
    else:
      self._stream.write(line + '\n')
    self._stream.flush()


def track(items: Iterable[T], progress: Progress) -> Iterator[T]:
  """Passes the items on and counts each one when the next is asked for."""
  for number, item in enumerate(items, start=progress.done + 1):
    yield item
    progress.update(number)
  progress.close()
