"""Brings a job to its end on Cloud TPU machines that come and go."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time

import machines
import shipping
from machines import CloudError, Slice, gcloud
from shipping import UserError, say

WAITING = ('CREATING', 'ACCEPTED', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'SUSPENDING', 'DELETING')
GONE = ('PREEMPTED', 'TERMINATED', 'STOPPED', 'STOPPING', 'DELETING')
PATIENCE = 5
"""Times in a row that the machines may not answer."""
ABSENT = 'intersyn-worker {"state": "absent"}'


@dataclasses.dataclass(frozen=True)
class Job:
  """What is put on every machine: one archive, unpacked into a folder that bears its digest."""

  id: str
  name: str
  archive: pathlib.Path

  @property
  def script(self) -> str:
    return f'intersyn/{self.name}/{self.id}/worker.py'

  def begin(self) -> str:
    """The line for the shell of a machine that unpacks the archive and starts the job."""
    folder = str(pathlib.PurePosixPath(self.script).parent)
    return shipping.remote(['mkdir', '-p', folder], ['tar', '-xzf', self.archive.name, '-C', folder],
                           ['python3', self.script, 'start'])

  def ask(self, *what: str) -> str:
    """The line that asks worker.py; a machine that does not have it yet says that the job is absent."""
    there, run = shipping.remote(['test', '-f', self.script]), shipping.remote(['python3', self.script, *what])
    return f'if {there}; then {run}; else {shipping.remote(["echo", ABSENT])}; fi'


def reports_of(output: str) -> list[dict]:
  """The reports of worker.py among what ssh printed."""
  return [json.loads(line.split(' ', 1)[1]) for line in output.splitlines() if line.startswith('intersyn-worker {')]


class Unreachable(Exception):
  """A machine, not the cloud, did not answer."""


class Watch:
  """Brings a job to its end on machines that come and go.

  Args:
    poll: seconds between looks.
    restarts: how often the job may fail or a machine be lost; machines that were preempted do not count.
    replace: whether what has run so far is started anew, even if it is this very job.
  """

  def __init__(self, tpu: Slice, job: Job, poll: float, restarts: int, replace: bool):
    self._tpu, self._job, self._poll, self._restarts, self._replace = tpu, job, poll, restarts, replace
    self._said = ''
    self._failures = 0
    self._silent = 0  # looks in a row without an answer, of the cloud or of a machine
    self._known = self._reached = False  # whether the cloud, and a machine, have answered at all
    self._nodes: list[str] = []
    self._seen = self._renewed = False

  def run(self) -> None:
    """Returns when every machine has done the command.

    Raises:
      UserError: the command is wrong, keeps failing, or the cloud will not give the machines.
    """
    while True:
      try:
        if self._step():
          return
        self._silent = 0
      except Unreachable as e:
        self._silent += 1
        self._say(f'no answer from the machines: {e}')
        if self._silent >= PATIENCE:
          # Machines that have answered before are lost; others were never within reach, and new ones would not be.
          self._failures += 1
          if not self._reached or self._failures > self._restarts:
            raise UserError(f'the machines are there, but ssh to them fails: {e}; --delete gives them back') from None
          self._renew('a machine was lost')
      except CloudError as e:
        # A laptop that is offline for a night is no reason to end. Machines just given back count against the quota still.
        if e.kind != 'passing' and not (e.kind == 'quota' and self._renewed):
          raise e.mistake() from None
        self._silent += 1
        if not self._known and self._silent >= PATIENCE:
          raise e.mistake() from None
        self._say(f'no answer from the cloud: {e}')
      time.sleep(self._poll)

  def _step(self) -> bool:
    found = self._tpu.describe()
    state = machines.state_of(found)
    self._known = True
    if state != 'ACTIVE':
      self._say(f'the machines are {state}' if state else 'there are no machines: asking for them')
    if state in ('', 'DELETING') and self._seen:
      raise UserError('the machines were deleted from outside; launch again to go on from the work folder')
    if not state:
      try:
        gcloud(self._tpu.creation())
      except CloudError as e:
        if e.kind != 'there':
          raise
      return False
    self._seen = state != 'DELETING'
    if state == 'FAILED':
      failure = CloudError(machines.failure_of(found))
      self._failures += 1
      if failure.kind != 'passing' or self._failures > self._restarts:
        raise UserError(f'the queued resource failed: {failure.mistake()}; --delete it before the next launch')
      self._renew('the queued resource failed')
    elif state == 'SUSPENDED':
      self._renew('the machines were preempted')
    elif state == 'ACTIVE':
      self._nodes = self._tpu.nodes(found)
      return self._active()
    elif state not in WAITING:
      raise UserError(f'the queued resource is in the state {state}, which this script does not know')
    return False

  def _active(self) -> bool:
    nodes = {node: self._tpu.describe(node) or {'state': 'TERMINATED'} for node in self._nodes}
    states = [found['state'] for found in nodes.values()]
    gone = [state for state in states if state in GONE]
    if gone:
      self._renew(f'a slice is {gone[0]}')
    elif set(states) != {'READY'}:
      self._say(f'the slices are {", ".join(states)}')
    else:
      told = [self._call(self._tpu.calling(node, self._job.ask('status'))) for node in nodes]
      reports = reports_of(''.join(told))
      missing = sum(max(1, len(found.get('networkEndpoints', ()))) for found in nodes.values()) - len(reports)
      if missing > 0:
        raise Unreachable(f'{missing} of {missing + len(reports)} did not answer')
      self._reached = True
      return self._decide(reports)
    return False

  def _decide(self, reports: list[dict]) -> bool:
    """Does what the states of the job on all machines ask for; True when it is complete."""
    states = {report['state'] for report in reports}
    alive = bool(states & {'installing', 'running'})
    refused = next((r for r in reports if r['state'] == 'exited' and r['code'] == 2), None)
    failed = next((r for r in reports if r['state'] == 'failed' or (r['state'] == 'exited' and r['code'])), None)
    if self._replace:
      self._restart(f'putting the job on {len(reports)} machines', True)
    elif refused:
      raise UserError(f'the job: {refused["error"].removeprefix("error: ")} (the machines are kept; launch with --replace, '
                      'or --delete them)')
    elif failed:
      self._failures += 1
      what = f'{failed["host"]}: {failed["error"]}' + (f' (code {failed["code"]})' if 'code' in failed else '')
      if self._failures > self._restarts:
        raise UserError(f'the job failed {self._failures} times, at last on {what}; --logs shows more, --delete gives the '
                        'machines back')
      self._restart(f'the job failed on {what}; restart {self._failures} of {self._restarts}', alive)
    elif states & {'lost', 'stopped'}:
      self._restart('the job was ended from outside; it starts again', alive)
    elif 'absent' in states:
      self._restart(f'putting the job on {len(reports)} machines', alive)
    elif states == {'exited'}:
      return True
    else:
      self._say(f'the job is {" and ".join(sorted(states))} on {len(reports)} machines')
    return False

  def _restart(self, why: str, alive: bool) -> None:
    """Ends the job wherever it runs still, so that all processes begin together, and starts it on all machines."""
    say(why)
    for node in self._nodes:
      if alive:
        self._call(self._tpu.calling(node, self._job.ask('stop')))
      self._call(self._tpu.copying(node, self._job.archive))
    for node in self._nodes:
      self._call(self._tpu.calling(node, self._job.begin()))
    self._replace = False
    self._say('the job was started')

  def _renew(self, why: str) -> None:
    say(f'{why}: asking for new ones')
    self._renewed, self._silent, self._seen = True, 0, False
    self._tpu.give_back(self._poll)

  def _call(self, command: list[str]) -> str:
    try:
      return gcloud(command)
    except CloudError as e:
      if e.kind in ('key', 'denied'):
        raise
      raise Unreachable(e.reason) from None

  def _say(self, text: str) -> None:
    """Says what has changed; the same again is no news."""
    if text != self._said:
      self._said = text
      say(text)
