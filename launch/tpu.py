#!/usr/bin/env python3
r"""Runs a job on Cloud TPU machines through gcloud, and starts it again whenever the machines are taken away.

  launch/tpu.py --name=NAME --zone=ZONE --type=v5litepod-16 [--spot] [FLAGS] -- \
      STAGE --config=FILE.py:ARG --workdir=gs://BUCKET/FOLDER
  launch/tpu.py --watch  --name=NAME      goes on watching, with the code and command of the launch
  launch/tpu.py --logs   --name=NAME      the end of the log
  launch/tpu.py --delete --name=NAME      ends the job and gives the machines back
  launch/tpu.py --list   --zone=ZONE      what was made with this script

A queued resource is asked for and waited for; wheel, configs and command are put on all of its machines; the job outlives
the connection. While this script watches, preempted or lost machines are asked for anew and the same command goes on from
its work folder. When the job is complete the machines are given back (--keep keeps them). docs/launch.md has examples.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import shlex
import shutil
import sys
import tarfile
import tempfile

import machines
import shipping
from machines import CloudError, Slice, gcloud
from shipping import UserError, say
from watch import Job, Watch

UV = '0.13.9'
"""Brings the Python version on the machines; a fixed one, so that each launch gets the same patch release."""
SAVED = shipping.ROOT / 'runs' / 'launch'
"""Where a launch is kept: --watch brings the same code and command to new machines, whatever the checkout holds by then."""


def parser() -> shipping.Parser:
  flags = shipping.Parser(__doc__)
  what = flags.add_argument_group('what to do (without one of these: launch and watch)').add_mutually_exclusive_group()
  for action, help_ in (('watch', 'go on watching a launch'), ('list', 'list what was made with this script'),
                        ('logs', 'show the end of the log'), ('delete', 'end the job and give the machines back')):
    what.add_argument(f'--{action}', action='store_true', help=help_)
  flags.add_argument('--dry_run', action='store_true', help='print the commands and do nothing')
  flags.add_argument('--name', type=shipping.NAME, help='name of the job and its machines')
  flags.add_argument('--zone', type=shipping.ZONE, help='such as us-east5-b')
  flags.add_argument('--project', type=shipping.PROJECT, help='default: that of gcloud')
  group = flags.add_argument_group('machines')
  group.add_argument('--type', type=shipping.matching(r'v[0-9]+[a-z]*-[0-9]+', 'v5litepod-16'),
                     help='accelerator type, such as v5litepod-16, v5p-128 (64 chips), v6e-16')
  group.add_argument('--slices', type=shipping.count(1), default=1, help='number of slices (default: 1)')
  tier = group.add_mutually_exclusive_group()
  tier.add_argument('--spot', action='store_true', help='cheaper, may be preempted')
  tier.add_argument('--reserved', action='store_true', help='from the reservation of the project')
  group.add_argument('--runtime', type=shipping.WORD, help='runtime version (default: that of the generation)')
  group.add_argument('--network', type=shipping.WORD)
  group.add_argument('--subnetwork', type=shipping.WORD)
  group.add_argument('--internal_ips', action='store_true', help='no external addresses; the network needs Cloud NAT')
  group.add_argument('--service_account', type=shipping.WORD, help='account whose rights to buckets the machines have')
  shipping.add_code_flags(flags)
  flags.add_argument('--python', type=shipping.VERSION, default=shipping.PYTHON,
                     help=f'version on the machines (default: {shipping.PYTHON})')
  group = flags.add_argument_group('watching')
  group.add_argument('--poll', type=seconds, default=30.0, help='seconds between looks (default: 30)')
  group.add_argument('--restarts', type=shipping.count(0), default=10,
                     help='restarts after failures (default: 10); preemptions do not count')
  group.add_argument('--keep', action='store_true', help='keep the machines when the job is complete')
  group.add_argument('--replace', action='store_true', help='end what runs under this name and start anew')
  group.add_argument('--worker', type=shipping.count(0), default=0, help='machine whose log is shown (default: 0)')
  group.add_argument('--lines', type=shipping.count(1), default=100, help='lines of the log (default: 100)')
  return flags


def seconds(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = 0.0
  if not 0 < value < 86_400:
    raise argparse.ArgumentTypeError(f'{text!r} is no number of seconds')
  return value


def pack(flags: argparse.Namespace, command: list[str], folder: pathlib.Path) -> tuple[Job, list[str], str]:
  """Puts the archive together in `folder`, but for the wheel; gives also the command that builds it, and what it is of."""
  source, content = folder / 'source', folder / 'content'
  what = shipping.stage_source(source, command, flags.revision, flags.include)
  shipping.check_extras(source, flags.extras)
  spec = {'command': command, 'env': dict(flags.env), 'extras': flags.extras, 'python': flags.python, 'uv': UV}
  content.mkdir()
  shutil.copyfile(shipping.ROOT / 'launch' / 'worker.py', content / 'worker.py')
  if flags.constraints:
    shipping.write_constraints(content / 'constraints.txt', flags.constraints, flags.python)
  id_ = shipping.digest(source, environment=shipping.digest(content), **spec)
  workdir = shipping.flag_of(command, 'workdir').rstrip('/')
  spec['logs'] = f'{workdir}/launch/{flags.name}' if workdir else ''
  (content / 'job.json').write_text(json.dumps(spec, indent=1))
  # The package itself comes as a wheel; beside it, `import intersyn_jax` would find the folder first.
  shutil.copytree(source, content / 'source', ignore=lambda at, names: [
      n for n in names if pathlib.Path(at) == source and n in shipping.SHIPPED and n != 'configs'])
  wheel = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--disable-pip-version-check', '--no-deps',
           f'--wheel-dir={content}', str(source)]
  return Job(id_, flags.name, folder / f'intersyn-{flags.name}.tar.gz'), wheel, what


def finish(job: Job, wheel: list[str]) -> None:
  """Builds the wheel and the archive."""
  content = job.archive.parent / 'content'
  built = shipping.run(wheel)
  wheels = list(content.glob('*.whl'))
  if built.returncode or len(wheels) != 1:
    raise UserError(f'the wheel was not built: {shipping.reason(built.stderr or built.stdout)}')
  spec = json.loads((content / 'job.json').read_text())
  (content / 'job.json').write_text(json.dumps({**spec, 'wheel': wheels[0].name}, indent=1))
  with tarfile.open(job.archive, 'w:gz') as tar:
    tar.add(content, '.')


def launch(arguments: list[str]) -> int:
  try:
    return _launch(arguments)
  except CloudError as e:
    raise e.mistake() from None


def _launch(arguments: list[str]) -> int:
  own, command = shipping.split(arguments)
  flags = parser().parse_args(own)
  if flags.list:
    return show_list(flags)
  if not flags.name:
    raise UserError('--name is missing: name the job and its machines, e.g. --name=vila-u-warmup')
  if flags.watch or flags.logs or flags.delete:
    if command:
      raise UserError('a command behind -- is for a launch; --watch, --logs and --delete take that of the launch')
    return go_on(flags)
  if not flags.type or not flags.zone:
    raise UserError('--type and --zone are missing: name the machines, e.g. --type=v5litepod-16 --zone=us-west4-a')
  shipping.check_command(command)
  saved = SAVED / flags.name / 'launch.json'
  before = json.loads(saved.read_text()) if saved.exists() else {}
  choices = {field.name: getattr(flags, field.name) for field in dataclasses.fields(Slice) if hasattr(flags, field.name)}
  tpu = Slice(**{k: v for k, v in choices.items() if v is not None}, launched=bool(before))
  with tempfile.TemporaryDirectory(prefix='intersyn-launch-') as folder:
    job, wheel, what = pack(flags, command, pathlib.Path(folder))
    if flags.dry_run:
      return show_launch(tpu, job, wheel, what, command)
    if before.get('job') != job.id and not flags.replace and tpu.state() not in ('', 'SUSPENDED', 'FAILED'):
      raise UserError(f'{flags.name} runs another command or other code; --watch it, end it with --replace, or choose '
                      'another --name')
    say(f'shipping {what} as job {job.id}')
    finish(job, wheel)
    saved.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # environment variables may hold keys
    shutil.copyfile(job.archive, saved.parent / job.archive.name)
    saved.write_text(json.dumps({'job': job.id, 'machines': {**dataclasses.asdict(tpu), 'launched': True},
                                 'command': command, 'ended': ''}, indent=1))
  return go_on(flags)


def go_on(flags: argparse.Namespace) -> int:
  """Watches, shows or ends what was launched under this name."""
  saved = SAVED / flags.name / 'launch.json'
  if not saved.exists():
    if flags.delete and flags.zone:  # launched from elsewhere
      return end(Slice(flags.name, flags.zone, project=flags.project or ''), flags)
    raise UserError(f'{flags.name} was not launched from this checkout; --list shows what there is'
                    + ('; name its --zone to delete it' if flags.delete else ''))
  known = json.loads(saved.read_text())
  tpu = Slice(**known['machines'])
  job = Job(known['job'], flags.name, saved.parent / f'intersyn-{flags.name}.tar.gz')
  if flags.logs:
    return show_logs(tpu, job, flags, known['command'])
  if flags.dry_run:
    shipping.show(tpu.deletion() if flags.delete else tpu.description())
    return 0
  if flags.watch and known['ended']:  # new machines would be asked for, and cost money
    say(f'nothing to watch: {flags.name} {known["ended"]}; launch it again to run it again')
    return 0
  if flags.delete:
    saved.write_text(json.dumps({**known, 'ended': known['ended'] or 'was deleted'}, indent=1))
    return end(tpu, flags)
  Watch(tpu, job, flags.poll, flags.restarts, flags.replace).run()
  saved.write_text(json.dumps({**known, 'ended': 'is complete'}, indent=1))
  say('the job is complete')
  if flags.keep:
    say(f'the machines are kept, and cost money: launch/tpu.py --delete --name={flags.name} gives them back')
    return 0
  return end(tpu, flags)


def end(tpu: Slice, flags: argparse.Namespace) -> int:
  """Gives the machines back."""
  if flags.dry_run:
    shipping.show(tpu.deletion())
  elif tpu.give_back(flags.poll):
    say('the machines are given back')
  else:
    say(f'there are no machines of the name {tpu.name}')
  return 0


def show_launch(tpu: Slice, job: Job, wheel: list[str], what: str, command: list[str]) -> int:
  """What a launch would do, in the order in which it would."""
  print(f'# job {job.id}: {what}; on every machine: {shlex.join(["python", "-m", "intersyn_jax", *command])}')
  node = tpu.nodes({})[0]
  for line in (wheel, tpu.creation(), tpu.description(), tpu.description(node), tpu.calling(node, job.ask('status')),
               tpu.copying(node, job.archive), tpu.calling(node, job.begin())):
    shipping.show(line)
  print('# and when the job is complete:')
  shipping.show(tpu.deletion())
  return 0


def show_list(flags: argparse.Namespace) -> int:
  if not flags.zone:
    raise UserError('--zone is missing: name the zone to look into, e.g. --zone=us-east5-b')
  command = machines.listing(flags.zone, flags.project or '')
  if flags.dry_run:
    shipping.show(command)
    return 0
  for row in [('NAME', 'TYPE', 'SLICES', 'TIER', 'STATE'), *machines.listed(gcloud(command))]:
    print('  '.join(f'{cell:<{width}}' for cell, width in zip(row, (40, 15, 6, 9, 0), strict=True)).rstrip())
  return 0


def show_logs(tpu: Slice, job: Job, flags: argparse.Namespace, command: list[str]) -> int:
  """The log on the machine or, where the machines are gone, the copies in the bucket."""
  node = tpu.nodes({})[0]
  on_machine = tpu.calling(node, job.ask('log', str(flags.lines)), str(flags.worker))
  logs = f'{shipping.flag_of(command, "workdir").rstrip("/")}/launch/{flags.name}'
  in_bucket = ['gcloud', 'storage', 'cat', f'{logs}/*.log', '--quiet']
  if flags.dry_run:
    shipping.show(on_machine)
    shipping.show(in_bucket)
  elif tpu.state() == 'ACTIVE':
    print(gcloud(on_machine), end='')
  else:
    say(f'the machines are not there; these are the last copies, from {logs}')
    print(gcloud(in_bucket), end='')
  return 0


if __name__ == '__main__':
  sys.exit(shipping.main(launch, sys.argv[1:]))
