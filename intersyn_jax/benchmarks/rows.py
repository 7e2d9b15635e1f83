"""What benchmarks share: their options, how a time is taken, and the rows they give."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from intersyn_jax.errors import UserError

Row = dict[str, Any]
"""{case, metric, ours, peer, peer_name, ratio, floor_fraction, unit, runs, device, versions}; null where it does not apply.
A ratio above 1 means that ours is better; the floor fraction is 1 where nothing but the unavoidable is left."""


class Options(NamedTuple):
  """`out`: a file for the rows. `cases`: parts of names, none keeps all. `runs`: measurements of each case. `job`: the flags that
  name a finished run."""

  out: str = ''
  cases: tuple[str, ...] = ()
  runs: int = 5
  job: tuple[str, ...] = ()

  def wants(self, case: str) -> bool:
    return not self.cases or any(part in case for part in self.cases)


def options(flags: Sequence[str]) -> Options:
  """Reads `--out=`, `--cases=`, `--runs=`, and the flags of a run. Raises UserError for any other word."""
  found: dict[str, Any] = {}
  for flag in flags:
    name, _, value = flag.removeprefix('--').partition('=')
    if flag.startswith(('--config', '--workdir=')) and value:
      found['job'] = (*found.get('job', ()), flag)
      continue
    if not flag.startswith('--') or name not in ('out', 'cases', 'runs') or not value:
      raise UserError(f'{flag}: no such option; there are --out=FILE.json, --cases=PART,PART, --runs=N, and to name a run '
                      '--config=FILE:SIZE --workdir=FOLDER')
    found[name] = value
  if 'cases' in found:
    found['cases'] = tuple(found['cases'].split(','))
  if 'runs' in found:
    if not found['runs'].isdecimal() or not int(found['runs']):
      raise UserError(f'--runs={found["runs"]}: write a whole number above 0')
    found['runs'] = int(found['runs'])
  return Options(**found)


def seconds(*functions: Callable[[], Any], runs: int) -> list[float]:
  """Median seconds of each function, called in turn so that all meet the same machine; one call each goes before.

  What a function returns is waited for.
  """
  for function in functions:
    jax.block_until_ready(function())
  taken: list[list[float]] = [[] for _ in functions]
  for _ in range(runs):
    for times, function in zip(taken, functions, strict=True):
      start = time.perf_counter()
      jax.block_until_ready(function())
      times.append(time.perf_counter() - start)
  return [statistics.median(times) for times in taken]


def row(case: str, metric: str, ours: float, unit: str, runs: int, *, peer: float | None = None, peer_name: str | None = None,
        floor: float | None = None, less_is_better: bool = True) -> Row:
  """A row; `peer` and `floor` are in the same unit as `ours`."""
  better = lambda other: (other / ours if less_is_better else ours / other) if other else None
  return dict(case=case, metric=metric, ours=ours, peer=peer, peer_name=peer_name, ratio=better(peer),
              floor_fraction=better(floor), unit=unit, runs=runs, device=device(), versions=versions())


def device() -> str:
  """The devices that jax computes with."""
  first = jax.devices()[0]
  name = first.device_kind if first.platform != 'cpu' else platform.processor() or platform.machine()
  return f'{len(jax.devices())} x {first.platform} {name}'


def versions() -> str:
  names = ('intersyn_jax', 'jax', 'jaxlib', 'flax', 'grain', 'pillow', 'torch', 'transformers', 'datasets', 'webdataset', 'trl',
           'google-tunix')
  found = [f'python {platform.python_version()}']
  for name in names:
    try:
      found.append(f'{name} {importlib.metadata.version(name)}')
    except importlib.metadata.PackageNotFoundError:
      continue
  return ' '.join(found)


def number(value: float | None) -> str:
  return '-' if value is None else f'{value:.3g}' if abs(value) < 1000 else f'{value:.0f}'


def line(row: Row) -> str:
  """A row as it comes in, for somebody who waits."""
  return (f'{row["case"]}: {row["metric"]} {number(row["ours"])} {row["unit"]}'
          + (f', {row["peer_name"]} {number(row["peer"])} ({number(row["ratio"])} times)' if row['peer'] else '')
          + (f', {row["floor_fraction"]:.0%} of the floor' if row['floor_fraction'] else ''))


def table(found: Sequence[Row]) -> str:
  """All rows as a Markdown table."""
  lines = ['', '| case | metric | ours | peer | ratio | of the floor |', '|---|---|---|---|---|---|']
  for r in found:
    peer = f'{number(r["peer"])} ({r["peer_name"]})' if r['peer'] else '-'
    floor = '-' if r['floor_fraction'] is None else f'{r["floor_fraction"]:.0%}'
    lines.append(f'| {r["case"]} | {r["metric"]}, {r["unit"]} | {number(r["ours"])} | {peer} | {number(r["ratio"])} | {floor} |')
  return '\n'.join([*lines, '', f'{found[0]["device"]}; {found[0]["versions"]}; medians of {found[0]["runs"]} runs'])


def write(file: str, found: Sequence[Row]) -> None:
  """The rows as JSON, whole or not at all."""
  path = pathlib.Path(file)
  if not path.parent.is_dir():
    raise UserError(f'--out={file}: there is no folder {path.parent}; make it first')
  part = path.with_name(f'.{path.name}.part')
  part.write_text(json.dumps(list(found), indent=1))
  part.replace(path)
