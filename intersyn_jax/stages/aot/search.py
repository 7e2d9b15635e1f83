"""Tries meshes, micro-batches and rematerialisation of a stage, and ranks those that fit by their estimated time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections

from intersyn_jax.errors import UserError
from intersyn_jax.stages.aot import estimate, nearest, report
from intersyn_jax.stages.aot.chips import Pod

TENSOR = (1, 2, 4, 8, 16)
"""Sizes of the mesh axis `tensor` that are tried; `fsdp` takes the rest."""


def ranked(config: ml_collections.ConfigDict, pod: Pod, stage: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
  """Compiles a stage under every setting, prints the fastest first, and gives the same as JSON holds it."""
  tried = []
  for change in settings_of(config, pod, stage):
    name = ' '.join(change)
    try:
      found = list(report.stage(nearest.changed(config, change), pod, stage))
    except (UserError, jax.errors.JaxRuntimeError) as error:
      say(f'{name}: left out ({str(error).splitlines()[0][:100]})')
      continue
    row = {'setting': change, 'fits': all(one.fits for one in found), 'bytes': estimate.together(found),
           'seconds': sum(one.step for one in found), 'mfu': found[-1].mfu}
    say(f'{name}: {report.gb(row["bytes"])}, ' + (f'{row["seconds"]:.3g} s' if row['fits'] else 'does not fit'))
    tried.append(row)
  tried.sort(key=lambda row: (not row['fits'], row['seconds']))
  say(f'\n{stage} on {pod.name}, estimated, the fastest first')
  for row in tried:
    if row['fits']:
      say(f'{row["seconds"]:9.3g} s  MFU {row["mfu"]:4.0%}  {report.gb(row["bytes"]):>9}  {" ".join(row["setting"])}')
  return tried


def settings_of(config: ml_collections.ConfigDict, pod: Pod, stage: str) -> Iterator[list[str]]:
  """All settings that are tried."""
  trains = stage in ('warmup', 'grpo')
  parts = sorted({1, 2, 4, 8} & set(range(1, config[stage].get('rows', 8) + 1))) if trains else (0,)
  for tensor, micro, remat in itertools.product(TENSOR, parts, ('full', 'dots', 'none') if trains else ('',)):
    if pod.chips % tensor:
      continue
    mesh = [f'--config.mesh.fsdp={pod.chips // tensor}', f'--config.mesh.tensor={tensor}', '--config.mesh.replica=1']
    yield mesh + ([f'--config.{stage}.micro_batches={micro}', f'--config.model.remat={remat}'] if trains else [])
