"""What a machine has on its path: a Python whose pip is not let out, uv, and the job's program."""

import os
import pathlib
import re
import shutil
import signal
import sys
import time
import zipfile

from common import WORLD, Flags, end, planned, read, record


def python3(arguments):
  """Python of the machine: pip is not let out, everything else is real."""
  if arguments[:2] != ['-m', 'pip']:
    os.execv(sys.executable, [sys.executable, *arguments])
  record(command='pip', arguments=arguments)
  flags = Flags('pip', 'ERROR: {message}')
  flags.add_argument('install')
  for flag in ('--quiet', '--disable-pip-version-check', '--upgrade'):
    flags.add_argument(flag, action='store_true')
  flags.add_argument('--target', required=True)
  flags.add_argument('what')
  args = flags.parse_args(arguments[2:])
  planned('pip')
  if not re.fullmatch(r'uv==[0-9.]+', args.what):
    end(f'ERROR: Invalid requirement: {args.what!r}')
  place('uv', pathlib.Path(args.target) / 'bin' / 'uv')


def place(name, path):
  path.parent.mkdir(parents=True, exist_ok=True)
  shutil.copy(WORLD / 'machine-bin' / name, path)


def uv(arguments):
  record(command=' '.join(arguments[:2]), arguments=arguments)
  flags = Flags('uv', "error: {message}")
  flags.add_argument('--quiet', action='store_true')
  flags.add_argument('--python')
  if arguments[0] == 'venv':
    flags.add_argument('folder')
    args = flags.parse_args(arguments[1:])
    place('python', pathlib.Path(args.folder) / 'bin' / 'python')
  else:
    flags.add_argument('--constraints')
    flags.add_argument('what')
    args = flags.parse_args(arguments[2:])
    planned('uv pip install')
    match = re.fullmatch(r'intersyn_jax\[([a-z,]+)\] @ file://(.*\.whl)', args.what)
    if not match or 'intersyn_jax/__init__.py' not in zipfile.ZipFile(match[2]).namelist():
      end(f'error: Failed to parse: `{args.what}`', 2)


def python(arguments):
  """The job: `python -m intersyn_jax ...` of the environment. The plan says what each start does: a code, or 'hang'."""
  machine = pathlib.Path(os.environ['FAKE_MACHINE'])
  number, node, worker = machine.name.split('-', 1)[0], *machine.name.split('-', 1)[1].rsplit('-', 1)
  counter = WORLD / f'starts-{node}-{worker}'
  start = int(counter.read_text()) if counter.exists() else 0
  counter.write_text(str(start + 1))
  record(command='job', arguments=arguments, machine=machine.name, start=start, pid=os.getpid(), folder=os.getcwd(),
         files=sorted(str(p.relative_to(os.getcwd())) for p in pathlib.Path().resolve().rglob('*') if p.is_file()),
         environment={k: v for k, v in os.environ.items() if k.startswith('JOB_')})
  does = read('plan.json', {}).get('job', [0])
  does = does[min(start, len(does) - 1)]
  if isinstance(does, dict):  # only one machine behaves so, the others wait for it
    does = does.get(worker, 'hang')
  print(f'start {start} on {node} {worker} of {number}', flush=True)
  if does == 2:
    print('error: config.grpo.grup_size is no field of the configuration', flush=True)
  elif does and does != 'hang':
    print('Traceback (most recent call last):\nRuntimeError: out of memory', flush=True)
  if does != 'hang':
    sys.exit(does)

  def stop(*_):
    record(command='job stopped', machine=machine.name)
    sys.exit(143)

  signal.signal(signal.SIGTERM, stop)
  (machine / 'hangs').touch()
  while True:
    time.sleep(1)


def hostname(arguments):
  print('t1v-n-' + os.path.basename(os.environ['FAKE_MACHINE']))
