"""Stage `compile`: the programs of the stages, compiled ahead of time for a TPU pod that is not here; nothing is run.

    python -m intersyn_jax compile --config=configs/vila_u.py:7b-256@v5e --topology=v5e:4x4

It needs the extra `tpu`, and neither a TPU nor a checkpoint nor a work folder (docs/compile.md). Flags beside the configuration:

    --topology=v5e:4x4   chip and shape of the pod; v5p:4x4x4, v6e:4x4
    --stage=warmup       one of warmup, grpo, decode, judge; all four where none is named
    --search             tries meshes, micro-batches and rematerialisation of that stage, and ranks what fits
    --level=O1           of optimisation; O1 is quick, none is the level that a run has
    --out=FILE.json      the same as JSON
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from intersyn_jax.errors import UserError
from intersyn_jax.stages import settings


def start(arguments: Sequence[str]) -> None:
  """Runs `compile` with the arguments behind it.

  Raises:
    UserError: a flag that there is not, no extra `tpu`, no such topology or stage.
  """
  command = settings.parse(['compile', *arguments])
  config, options = command.config, command.options
  os.environ['JAX_PLATFORMS'] = 'cpu'  # a chip that is here is none of the pod
  from intersyn_jax.stages.aot import chips
  chips.prepare()
  import jax
  # Programs of a pod are of no use to a later run, and reading them back loses what the compiler says of them.
  jax.config.update('jax_enable_compilation_cache', False)
  if level := options.get('level', ''):
    _choice('level', level, ('O0', 'O1', 'O2', 'O3'))
    jax.config.update('jax_optimization_level', level)
  from intersyn_jax.stages.aot import programs, report
  stages = [_choice('stage', options['stage'], programs.PROGRAMS)] if 'stage' in options else list(programs.PROGRAMS)
  pod = chips.pod(options.get('topology', ''))
  if 'search' in options:
    from intersyn_jax.stages.aot import search
    rows: Any = [search.ranked(config, pod, stage, report.say) for stage in stages]
  else:
    rows = report.run(config, pod, stages)
  if out := options.get('out', ''):
    epath.Path(out).write_text(json.dumps(rows, indent=1))


def _choice(name: str, value: str, known: Sequence[str]) -> str:
  if value not in known:
    raise UserError(f'--{name}={value} is none of {", ".join(known)}')
  return value
