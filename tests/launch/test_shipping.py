"""launch/shipping.py: which files travel, which versions are pinned, how arguments are quoted; and what a launcher needs."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from tests.launch.world import HOSTILE


@pytest.fixture
def shipping(world):
  """The module as it lies in the made-up checkout."""
  spec = importlib.util.spec_from_file_location('shipping', world.checkout / 'launch' / 'shipping.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def files(folder: pathlib.Path) -> set[str]:
  return {str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file()}


SHIPPED = {'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE', 'intersyn_jax/__init__.py', 'intersyn_jax/backend.py',
           'configs/world.py'}


def test_the_checkout_travels_without_what_the_job_does_not_need(world, shipping, tmp_path):
  for name in ('intersyn_jax/__pycache__/a.pyc', 'runs/tiny/huge.bin', '.venv/bin/python', 'questions/a.txt',
               'own/config.py', 'own/module.py', 'own/data.bin'):
    world.write(name, 'x')
  command = ['run', '--config=own/config.py:big', '--workdir=gs://bucket/x']
  assert shipping.stage_source(tmp_path / 'a', command, '', ['questions']) == 'the checkout as it is now'
  assert files(tmp_path / 'a') == SHIPPED | {'own/config.py', 'own/module.py', 'questions/a.txt'}
  assert shipping.stage_source(tmp_path / 'b', ['doctor'], '', []) and files(tmp_path / 'b') == SHIPPED


def test_a_revision_travels_as_it_was(world, shipping, tmp_path):
  git = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-c', 'commit.gpgsign=false', '-C', str(world.checkout)]
  world.write('own/config.py', 'old\n')
  for command in (['init', '--quiet'], ['add', '.'], ['commit', '--quiet', '-m', 'a'], ['tag', 'v1']):
    subprocess.run([*git, *command], check=True)
  world.write('own/config.py', 'new\n')
  world.write('configs/later.py', 'x')
  command = ['run', '--config', 'own/config.py']
  what = shipping.stage_source(tmp_path / 'a', command, 'v1', [])
  commit = subprocess.run([*git, 'rev-parse', 'v1'], capture_output=True, text=True, check=True).stdout.strip()
  assert what == f'revision {commit[:12]}' and files(tmp_path / 'a') == SHIPPED | {'own/config.py'}
  assert (tmp_path / 'a' / 'own/config.py').read_text() == 'old\n'
  with pytest.raises(shipping.UserError, match='no file configs/later.py in revision'):
    shipping.stage_source(tmp_path / 'b', ['run', '--config=configs/later.py'], 'v1', [])
  with pytest.raises(shipping.UserError, match='--revision=v1: .*pathspec'):
    shipping.stage_source(tmp_path / 'c', ['doctor'], 'v1', ['nothing'])


def test_the_name_of_a_job_is_that_of_its_files_and_its_command(shipping, tmp_path):
  for folder in ('a', 'b'):
    (tmp_path / folder / 'x').mkdir(parents=True)
    (tmp_path / folder / 'x' / 'y').write_text('1')
  first = shipping.digest(tmp_path / 'a', command=['run'])
  assert first == shipping.digest(tmp_path / 'b', command=['run'])
  assert first != shipping.digest(tmp_path / 'b', command=['run', '--config.a=1'])
  (tmp_path / 'b' / 'x' / 'y').rename(tmp_path / 'b' / 'y')
  assert first != shipping.digest(tmp_path / 'b', command=['run'])


def test_pins_of_this_python_are_exact_and_hold_no_path(shipping, tmp_path):
  mine = f'{sys.version_info[0]}.{sys.version_info[1]}'
  shipping.write_constraints(tmp_path / 'pins', 'local', mine)
  lines = (tmp_path / 'pins').read_text().splitlines()
  import jax
  assert f'jax=={jax.__version__}' in lines and not any(line.startswith('intersyn') for line in lines)
  assert all(line.count('==') == 1 and '/' not in line and ' ' not in line for line in lines)
  with pytest.raises(shipping.UserError, match=f'name --python={mine}'):
    shipping.write_constraints(tmp_path / 'pins', 'local', '3.9')


def test_a_shell_on_the_other_side_gets_every_argument_as_it_is(shipping, tmp_path_factory):
  folder = tmp_path_factory.mktemp('other')
  printing = [sys.executable, '-c', 'import sys; print(ascii(sys.argv[1:]))']
  line = shipping.remote([*printing, *HOSTILE], [*printing, 'b'])
  done = subprocess.run(['bash', '-c', line], capture_output=True, text=True, check=True, cwd=folder)
  assert done.stdout.splitlines() == [ascii(list(HOSTILE)), "['b']"]
  assert not os.listdir(folder)
  assert subprocess.run(['bash', '-c', shipping.remote(['false'], ['touch', 'x'])], cwd=folder).returncode == 1
  assert not os.listdir(folder)


def test_reasons_are_the_line_that_matters(shipping):
  assert shipping.reason('Waiting...\nERROR: (gcloud.x) QUOTA: no\n- errorInfo: x\n') == 'ERROR: (gcloud.x) QUOTA: no'
  assert shipping.reason('a\nsome error here\nb') == 'some error here'
  assert shipping.reason('a\n\nb\n') == 'b' and shipping.reason(' ') == 'it said nothing'


def test_the_launchers_need_a_bare_python_and_nothing_else(world):
  code = 'import tpu, gke, sys; sys.exit(bool({"jax", "numpy", "absl", "ml_collections"} & set(sys.modules)))'
  done = subprocess.run([os.path.realpath(sys.executable), '-SEc', f'import sys; sys.path.insert(0, "."); {code}'],
                        cwd=world.checkout / 'launch', env={'PATH': ''}, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
