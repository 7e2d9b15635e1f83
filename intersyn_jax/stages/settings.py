"""Reads the command line and the configuration, and sets up the process before jax is used."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.util
import json
import os
import pathlib
import sys
from typing import Any

import ml_collections

from intersyn_jax.errors import UserError
from intersyn_jax.stages import STAGES

EXAMPLE = '--config=configs/storyworld.py:tiny'

OPTIONS = {
    'sample': ('question', 'policy', 'greedy', 'seed', 'out'),
    'suite': ('suite', 'questions', 'images', 'policy', 'greedy', 'seed', 'instruction', 'pictures', 'answers', 'against',
              'judge', 'people', 'out'),
    'convert': ('from', 'family', 'dtype'),
    'export': ('policy', 'data', 'split', 'out'),
    'compile': ('topology', 'stage', 'search', 'level', 'out'),
}
"""Flags of a stage that are not configuration."""


@dataclasses.dataclass(frozen=True)
class Command:
  """What the user asked for."""

  stage: str
  config: ml_collections.ConfigDict | None
  workdir: str
  options: dict[str, str]


def parse(arguments: list[str]) -> Command:
  """Reads `STAGE --config=... --workdir=... --config.a.b=value ... --option=value`.

  Raises:
    UserError: anything unknown, missing or of the wrong type.
  """
  stage, *rest = arguments
  if stage not in STAGES:
    raise UserError(f'unknown stage {stage!r}; the stages are {", ".join(STAGES)}')
  config_spec, workdir = '', ''
  overrides: list[tuple[str, str]] = []
  options: dict[str, str] = {}
  for name, value in _flags(rest):
    if name == 'config':
      config_spec = value
    elif name == 'workdir':
      workdir = value
    elif name.startswith('config.'):
      overrides.append((name.removeprefix('config.'), value))
    elif name in OPTIONS.get(stage, ()):
      options[name] = value
    else:
      known = ['--config', '--workdir', '--config.FIELD', *(f'--{o}' for o in OPTIONS.get(stage, ()))]
      raise UserError(f'stage {stage} has no flag --{name}; it has {", ".join(known)}')
  if stage == 'doctor' and not config_spec:
    return Command(stage, None, workdir, options)
  if not config_spec:
    raise UserError(f'--config is missing: name a configuration, e.g. {EXAMPLE}')
  if not workdir and stage not in ('doctor', 'compile'):
    raise UserError(f'--workdir is missing: name a folder for the results, e.g. --workdir=runs/{stage}')
  config = load_config(config_spec)
  for field, value in overrides:
    set_field(config, field, value)
  return Command(stage, config.lock(), workdir, options)


def _flags(arguments: list[str]) -> list[tuple[str, str]]:
  """`--name=value` and `--name value` as pairs; a flag with no value is 'true'."""
  flags = []
  i = 0
  while i < len(arguments):
    argument = arguments[i]
    if not argument.startswith('--') or len(argument) == 2:
      raise UserError(f'{argument!r} is no flag; flags are written --name=value')
    name, equals, value = argument[2:].partition('=')
    if not equals:
      follows = i + 1 < len(arguments) and not arguments[i + 1].startswith('--')
      value = arguments[i + 1] if follows else 'true'
      i += follows
    flags.append((name, value))
    i += 1
  return flags


def load_config(spec: str) -> ml_collections.ConfigDict:
  """Calls `get_config(ARG)` of `FILE.py:ARG`, or `get_config()` where there is no argument.

  Raises:
    UserError: no such file, no `get_config` in it, or it refuses the argument (with a ValueError or KeyError).
  """
  file, colon, argument = spec.partition('.py:')
  file = f'{file}.py' if colon else spec
  path = pathlib.Path(file)
  if path.suffix != '.py' or not path.is_file():
    raise UserError(f'--config: no file {file}; name a Python file with get_config, e.g. {EXAMPLE}')
  module_spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
  module = importlib.util.module_from_spec(module_spec)
  sys.path.insert(0, str(path.parent))  # a config may import a module that lies beside it
  try:
    module_spec.loader.exec_module(module)
  except SyntaxError as e:
    raise UserError(f'--config: {file}, line {e.lineno}: {e.msg}') from None
  finally:
    sys.path.pop(0)
  if not callable(getattr(module, 'get_config', None)):
    raise UserError(f'--config: {file} has no function get_config')
  try:
    config = module.get_config(argument) if colon else module.get_config()
  except (ValueError, KeyError) as e:
    raise UserError(f'--config: {file} does not take {argument!r}: {e.args[0] if e.args else e}') from None
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f'--config: get_config of {file} gives {type(config).__name__}, not a ConfigDict')
  return config


def field_names(config: ml_collections.ConfigDict, prefix: str = '') -> list[str]:
  """All fields of the configuration, as dotted names."""
  names = []
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      names += field_names(value, f'{prefix}{key}.')
    else:
      names.append(f'{prefix}{key}')
  return names


def set_field(config: ml_collections.ConfigDict, field: str, text: str) -> None:
  """Sets one field from text, as the type that it has now.

  Raises:
    UserError: no such field (names the nearest ones), or the text is not of its type.
  """
  *parents, last = field.split('.')
  section: Any = config
  for parent in parents:
    section = section.get(parent) if isinstance(section, ml_collections.ConfigDict) else None
  known = isinstance(section, ml_collections.ConfigDict) and last in section
  if not known or isinstance(section[last], ml_collections.ConfigDict):
    names = field_names(config)
    inside = [n for n in names if n.startswith(field + '.')]
    tail = [n for n in names if n.rsplit('.', 1)[-1] == last]
    near = inside[:4] or tail[:4] or difflib.get_close_matches(field, names, n=3, cutoff=0.4)
    what = 'is a section' if inside else 'is no field'
    raise UserError(f'config.{field} {what} of the configuration' +
                    (f'; did you mean {", ".join("config." + n for n in near)}?' if near else ''))
  section[last] = _convert(text, section[last], f'config.{field}')


def _convert(text: str, old: Any, name: str) -> Any:
  def wrong(kind: str) -> UserError:
    return UserError(f'{name}={text} is not {kind}; it is {old!r} now')

  if isinstance(old, bool):
    if text.lower() not in ('true', 'false', '1', '0'):
      raise wrong('true or false')
    return text.lower() in ('true', '1')
  if isinstance(old, int):
    try:
      return int(text.replace('_', ''))
    except ValueError:
      raise wrong('a whole number') from None
  if isinstance(old, float):
    try:
      return float(text)
    except ValueError:
      raise wrong('a number') from None
  if isinstance(old, (tuple, list)):
    parts = [p.strip().strip('\'"') for p in text.strip('()[] ').split(',') if p.strip()]
    return type(old)(_convert(p, old[0] if old else '', name) for p in parts)
  if isinstance(old, str) or callable(old):
    return text
  try:  # a field that is None now has no type: numbers and truth values are taken as JSON, the rest as text
    return json.loads(text)
  except json.JSONDecodeError:
    return text


def quiet() -> None:
  """Silences the start-up noise of the native libraries; must come before jax is imported."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('GRPC_VERBOSITY', 'ERROR')
  os.environ.setdefault('GLOG_minloglevel', '2')
  import logging
  logging.getLogger('absl').setLevel(logging.WARNING)


def cache() -> str:
  """Turns on the persistent compilation cache and gives its folder; `JAX_COMPILATION_CACHE_DIR` names another one.

  Programs for a CPU hold instructions of that very CPU, so that each kind has a folder: a home folder is often shared.
  """
  import jax
  folder = os.environ.get('JAX_COMPILATION_CACHE_DIR')
  if not folder:
    base = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache')
    folder = str(base / 'intersyn_jax' / 'xla' / _cpu_kind())
  jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)
  return folder


def _cpu_kind() -> str:
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else [os.uname().machine]
  kind = sorted({line for line in lines if line.startswith(('model name', 'flags', 'Features'))}) or lines[:1]
  return hashlib.sha256('\n'.join(kind).encode()).hexdigest()[:8]


def start_processes() -> None:
  """Joins the processes of a job that has several; must come before any device is used. Alone, it does nothing.

  Jobs are known by JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID, by Slurm or Open MPI with more than
  one task, or by a TPU on this machine (jax finds the other hosts of a slice by itself).

  Raises:
    UserError: the three variables are not all there, or no whole numbers; or the heartbeat is none.
  """
  import jax
  env = os.environ
  patience = {'heartbeat_timeout_seconds': heartbeat()}
  if env.get('JAX_COORDINATOR_ADDRESS'):
    try:
      count, index = int(env['JAX_NUM_PROCESSES']), int(env['JAX_PROCESS_ID'])
    except (KeyError, ValueError):
      raise UserError('JAX_COORDINATOR_ADDRESS is set: set JAX_NUM_PROCESSES and JAX_PROCESS_ID to whole numbers as '
                      'well, or unset it') from None
    jax.distributed.initialize(env['JAX_COORDINATOR_ADDRESS'], count, index, **patience)
  elif int(env.get('SLURM_NTASKS', 1)) > 1 or int(env.get('OMPI_COMM_WORLD_SIZE', 1)) > 1 or _tpu_here():
    jax.distributed.initialize(**patience)


def heartbeat() -> int:
  """Seconds after which a process from which nothing is heard counts as lost; INTERSYN_HEARTBEAT_SECONDS changes them.

  Raises:
    UserError: it is no whole number of at least 2.
  """
  text = os.environ.get('INTERSYN_HEARTBEAT_SECONDS', '60')
  if not text.isdecimal() or int(text) < 2:
    raise UserError(f'INTERSYN_HEARTBEAT_SECONDS is {text!r}; set it to a whole number of seconds, at least 2')
  return int(text)


def _tpu_here() -> bool:
  """True on a Cloud TPU machine whose user has not asked for another platform."""
  if os.environ.get('JAX_PLATFORMS', 'tpu').split(',')[0] not in ('', 'tpu'):
    return False
  return importlib.util.find_spec('libtpu') is not None and any(
      list(pathlib.Path('/dev').glob(pattern)) for pattern in ('accel[0-9]*', 'vfio/[0-9]*'))
