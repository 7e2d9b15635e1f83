#!/usr/bin/env python3
r"""Runs a job on a GKE cluster with TPUs through XPK, in an image of launch/Dockerfile; Kubernetes starts it again.

  launch/gke.py --name=NAME --cluster=CLUSTER --zone=ZONE --project=PROJECT --type=v5litepod-16 \
      --image=REGION-docker.pkg.dev/PROJECT/REPOSITORY/intersyn_jax [FLAGS] -- \
      STAGE --config=FILE.py:ARG --workdir=gs://BUCKET/FOLDER
  launch/gke.py --wait   --name=NAME --cluster=... --zone=... --project=...   waits for the end of a job
  launch/gke.py --logs   --name=NAME ...   the end of the log, from Cloud Logging
  launch/gke.py --delete --name=NAME ...   ends the job
  launch/gke.py --list   --cluster=... ... the jobs of the cluster

An image without a tag is built, pushed and tagged with the digest of what is in it; one with a tag or digest is taken as it
is. docs/launch.md has examples.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import shipping
from shipping import UserError, say

PART = r'[a-z0-9]+([._-]+[a-z0-9]+)*'
IMAGE = shipping.matching(rf'{PART}(:[0-9]+)?(/{PART})+(:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(@sha256:[0-9a-f]{{64}})?',
                          'us-east5-docker.pkg.dev/my-project/images/intersyn_jax')
RESTARTED = '1,3-41,43-126'
"""Exit codes after which the job starts again, besides 42 and 127-255 of XPK itself: all but 0 and a user's mistake, 2."""
GRACE = 120
"""Seconds between SIGTERM and SIGKILL: a checkpoint is written in them."""


def pod_command(command: Sequence[str], env: Sequence[tuple[str, str]]) -> str:
  """The line that runs the job in the container.

  XPK puts it into the manifest as a line of a bash script. `exec`, so that SIGTERM reaches the job and not a shell around
  it. Kubernetes replaces `$(NAME)` and `$$` in commands before any shell sees them; after each `$` the quotes are closed
  and opened again, so that neither occurs.
  """
  words = ['exec', 'env', *(f'{name}={value}' for name, value in env), 'python', '-m', 'intersyn_jax', *command]
  return shlex.join(words).replace('$', "$''")


def where(flags: argparse.Namespace) -> list[str]:
  return [f'--cluster={flags.cluster}', f'--zone={flags.zone}', f'--project={flags.project}']


def creation(flags: argparse.Namespace, image: str, command: Sequence[str]) -> list[str]:
  return ['xpk', 'workload', 'create', f'--workload={flags.name}', *where(flags), f'--tpu-type={flags.type}',
          f'--num-slices={flags.slices}', f'--docker-image={image}', f'--max-restarts={flags.restarts}',
          f'--restart-on-exit-codes={RESTARTED}', f'--priority={flags.priority}',
          f'--termination-grace-period-seconds={GRACE}', *(['--spot'] if flags.spot else []),
          *(f'--storage={name}' for name in flags.storage), f'--command={pod_command(command, flags.env)}']


def listing(flags: argparse.Namespace) -> list[str]:
  return ['xpk', 'workload', 'list', *where(flags), *([f'--filter-by-job={flags.name}'] if flags.name else [])]


def xpk(command: list[str], accept: Sequence[int] = (0,)) -> subprocess.CompletedProcess[str]:
  """Runs xpk.

  Raises:
    UserError: it failed; says why, as far as it told.
  """
  done = shipping.run(command, hint='pip install xpk')
  if done.returncode not in accept:
    told = '\n'.join(line for line in (done.stdout + done.stderr).splitlines()
                     if not re.search(r'XPK failed|returned ERROR|^\[XPK\] (Starting|Task)', line))
    words = ('Forbidden', 'forbidden', 'denied', 'quota')
    lines = [line for line in told.splitlines() if any(word in line for word in words)]
    raise UserError(f'xpk {command[1]} {command[2]}: {shipping.reason(lines[-1] if lines else told)}')
  return done


def docker(*command: str) -> None:
  done = shipping.run(['docker', *command], hint='https://docs.docker.com/engine/install')
  if done.returncode:
    raise UserError(f'docker {command[0]}: {shipping.reason(done.stderr or done.stdout)}')


def parser() -> shipping.Parser:
  flags = shipping.Parser(__doc__)
  what = flags.add_argument_group('what to do (without one of these: launch)').add_mutually_exclusive_group()
  for action, help_ in (('wait', 'wait for the end of a job'), ('list', 'list the jobs of the cluster'),
                        ('logs', 'show the end of the log'), ('delete', 'end the job')):
    what.add_argument(f'--{action}', action='store_true', help=help_)
  flags.add_argument('--dry_run', action='store_true', help='print the commands and do nothing')
  flags.add_argument('--name', type=shipping.NAME, help='name of the job')
  flags.add_argument('--cluster', type=shipping.NAME, help='cluster that was made with xpk')
  flags.add_argument('--zone', type=shipping.ZONE, help='zone of the cluster')
  flags.add_argument('--project', type=shipping.PROJECT, help='project of the cluster')
  group = flags.add_argument_group('machines')
  group.add_argument('--type', type=shipping.matching(r'(v|tpu)[0-9]+[a-z]*-[0-9]+(x[0-9]+)*', 'v5litepod-16'),
                     help='TPU type of xpk, such as v5litepod-16')
  group.add_argument('--slices', type=shipping.count(1), default=1, help='number of slices (default: 1)')
  group.add_argument('--image', type=IMAGE, help='image to build and push, or with a tag or digest one that is there')
  group.add_argument('--spot', action='store_true', help='spot machines, where the cluster provisions them by itself')
  group.add_argument('--storage', action='append', type=shipping.NAME, default=[],
                     help='storage of the cluster (xpk storage attach) to mount; may be repeated')
  group.add_argument('--priority', choices=('very-low', 'low', 'medium', 'high', 'very-high'), default='medium')
  group.add_argument('--restarts', type=shipping.count(0), default=50, help='restarts by Kubernetes (default: 50)')
  shipping.add_code_flags(flags)
  flags.add_argument('--lines', type=shipping.count(1), default=100, help='lines of the log (default: 100)')
  return flags


def launch(arguments: list[str]) -> int:
  own, command = shipping.split(arguments)
  flags = parser().parse_args(own)
  needed = ['cluster', 'zone', 'project'] + ([] if flags.list else ['name'])
  acts = flags.wait or flags.list or flags.logs or flags.delete
  missing = [f'--{name}' for name in needed + ([] if acts else ['type', 'image']) if not getattr(flags, name)]
  if missing:
    raise UserError(f'{", ".join(missing)} must be given; --help has examples')
  if acts:
    if command:
      raise UserError('a command behind -- is for a launch')
    return act(flags)
  shipping.check_command(command, mounted=bool(flags.storage))
  if re.search(r':[^/]+$', flags.image):
    image, build = flags.image, []
    if flags.revision or flags.include or flags.constraints:
      raise UserError(f'--image={flags.image} has a tag and is taken as it is; --revision, --include and --constraints need '
                      'one without')
  else:
    with tempfile.TemporaryDirectory(prefix='intersyn-launch-') as folder:
      image, build, what = prepare(flags, command, pathlib.Path(folder) / 'source')
      if not flags.dry_run:
        create_needs_no_other(flags)
        say(f'building {image} of {what}')
        docker(*build[1:])
        say(f'pushing {image}')
        docker('push', image)
  steps = [listing(flags), creation(flags, image, command)]
  if flags.dry_run:
    for step in ([build, ['docker', 'push', image]] if build else []) + steps:
      shipping.show(step)
    return 0
  if not build:
    create_needs_no_other(flags)
  xpk(steps[1])
  again = shlex.join(['launch/gke.py', f'--name={flags.name}', *where(flags)])
  say(f'{flags.name} is created; {again} --logs (or --wait, --delete) goes on from here')
  return 0


def prepare(flags: argparse.Namespace, command: Sequence[str], source: pathlib.Path) -> tuple[str, list[str], str]:
  """Puts the context of the image together; gives the image with its tag, the command that builds it, and what it is of."""
  what = shipping.stage_source(source, command, flags.revision, flags.include)
  shipping.check_extras(source, flags.extras)
  if flags.constraints:
    shipping.write_constraints(source / 'constraints.txt', flags.constraints, shipping.PYTHON)
  shutil.copyfile(shipping.ROOT / 'launch' / 'Dockerfile', source / 'Dockerfile')
  image = f'{flags.image}:{shipping.digest(source, extras=flags.extras)}'
  # Laptops may have another architecture than the machines.
  build = ['docker', 'build', '--platform=linux/amd64', f'--build-arg=EXTRAS={flags.extras}', f'--tag={image}', str(source)]
  return image, build, what


def create_needs_no_other(flags: argparse.Namespace) -> None:
  """Raises a UserError where a job of this name is there: xpk would ask whether to overwrite it."""
  if any(line.split()[:1] == [flags.name] for line in xpk(listing(flags)).stdout.splitlines()):
    raise UserError(f'{flags.name} is there already; --delete it, or choose another --name')


def act(flags: argparse.Namespace) -> int:
  """Waits for, lists, shows or ends jobs."""
  if flags.list:
    step = listing(flags)
  elif flags.wait:
    step = ['xpk', 'workload', 'list', *where(flags), f'--wait-for-job-completion={flags.name}']
  elif flags.delete:
    step = ['xpk', 'workload', 'delete', f'--workload={flags.name}', *where(flags)]
  else:
    filter_ = ' AND '.join(['resource.type="k8s_container"', f'resource.labels.cluster_name="{flags.cluster}"',
                            f'resource.labels.pod_name:"{flags.name}-slice-job-"'])
    step = ['gcloud', 'logging', 'read', filter_, f'--project={flags.project}', '--order=desc', f'--limit={flags.lines}',
            '--format=value(resource.labels.pod_name,textPayload)', '--quiet']
  if flags.dry_run:
    shipping.show(step)
  elif flags.logs:
    done = shipping.run(step, hint='https://cloud.google.com/sdk/docs/install')
    if done.returncode:
      raise UserError(shipping.reason(done.stderr))
    print('\n'.join(reversed(done.stdout.splitlines())))
  elif flags.wait:
    done = xpk(step, accept=(0, 124, 125))
    if done.returncode:
      how = 'goes on still' if done.returncode == 124 else 'did not complete; --logs shows why'
      raise UserError(f'{flags.name} {how}')
    say(f'{flags.name} is complete')
  else:
    print('\n'.join(line.removeprefix('[XPK] ') for line in xpk(step).stdout.splitlines()))
  return 0


if __name__ == '__main__':
  sys.exit(shipping.main(launch, sys.argv[1:]))
