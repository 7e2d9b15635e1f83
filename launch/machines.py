"""Cloud TPU machines through gcloud: queued resources, their slices, and the ways into the machines.

The commands are lists of arguments; a dry run prints what the methods here would execute.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shlex
import subprocess
import time

import shipping
from shipping import UserError

LABEL = 'launcher'
MARK = 'intersyn-jax'
RUNTIMES = {'v5litepod': 'v2-alpha-tpuv5-lite', 'v5p': 'v2-alpha-tpuv5', 'v6e': 'v2-alpha-tpuv6e'}
"""Runtime version of each generation; all others take `tpu-ubuntu2204-base` (cloud.google.com/tpu/docs/runtimes)."""

# In this order: the first that occurs in the message of gcloud says what kind of failure it is.
KINDS = (
    ('key', ('not present in the SSH agent',)),
    ('denied', ('PERMISSION_DENIED', 'UNAUTHENTICATED', 'have an active account', 'Reauthentication', 'invalid_grant')),
    ('missing', ('NOT_FOUND',)),
    ('there', ('ALREADY_EXISTS',)),
    ('passing', ('per minute', 'UNAVAILABLE', 'DEADLINE_EXCEEDED', 'ABORTED', 'INTERNAL', 'Connection', 'timed out')),
    ('quota', ('RESOURCE_EXHAUSTED', 'Quota ', 'quota')),
)
MENDS = {
    'quota': 'ask for more in the console (IAM & Admin, Quotas), name another --zone or --type, or free what --list shows',
    'denied': 'log in with gcloud auth login, or ask for the roles TPU Admin and Service Account User',
    'key': 'load the key first: ssh-add ~/.ssh/google_compute_engine',
}


class CloudError(Exception):
  """gcloud failed; `kind` is one of KINDS or 'other'."""

  def __init__(self, output: str):
    self.reason = shipping.reason(output)
    self.kind = next((kind for kind, words in KINDS if any(word in output for word in words)), 'other')
    super().__init__(self.reason)

  def mistake(self) -> UserError:
    mend = MENDS.get(self.kind)
    return UserError(self.reason + (f'; {mend}' if mend else ''))


@dataclasses.dataclass(frozen=True)
class Slice:
  """The machines of one name: a queued resource of one or several slices, asked for and reached through gcloud."""

  name: str
  zone: str
  type: str = ''
  project: str = ''
  runtime: str = ''
  slices: int = 1
  spot: bool = False
  reserved: bool = False
  internal_ips: bool = False
  network: str = ''
  subnetwork: str = ''
  service_account: str = ''
  launched: bool = False
  """Whether this checkout has launched it: then the mark of a resource may be missing in what the cloud says."""

  def where(self) -> list[str]:
    return [f'--zone={self.zone}', *([f'--project={self.project}'] if self.project else []), '--quiet']

  def creation(self) -> list[str]:
    """The command that asks for the machines."""
    nodes = [f'--node-id={self.name}'] if self.slices == 1 else [f'--node-count={self.slices}', f'--node-prefix={self.name}']
    runtime = self.runtime or RUNTIMES.get(self.type.split('-')[0], 'tpu-ubuntu2204-base')
    options = [f'--{flag.replace("_", "-")}' for flag in ('spot', 'reserved', 'internal_ips') if getattr(self, flag)]
    options += [f'--{flag.replace("_", "-")}={getattr(self, flag)}' for flag in ('network', 'subnetwork', 'service_account')
                if getattr(self, flag)]
    return ['gcloud', 'compute', 'tpus', 'queued-resources', 'create', self.name, f'--accelerator-type={self.type}',
            f'--runtime-version={runtime}', *nodes, *options, f'--labels={LABEL}={MARK}', '--async', *self.where()]

  def deletion(self) -> list[str]:
    return ['gcloud', 'compute', 'tpus', 'queued-resources', 'delete', self.name, '--force', '--async', *self.where()]

  def description(self, node: str = '') -> list[str]:
    kind = ['tpu-vm', 'describe', node] if node else ['queued-resources', 'describe', self.name]
    return ['gcloud', 'compute', 'tpus', *kind, '--format=json', *self.where()]

  def copying(self, node: str, file: pathlib.Path) -> list[str]:
    return ['gcloud', 'compute', 'tpus', 'tpu-vm', 'scp', str(file), f'{node}:', '--worker=all', *self._reach()]

  def calling(self, node: str, command: str, worker: str = 'all') -> list[str]:
    return ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', node, f'--worker={worker}', f'--command={command}', *self._reach()]

  def _reach(self) -> list[str]:
    return [*(['--internal-ip'] if self.internal_ips else []), *self.where()]

  def describe(self, node: str = '') -> dict | None:
    """The queued resource or a node as the cloud describes it; None where there is none.

    Raises:
      UserError: a queued resource of this name that was not made by this script, or with other machines.
    """
    try:
      found = json.loads(gcloud(self.description(node)))
    except CloudError as e:
      if e.kind == 'missing':
        return None
      raise
    if not node:
      spec = _specs(found)[0].get('node', {})
      if spec.get('labels', {LABEL: MARK if self.launched else ''}).get(LABEL) != MARK:
        raise UserError(f'a queued resource {self.name} is there that this script did not make; choose another --name')
      type_ = spec.get('acceleratorType', '').rsplit('/', 1)[-1]
      if self.type and type_ not in ('', self.type):
        raise UserError(f'{self.name} is there with --type={type_}; choose another --name, or --delete it')
    return found

  def nodes(self, found: dict) -> list[str]:
    """Names of the slices of a described queued resource; several are numbered."""
    named = [spec['nodeId'] for spec in _specs(found) if 'nodeId' in spec]
    if len(named) == self.slices:
      return named
    return [self.name] if self.slices == 1 else [f'{self.name}-{i}' for i in range(self.slices)]

  def state(self) -> str:
    """State of the queued resource; '' where there is none."""
    return state_of(self.describe())

  def give_back(self, poll: float) -> bool:
    """Deletes the queued resource with its machines and waits until it is gone; False where there was none."""
    state = self.state()
    if not state:
      return False
    if state != 'DELETING':
      try:
        gcloud(self.deletion())
      except CloudError as e:
        if e.kind != 'missing':
          raise
    while self.state():
      time.sleep(poll)
    return True


def gcloud(command: list[str]) -> str:
  """What gcloud prints on stdout.

  Raises:
    CloudError: it failed, or hung.
  """
  try:
    done = shipping.run(command, timeout=900, hint='https://cloud.google.com/sdk/docs/install')
  except subprocess.TimeoutExpired:
    raise CloudError(f'{shlex.join(command[:5])} timed out') from None
  if done.returncode:
    raise CloudError(done.stderr or done.stdout)
  return done.stdout


def state_of(found: dict | None) -> str:
  return (found or {}).get('state', {}).get('state', '')


def failure_of(found: dict) -> str:
  """Why a queued resource is in the state FAILED."""
  return found.get('state', {}).get('failedData', {}).get('error', {}).get('message', 'it was not said why')


def _specs(found: dict) -> list[dict]:
  return found.get('tpu', {}).get('nodeSpec') or [{}]


def listing(zone: str, project: str) -> list[str]:
  return ['gcloud', 'compute', 'tpus', 'queued-resources', 'list', '--format=json',
          *Slice('', zone, project=project).where()]


def listed(output: str) -> list[tuple[str, str, str, str, str]]:
  """Rows (name, type, slices, tier, state) of the queued resources that this script has made."""
  rows = []
  for found in json.loads(output):
    specs = _specs(found)
    node = specs[0].get('node', {})
    if node.get('labels', {}).get(LABEL) == MARK:
      slices = specs[0].get('multisliceParams', {}).get('nodeCount', len(specs))
      tier = 'spot' if 'spot' in found else 'reserved' if found.get('reservationName') else 'on demand'
      rows.append((found['name'].rsplit('/', 1)[-1], node.get('acceleratorType', ''), str(slices), tier,
                   state_of(found)))
  return sorted(rows)
