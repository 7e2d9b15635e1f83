"""Stands in for gcloud (flags and messages of Google Cloud SDK 528) and for the cloud behind it."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys

from common import WORLD, Flags, end, home, planned, read, record, write

PROJECT = 'fake-project'


def gcloud(arguments):
  # One at a time: the real ones talk to a server that puts calls in order. What a machine does is not waited for.
  lock = (WORLD / 'lock').open('a')
  if 'ssh' not in arguments:
    fcntl.flock(lock, fcntl.LOCK_EX)
  words = [a for a in arguments[:5] if not a.startswith('-')]
  if words[0] == 'compute':
    command, rest = ' '.join(words[2:4]), arguments[4:]
    name = f'gcloud.{".".join(words[:4])}'
  else:
    command, rest = ' '.join(words[:2]), arguments[2:]
    name = f'gcloud.{".".join(words[:2])}'
  record(command=command, arguments=arguments)
  flags = Flags(name, 'ERROR: ({name}) {message}')
  for flag in ('--project', '--format', '--verbosity'):
    flags.add_argument(flag)
  flags.add_argument('--quiet', action='store_true')
  ACTIONS[command](flags, rest, name)


def zoned(flags, *positional, values=(), switches=()):
  for p in positional:
    flags.add_argument(p)
  flags.add_argument('--zone', required=True)
  for value in values:
    flags.add_argument(value)
  for switch in switches:
    flags.add_argument(switch, action='store_true')


def where(args):
  return f'projects/{args.project or PROJECT}/locations/{args.zone}'


def create(flags, arguments, name):
  zoned(flags, 'id', values=('--accelerator-type', '--runtime-version', '--node-id', '--node-prefix', '--labels',
                             '--network', '--subnetwork', '--service-account', '--scopes', '--tags', '--metadata'),
        switches=('--async', '--spot', '--reserved', '--internal-ips', '--guaranteed'))
  flags.add_argument('--node-count', type=int)
  args = flags.parse_args(arguments)
  if not args.accelerator_type or not args.runtime_version or bool(args.node_id) == bool(args.node_count):
    end(f'ERROR: ({name}) argument --accelerator-type --runtime-version (--node-id | --node-count): Must be specified.', 2)
  if args.node_count is not None and args.node_count <= 1:
    end(f'ERROR: ({name}) Invalid value for [--node-count]: Node count must be greater than 1')
  planned('queued-resources create')
  cloud = read('cloud.json', {})
  if args.id in cloud:
    end(f"ERROR: ({name}) ALREADY_EXISTS: Resource '{where(args)}/queuedResources/{args.id}' already exists")
  plan = read('plan.json', {})
  nodes = [args.node_id] if args.node_id else [f'{args.node_prefix or args.id}-{i}' for i in range(args.node_count)]
  spec = {'parent': where(args), 'node': {
      'acceleratorType': args.accelerator_type, 'runtimeVersion': args.runtime_version,
      'labels': dict(pair.split('=') for pair in (args.labels or '').split(',') if pair)}}
  if args.node_id:
    spec['nodeId'] = args.node_id
  else:
    spec['multisliceParams'] = {'nodeCount': args.node_count, 'nodeIdPrefix': args.node_prefix or args.id}
  number = read('made.json', 0)
  write('made.json', number + 1)
  cloud[args.id] = {
      'states': plan.get('states', ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']),
      'nodes': {n: 'READY' for n in nodes}, 'number': number,
      'told': {'name': f'{where(args)}/queuedResources/{args.id}', 'tpu': {'nodeSpec': [spec]},
               **({'spot': {}} if args.spot else {})}}
  for node in nodes:
    for i in range(plan.get('workers', 2)):
      home(number, node, i).mkdir(parents=True)
  write('cloud.json', cloud)
  print(f'Create request issued for: [{args.id}]', file=sys.stderr)


def homes(number, node):
  return sorted(WORLD.glob(f'machines/{number}-{node}-*'))


def told(resource):
  """A queued resource as `describe --format=json` prints it; fields as in googlecloudsdk/generated_clients/apis/tpu/v2."""
  state = {'state': resource['states'][0]}
  if state['state'] == 'FAILED':
    state['failedData'] = {'error': {'code': 8, 'message': read('plan.json', {})['failed']}}
  return {'createTime': '2026-11-25T10:00:00.123456789Z', **resource['told'], 'state': state}


def kill(machine):
  """A machine that is taken away: all that runs on it ends at once, and its disk is gone."""
  for state in machine.glob('intersyn/*/*/state.json'):
    with contextlib.suppress(OSError, ValueError, KeyError):
      os.kill(json.loads(state.read_text())['pid'], signal.SIGKILL)
  shutil.rmtree(machine, ignore_errors=True)


def running(resource):
  """Whether the job's program is under way on every machine."""
  machines = [m for node in resource['nodes'] for m in homes(resource['number'], node)]
  return machines and all((m / 'hangs').exists() for m in machines)


def happen(cloud, name):
  """The next event of the plan, once the job runs everywhere."""
  plan, resource = read('plan.json', {}), cloud[name]
  if not plan.get('events') or resource['states'][0] != 'ACTIVE' or not running(resource):
    return
  event = plan['events'].pop(0)
  write('plan.json', plan)
  first = next(iter(resource['nodes']))
  machines = [m for node in resource['nodes'] for m in homes(resource['number'], node)]
  if event == 'preempt':
    for machine in machines:
      kill(machine)
    resource['states'] = ['SUSPENDING', 'SUSPENDED']
  elif event == 'preempt node':
    for machine in homes(resource['number'], first):
      kill(machine)
    resource['nodes'][first] = 'PREEMPTED'
  elif event == 'lose worker':
    kill(machines[-1])
  elif event == 'kill supervisor':
    state = next(machines[0].glob('intersyn/*/*/state.json'))
    os.kill(json.loads(state.read_text())['pid'], signal.SIGKILL)
  elif event == 'shut down':  # as a machine does that is about to go: SIGTERM to all
    for machine in machines:
      os.kill(json.loads(next(machine.glob('intersyn/*/*/state.json')).read_text())['pid'], signal.SIGTERM)
  elif event == 'delete':
    del cloud[name]
  else:
    end(f'no event {event}', 70)


def describe(flags, arguments, name):
  zoned(flags, 'id')
  args = flags.parse_args(arguments)
  planned('queued-resources describe')
  cloud = read('cloud.json', {})
  if args.id in cloud:
    happen(cloud, args.id)
  if args.id not in cloud:
    write('cloud.json', cloud)
    end(f"ERROR: ({name}) NOT_FOUND: Resource '{where(args)}/queuedResources/{args.id}' was not found")
  resource = cloud[args.id]
  print(json.dumps(told(resource), indent=2))
  if len(resource['states']) > 1:  # time goes by
    resource['states'].pop(0)
    if resource['states'][0] == 'GONE':
      del cloud[args.id]
  write('cloud.json', cloud)


def delete(flags, arguments, name):
  zoned(flags, 'id', switches=('--async', '--force'))
  args = flags.parse_args(arguments)
  planned('queued-resources delete')
  cloud = read('cloud.json', {})
  if args.id not in cloud:
    end(f"ERROR: ({name}) NOT_FOUND: Resource '{where(args)}/queuedResources/{args.id}' was not found")
  resource = cloud[args.id]
  if not args.force:
    end(f'ERROR: ({name}) FAILED_PRECONDITION: The queued resource has nodes.')
  for node in resource['nodes']:
    for machine in homes(resource['number'], node):
      kill(machine)
  resource['states'] = ['DELETING', 'GONE']
  write('cloud.json', cloud)
  print(f'Delete request issued for: [{args.id}]', file=sys.stderr)


def list_(flags, arguments, name):
  flags.add_argument('--filter')
  zoned(flags)
  flags.parse_args(arguments)
  planned('queued-resources list')
  print(json.dumps([told(r) for r in read('cloud.json', {}).values()], indent=2))


def node_of(args, name, node):
  """The queued resource of a node; only what is ACTIVE has nodes."""
  for resource in read('cloud.json', {}).values():
    if node in resource['nodes'] and resource['states'][0] == 'ACTIVE':
      return resource
  return end(f"ERROR: ({name}) NOT_FOUND: Resource '{where(args)}/nodes/{node}' was not found")


def describe_node(flags, arguments, name):
  zoned(flags, 'id')
  args = flags.parse_args(arguments)
  planned('tpu-vm describe')
  resource = node_of(args, name, args.id)
  workers = read('plan.json', {}).get('workers', 2)
  print(json.dumps({'name': f'{where(args)}/nodes/{args.id}', 'state': resource['nodes'][args.id], 'health': 'HEALTHY',
                    'networkEndpoints': [{'ipAddress': f'10.0.0.{i}', 'port': 8470} for i in range(workers)]}))


def targets(args, name, node):
  if node_of(args, name, node)['nodes'][node] != 'READY':
    end(f'ERROR: ({name}) This TPU has terminal state "PREEMPTED", so it cannot be used anymore.')
  workers = read('plan.json', {}).get('workers', 2)
  number = node_of(args, name, node)['number']
  chosen = range(workers) if args.worker == 'all' else [int(args.worker)]
  if max(chosen) >= workers:
    end(f'ERROR: ({name}) Invalid value for [--worker]: worker index {max(chosen)} is larger than the valid worker indexes '
        f'on this TPU VM. Please only use indexes in the range [0, {workers - 1}], inclusive.')
  return [home(number, node, i) for i in chosen]


def reached(flags, arguments, name, positional, values):
  zoned(flags, *positional, values=values, switches=('--internal-ip', '--recurse'))
  flags.add_argument('--worker', default='0')
  args = flags.parse_args(arguments)
  if args.recurse and 'ssh' in name:
    end(f'ERROR: ({name}) unrecognized arguments: --recurse', 2)
  return args


def ssh(flags, arguments, name):
  args = reached(flags, arguments, name, ('node',), ('--command',))
  planned('tpu-vm ssh')
  machines = targets(args, name, args.node)
  print('Using ssh batch size of 1. Attempting to SSH into 1 nodes with a total of '
        f'{len(machines)} workers.', file=sys.stderr)
  codes = []
  for i, machine in enumerate(machines):
    print(f'SSH: Attempting to connect to worker {i}...', file=sys.stderr, flush=True)
    if not machine.exists():
      print('ssh: connect to host 10.0.0.1 port 22: Connection timed out', file=sys.stderr)
      codes.append(255)
      continue
    environment = {'HOME': str(machine), 'PATH': f'{WORLD / "machine-bin"}:/usr/bin:/bin', 'FAKE_WORLD': str(WORLD),
                   'FAKE_MACHINE': str(machine)}
    # gcloud splits at spaces, and ssh joins again before the shell on the other side reads the line.
    line = ' '.join(args.command.split(' '))
    codes.append(subprocess.run(['bash', '-c', line], cwd=machine, env=environment, stdin=subprocess.DEVNULL).returncode)
    if codes[-1] and len(machines) > 1:
      print(f'##### Command execution on worker {i} failed with exit status {codes[-1]}. Continuing.', file=sys.stderr)
  sys.exit(next((c for c in codes if c), 0))


def scp(flags, arguments, name):
  args = reached(flags, arguments, name, ('source', 'target'), ())
  planned('tpu-vm scp')
  node, _, path = args.target.partition(':')
  for machine in targets(args, name, node):
    if not machine.exists():
      end('ssh: connect to host 10.0.0.1 port 22: Connection timed out', 255)
    shutil.copy(args.source, machine / (path or os.path.basename(args.source)))


def storage(flags, arguments, name):
  flags.add_argument('paths', nargs='+')
  flags.parse_args(arguments)
  planned('storage')
  if name.endswith('cat'):
    print('a line of a log in the bucket')


def logging_read(flags, arguments, name):
  flags.add_argument('filter')
  for flag in ('--freshness', '--order', '--limit'):
    flags.add_argument(flag)
  args = flags.parse_args(arguments)
  planned('logging read')
  if not re.search(r'resource\.type="k8s_container"', args.filter) or args.order != 'desc':
    end(f'ERROR: ({name}) INVALID_ARGUMENT: Unparseable filter')
  print('vila-u-slice-job-0-1-abcde\tsecond line\nvila-u-slice-job-0-0-abcde\tfirst line')


ACTIONS = {'queued-resources create': create, 'queued-resources describe': describe, 'queued-resources delete': delete,
           'queued-resources list': list_, 'tpu-vm describe': describe_node, 'tpu-vm ssh': ssh, 'tpu-vm scp': scp,
           'storage cp': storage, 'storage cat': storage, 'logging read': logging_read}
