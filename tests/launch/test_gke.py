"""launch/gke.py with a cluster: the image that is built, the command that arrives in the container, what goes wrong."""

import json
import re

from tests.launch.world import HOSTILE, ROOT

CLUSTER = ('--cluster=my-cluster', '--zone=us-east5-b', '--project=my-project')
IMAGE = 'us-docker.pkg.dev/my-project/images/intersyn_jax'
LAUNCH = ('--name=vila-u', *CLUSTER, '--type=v5litepod-16')
COMMAND = ('--', 'run', '--config=configs/world.py:a', '--workdir=gs://bucket/runs/x')
FORBIDDEN = ('Error from server (Forbidden): error when creating "/tmp/x": jobsets.jobset.x-k8s.io is forbidden: '
             'User "me" cannot create resource "jobsets"\n'
             '[XPK] Create Workload request returned ERROR 1\n[XPK] XPK failed, error code 1')


def option(call, flag):
  return next((a.split('=', 1)[1] for a in call['arguments'] if a.startswith(f'{flag}=')), None)


def test_launch_builds_an_image_of_the_checkout_and_creates_a_workload_of_it(world):
  world.write('mine/config.py', 'x = 2\n')
  world.write('mine/module.py', 'y = 3\n')
  world.write('pins.txt', 'jax==0.12.0\n')
  code, _, err = world.run('gke.py', *LAUNCH, f'--image={IMAGE}', '--slices=2', '--priority=high', '--constraints=pins.txt',
                           '--', 'run', '--config=mine/config.py:a', '--workdir=gs://bucket/runs/x')
  assert code == 0, err
  build, push = world.calls('docker')
  image = option(build, '--tag')
  assert re.fullmatch(rf'{re.escape(IMAGE)}:[0-9a-f]{{12}}', image) and push['arguments'] == ['push', image]
  assert {'Dockerfile', 'setup.cfg', 'intersyn_jax/__init__.py', 'configs/world.py', 'mine/config.py',
          'mine/module.py'} < set(build['files'])
  assert build['files']['constraints.txt'] == 'jax==0.12.0\n'
  assert not {'pins.txt', 'launch/gke.py'} & set(build['files'])
  listed, created = world.calls('xpk')
  assert listed['command'] == 'workload list'
  assert [option(created, f) for f in ('--docker-image', '--num-slices', '--tpu-type', '--priority', '--max-restarts')] == [
      image, '2', 'v5litepod-16', 'high', '50']
  # All codes but 0 and 2 start it again, with those that XPK restarts by itself: 42 and 127-255.
  ranges = [part.partition('-') for part in option(created, '--restart-on-exit-codes').split(',')]
  codes = {c for first, _, last in ranges for c in range(int(first), int(last or first) + 1)} | {42} | set(range(127, 256))
  assert codes == set(range(256)) - {0, 2}


def test_the_command_arrives_in_the_container_unharmed_through_manifest_and_shell(world):
  values = [f'--config.field={value}' for value in (*HOSTILE, '$(JOBSET_NAME)')]
  code, _, err = world.run('gke.py', *LAUNCH, f'--image={IMAGE}:tag', f'--env=JOB_KEY={HOSTILE[7]}', *COMMAND, *values)
  assert code == 0, err
  (job,) = world.jobs()
  assert job['arguments'] == ['-m', 'intersyn_jax', *COMMAND[1:], *values]
  assert job['environment'] == {'JOB_KEY': HOSTILE[7]}
  assert not list(world.folder.parent.rglob('HACKED')) and not world.calls('docker')


def test_sigterm_of_kubernetes_reaches_the_job(world):
  world.plan(job=['hang'])
  code, _, err = world.run('gke.py', *LAUNCH, f'--image={IMAGE}:tag', *COMMAND)
  assert code == 0, err
  assert world.calls('python', 'job stopped') and json.loads((world.folder / 'pod.json').read_text()) == 143


def test_what_xpk_and_docker_refuse_is_one_line(world):
  world.plan(failures=[world.fail('workload create', FORBIDDEN)])
  assert 'User "me" cannot create resource "jobsets"' in world.error('gke.py', *LAUNCH, f'--image={IMAGE}:tag', *COMMAND)
  denied = 'denied: Permission "artifactregistry.repositories.uploadArtifacts" denied'
  world.plan(failures=[world.fail('docker push', denied)])
  assert world.error('gke.py', *LAUNCH, f'--image={IMAGE}', *COMMAND) == f'docker push: {denied}'
  assert len(world.calls('xpk', 'workload create')) == 1


def test_wait_list_logs_delete_and_a_second_job_of_the_name(world):
  launch = ('gke.py', *LAUNCH, f'--image={IMAGE}:tag', *COMMAND)
  assert world.run(*launch)[0] == 0
  assert world.error(*launch) == 'vila-u is there already; --delete it, or choose another --name'
  assert len(world.calls('xpk', 'workload create')) == 1
  code, out, _ = world.run('gke.py', '--list', *CLUSTER)
  assert code == 0 and any(line.startswith('vila-u ') for line in out.splitlines())
  code, out, _ = world.run('gke.py', '--logs', '--name=vila-u', *CLUSTER)
  assert code == 0 and [line.split('\t')[1] for line in out.splitlines()] == ['first line', 'second line']
  assert 'resource.labels.pod_name:"vila-u-slice-job-"' in world.calls('gcloud')[0]['arguments'][2]
  assert world.run('gke.py', '--wait', '--name=vila-u', *CLUSTER)[0] == 0
  world.plan(waited=125)
  assert world.error('gke.py', '--wait', '--name=vila-u', *CLUSTER) == 'vila-u did not complete; --logs shows why'
  assert world.run('gke.py', '--delete', '--name=vila-u', *CLUSTER)[0] == 0
  assert 'not found' in world.error('gke.py', '--delete', '--name=vila-u', *CLUSTER)


def test_dry_run_shows_the_commands_and_does_nothing(world):
  code, out, _ = world.run('gke.py', *LAUNCH, f'--image={IMAGE}', '--storage=data', '--dry_run', '--', 'run',
                           '--config=configs/world.py', '--workdir=/data/runs')
  assert code == 0 and [' '.join(line.split()[:2]) for line in out.splitlines()] == [
      'docker build', 'docker push', 'xpk workload', 'xpk workload']
  assert '--storage=data' in out and not world.calls('xpk') and not world.calls('docker')


def test_mistakes_are_told_before_anything_is_built(world):
  commands = {
      '--cluster, --type, --image must be given': ['--name=a', *CLUSTER[1:], *COMMAND],
      'of the form of us-east5-docker.pkg.dev': [*LAUNCH, '--image=a b;c', *COMMAND],
      'invalid choice': [*LAUNCH, f'--image={IMAGE}', '--priority=urgent', *COMMAND],
      'a tag and is taken as it is': [*LAUNCH, f'--image={IMAGE}:tag', '--revision=HEAD', *COMMAND],
      'not of the form of gs://BUCKET/FOLDER': [*LAUNCH, f'--image={IMAGE}', *COMMAND[:-1], '--workdir=/data/runs'],
      "the character '\\u2028'": [*LAUNCH, f'--image={IMAGE}', *COMMAND, '--config.a=b\u2028c'],
      'a command behind -- is for a launch': ['--list', *CLUSTER, *COMMAND],
  }
  for expected, error in zip(commands, world.errors('gke', *commands.values()), strict=True):
    assert expected in error, error
  assert not world.calls('xpk') and not world.calls('docker')


def test_the_dockerfile_takes_only_what_is_shipped_and_pins_its_base():
  text = (ROOT / 'launch' / 'Dockerfile').read_text()
  assert re.search(r'^FROM python:3\.12-slim@sha256:[0-9a-f]{64}$', text, re.MULTILINE)
  copied = {source for line in re.findall(r'^COPY (.*) \S+$', text, re.MULTILINE) for source in line.split()} - {'.'}
  copied -= {'constraints.tx[t]'}
  assert copied == {'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE', 'intersyn_jax/__init__.py'}
  assert all((ROOT / source).is_file() for source in copied)
  taken = (ROOT / 'launch' / 'Dockerfile.dockerignore').read_text().splitlines()
  shipping = (ROOT / 'launch' / 'shipping.py').read_text()
  shipped = re.findall(r"'([^']+)'", re.search(r'^SHIPPED = \((.*)\)$', shipping, re.MULTILINE)[1])
  assert [line[1:] for line in taken if line.startswith('!')] == shipped
