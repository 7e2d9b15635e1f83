"""launch/slurm.sh with a cluster: what is submitted, one process for each GPU, and how a job comes back after signals."""

import hashlib
import json
import pathlib
import shutil
import subprocess

import pytest

from tests.launch.world import HOSTILE, install

COMMAND = ('--', 'run', '--config=configs/world.py:a')


@pytest.fixture
def cluster(world):
  """A checkout whose environment is complete, as launch/local.sh sees it."""
  install(world.checkout / '.venv' / 'bin', {'python': 'machine'})
  text = (world.checkout / 'setup.cfg').read_bytes() + (world.checkout / 'pyproject.toml').read_bytes()
  (world.checkout / '.venv' / '.installed').write_text(f'{hashlib.sha256(text).hexdigest()} cuda\n')
  return world


def launch(world, *arguments, **environment):
  return world.run('slurm.sh', '--name=vila-u', '--nodes=2', '--gpus=2', *arguments, EXTRA='cuda', **environment)


def log(world):
  return (world.checkout / 'runs/launch/vila-u-77.log').read_text()


def starts(world):
  return [sorted(job['environment']['JOB_PROCID'] for job in world.jobs() if job['start'] == n) for n in range(3)]


def test_every_gpu_gets_a_process_and_the_command_arrives_unharmed(cluster):
  values = [f'--config.field={value}' for value in HOSTILE]
  code, out, err = launch(cluster, '--time=04:00:00', '--slurm=--partition=gpu', '--slurm=--account=a b', *COMMAND,
                          '--workdir=runs/x y', *values)
  assert (code, out) == (0, 'Submitted batch job 77\n'), err
  (submitted,) = cluster.calls('sbatch')
  assert {'--job-name=intersyn-vila-u', '--nodes=2', '--ntasks-per-node=2', '--gpus-per-node=2', '--time=04:00:00',
          '--requeue', '--signal=B:USR1@120', '--partition=gpu', '--account=a b'} < set(submitted['arguments'])
  jobs = cluster.jobs()
  assert sorted((job['environment']['JOB_PROCID'], job['environment']['JOB_LOCALID']) for job in jobs) == [
      ('0', '0'), ('1', '1'), ('2', '0'), ('3', '1')]
  for job in jobs:
    assert job['arguments'] == ['-m', 'intersyn_jax', *COMMAND[1:], '--workdir=runs/x y', *values]
    assert job['folder'] == str(cluster.checkout)
  assert not list(cluster.folder.parent.rglob('HACKED'))
  assert not cluster.calls('scontrol') and json.loads((cluster.folder / 'ended.json').read_text()) == 0


@pytest.mark.parametrize('what', ['USR1', 'TERM'])
def test_a_run_that_is_ended_early_gets_sigterm_and_comes_back(cluster, what):
  cluster.plan(job=['hang', 0], signals=[what])
  code, _, err = launch(cluster, *COMMAND)
  assert code == 0, err
  assert len(cluster.calls('python', 'job stopped')) == 4
  assert starts(cluster) == [['0', '1', '2', '3']] * 2 + [[]]
  assert [call['arguments'] for call in cluster.calls('scontrol')] == [['requeue', '77']]
  assert 'run 1 of job 77 on node[1-2]' in log(cluster) and 'run 2 of job 77' in log(cluster)  # appended


def test_a_cancelled_job_does_not_come_back(cluster):
  cluster.plan(job=['hang'], signals=['scancel'])
  assert launch(cluster, *COMMAND)[0] == 0
  assert len(cluster.calls('python', 'job stopped')) == 4
  assert not cluster.calls('scontrol') and 'Slurm calls it COMPLETING' in log(cluster)


def test_failures_come_back_so_often_and_mistakes_never(cluster):
  cluster.plan(job=[1])
  launch(cluster, '--restarts=1', *COMMAND)
  assert len(cluster.calls('scontrol')) == 1 and [len(s) for s in starts(cluster)] == [4, 4, 0]
  assert json.loads((cluster.folder / 'ended.json').read_text()) == 1
  cluster.plan(job=[2])
  launch(cluster, *COMMAND)
  assert len(cluster.calls('scontrol')) == 1 and json.loads((cluster.folder / 'ended.json').read_text()) == 2


def test_a_revision_is_run_from_a_folder_of_its_own(cluster):
  git = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-c', 'commit.gpgsign=false', '-C', str(cluster.checkout)]
  for command in (['init', '--quiet'], ['add', 'setup.cfg', 'configs', 'launch'], ['commit', '--quiet', '-m', 'a']):
    subprocess.run([*git, *command], check=True)
  cluster.write('configs/world.py', 'changed since\n')
  code, _, err = launch(cluster, '--revision=HEAD', *COMMAND, '--workdir=runs/x')
  assert code == 0, err
  job = cluster.jobs()[0]
  assert 'runs/launch/source-' in job['folder'] and job['arguments'][-1] == f'--workdir={cluster.checkout}/runs/x'
  assert (pathlib.Path(job['folder']) / 'configs/world.py').read_text() == 'x = 1\n'


def test_list_logs_delete_and_dry_runs(cluster):
  code, out, _ = cluster.run('slurm.sh', '--list')
  assert (code, out) == (0, '77 vila-u RUNNING 1:00 4:00:00 2 node[1-2]\n')
  logs = cluster.checkout / 'runs' / 'launch'
  logs.mkdir(parents=True)
  for name in ('vila-u-9', 'vila-u-10', 'vila-u-b-99'):
    (logs / f'{name}.log').write_text(f'first\n{name}\n')
  assert cluster.run('slurm.sh', '--logs', '--name=vila-u', '--lines=1')[1] == 'vila-u-10\n'
  assert cluster.run('slurm.sh', '--delete', '--name=vila-u')[0] == 0
  assert cluster.calls('scancel')[0]['arguments'] == ['--me', '--name=intersyn-vila-u']
  code, out, _ = launch(cluster, '--dry_run', *COMMAND, "--config.a='; x")
  assert code == 0 and out.startswith('sbatch --job-name=intersyn-vila-u') and r'--config.a=\'\;\ x' in out
  assert cluster.run('slurm.sh', '--delete', '--name=vila-u', '--dry_run')[1] == 'scancel --me --name=intersyn-vila-u\n'
  assert not cluster.calls('sbatch') and len(cluster.calls('scancel')) == 1


@pytest.mark.parametrize('arguments, expected', [
    (('--name=a;b', *COMMAND), '--name=a;b is not of the form of'),
    (('--name=a', '--nodes=0', *COMMAND), '--nodes=0 is not of the form of 2'),
    (('--name=a', '--time=$(x)', *COMMAND), '--time=$(x) is not of the form of 04:00:00'),
    (('--name=a', '--ndoes=2', *COMMAND), 'no flag --ndoes=2'),
    (('--name=a',), 'the command is missing'),
    (COMMAND, '--name is missing'),
    (('--name=a', *COMMAND, '--config.a=b\nc'), 'line break'),
    (('--name=a', '--revision=--output=HACKED', *COMMAND), 'is no commit of this checkout'),
    (('--name=b', '--logs'), 'no log of b')])
def test_mistakes_are_one_line(world, arguments, expected):
  assert expected in world.error('slurm.sh', *arguments) and not world.calls('sbatch')


def test_without_slurm_one_line_says_so(world):
  bare = world.folder.parent / 'bare'
  bare.mkdir()
  for tool in ('bash', 'dirname', 'sed'):
    (bare / tool).symlink_to(shutil.which(tool))
  error = world.error('slurm.sh', '--list', PATH=str(bare))
  assert error == 'squeue is not here: run this on a machine of a Slurm cluster'
