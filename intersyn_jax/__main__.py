"""The command line: `python -m intersyn_jax STAGE --config=FILE.py[:ARG] --workdir=DIR [--config.FIELD=VALUE ...]`.

Nothing slow is imported before the stage and its configuration are known to be right, so that help and mistakes are told at
once. A mistake of the user is one line and exit code 2; a traceback is a bug.
"""

from __future__ import annotations

import ast
import os
import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from intersyn_jax.errors import UserError
from intersyn_jax.stages import STAGES

if TYPE_CHECKING:
  from intersyn_jax.stages import settings

USAGE = """python -m intersyn_jax STAGE --config=FILE.py[:ARG] --workdir=DIR [--config.FIELD=VALUE ...]

stages
{stages}

flags
  --config=FILE.py:ARG     a Python file with get_config(arg), e.g. configs/storyworld.py:tiny
  --config.FIELD=VALUE     another value for one field, e.g. --config.grpo.group_size=8
  --workdir=DIR            where the stages keep their results, also gs://BUCKET/FOLDER; the same folder resumes
  --NAME=VALUE             a flag of the stage itself, e.g. sample --question='...'
                           or export --data=flat --split=refined --out=FOLDER

example
  python -m intersyn_jax run --config=configs/storyworld.py:tiny --workdir=runs/tiny"""


def main(arguments: list[str], tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr)) -> int:
  """Runs one command and gives its exit code: 0, 2 for what the user can mend, 130 or 143 where a signal ended it; `tell` is
  given the one line about what the user can mend."""
  if not arguments or arguments[0] in ('-h', '--help', 'help') or '--help' in arguments:
    width = max(map(len, STAGES))
    print(USAGE.format(stages='\n'.join(f'  {name:<{width}}  {what}' for name, what in STAGES.items())))
    if arguments and arguments[0] in STAGES:
      print(f'\n{_about(arguments[0])}')
    return 0 if arguments else 2
  try:
    return _start(arguments)
  except UserError as e:
    from intersyn_jax import bucket  # lazy: as all that is not needed to tell a mistake in the command
    tell(f'error: {bucket.named(" ".join(str(e).split()))}')
    return 2
  except KeyboardInterrupt:
    print('interrupted; the same command goes on from here', file=sys.stderr)
    return 130


def _about(stage: str) -> str:
  """What the file of a stage says of itself, its flags among it; nothing is imported for that."""
  path = pathlib.Path(__file__).with_name('stages') / f'{stage}.py'
  return ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''


def _start(arguments: list[str]) -> int:
  # Lazy: these pull in ml_collections, then jax.
  from intersyn_jax.stages import settings
  if arguments[0] == 'compile':
    settings.quiet()
    from intersyn_jax.stages import compile
    compile.start(arguments[1:])
    return 0
  command = settings.parse(arguments)
  settings.quiet()
  if command.stage == 'doctor':
    from intersyn_jax.stages import doctor
    doctor.check(command.config)
    return 0
  settings.cache()
  from intersyn_jax import bucket
  from intersyn_jax.stages import processes
  from intersyn_jax.training import stopping
  try:
    with processes.joined(), bucket.kept():
      stopping.install()
      _run(command)
  except bucket.Unreachable as e:
    print(f'error: {e}', file=sys.stderr)
    return 1  # no mistake of the user: launch/ starts such a job again
  except stopping.Stopped:
    print('stopped by SIGTERM, what was learnt is saved; the same command goes on from here', file=sys.stderr)
    return stopping.CODE
  return 0


def _run(command: settings.Command) -> None:
  from intersyn_jax.stages import PIPELINE
  from intersyn_jax.stages.advice import advised
  from intersyn_jax.stages.common import Run, run_stage
  run = Run(command.config, command.workdir, command.options)
  if command.stage in PIPELINE:
    run_stage(run, command.stage)
  elif command.stage == 'run':
    from intersyn_jax.stages import run as pipeline
    pipeline.run(run)
  else:
    import importlib
    with advised(command.stage):
      importlib.import_module(f'intersyn_jax.stages.{command.stage}').run(run)


def _last_word(line: str) -> None:
  """Says the line, and lets nothing be said after it: threads of libraries that fail with the same, on a full disk say, write
  their tracebacks meanwhile, some from C."""
  said = os.dup(2)
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
  os.write(said, f'{line}\n'.encode())


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:], _last_word))
