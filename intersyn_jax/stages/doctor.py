"""Stage `doctor`: what this machine has, what is missing, and what would be used."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import shutil
import sys

import ml_collections

from intersyn_jax.errors import UserError

EXTRAS = {
    'qlora': ('qwix',),
    'endpoint': ('openai',),
    'beam': ('apache_beam',),
    'wandb': ('wandb',),
    'peers': ('torch', 'transformers', 'trl', 'tunix', 'datasets', 'webdataset'),
    'test': ('pytest', 'hypothesis', 'ruff'),
}
"""Modules that show whether an optional extra of setup.cfg is installed."""

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'array_record', 'tensorflow-datasets')


def check(config: ml_collections.ConfigDict | None = None) -> None:
  """Prints one table: software, machine, optional extras, and the mesh that `config` (default: all devices) would use.

  Raises:
    UserError: after the table, where something that every stage needs is missing or does not work.
  """
  rows: list[tuple[str, str]] = [('python', f'{platform.python_version()} at {sys.executable}')]
  problems: list[str] = []
  for name in PACKAGES:
    try:
      rows.append((name, importlib.metadata.version(name)))
    except importlib.metadata.PackageNotFoundError:
      rows.append((name, 'missing'))
      problems.append(f'{name} is missing: run launch/local.sh install')
  memory, available = _memory()
  rows += [
      ('machine', f'{platform.system()} {platform.machine()}, {_cores()} cores'),
      ('memory', f'{memory:.1f} GiB, {available:.1f} GiB available'),
      ('disk here', f'{shutil.disk_usage(".").free / 2**30:.1f} GiB free'),
  ]
  if platform.system() == 'Linux':
    large = 'hugetlb=1' in os.environ.get('GLIBC_TUNABLES', '')
    rows.append(('large pages', 'on' if large else 'off; GLIBC_TUNABLES=glibc.malloc.hugetlb=1 makes a CPU a quarter faster'))
  rows += _devices(config, problems)
  for extra, modules in EXTRAS.items():
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    rows.append((f'extra {extra}', 'installed' if not missing else f'without {", ".join(missing)}'))
  width = max(len(name) for name, _ in rows)
  for name, value in rows:
    print(f'{name:<{width}}  {value}')
  if problems:
    raise UserError('; '.join(problems))


def _devices(config: ml_collections.ConfigDict | None, problems: list[str]) -> list[tuple[str, str]]:
  """Devices, the extra that fits the machine, the mesh, and the compilation cache."""
  card = shutil.which('nvidia-smi') is not None
  tpu = bool(list(pathlib.Path('/dev').glob('accel[0-9]*')) or list(pathlib.Path('/dev').glob('vfio/[0-9]*')))
  fits = 'cuda' if card else 'tpu' if tpu else 'cpu'
  rows = [('extra that fits', fits)]
  if importlib.util.find_spec('jax') is None:
    return rows
  import jax

  from intersyn_jax import sharding
  from intersyn_jax.stages import settings
  try:
    devices = jax.devices()
  except RuntimeError as e:
    problems.append(f'jax finds no device ({" ".join(str(e).split())[:200]}): look at JAX_PLATFORMS and the driver')
    return [*rows, ('devices', 'none')]
  size = (devices[0].memory_stats() or {}).get('bytes_limit') if devices[0].platform != 'cpu' else None
  rows.append(('devices', f'{len(devices)} x {devices[0].device_kind}' + (f', {size / 2**30:.1f} GiB each' if size else '')))
  if fits != 'cpu' and devices[0].platform == 'cpu':
    rows.append(('note', f'a {fits} device is here but jax uses the cpu: EXTRA={fits} launch/local.sh install'))
  shape = dict(config.mesh) if config is not None and 'mesh' in config else {'fsdp': -1}
  mesh = sharding.make_mesh(shape)
  rows.append(('mesh', ', '.join(f'{axis} {n}' for axis, n in mesh.shape.items())))
  rows.append(('compilation cache', settings.cache()))
  return rows


def _cores() -> int:
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _memory() -> tuple[float, float]:
  """Memory in all and available now, GiB."""
  page = os.sysconf('SC_PAGE_SIZE')
  total = page * os.sysconf('SC_PHYS_PAGES') / 2**30
  info = pathlib.Path('/proc/meminfo')
  for line in info.read_text().splitlines() if info.exists() else ():
    if line.startswith('MemAvailable:'):
      return total, int(line.split()[1]) / 2**20
  return total, total
