"""A made-up world for the launchers: a checkout with a tiny package, and fakes of all programs that a launcher calls."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
FAKES = pathlib.Path(__file__).with_name('fakes')
PROGRAMS = {'gcloud': 'cloud', 'xpk': 'cluster', 'docker': 'cluster', 'sbatch': 'slurm', 'srun': 'slurm',
            'scontrol': 'slurm', 'squeue': 'slurm', 'scancel': 'slurm'}
ON_MACHINES = {'python3': 'machine', 'python': 'machine', 'uv': 'machine', 'hostname': 'machine', 'gcloud': 'cloud'}
"""The file of fakes/ that plays a program."""

SETUP = '[metadata]\nname = intersyn_jax\nversion = 0.1.0\n\n[options.extras_require]\ntpu =\nwandb =\n'
# pip builds with this without asking any index: the package brings what builds it.
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["intersyn_jax"]\n'
BACKEND = '''
import zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
  name = 'intersyn_jax-0.1.0-py3-none-any.whl'
  with zipfile.ZipFile(f'{folder}/{name}', 'w') as wheel:
    wheel.write('intersyn_jax/__init__.py')
    base = 'intersyn_jax-0.1.0.dist-info'
    wheel.writestr(f'{base}/METADATA', 'Metadata-Version: 2.1\\nName: intersyn_jax\\nVersion: 0.1.0\\n')
    wheel.writestr(f'{base}/WHEEL', 'Wheel-Version: 1.0\\nGenerator: backend\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr(f'{base}/RECORD', '')
  return name
'''


HOSTILE = ('$(touch HACKED)', '; touch HACKED #', '`touch HACKED`', '"$(touch HACKED)"', "' && touch HACKED '",
           '> HACKED', '', '$$ $(HOME) ${HOME} $HOME', '\\', '{a} %s %(b)s', '~/* ? [a]', '--', 'ü — 漢')
"""Values that a careless shell, template or manifest would act on."""


def install(folder: pathlib.Path, programs: Mapping[str, str]) -> None:
  """Puts fakes on a path. Their Python is not that of an environment: without packages it starts in a few milliseconds."""
  folder.mkdir(parents=True)
  for name, file in programs.items():
    (folder / name).write_text(f'#!{os.path.realpath(sys.executable)} -SE\nimport sys\nsys.path.insert(0, {str(FAKES)!r})\n'
                               f'import {file}\n{file}.{name}(sys.argv[1:])\n')
    (folder / name).chmod(0o755)


class World:
  """A checkout in `folder/checkout`, fakes in `folder/bin`, and what they know and record in `folder/world`."""

  def __init__(self, folder: pathlib.Path):
    self.checkout, self._bin, self.folder = folder / 'checkout', folder / 'bin', folder / 'world'
    self._started: list[subprocess.Popen[str]] = []
    self._environment = {'PATH': f'{self._bin}:{os.environ["PATH"]}', 'HOME': str(folder), 'FAKE_WORLD': str(self.folder),
                         'USER': 'somebody', 'PIP_CONFIG_FILE': os.devnull}
    shutil.copytree(ROOT / 'launch', self.checkout / 'launch', ignore=shutil.ignore_patterns('__pycache__'))
    for name, text in {'setup.cfg': SETUP, 'pyproject.toml': PYPROJECT, 'README.md': 'r\n', 'LICENSE': 'l\n',
                       'intersyn_jax/__init__.py': '', 'intersyn_jax/backend.py': BACKEND,
                       'configs/world.py': 'x = 1\n'}.items():
      self.write(name, text)
    install(self._bin, PROGRAMS)
    install(self.folder / 'machine-bin', ON_MACHINES)

  def write(self, name: str, text: str) -> None:
    path = self.checkout / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

  def plan(self, **plan: Any) -> None:
    """What the fakes shall do: see fakes/."""
    (self.folder / 'plan.json').write_text(json.dumps(plan))

  def fail(self, command: str, stderr: str, **when: int) -> dict[str, Any]:
    return {'command': command, 'stderr': stderr, **when}

  def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    runner = ['bash'] if script.endswith('.sh') else [sys.executable]
    process = subprocess.Popen([*runner, str(self.checkout / 'launch' / script), *arguments], cwd=self.checkout,
                               env=self._environment | environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    self._started.append(process)
    return process

  def run(self, script: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Runs a launcher; gives exit code, stdout and stderr."""
    process = self.start(script, *arguments, **environment)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err

  def error(self, script: str, *arguments: str, **environment: str) -> str:
    """The one line of a launcher that a user's mistake, or the cloud, has ended."""
    code, _, err = self.run(script, *arguments, **environment)
    lines = [line for line in err.splitlines() if line.startswith('error: ')]
    assert code == 2 and len(lines) == 1 and err.rstrip().endswith(lines[0]) and 'Traceback' not in err, err
    return lines[0].removeprefix('error: ')

  def errors(self, script: str, *commands: Sequence[str]) -> list[str]:
    """The lines of `error` for many commands, from one process."""
    code = ('import contextlib, importlib, io, json, sys\nimport shipping\n'
            'launch = importlib.import_module(sys.argv[1]).launch\n'
            'for arguments in json.loads(sys.argv[2]):\n'
            '  err = io.StringIO()\n'
            '  with contextlib.redirect_stderr(err):\n'
            '    code = shipping.main(launch, arguments)\n'
            '  print(json.dumps([code, err.getvalue()]))\n')
    done = subprocess.run([sys.executable, '-c', code, script, json.dumps(commands)], env=self._environment,
                          cwd=self.checkout / 'launch', capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for code_, err in results:
      assert code_ == 2 and err.startswith('error: ') and err.count('\n') == 1, err
    return [err.removeprefix('error: ').rstrip() for _, err in results]

  def calls(self, program: str, command: str = '') -> list[dict[str, Any]]:
    """What a fake was called with, in order."""
    path = self.folder / 'calls.jsonl'
    calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [c for c in calls if c['program'] == program and c.get('command', '').startswith(command)]

  def jobs(self) -> list[dict[str, Any]]:
    """The starts of the job's program on the machines."""
    return [c for c in self.calls('python') if c['command'] == 'job']

  def close(self) -> None:
    """Ends what a failed test has left running."""
    for process in self._started:
      process.kill()
    pids = [call['pid'] for call in self.jobs()]
    for state in self.folder.glob('machines/*/intersyn/*/*/state.json'):
      with contextlib.suppress(OSError, ValueError, KeyError):
        pids.append(json.loads(state.read_text())['pid'])
    for pid in pids:
      with contextlib.suppress(OSError):
        if str(self.folder.parent) in pathlib.Path(f'/proc/{pid}/cmdline').read_text():
          os.kill(pid, signal.SIGKILL)
