"""Several processes of one job: how they join, and how one that is lost or fails ends the others.

    with joined():
      ...    # the work of this process

A process that waits for another in a collective waits for ever. The coordination service of jax misses a dead process after
`settings.heartbeat` seconds, and ends all others with a dump of its own stack. So every process has a TCP line to process 0,
which breaks at once when a process dies. What happens on one line process 0 tells on all others, which say what process it
was, and end. The service of jax remains, for processes that hang and for machines that vanish.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax
from jax._src.distributed import global_state  # where orbax, too, finds the key-value store of a job

from intersyn_jax.errors import UserError
from intersyn_jax.stages import settings
from intersyn_jax.training import stopping

LOST = -1
"""In place of an exit code: the process was killed, or its machine is gone."""

FINE = (0, stopping.CODE)
"""Exit codes that all processes end with together."""

GRACE = 5.0
"""Seconds for a process to end by itself after another has failed: all of them may have found the same mistake."""

NEWS = 1.0
"""Seconds in which a process that was lost shows on its line."""

_KEY = 'intersyn_jax/lines'


@contextlib.contextmanager
def joined() -> Iterator[None]:
  """Joins the processes of a job that has several (see `settings.start_processes`); alone, it does nothing.

  Raises:
    UserError: the environment does not say how to join.
  """
  settings.start_processes()
  if jax.process_count() == 1:
    yield
    return
  lines = _Lines(jax.process_index(), jax.process_count())
  code = 1
  try:
    yield
    code = 0
  except UserError:
    code = 2
    raise
  except KeyboardInterrupt:
    code = 130
    raise
  except stopping.Stopped:
    code = stopping.CODE
    raise
  finally:
    lines.leave(code)
    if code not in FINE:  # at its exit jax would wait for processes that will not come
      atexit.register(lines.end, code)


class _Lines:
  """The lines of process 0 to all others, or the line of one of them to it. Each end says `NUMBER CODE` of whoever ended."""

  def __init__(self, index: int, count: int):
    self._index, self._count = index, count
    self._lines: dict[int, socket.socket] = {}  # by the process at the other end
    self._gone: set[int] = set()
    self._left = threading.Event()
    try:
      run = self._begin() if index == 0 else self._call()
    except OSError as error:
      print(f'process {index} has no line to process 0 ({error}); that a process is lost shows only after '
            f'{settings.heartbeat()} s', file=sys.stderr, flush=True)
      return
    threading.Thread(target=run, daemon=True, name='lines').start()

  def leave(self, code: int) -> None:
    """Tells the others that this process ends by itself."""
    if code == 1:  # perhaps a collective whose other end is lost: then its line tells so by now, and ends this process
      time.sleep(NEWS)
    self._left.set()
    self._tell(self._index, code)

  def end(self, code: int) -> None:
    """Ends the process at once. Process 0 goes last: with it goes the service of jax, which the others would take amiss."""
    sys.stdout.flush()
    sys.stderr.flush()
    end = time.monotonic() + 2 * GRACE
    while self._index == 0 and len(self._gone) < self._count - 1 and time.monotonic() < end:
      time.sleep(0.02)
    os._exit(code)

  # Both ends.

  def _tell(self, number: int, code: int) -> None:
    for line in list(self._lines.values()):
      with contextlib.suppress(OSError):
        line.sendall(f'{number} {code}\n'.encode())

  def _heard(self, number: int, code: int) -> None:
    """A process has ended."""
    self._gone.add(number)
    if code in FINE or self._left.is_set():
      return
    if self._index == 0:
      self._tell(number, code)
    if code == LOST:
      what = 'was lost: it was killed, or its machine is gone; the same command on all machines goes on from here'
    elif code == 2:
      what = 'has ended with a mistake that its own output tells'
    else:
      what = 'has failed, and its own output tells why; the same command on all machines goes on from here'
    if code == LOST or not self._left.wait(GRACE):
      print(f'error: process {number} of {self._count} {what}', file=sys.stderr, flush=True)
      threading.Thread(target=self.end, args=(1 if code == LOST else code,), daemon=True).start()

  def _read(self, number: int) -> bool:
    """Reads what the process at the other end says; False when the line is broken."""
    try:
      said = self._lines[number].recv(4096)
    except OSError:  # what keep-alive packets find
      said = b''
    self._take(said.decode(errors='replace'))
    if not said and number not in self._gone:
      self._heard(number, LOST)
    return bool(said)

  def _take(self, said: str) -> None:
    for line in said.splitlines():
      who, _, code = line.partition(' ')
      self._heard(int(who), int(code))

  # Process 0.

  def _begin(self):
    both = socket.has_dualstack_ipv6()
    listener = socket.create_server(('', 0), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both,
                                    backlog=self._count)
    self._word = secrets.token_hex(8)  # whoever calls must know it from the job's own store
    global_state.client.key_value_set(_KEY, f'{listener.getsockname()[1]} {self._word}', allow_overwrite=True)
    return lambda: self._serve(listener)

  def _serve(self, listener: socket.socket) -> None:
    with selectors.DefaultSelector() as selector:
      selector.register(listener, selectors.EVENT_READ, 0)
      while True:
        for key, _ in selector.select():
          if key.data:
            if not self._read(key.data):
              selector.unregister(key.fileobj)
          elif number := self._accept(listener):
            selector.register(self._lines[number], selectors.EVENT_READ, number)

  def _accept(self, listener: socket.socket) -> int:
    """The number of the process that has called, 0 for a stranger."""
    line, _ = listener.accept()
    line.settimeout(GRACE)
    try:
      # A process that fails at once may have said so in the same packet.
      hello, _, rest = line.recv(256).decode().partition('\n')
      word, _, number = hello.partition(' ')
      if secrets.compare_digest(word, self._word) and 0 < int(number) < self._count:
        self._lines[int(number)] = _kept_alive(line)
        self._take(rest)
        return int(number)
    except (OSError, ValueError):
      pass
    line.close()
    return 0

  # The others.

  def _call(self):
    port, word = global_state.client.blocking_key_value_get(_KEY, 60_000).split()
    host = global_state.coordinator_address.rsplit(':', 1)[0].strip('[]')
    line = socket.create_connection((host, int(port)), timeout=GRACE)
    line.sendall(f'{word} {self._index}\n'.encode())
    self._lines[0] = _kept_alive(line)
    return self._listen

  def _listen(self) -> None:
    while self._read(0):
      pass


def _kept_alive(line: socket.socket) -> socket.socket:
  """The line with packets that tell, within `settings.heartbeat()`, when the other machine is gone."""
  line.settimeout(None)
  line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  every = max(1, settings.heartbeat() // 6)
  for name, value in (('TCP_KEEPIDLE', every), ('TCP_KEEPINTVL', every), ('TCP_KEEPCNT', 3)):
    if hasattr(socket, name):
      line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
  return line
