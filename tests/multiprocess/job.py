"""Starts the processes of a job on loopback, each with some virtual devices."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
PATIENCE = 1200


class Job:
  """Processes that run the same command.

  Args:
    log: what process i says goes to LOG.i.
    heartbeat: seconds after which a silent process counts as lost.
  """

  def __init__(self, command: list[str], log: pathlib.Path, processes: int, devices: int, *, cache: pathlib.Path | None = None,
               heartbeat: int = 30):
    with socket.socket() as probe:
      probe.bind(('127.0.0.1', 0))
      port = probe.getsockname()[1]
    self.logs = [log.with_name(f'{log.name}.{index}') for index in range(processes)]
    self.processes = []
    for index, path in enumerate(self.logs):
      known = {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices), 'XLA_FLAGS': '--xla_backend_optimization_level=0',
               'PYTHONPATH': str(ROOT), 'INTERSYN_HEARTBEAT_SECONDS': str(heartbeat)}
      if cache:
        known['JAX_COMPILATION_CACHE_DIR'] = str(cache)
      if processes > 1:
        known |= {'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}', 'JAX_NUM_PROCESSES': str(processes),
                  'JAX_PROCESS_ID': str(index)}
      with path.open('a') as file:
        self.processes.append(subprocess.Popen([sys.executable, *command], cwd=ROOT, env=os.environ | known, stdout=file,
                                               stderr=file))

  def said(self, index: int) -> str:
    """What process `index` has said."""
    return self.logs[index].read_text()

  def wait(self, seconds: float = PATIENCE) -> list[int]:
    """The exit codes; what has not ended by then is killed, and the test fails."""
    try:
      return [process.wait(seconds) for process in self.processes]
    finally:
      for process in self.processes:
        process.kill()

  def finish(self) -> None:
    codes = self.wait()
    assert not any(codes), '\n'.join(f'process {i} ended with {code}:\n{self.said(i)[-2500:]}' for i, code in enumerate(codes))
