"""`Run`: what a stage gets. Its configuration, work folder, metric writer, progress line, and its summary at the end.

A work folder belongs to one configuration, stage by stage. Each stage uses some sections of the configuration, and with
them the sections of every stage before it (`SECTIONS`). The stage folder keeps what it was made with, in `config.json`;
a later start with other values there is an error, because half of the folder would say one thing and half another.
`evaluate` and `report` read and never feed anything, so they are made again instead; and a section whose stage has not
begun may still change.
"""

from __future__ import annotations

import datetime
import gc
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ml_collections
from etils import epath

from intersyn_jax import bucket
from intersyn_jax.errors import UserError
from intersyn_jax.stages import PIPELINE
from intersyn_jax.stages.advice import advised
from intersyn_jax.training.metrics import Clock, MetricsWriter, read_rows, replace_text
from intersyn_jax.training.progress import Progress

if TYPE_CHECKING:
  from intersyn_jax.training.times import Profile

SECTIONS = {
    'data': ('data',),
    'tokenizer': ('text', 'image'),
    'warmup': ('seed', 'model', 'warmup', 'writer'),
    'judge': ('decode', 'judge'),
    'synthesize': ('synthesize',),
    'finetune': ('finetune',),
    'grpo': ('grpo',),
    'evaluate': ('evaluate',),
    'report': ('report',),
}
"""The sections of the configuration that a stage is the first to use. A section named nowhere counts for all stages."""

ALONE = {'convert': ('family', 'hf')}
"""Stages beside the pipeline that leave a folder as those of the pipeline do, and all the sections that they use."""

HARMLESS = ('mesh', 'profile_steps')
"""Sections that change where the numbers are computed, or what is seen of it, and not what is computed."""

ASIDE = {'data': ('workers', 'beam')}
"""Fields that change how the work of a section is done and not what comes out."""

REDONE = ('evaluate', 'report')
"""Stages that nothing reads: with other values they are made again."""

HEARTBEAT = 10.0
"""Seconds between two signs of life in WORKDIR/heartbeat.json, where there is progress."""

SENT = 60.0
"""Seconds between two times that a work folder in a bucket gets what is new, where there is progress."""


def plain(value: Any) -> Any:
  """A configuration value as JSON holds it; functions and classes by their import path."""
  if isinstance(value, ml_collections.ConfigDict):
    return {k: plain(v) for k, v in sorted(value.items())}
  if isinstance(value, Mapping):
    return {str(k): plain(v) for k, v in sorted(value.items())}
  if isinstance(value, (list, tuple)):
    return [plain(v) for v in value]
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  if hasattr(value, '__qualname__'):
    return f'{value.__module__}:{value.__qualname__}'
  return str(value)


def sections_of(stage: str, config: Mapping[str, Any]) -> dict[str, Any]:
  """The part of a (plain) configuration that decides what the stage computes: its own sections and all earlier ones."""
  if stage in ALONE:
    return {k: v for k, v in config.items() if k in ALONE[stage]}
  later = {s for name in PIPELINE[PIPELINE.index(stage) + 1:] for s in SECTIONS[name]}
  kept = {k: v for k, v in config.items() if k not in later and k not in HARMLESS}
  return {k: {f: x for f, x in v.items() if f not in ASIDE[k]} if k in ASIDE else v for k, v in kept.items()}


def fingerprint(value: Any) -> str:
  """Twelve hexadecimal digits that name a plain value."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def leaves(value: Any, name: str = '') -> Iterator[tuple[str, Any]]:
  """The fields of a nested mapping as (dotted name, value)."""
  if isinstance(value, Mapping) and value:
    for key, inner in value.items():
      yield from leaves(inner, f'{name}.{key}' if name else str(key))
  else:
    yield name, value


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
  """The first field, in order of name, whose value differs: (name, old value, new value), `'(none)'` where absent."""
  before, now = dict(leaves(old)), dict(leaves(new))
  for name in sorted(before.keys() | now.keys()):
    values = before.get(name, '(none)'), now.get(name, '(none)')
    if values[0] != values[1]:
      return name, *values
  return None


class Run:
  """One start of the program on one work folder.

  Attributes:
    config: the whole configuration (locked ConfigDict).
    workdir: the work folder; of one in a bucket, this process's copy (`intersyn_jax.bucket`).
    options: flags of the stage that are not configuration (`--question=...`), as text.
    active: True on the one process that writes summaries, metrics and progress.
  """

  def __init__(self, config: ml_collections.ConfigDict, workdir: epath.PathLike,
               options: Mapping[str, str] | None = None):
    self.config = config
    self.workdir = bucket.local_copy(workdir)
    self.options = dict(options or {})
    self.active = _process_index() == 0
    self._plain = plain(config)
    self._clock: Clock | None = None  # of the stage that is running
    self._stage, self._beat = '', float('-inf')
    self._labels: dict[str, None] = {}  # folders in which the stage writes metrics, in order

  # Folders and configuration.

  def directory(self, stage: str) -> epath.Path:
    """WORKDIR/<stage>, made where it is missing."""
    path = self.workdir / stage
    path.mkdir(parents=True, exist_ok=True)
    return path

  def config_hash(self, stage: str) -> str:
    """Names all values that decide what the stage computes."""
    return fingerprint(sections_of(stage, self._plain))

  def check_config(self, stage: str) -> None:
    """Compares the configuration with the one that the stage, and those before it, were begun with.

    Raises:
      UserError: another value was used; names the first such field and the mend.
    """
    for name in (stage,) if stage in ALONE else PIPELINE[:PIPELINE.index(stage) + 1]:
      path = self.workdir / name / 'config.json'
      if name in REDONE or not path.exists():
        continue
      difference = first_difference(read_json(path), sections_of(name, self._plain))
      if difference is not None:
        field, old, new = difference
        later = [s for s in (PIPELINE[PIPELINE.index(name):] if name in PIPELINE else (name, *PIPELINE))
                 if (self.workdir / s).exists()]
        raise UserError(
            f'config.{field} is {json.dumps(new)}, but {self.workdir} was made with {json.dumps(old)}: set it back, name '
            f'another --workdir, or remove the folders {", ".join(later)} in {self.workdir} to make them again')

  def begin(self, stage: str) -> None:
    """Checks the configuration, notes it in the stage folder, and starts the stage's clock.

    A stage of `REDONE` that was begun with other values, or has ended and must be made again, loses its folder first.
    """
    self.check_config(stage)
    directory = self.workdir / stage
    mine = sections_of(stage, self._plain)
    path = directory / 'config.json'
    if self.active:
      changed = path.exists() and first_difference(read_json(path), mine) is not None
      if stage in REDONE and (changed or self.summary(stage) is not None):
        directory.rmtree()
      directory.mkdir(parents=True, exist_ok=True)
      replace_text(path, json.dumps(mine, indent=1))
      replace_text(self.workdir / 'config.json', json.dumps(self._plain, indent=1))
    self._clock = Clock(directory / 'clock.json', active=self.active)
    self._stage, self._beat, self._labels = stage, float('-inf'), {}
    self._tick()

  # What a stage writes while it runs.

  def metrics(self, stage: str, done: int = -1) -> MetricsWriter:
    """The writer of WORKDIR/<stage>/metrics.jsonl; `done` is the last step that a resumed stage need not write again.

    A stage that trains several models names a folder below its own (`warmup/long`).
    """
    report = self.config.get('report', {})
    self._labels[stage] = None
    return MetricsWriter(self.directory(stage), done, wandb=report.get('wandb', '') or '',
                         name=f'{self.workdir.name}/{stage}', on_write=self._tick, active=self.active)

  def progress(self, stage: str, total: int, done: int = 0, unit: str = 'step', label: str = '') -> Progress:
    """A progress line of `total` pieces, of which `done` are complete from an earlier start."""
    return Progress(label or stage, total, done, unit, tick=self._tick, active=self.active)

  def profile(self, label: str) -> Profile:
    """Traces the steps that `config.profile_steps` names into WORKDIR/<label>/profile."""
    from intersyn_jax.training.times import Profile  # jax
    return Profile(self.config.get('profile_steps', ''), self.workdir / label / 'profile')

  def reporter(self, stage: str, unit: str) -> Callable[[str, int, int | None], None]:
    """A callback (label, done, total) that keeps one progress line for each label; total None where it is not known."""
    lines: dict[str, Progress] = {}

    def report(label: str, done: int, total: int | None) -> None:
      if label not in lines:
        lines[label] = self.progress(stage, total or 0, unit=unit, label=label)
      lines[label].update(done)

    return report

  def say(self, text: str) -> None:
    """A line for the person who waits."""
    if self.active:
      print(bucket.named(text), file=sys.stderr, flush=True)

  def _tick(self) -> None:
    """Called whenever a piece of work is done: keeps the clock, and a heartbeat for whoever watches from outside."""
    if self._clock is not None:
      self._clock.tick()
    if self.active and time.monotonic() - self._beat >= HEARTBEAT:
      self._beat = time.monotonic()
      now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
      replace_text(self.workdir / 'heartbeat.json', json.dumps(
          {'time': now, 'stage': self._stage, 'host': socket.gethostname(), 'pid': os.getpid()}))
    try:
      bucket.push(every=SENT)
    except bucket.Unreachable as e:
      print(f'{e}; this is tried again', file=sys.stderr, flush=True)

  # Summaries.

  def summary(self, stage: str) -> dict[str, Any] | None:
    """The stage's summary, None where it has not ended yet."""
    path = self.workdir / stage / 'summary.json'
    return read_json(path) if path.exists() else None

  def complete(self, stage: str) -> bool:
    """True where the stage has ended with the values that it would be run with now.

    A stage of `REDONE` must also have read the earlier stages as they are now: they may have been run by hand in between.
    """
    summary = self.summary(stage)
    if summary is None or summary['config_hash'] != self.config_hash(stage):
      return False
    return stage not in REDONE or summary.get('made_from') == self._made_from(stage)

  def _made_from(self, stage: str) -> str:
    """Names the ends of all earlier stages as they are now; not by comparing times, for clocks may jump."""
    earlier = [self.summary(name) for name in PIPELINE[:PIPELINE.index(stage)]]
    return fingerprint([summary and summary['finished'] for summary in earlier])

  def require(self, *stages: str) -> None:
    """Raises UserError where one of the stages, whose results are needed now, is not complete."""
    for stage in stages:
      self.check_config(stage)
      if not self.complete(stage):
        raise UserError(f'{self.workdir / stage}/summary.json is missing: run the stage {stage} first, or run them all '
                        'with the stage run')

  def write_summary(self, stage: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Writes WORKDIR/<stage>/summary.json, flat, last of all: the stage is complete from then on."""
    import jax

    from intersyn_jax.training.times import goodput
    devices = jax.devices()
    summary = {
        'stage': stage,
        'seconds': round(self._clock.seconds, 2) if self._clock else 0.0,
        'devices': f'{len(devices)} x {devices[0].device_kind}',
        'processes': jax.process_count(),
        'versions': versions(),
        'config_hash': self.config_hash(stage),
        'peak_rss_mib': peak_rss_mib(),
        'finished': datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds'),
    }
    if stage in REDONE:
      summary['made_from'] = self._made_from(stage)
    rows = [row for label in self._labels for row in read_rows(self.workdir / label / 'metrics.jsonl')]
    if (useful := goodput(rows, summary['seconds'])) is not None:
      summary['goodput'] = round(useful, 3)
    values = {name: _json_value(value) for name, value in metrics.items()}
    if clash := summary.keys() & values.keys():
      raise ValueError(f'stage {stage} gives metrics with reserved names: {sorted(clash)}')
    summary |= values
    if self.active:
      replace_text(self.directory(stage) / 'summary.json', json.dumps(summary, indent=1))
    return summary


def run_stage(run: Run, stage: str) -> dict[str, Any]:
  """Runs one stage of the pipeline unless it is complete, and gives its summary."""
  import importlib

  import jax
  run.check_config(stage)
  if run.complete(stage):
    run.say(f'{stage}: complete')
    return run.summary(stage)
  module = importlib.import_module(f'intersyn_jax.stages.{stage}')
  with advised(stage):
    run.begin(stage)
    # A peer may read the folder only when the first process has made it.
    barrier(f'begin-{stage}')
    metrics = module.run(run)
    summary = run.write_summary(stage, metrics)
  barrier(f'end-{stage}')
  # Programs and arrays of this stage are of no use to the next; what they hold counts in its peak of memory.
  jax.clear_caches()
  gc.collect()
  return summary


def barrier(name: str) -> None:
  """Waits until all processes are here, and lets each see what files the others have written before."""
  import jax
  bucket.push()
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils
    multihost_utils.sync_global_devices(name)
    bucket.pull()


def versions() -> str:
  """Versions that a number may depend on, as one line."""
  names = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
  found = ' '.join(f'{name} {importlib.metadata.version(name)}' for name in names)
  from intersyn_jax import __version__
  return f'intersyn_jax {__version__} python {platform.python_version()} {found}'


def peak_rss_mib() -> float:
  """Largest resident memory of this process up to now, MiB. Linux counts it in KiB, macOS in bytes."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return round(peak / (2**20 if sys.platform == 'darwin' else 2**10), 1)


def _process_index() -> int:
  import jax
  return jax.process_index()


def _json_value(value: Any) -> Any:
  """A metric as JSON holds it: text, truth values and whole numbers stay, the rest becomes a float."""
  if value is None or isinstance(value, (bool, int, str)):
    return value
  number = float(value)
  return number if number - number == 0 else None  # neither infinite nor NaN


def read_json(path: epath.Path) -> dict[str, Any]:
  """What a file of a work folder holds. Raises UserError where that is no JSON."""
  try:
    return json.loads(path.read_text())
  except json.JSONDecodeError as e:
    raise UserError(f'{path}: not JSON ({e}); remove the file to have its stage done again') from None
