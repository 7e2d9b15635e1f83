"""Runs one job on one machine of a slice: makes its environment, starts it, says how it is.

launch/tpu.py puts this file on every machine, beside `job.json`, the wheel and `source/` (configs), and calls it over ssh:

    python3 worker.py start        begins, unless it runs already; ends other jobs that were started this way
    python3 worker.py status       one line: intersyn-worker {"host": ..., "job": ..., "state": ..., "code": ..., ...}
    python3 worker.py stop         SIGTERM, and SIGKILL when the grace time is over
    python3 worker.py log LINES    the end of the log

The command stands in `job.json` and is started from a list, so that no shell ever reads it. States: `absent` (never
started), `installing`, `running`, `exited` (with its code), `stopped` (somebody sent SIGTERM), `failed` (the environment
could not be made), `lost` (the machine or the supervisor went down). Needs Python 3.8, which every TPU machine has, and
nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
GRACE = 120.0
"""Seconds between SIGTERM and SIGKILL: a checkpoint is written in them."""
UPLOAD = 300.0
"""Seconds between copies of the log to the bucket."""
ALIVE = ('installing', 'running')
PR_SET_PDEATHSIG = 1


def read_state(folder: pathlib.Path) -> dict:
  try:
    return json.loads((folder / 'state.json').read_text())
  except (OSError, ValueError):
    return {'state': 'absent'}


def write_state(**state) -> None:
  part = HERE / '.state.part'
  part.write_text(json.dumps({'pid': os.getpid(), **state}))
  part.replace(HERE / 'state.json')


def watched(folder: pathlib.Path) -> bool:
  """True while a supervisor lives: it holds a lock, which does not outlive it as a number in a file would."""
  try:
    with (folder / 'lock').open('a') as file:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  return False


def host() -> str:
  return subprocess.run(['hostname'], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def report() -> None:
  """Prints the line that the launcher reads."""
  state = read_state(HERE)
  if state['state'] in ALIVE and not watched(HERE):
    state['state'] = 'lost'
  state.update(host=host(), job=HERE.name)
  print('intersyn-worker ' + json.dumps(state, sort_keys=True), flush=True)


def last_line() -> str:
  """What the log says at its end; a user's mistake is told in a line that begins with `error:`."""
  lines = [line.strip() for line in tail(200).splitlines() if line.strip()]
  errors = [line for line in lines if line.startswith('error:')]
  return (errors or lines or [''])[-1][:400]


def tail(lines: int) -> str:
  try:
    with (HERE / 'log.txt').open('rb') as file:
      file.seek(max(0, file.seek(0, os.SEEK_END) - 400 * lines))
      text = file.read().decode(errors='replace')
  except OSError:
    return ''
  return '\n'.join(text.splitlines()[-lines:])


def start() -> None:
  """Begins the job in a process of its own that outlives the connection."""
  for other in HERE.parent.iterdir():
    if other != HERE and (other / 'lock').exists():
      stop(other)
  while read_state(HERE)['state'] not in ALIVE and watched(HERE):  # it has ended, and copies its log
    time.sleep(0.1)
  if not watched(HERE):
    (HERE / 'state.json').unlink(missing_ok=True)
    with (HERE / 'log.txt').open('ab') as log:
      subprocess.Popen([sys.executable, str(HERE / 'worker.py'), 'supervise'], cwd=str(HERE), stdin=subprocess.DEVNULL,
                       stdout=log, stderr=log, start_new_session=True)
    begun = time.monotonic()
    while read_state(HERE)['state'] == 'absent' and time.monotonic() - begun < 30:
      time.sleep(0.05)
  report()


def stop(folder: pathlib.Path) -> None:
  """Ends a job: its supervisor passes SIGTERM on, waits for a checkpoint and kills what is left."""
  begun = time.monotonic()
  while watched(folder):
    # The supervisor gives up on the job by itself after GRACE; the second signal is for a supervisor that hangs.
    late = time.monotonic() - begun > GRACE + 10
    pid = read_state(folder).get('pid')
    if pid:
      try:
        os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
      except ProcessLookupError:
        return
    time.sleep(0.1)


class Supervisor:
  """Makes the environment, runs the job, notes how it ended."""

  def __init__(self, job: dict):
    self._job = job
    self._child: subprocess.Popen | None = None
    self._stopped: float | None = None
    self._uploaded = time.monotonic()
    self._log = (HERE / 'log.txt').open('ab')
    signal.signal(signal.SIGTERM, self._stop)
    signal.signal(signal.SIGINT, self._stop)

  def _stop(self, *signal_) -> None:
    if self._stopped is None:
      self._stopped = time.monotonic()
      self._signal(signal.SIGTERM)

  def _signal(self, number: int) -> None:
    if self._child is not None and self._child.poll() is None:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(self._child.pid, number)

  def run(self) -> None:
    write_state(state='installing')
    for step in self._environment():
      if self._run(step) != 0 or self._stopped is not None:
        if self._stopped is not None:
          write_state(state='stopped')
        else:
          write_state(state='failed', error=f'{os.path.basename(step[0])}: {last_line()}')
        return
    (HERE / 'installed').touch()
    write_state(state='running')
    environment = {**os.environ, 'PYTHONUNBUFFERED': '1', 'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1', **self._job['env']}
    command = [str(HERE / 'venv/bin/python'), '-m', 'intersyn_jax', *self._job['command']]
    code = self._run(command, cwd=HERE / 'source', env=environment)
    # A machine that is taken away sends SIGTERM to all: whatever the code then is, the job is not at its end.
    state = 'exited' if self._stopped is None else 'stopped'
    write_state(state=state, code=code, error=last_line() if code else '')
    self._upload()

  def _environment(self) -> list[list[str]]:
    """The programs that make the environment; none where an earlier start on this machine has made it.

    uv brings the Python version that is asked for: TPU machines have 3.10. `--target` needs no right to change the system.
    """
    if (HERE / 'installed').exists():
      return []
    shutil.rmtree(HERE / 'venv', ignore_errors=True)
    uv, python = str(HERE / 'tools/bin/uv'), str(HERE / 'venv/bin/python')
    pins = HERE / 'constraints.txt'
    wheel = (HERE / self._job['wheel']).as_uri()
    return [
        ['python3', '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', f'--target={HERE / "tools"}',
         '--upgrade', f'uv=={self._job["uv"]}'],
        [uv, 'venv', '--quiet', f'--python={self._job["python"]}', str(HERE / 'venv')],
        [uv, 'pip', 'install', '--quiet', f'--python={python}', *([f'--constraints={pins}'] if pins.exists() else []),
         f'intersyn_jax[{self._job["extras"]}] @ {wheel}'],
    ]

  def _run(self, command: list[str], **options) -> int:
    if self._stopped is not None:
      return 143
    libc = ctypes.CDLL(None)
    try:
      # A job must not live on unwatched: it would hold the chips, and nobody would know how it ended.
      self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
                                     start_new_session=True, preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
                                     **options)
    except OSError as e:
      self._log.write(f'{command[0]}: {e.strerror}\n'.encode())
      self._log.flush()
      return 127
    if self._stopped is not None:
      self._signal(signal.SIGTERM)
    while True:
      try:
        code = self._child.wait(timeout=1.0)
        break
      except subprocess.TimeoutExpired:
        if self._stopped is not None and time.monotonic() - self._stopped > GRACE:
          self._signal(signal.SIGKILL)
        elif time.monotonic() - self._uploaded > UPLOAD:
          self._upload()
    return 128 - code if code < 0 else code

  def _upload(self) -> None:
    """Copies the log to the bucket, so that it is not lost with the machine. That it cannot is no reason to end the job."""
    self._uploaded = time.monotonic()
    if self._job['logs'] and shutil.which('gcloud'):
      try:
        subprocess.run(['gcloud', 'storage', 'cp', '--quiet', str(HERE / 'log.txt'), f'{self._job["logs"]}/{host()}.log'],
                       stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, timeout=60)
      except (OSError, subprocess.SubprocessError) as e:
        self._log.write(f'the log was not copied: {e}\n'.encode())
        self._log.flush()


def supervise() -> None:
  with (HERE / 'lock').open('a') as lock:
    for _ in range(50):
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except BlockingIOError:  # somebody asks for the state just now, or two starts came at once: one is enough
        time.sleep(0.1)
    else:
      return
    Supervisor(json.loads((HERE / 'job.json').read_text())).run()


def main(arguments: list[str]) -> int:
  if arguments == ['start']:
    start()
  elif arguments == ['status']:
    report()
  elif arguments == ['stop']:
    stop(HERE)
    report()
  elif arguments == ['supervise']:
    supervise()
  elif len(arguments) == 2 and arguments[0] == 'log' and arguments[1].isdigit():
    print(tail(int(arguments[1])), flush=True)
  else:
    print(__doc__, file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
