"""Metric rows of a stage: always as JSON lines and for TensorBoard, for Weights & Biases where a project is named."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from intersyn_jax.errors import UserError


def read_rows(path: epath.PathLike) -> list[dict[str, Any]]:
  """Rows of a `metrics.jsonl`; a last line cut by a killed process is left out.

  Raises:
    UserError: a line before the last one is no JSON object.
  """
  path = epath.Path(path)
  rows: list[dict[str, Any]] = []
  if not path.exists():
    return rows
  lines = path.read_text().splitlines()
  for number, line in enumerate(lines, start=1):
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      if number == len(lines):
        break
      raise UserError(f'{path}: line {number} is not JSON; remove that line') from None
    rows.append(row)
  return rows


def _scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
  """Python floats of the values (jax and numpy scalars included); None for what is not finite, which JSON cannot say."""
  for name, value in values.items():
    number = float(value)
    yield name, number if math.isfinite(number) else None


class MetricsWriter:
  """Writes rows `{step, name: value, ...}` to `directory/metrics.jsonl` and TensorBoard events beside it.

  Rows reach the file at once, so that a killed stage has lost nothing. A resumed stage passes `done`, the step of its
  checkpoint: later rows, which it will write again, are dropped and every step stays in the file once.

  Args:
    directory: of the stage; made here.
    done: the last step whose rows stay; -1 starts the file afresh.
    wandb: project of Weights & Biases, '' for none.
    name: what the run is called there.
    on_write: called after each row (the stage's clock).
    active: False on all processes but one, which write nothing.
  """

  def __init__(self, directory: epath.PathLike, done: int = -1, *, wandb: str = '', name: str = '',
               on_write: Callable[[], None] | None = None, active: bool = True):
    self._active = active
    self._on_write = on_write
    self._wandb = None
    if not active:
      return
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / 'metrics.jsonl'
    kept = [row for row in read_rows(path) if row['step'] <= done] if done >= 0 else []
    text = ''.join(json.dumps(row) + '\n' for row in kept)
    replace_text(path, text)
    self._file = path.open('a')
    self._board = _Board(directory / 'tensorboard', done + 1)
    if wandb:
      self._wandb = _start_wandb(wandb, name, str(directory))

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Adds one row; values are scalars (Python, numpy or jax). Waits for them if they are still being computed."""
    if not self._active:
      return
    row = {'step': int(step), **dict(_scalars(values))}
    self._file.write(json.dumps(row, allow_nan=False) + '\n')
    self._file.flush()
    self._board.write(row['step'], {name: value for name, value in row.items() if name != 'step' and value is not None})
    if self._wandb is not None:
      self._wandb.log({k: v for k, v in row.items() if k != 'step'}, step=row['step'])
    if self._on_write is not None:
      self._on_write()

  def close(self) -> None:
    if not self._active:
      return
    self._file.close()
    self._board.close()
    if self._wandb is not None:
      self._wandb.finish()

  def __enter__(self) -> MetricsWriter:
    return self

  def __exit__(self, *exception) -> None:
    self.close()


class _Board:
  """TensorBoard's events, written by the caller itself.

  tensorboardX's own writer has a thread and a queue: on a full disk the thread ends with a traceback of its own, and who then
  fills the queue waits without end.
  """

  def __init__(self, directory: epath.Path, first: int):
    """Events that an earlier start wrote for step `first` and later are not shown any more."""
    from tensorboardX.event_file_writer import EventsWriter  # half a second that reading rows does not need
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import Summary
    self._event, self._summary = Event, Summary
    directory.mkdir(parents=True, exist_ok=True)
    self._file = EventsWriter(str(directory / 'events'))
    self._file.write_event(Event(step=first, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)))
    self._file.flush()
    self._flushed = time.monotonic()

  def write(self, step: int, values: Mapping[str, float]) -> None:
    scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    self._file.write_event(self._event(step=step, wall_time=time.time(), summary=self._summary(value=scalars)))
    if time.monotonic() - self._flushed > 20:
      self._file.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    self._file.close()


def _start_wandb(project: str, name: str, directory: str):
  try:
    import wandb
  except ImportError:
    raise UserError(f"report.wandb={project!r} needs the extra wandb: pip install 'intersyn_jax[wandb]'") from None
  return wandb.init(project=project, name=name, dir=directory, resume='allow', id=name.replace('/', '-') or None)


def replace_text(path: epath.PathLike, text: str) -> None:
  """Writes a text file so that a reader, or a killed process, sees the old or the new one and never a part."""
  path = epath.Path(path)
  part = path.parent / f'.{path.name}.part'
  try:
    part.write_text(text)
  except OSError:
    with contextlib.suppress(OSError):  # the disk may have become one that can only be read
      part.unlink(missing_ok=True)  # of what a full disk has no room for
    raise
  part.replace(path)


class Clock:
  """Seconds spent on a stage over all its starts, kept in a file so that a killed start still counts."""

  def __init__(self, path: epath.PathLike, every: float = 2.0, active: bool = True):
    self._path = epath.Path(path)
    self._every = every
    self._active = active
    self._before = 0.0
    if self._path.exists():
      self._before = float(json.loads(self._path.read_text())['seconds'])
    self._start = self._saved = time.monotonic()

  @property
  def seconds(self) -> float:
    return self._before + time.monotonic() - self._start

  def tick(self) -> None:
    """Saves the time, at most once every few seconds."""
    now = time.monotonic()
    if self._active and now - self._saved >= self._every:
      self._saved = now
      replace_text(self._path, json.dumps({'seconds': round(self.seconds, 2)}))
