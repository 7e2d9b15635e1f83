"""launch/tpu.py on a cloud whose machines come and go: what it creates, what arrives on them, how failures end."""

import json
import shutil

import pytest

from tests.launch.world import HOSTILE, World

MACHINES = ('--name=vila-u', '--zone=us-west4-a', '--type=v5litepod-16', '--poll=0.02')
COMMAND = ('--', 'run', '--config=configs/world.py:a', '--workdir=gs://bucket/runs/x')
WATCH = ('tpu.py', '--watch', '--name=vila-u', '--poll=0.02')
NO_QUOTA = ("ERROR: (gcloud.compute.tpus.queued-resources.create) RESOURCE_EXHAUSTED: Quota limit "
            "'TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone us-west4-a.\n"
            "- '@type': type.googleapis.com/google.rpc.QuotaFailure\n  violations:\n  - subject: project:1037372895180\n"
            "- '@type': type.googleapis.com/google.rpc.ErrorInfo")
DENIED = ("ERROR: (gcloud.compute.tpus.queued-resources.describe) PERMISSION_DENIED: Permission 'tpu.queuedResources.get' "
          "denied on resource 'projects/fake-project/locations/us-west4-a/queuedResources/vila-u' (or it may not exist).")
DOWN = 'ERROR: (gcloud.compute.tpus.queued-resources.describe) UNAVAILABLE: The service is currently unavailable.'
NO_KEY = ('ERROR: (gcloud.compute.tpus.tpu-vm.ssh) SSH Key is not present in the SSH agent. Please run "ssh-add '
          '/home/somebody/.ssh/google_compute_engine" to add it, and try again.')


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """What a launch keeps, of one that the cloud had no machines for: other tests go on from there and build no wheel."""
  world = World(tmp_path_factory.mktemp('saved'))
  world.plan(failures=[world.fail('queued-resources create', NO_QUOTA)])
  world.error('tpu.py', *MACHINES, '--spot', '--restarts=1', *COMMAND)
  return world.checkout / 'runs'


@pytest.fixture
def launched(world, saved):
  """A world in which vila-u was launched and needs machines."""
  shutil.copytree(saved, world.checkout / 'runs')
  return world


def happened(world):
  """The calls that change something, in short."""
  return [c['command'].split()[1] for c in world.calls('gcloud', 'queued-resources')
          if c['command'].split()[1] in ('create', 'delete')]


def test_launch_brings_the_command_unharmed_to_every_machine_and_gives_them_back(world):
  values = [f'--config.field={value}' for value in HOSTILE]
  world.write('pins.txt', 'jax==0.10.2\n')
  code, _, err = world.run('tpu.py', *MACHINES, '--spot', '--project=my-project', '--python=3.11', '--extras=tpu,wandb',
                           '--constraints=pins.txt', f'--env=JOB_KEY={HOSTILE[0]}',
                           '--service_account=a@b.iam.gserviceaccount.com', *COMMAND, *values)
  assert code == 0, err
  jobs = world.jobs()
  assert [job['machine'] for job in jobs] == ['0-vila-u-0', '0-vila-u-1']
  for job in jobs:
    assert job['arguments'] == ['-m', 'intersyn_jax', *COMMAND[1:], *values]
    assert job['environment'] == {'JOB_KEY': HOSTILE[0]}
    assert job['files'] == ['configs/world.py']  # the package itself is installed
  assert not list(world.folder.parent.rglob('HACKED'))
  (creation,) = world.calls('gcloud', 'queued-resources create')
  assert creation['arguments'][4:] == [
      'vila-u', '--accelerator-type=v5litepod-16', '--runtime-version=v2-alpha-tpuv5-lite', '--node-id=vila-u', '--spot',
      '--service-account=a@b.iam.gserviceaccount.com', '--labels=launcher=intersyn-jax', '--async', '--zone=us-west4-a',
      '--project=my-project', '--quiet']
  venv, install = world.calls('uv')[:2]
  assert '--python=3.11' in venv['arguments']
  assert any(a.startswith('--constraints=') for a in install['arguments'])
  assert install['arguments'][-1].startswith('intersyn_jax[tpu,wandb] @ file://')
  assert [c['arguments'][-1].split('/')[-1] for c in world.calls('gcloud', 'storage cp')] == [
      't1v-n-0-vila-u-0.log', 't1v-n-0-vila-u-1.log']
  assert happened(world) == ['create', 'delete'] and not json.loads((world.folder / 'cloud.json').read_text())


def test_dry_run_shows_the_commands_and_does_nothing(world):
  code, out, _ = world.run('tpu.py', *MACHINES, '--reserved', '--dry_run', *COMMAND, "--config.field='; rm -rf /")
  assert code == 0 and not world.calls('gcloud') and not (world.checkout / 'runs').exists()
  lines = [line.split(' ')[:5] for line in out.splitlines() if not line.startswith('#')]
  assert [' '.join(words[2:5]) for words in lines[1:]] == [
      'tpus queued-resources create', 'tpus queued-resources describe', 'tpus tpu-vm describe', 'tpus tpu-vm ssh',
      'tpus tpu-vm scp', 'tpus tpu-vm ssh', 'tpus queued-resources delete']
  assert '--reserved' in out and "'--config.field='\"'\"'; rm -rf /'" in out


def test_preempted_machines_are_replaced_and_the_same_command_goes_on(launched):
  launched.plan(workers=1, events=['preempt'], job=['hang', 0], states=['PROVISIONING', 'ACTIVE'])
  code, _, err = launched.run(*WATCH)
  assert code == 0 and 'the machines were preempted' in err, err
  first, second = launched.jobs()
  assert first['arguments'] == second['arguments'] == ['-m', 'intersyn_jax', *COMMAND[1:]]
  assert (first['machine'], second['machine']) == ('0-vila-u-0', '1-vila-u-0')
  assert happened(launched) == ['create', 'delete', 'create', 'delete']
  code, _, err = launched.run(*WATCH)
  assert code == 0 and 'nothing to watch: vila-u is complete' in err
  assert happened(launched) == ['create', 'delete', 'create', 'delete']  # nothing is made for a job that is complete


@pytest.mark.slow
def test_a_slice_that_is_preempted_alone_takes_the_others_with_it(launched):
  saved = launched.checkout / 'runs/launch/vila-u/launch.json'
  facts = json.loads(saved.read_text())
  facts['machines']['slices'] = 2
  saved.write_text(json.dumps(facts))
  launched.plan(workers=1, events=['preempt node'], job=['hang', 0], states=['ACTIVE'])
  code, _, err = launched.run(*WATCH)
  assert code == 0 and 'a slice is PREEMPTED' in err, err
  assert [job['machine'] for job in launched.jobs()] == ['0-vila-u-0-0', '0-vila-u-1-0', '1-vila-u-0-0', '1-vila-u-1-0']
  creation = launched.calls('gcloud', 'queued-resources create')[0]
  assert {'--node-count=2', '--node-prefix=vila-u'} < set(creation['arguments'])


@pytest.mark.slow
def test_a_lost_worker_is_replaced_with_its_slice(launched):
  launched.plan(workers=2, events=['lose worker'], job=['hang', 0], states=['ACTIVE'])
  code, _, err = launched.run(*WATCH)
  assert code == 0 and 'no answer from the machines' in err and 'a machine was lost' in err, err
  assert happened(launched) == ['create', 'delete', 'create', 'delete']
  assert len(launched.jobs()) == 4


@pytest.mark.slow
def test_machines_that_are_lost_again_and_again_end_the_watch(launched):
  launched.plan(workers=1, events=['lose worker'] * 3, job=['hang'], states=['ACTIVE'])
  assert 'but ssh to them fails' in launched.error(*WATCH, '--restarts=1')
  assert happened(launched) == ['create', 'delete', 'create']


@pytest.mark.slow
@pytest.mark.parametrize('event', ['kill supervisor', 'shut down'])
def test_a_job_that_is_ended_from_outside_starts_again_on_the_same_machines(launched, event):
  launched.plan(workers=1, events=[event], job=['hang', 0], states=['ACTIVE'])
  code, _, err = launched.run(*WATCH)
  assert code == 0 and 'ended from outside' in err, err
  assert [job['machine'] for job in launched.jobs()] == ['0-vila-u-0', '0-vila-u-0']
  assert happened(launched) == ['create', 'delete']


@pytest.mark.slow
def test_a_failure_restarts_all_machines_together_until_there_were_too_many(launched):
  launched.plan(workers=2, job=[{'1': 1}, {'1': 1}], states=['ACTIVE'])
  error = launched.error(*WATCH, '--restarts=1')
  assert error.startswith('the job failed 2 times, at last on t1v-n-0-vila-u-1: RuntimeError: out of memory (code 1)')
  jobs = launched.jobs()
  assert sorted((job['machine'][-1], job['start']) for job in jobs) == [('0', 0), ('0', 1), ('1', 0), ('1', 1)]
  stopped = launched.calls('python', 'job stopped')
  assert [c['machine'] for c in stopped] == ['0-vila-u-0']  # with SIGTERM, before the second start
  assert happened(launched) == ['create']  # somebody may want to look


def test_a_refused_command_is_told_in_the_words_of_the_job_and_not_tried_again(launched):
  launched.plan(workers=1, job=[2], states=['ACTIVE'])
  error = launched.error(*WATCH)
  assert error.startswith('the job: config.grpo.grup_size is no field of the configuration') and '--delete' in error
  assert len(launched.jobs()) == 1 and happened(launched) == ['create']


@pytest.mark.slow
def test_an_environment_that_cannot_be_made_is_told(launched):
  unknown = '  x No solution found when resolving dependencies:\n  error: there is no version of jax==9.9'
  launched.plan(workers=1, states=['ACTIVE'], failures=[launched.fail('uv pip install', unknown, times=9)])
  assert 'uv: error: there is no version of jax==9.9' in launched.error(*WATCH, '--restarts=0')
  assert not launched.jobs()


@pytest.mark.slow
def test_replacing_preempted_machines_waits_for_quota(launched):
  launched.plan(workers=1, events=['preempt'], job=['hang', 0], states=['ACTIVE'],
                failures=[launched.fail('queued-resources create', NO_QUOTA, after=1, times=2)])
  code, _, err = launched.run(*WATCH)
  assert code == 0 and 'no answer from the cloud: ERROR' in err, err
  assert happened(launched) == ['create', 'delete', 'create', 'create', 'create', 'delete']


def test_what_needs_a_person_ends_with_one_line(launched):
  launched.plan(failures=[launched.fail('queued-resources create', NO_QUOTA)])
  error = launched.error(*WATCH)
  assert "Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0" in error
  assert 'IAM & Admin, Quotas' in error
  launched.plan(failures=[launched.fail('queued-resources describe', DENIED)])
  assert "Permission 'tpu.queuedResources.get' denied" in (error := launched.error(*WATCH)) and 'gcloud auth login' in error
  launched.plan(workers=1, states=['ACTIVE'], failures=[launched.fail('tpu-vm ssh', NO_KEY)])
  assert 'ssh-add ~/.ssh/google_compute_engine' in launched.error(*WATCH)
  assert happened(launched) == ['create', 'create']


@pytest.mark.slow
def test_machines_that_were_never_within_reach_are_not_replaced(launched):
  launched.plan(workers=1, states=['ACTIVE'], failures=[launched.fail(
      'tpu-vm ssh', 'ssh: connect to host 10.0.0.1 port 22: Connection timed out', code=255, times=99)])
  assert 'ssh to them fails: ssh: connect to host 10.0.0.1 port 22: Connection timed out' in launched.error(*WATCH)
  assert happened(launched) == ['create']


@pytest.mark.slow
def test_a_cloud_that_is_away_for_a_while_is_waited_for(launched):
  launched.plan(workers=1, states=['ACTIVE'], failures=[launched.fail('queued-resources describe', DOWN, after=1, times=7)])
  code, _, err = launched.run(*WATCH)
  assert code == 0 and 'no answer from the cloud' in err, err
  assert happened(launched) == ['create', 'delete']


@pytest.mark.parametrize('why, mend', [
    ("Quota 'TPUV5sLitepodPerProjectPerZoneForTPUAPI' exhausted. Limit 0 in zone us-west4-a", 'IAM & Admin, Quotas'),
    ('Cloud TPU received a bad request. The requested accelerator configuration could not be found', '--delete it')])
def test_a_request_that_failed_for_good_says_why(launched, why, mend):
  launched.plan(states=['FAILED'], failed=why)
  error = launched.error(*WATCH)
  assert why in error and mend in error and happened(launched) == ['create']


def test_what_others_deleted_is_not_made_again(launched):
  launched.plan(workers=1, events=['delete'], job=['hang'], states=['ACTIVE'])
  assert 'the machines were deleted from outside' in launched.error(*WATCH)
  assert happened(launched) == ['create']


@pytest.mark.slow
def test_replace_starts_the_same_command_again_on_the_same_machines(launched):
  launched.plan(workers=1, job=[2, 0], states=['ACTIVE'])
  launched.error(*WATCH)
  code, _, err = launched.run('tpu.py', *MACHINES, '--spot', '--replace', *COMMAND)
  assert code == 0, err
  assert [job['machine'] for job in launched.jobs()] == ['0-vila-u-0', '0-vila-u-0']
  assert happened(launched) == ['create', 'delete']


def test_a_queued_resource_of_somebody_else_is_left_alone(world):
  told = {'name': 'projects/fake-project/locations/us-west4-a/queuedResources/vila-u',
          'tpu': {'nodeSpec': [{'nodeId': 'vila-u', 'node': {'acceleratorType': 'v5litepod-16', 'labels': {'team': 'b'}}}]}}
  (world.folder / 'cloud.json').write_text(json.dumps(
      {'vila-u': {'states': ['ACTIVE'], 'nodes': {'vila-u': 'READY'}, 'number': 0, 'told': told}}))
  assert 'this script did not make' in world.error('tpu.py', *MACHINES, *COMMAND)
  assert 'this script did not make' in world.error('tpu.py', '--delete', '--name=vila-u', '--zone=us-west4-a')
  code, out, _ = world.run('tpu.py', '--list', '--zone=us-west4-a')
  assert code == 0 and out.splitlines() == ['NAME' + ' ' * 38 + 'TYPE             SLICES  TIER       STATE']
  assert not happened(world)


@pytest.mark.slow
def test_list_logs_delete_and_a_second_launch_under_the_same_name(launched):
  launched.plan(workers=1, states=['ACTIVE'], job=[2, 'hang'])
  launched.error(*WATCH)
  code, out, _ = launched.run('tpu.py', '--list', '--zone=us-west4-a')
  assert code == 0 and out.splitlines()[1].split() == ['vila-u', 'v5litepod-16', '1', 'spot', 'ACTIVE']
  code, out, _ = launched.run('tpu.py', '--logs', '--name=vila-u')
  assert code == 0 and out.splitlines() == [
      'start 0 on vila-u 0 of 0', 'error: config.grpo.grup_size is no field of the configuration']
  assert '--replace' in launched.error('tpu.py', *MACHINES, *COMMAND, '--config.seed=1')
  code, _, err = launched.run('tpu.py', '--delete', '--name=vila-u', '--poll=0.02')
  assert code == 0 and 'given back' in err
  code, _, err = launched.run('tpu.py', '--delete', '--name=vila-u')
  assert code == 0 and 'there are no machines' in err
  code, out, err = launched.run('tpu.py', '--logs', '--name=vila-u')
  assert code == 0 and out == 'a line of a log in the bucket\n' and 'gs://bucket/runs/x/launch/vila-u' in err
  assert 'nothing to watch: vila-u was deleted' in launched.run(*WATCH)[2]


def test_list_and_delete_of_what_was_launched_from_elsewhere(world):
  told = {'name': 'projects/fake-project/locations/us-west4-a/queuedResources/vila-u', 'spot': {},
          'tpu': {'nodeSpec': [{'nodeId': 'vila-u', 'node': {'acceleratorType': 'v5litepod-16',
                                                             'labels': {'launcher': 'intersyn-jax'}}}]}}
  (world.folder / 'cloud.json').write_text(json.dumps(
      {'vila-u': {'states': ['SUSPENDED'], 'nodes': {'vila-u': 'READY'}, 'number': 0, 'told': told}}))
  code, out, _ = world.run('tpu.py', '--list', '--zone=us-west4-a')
  assert code == 0 and out.splitlines()[1].split() == ['vila-u', 'v5litepod-16', '1', 'spot', 'SUSPENDED']
  code, _, err = world.run('tpu.py', '--delete', '--name=vila-u', '--zone=us-west4-a', '--poll=0.02')
  assert code == 0 and 'given back' in err and happened(world) == ['delete']


def test_mistakes_are_told_before_anything_is_asked_of_the_cloud(world):
  launch = [*MACHINES, *COMMAND]
  commands = {
      'of the form of vila-u-warmup': ['--name=a;b', *launch[1:]],
      'of the form of us-east5-b': ['--name=a', '--zone=$(x)', *launch[2:]],
      'of the form of v5litepod-16': [*launch[:2], '--type=v5litepod', *COMMAND],
      'a number of seconds': [*launch[:3], '--poll=0', *COMMAND],
      'unrecognized arguments: --nmae=x': ['--nmae=x', *launch],
      'no extra of setup.cfg; it has tpu, wandb': ['--extras=gpu', *launch],
      'not of the form of gs://BUCKET/FOLDER': [*launch[:-1], '--workdir=runs/x'],
      'the command is missing': list(MACHINES),
      '--config is missing behind --': [*MACHINES, '--', 'run', '--workdir=gs://bucket/x'],
      'no file configs/wrold.py in the checkout': [*MACHINES, '--', 'run', '--config=configs/wrold.py', COMMAND[-1]],
      'does not lie inside the checkout': [*MACHINES, '--', 'run', '--config=../c.py', '--workdir=gs://bucket/x'],
      "the character '\\n'": [*launch, '--config.a=b\n--privileged'],
      "--env=A holds the character '\\x1b'": ['--env=A=\x1b[31m', *launch],
      'not of the form of NAME=VALUE': ['--env=A-B=c', *launch],
      'such file; name one': ['--constraints=pins.txt', *launch],
      'not allowed with argument': ['--spot', '--reserved', *launch],
      'is no commit of this checkout': ['--revision=--output=HACKED', *launch],
      'was not launched from this checkout': ['--watch', '--name=vila-u'],
      '--zone is missing': ['--list'],
  }
  for expected, error in zip(commands, world.errors('tpu', *commands.values()), strict=True):
    assert expected in error or expected.removeprefix('a ') in error, error
  assert not world.calls('gcloud')


def test_without_gcloud_one_line_says_where_it_is_from(world):
  (world.folder.parent / 'bin' / 'gcloud').unlink()
  assert world.error('tpu.py', *MACHINES, *COMMAND, PATH=str(world.folder.parent / 'bin')) == (
      'gcloud is not installed, or not on the path: https://cloud.google.com/sdk/docs/install')
