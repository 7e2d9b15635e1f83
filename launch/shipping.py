"""What the launchers share: flags that are checked, code put together for other machines, programs run without a shell.

A launcher needs Python 3.10 and the program that it drives (gcloud, xpk, docker), no jax. Everything that a user writes is a
list of arguments until it is executed: what has to go through a shell on the other side is quoted by `remote`.
"""

from __future__ import annotations

import argparse
import configparser
import hashlib
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHIPPED = ('intersyn_jax', 'configs', 'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE')
"""What makes the package and its configurations; the rest of a checkout stays at home."""
PYTHON = '3.12'


class UserError(Exception):
  """A mistake that the user can mend, in one line; as `intersyn_jax.errors.UserError`, but with nothing to install."""


class Parser(argparse.ArgumentParser):
  """Flags without abbreviations, whose mistakes are a UserError."""

  def __init__(self, doc: str):
    super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

  def error(self, message: str) -> NoReturn:
    raise UserError(f'{message}; --help lists all flags')


def matching(pattern: str, example: str) -> Callable[[str], str]:
  """An argparse type: text that matches the whole pattern."""
  def convert(text: str) -> str:
    if not re.fullmatch(pattern, text):
      raise argparse.ArgumentTypeError(f'{text!r} is not of the form of {example}')
    return text
  return convert


NAME = matching(r'[a-z]([-a-z0-9]{0,37}[a-z0-9])?', 'vila-u-warmup (a-z, 0-9, -; 39 letters at most)')
ZONE = matching(r'[a-z]+-[a-z]+[0-9]+(-[a-z])?', 'us-east5-b')
PROJECT = matching(r'([a-z][-a-z0-9.]{0,60}:)?[a-z][-a-z0-9]{4,28}[a-z0-9]', 'my-project')
WORD = matching(r'[A-Za-z0-9]([-A-Za-z0-9_.@/]*[A-Za-z0-9])?', 'default')
EXTRAS = matching(r'[a-z]+(,[a-z]+)*', 'tpu,wandb')
VERSION = matching(r'3\.[0-9]+(\.[0-9]+)?', PYTHON)


def count(least: int) -> Callable[[str], int]:
  """An argparse type: a whole number of at least `least`."""
  def convert(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
      raise argparse.ArgumentTypeError(f'{text!r} is no whole number of at least {least}')
    return int(text)
  return convert


def variable(text: str) -> tuple[str, str]:
  """An argparse type: NAME=VALUE."""
  name, equals, value = text.partition('=')
  if not equals or not re.fullmatch(r'[A-Za-z_][A-Za-z0-9_]*', name):
    raise argparse.ArgumentTypeError(f'{text!r} is not of the form of NAME=VALUE')
  return name, printable(value, f'--env={name}')


def printable(text: str, where: str) -> str:
  """The text, if it is one line without control characters: manifests and logs are made of lines.

  Raises:
    UserError: a line break or another character that does not print.
  """
  bad = next((c for c in text if not c.isprintable()), None)
  if bad is not None:
    raise UserError(f'{where} holds the character {bad!r}; line breaks and control characters cannot be passed on')
  return text


def add_code_flags(parser: argparse.ArgumentParser) -> None:
  """The flags that say which code and which environment go to the machines."""
  group = parser.add_argument_group('code and environment')
  group.add_argument('--revision', default='', help='git revision to ship; without it, the checkout as it is now')
  group.add_argument('--include', action='append', default=[], metavar='PATH',
                     help='file or folder of the checkout to ship besides the package and configs/; may be repeated')
  group.add_argument('--extras', type=EXTRAS, default='tpu', help='extras of setup.cfg to install (default: tpu)')
  group.add_argument('--constraints', default='', metavar='FILE',
                     help='versions to install, as pip takes them; `local` for those of the Python that runs this')
  group.add_argument('--env', action='append', type=variable, default=[], metavar='NAME=VALUE',
                     help='environment variable of the job; may be repeated')


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
  """Flags of the launcher, and behind `--` the command of the job."""
  arguments = list(arguments)
  at = arguments.index('--') if '--' in arguments else len(arguments)
  return arguments[:at], arguments[at + 1:]


def check_command(command: list[str], mounted: bool = False) -> None:
  """Checks `STAGE --config=... --workdir=gs://... ...` as far as a laptop can.

  Args:
    mounted: whether the work folder may be a path, because a storage is mounted on the machines.

  Raises:
    UserError: no stage, no configuration, a work folder that would be lost with the machine, characters that do not print.
  """
  if not command or command[0].startswith('-'):
    raise UserError('the command is missing: end with -- STAGE --config=FILE.py:ARG --workdir=gs://BUCKET/FOLDER')
  for argument in command:
    printable(argument, f'the argument {argument!r}')
  if command[0] == 'doctor':
    return
  if not flag_of(command, 'config'):
    raise UserError('--config is missing behind --: name a configuration, e.g. --config=configs/vila_u.py')
  workdir = flag_of(command, 'workdir')
  if not re.fullmatch(r'gs://[a-z0-9][-a-z0-9_.]{1,61}[a-z0-9]/.+', workdir) and not (mounted and workdir.startswith('/')):
    raise UserError(f'--workdir={workdir} behind -- is not of the form of gs://BUCKET/FOLDER; the disks of the machines are '
                    'lost with them')


def flag_of(command: Sequence[str], name: str) -> str:
  """The value of `--NAME=VALUE` or `--NAME VALUE` in a command, the last one; '' where there is none."""
  found = ''
  for i, argument in enumerate(command):
    if argument.startswith(f'--{name}='):
      found = argument.split('=', 1)[1]
    elif argument == f'--{name}' and i + 1 < len(command):
      found = command[i + 1]
  return found


def stage_source(folder: pathlib.Path, command: Sequence[str], revision: str, include: Sequence[str]) -> str:
  """Copies what is shipped into `folder`, from the checkout or from a git revision, and says what it is.

  Raises:
    UserError: no such revision, a path outside the checkout, a configuration that would not be there.
  """
  name, colon, _ = flag_of(command, 'config').partition('.py:')
  config = pathlib.PurePosixPath(name + ('.py' if colon else ''))
  paths = [*SHIPPED, *(_inside(p, '--include') for p in include)]
  beside = ''
  if config.name:
    _inside(str(config), '--config')
    if config.parts[0] not in SHIPPED:  # a file of the user's own may import modules that lie beside it
      beside = str(config.parent / '*.py')
  if revision:
    found = run(['git', '-C', str(ROOT), 'rev-parse', '--verify', '--quiet', '--end-of-options', f'{revision}^{{commit}}'])
    commit = found.stdout.strip()
    if found.returncode:
      raise UserError(f'--revision={revision} is no commit of this checkout; git log --oneline lists some')
    packed = folder.parent / 'source.tar'
    archive = run(['git', '-C', str(ROOT), 'archive', '--format=tar', f'--output={packed}', commit, '--', *paths,
                   *([f':(glob){beside}'] if beside else [])])
    if archive.returncode:
      raise UserError(f'--revision={revision}: {reason(archive.stderr)}')
    with tarfile.open(packed) as tar:
      tar.extractall(folder, filter='data')
    packed.unlink()
    what = f'revision {commit[:12]}'
  else:
    for path in [*paths, *(str(p.relative_to(ROOT)) for p in (ROOT.glob(beside) if beside else ()))]:
      if not (ROOT / path).exists():
        raise UserError(f'{path} is not in the checkout {ROOT}')
      _copy(ROOT / path, folder / path)
    what = 'the checkout as it is now'
  if config.name and not (folder / config).is_file():
    raise UserError(f'--config: no file {config} in {what}; name one inside the checkout, e.g. --config=configs/vila_u.py')
  return what


def _inside(path: str, flag: str) -> str:
  parts = pathlib.PurePosixPath(path).parts
  if not parts or path.startswith(('/', '-', '~')) or '..' in parts:
    raise UserError(f'{flag}={path} does not lie inside the checkout: name it from there, without .. and not from /')
  return path


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
  if source.is_dir():
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns('__pycache__', '*.pyc'))
  else:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def check_extras(source: pathlib.Path, extras: str) -> None:
  """Raises a UserError where setup.cfg of what is shipped has no such extra."""
  setup = configparser.ConfigParser()
  setup.read(source / 'setup.cfg')
  known = list(setup['options.extras_require']) if setup.has_section('options.extras_require') else []
  for extra in extras.split(','):
    if extra not in known:
      raise UserError(f'--extras={extra} is no extra of setup.cfg; it has {", ".join(known)}')


def write_constraints(target: pathlib.Path, constraints: str, python: str) -> None:
  """Writes the file of versions to install: a file of the user, or those of the Python that runs this.

  Raises:
    UserError: no such file; no jax in this Python, or another version of Python than the machines get.
  """
  if constraints != 'local':
    if not pathlib.Path(constraints).is_file():
      raise UserError(f'--constraints={constraints}: no such file; name one, or `local`')
    shutil.copyfile(constraints, target)
    return
  import importlib.metadata  # slow, and seldom needed
  installed = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in importlib.metadata.distributions()}
  if 'jax' not in installed:
    raise UserError('--constraints=local: the Python that runs this has no jax; run it with .venv/bin/python')
  mine = f'{sys.version_info[0]}.{sys.version_info[1]}'
  if python.split('.')[:2] != mine.split('.'):
    raise UserError(f'--constraints=local are versions for Python {mine}, but --python={python}; name --python={mine}')
  installed.pop('intersyn-jax', None)
  target.write_text(''.join(f'{name}=={version}\n' for name, version in sorted(installed.items())))


def digest(folder: pathlib.Path, **facts) -> str:
  """Twelve hexadecimal digits that name files and facts: the same code and command have the same name."""
  total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
  for path in sorted(p for p in folder.rglob('*') if p.is_file()):
    total.update(f'{path.relative_to(folder)}\0{path.stat().st_size}\0'.encode())
    total.update(path.read_bytes())
  return total.hexdigest()[:12]


def remote(*steps: Sequence[str]) -> str:
  """A line for a shell on the other side that does the steps in turn while they succeed; every argument is quoted."""
  return ' && '.join(shlex.join(step) for step in steps)


def run(command: Sequence[str], *, timeout: float | None = None, hint: str = '') -> subprocess.CompletedProcess[str]:
  """Runs a program from a list of arguments, without a shell and without a terminal, and keeps what it prints.

  Raises:
    UserError: it is not installed.
  """
  try:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors='replace',
                          timeout=timeout)
  except FileNotFoundError:
    raise UserError(f'{command[0]} is not installed, or not on the path{hint and f": {hint}"}') from None


def reason(text: str) -> str:
  """The line of a program's output that says why it failed."""
  lines = [' '.join(line.split()) for line in text.splitlines() if line.strip()]
  first = [line for line in lines if line.startswith('ERROR')]
  errors = first[:1] or [line for line in lines if 'error' in line.lower()]
  return (errors or lines or ['it said nothing'])[-1][:400]


def say(text: str) -> None:
  print(f'{time.strftime("%H:%M:%S")} {text}', file=sys.stderr, flush=True)


def show(command: Sequence[str]) -> None:
  """A command of a dry run, as it could be typed."""
  print(shlex.join(command))


def main(launch: Callable[[list[str]], int], arguments: list[str]) -> int:
  """Runs a launcher and gives its exit code: 2 and one line for a user's mistake."""
  try:
    return launch(arguments)
  except UserError as e:
    print(f'error: {" ".join(str(e).split())}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('interrupted: what was started goes on', file=sys.stderr)
    return 130
