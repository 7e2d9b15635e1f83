"""The command line of studies: `python -m intersyn_jax.studies NAME --config=FILE.py[:ARG] --workdir=DIR [--seeds=0,1,2]`."""

from __future__ import annotations

import importlib
import shlex
import sys

from intersyn_jax.errors import UserError
from intersyn_jax.studies import STUDIES

USAGE = """python -m intersyn_jax.studies NAME --config=FILE.py[:ARG] --workdir=DIR [--seeds=0,1,2] [--config.FIELD=VALUE ...]

studies
{studies}

example
  python -m intersyn_jax.studies main_job --config=configs/storyworld.py:tiny --workdir=runs/main_job"""


def main(arguments: list[str]) -> int:
  """Runs one study and gives the exit code: 0, or 2 for a user's mistake and for help that nobody asked for."""
  if not arguments or arguments[0] in ('-h', '--help', 'help') or '--help' in arguments:
    width = max(map(len, STUDIES))
    print(USAGE.format(studies='\n'.join(f'  {name:<{width}}  {what}' for name, what in STUDIES.items())))
    return 0 if arguments else 2
  try:
    name, *rest = arguments
    if name not in STUDIES:
      raise UserError(f'unknown study {name!r}; the studies are {", ".join(STUDIES)}')
    # Lazy: help and mistakes are told before jax is imported.
    from intersyn_jax.stages import processes, settings
    seeds, rest = take_seeds(rest)
    command = settings.parse(['run', *rest])
    if '://' in command.workdir:
      raise UserError(f'--workdir={command.workdir}: studies share folders between runs and need a disk; name a folder')
    settings.quiet()
    settings.cache()
    with processes.joined():
      study = importlib.import_module(f'intersyn_jax.studies.{name}')
      study.run(command.config, command.workdir, seeds, f'python -m intersyn_jax.studies {shlex.join(arguments)}')
  except UserError as e:
    print(f'error: {" ".join(str(e).split())}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('interrupted; the same command goes on from here', file=sys.stderr)
    return 130
  return 0


def take_seeds(arguments: list[str]) -> tuple[tuple[int, ...], list[str]]:
  """The seeds (0, 1, 2 where none are named) and the other arguments.

  Raises:
    UserError: they are not different whole numbers from 0.
  """
  text, rest = '0,1,2', []
  for i, argument in enumerate(arguments):
    if argument.startswith('--seeds='):
      text = argument.removeprefix('--seeds=')
    elif argument == '--seeds':
      raise UserError(f'write --seeds={arguments[i + 1] if i + 1 < len(arguments) else text}, with an equals sign')
    else:
      rest.append(argument)
  parts = [part.strip() for part in text.split(',')]
  if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
    raise UserError(f'--seeds={text}: give different whole numbers with commas between, e.g. --seeds=0,1,2')
  return tuple(int(part) for part in parts), rest


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
