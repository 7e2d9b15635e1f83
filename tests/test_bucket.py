"""Work folders in a bucket: what travels, in which order, what comes back, and what is refused."""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax.numpy as jnp
import pytest
from etils import epath
from gcp_storage_emulator.server import create_server

from intersyn_jax import __main__ as cli
from intersyn_jax import bucket
from intersyn_jax.errors import UserError
from intersyn_jax.training import checkpoints, stopping

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import gcs

ADDRESS = f'gs://{gcs.BUCKET}/runs/one'


@pytest.fixture(scope='module')
def only_server():
  """One for the file: gcsfs remembers where it is."""
  with gcs.Server() as server:
    yield server
    assert server.unknown == []


@pytest.fixture
def server(only_server, monkeypatch, tmp_path):
  only_server.objects.clear()
  only_server.log.clear()
  only_server.refuse = lambda method, name: None
  with _here(only_server.environment, monkeypatch, tmp_path):
    yield only_server


@pytest.fixture(params=['own', 'emulator'])
def any_server(request, monkeypatch, tmp_path):
  """The mapping is tried against somebody else's server as well."""
  if request.param == 'own':
    request.getfixturevalue('server')
    yield
    return
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  with create_server('127.0.0.1', port, in_memory=True, default_bucket=gcs.BUCKET), \
      _here({'STORAGE_EMULATOR_HOST': f'http://127.0.0.1:{port}'}, monkeypatch, tmp_path):
    yield


@contextlib.contextmanager
def _here(environment, monkeypatch, tmp_path):
  for name, value in (environment | {'XDG_CACHE_HOME': str(tmp_path / 'cache')}).items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(bucket, '_COPIES', [])
  bucket._client.cache_clear()
  yield
  bucket._client.cache_clear()


def restart(machine_lost: bool = False) -> epath.Path:
  """As the next process finds the folder."""
  for copy in bucket._COPIES:
    copy._lock.close()
  bucket._COPIES.clear()
  if machine_lost:
    shutil.rmtree(os.environ['XDG_CACHE_HOME'])
  return bucket.local_copy(ADDRESS)


def write(folder: epath.Path, name: str, text: str = 'x', age: float = 0.0) -> None:
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  if age:
    os.utime(path, (1e9 - age, 1e9 - age))


def files(folder: epath.Path) -> dict[str, str]:
  return {str(p.relative_to(folder)): p.read_text() for p in pathlib.Path(folder).rglob('*') if p.is_file()}


def test_folders_on_a_disk_are_what_they_were(tmp_path):
  assert bucket.local_copy(tmp_path) == tmp_path and bucket.durable(tmp_path / 'a') == tmp_path / 'a'
  assert bucket.named(f'{tmp_path}') == f'{tmp_path}'


def test_another_machine_finds_what_was_sent(any_server):
  folder = bucket.local_copy(ADDRESS)
  assert folder.name == 'one' and bucket.local_copy(ADDRESS) == folder
  write(folder, 'data/train.bin', 'records')
  write(folder, 'data/summary.json', '{}')
  write(folder, 'data/.train.journal', 'not for others')
  write(folder, 'data/half.part', 'not for others')
  bucket.push()
  write(folder, 'data/later.txt', 'never sent')
  there = {'data/train.bin': 'records', 'data/summary.json': '{}'}
  assert files(restart(machine_lost=True)) == there
  write(bucket.local_copy(ADDRESS), 'data/summary.json', '{"changed": "never sent"}')
  write(bucket.local_copy(ADDRESS), 'data/later.txt', 'never sent')
  assert files(restart()) == there  # the same machine begins with what the bucket has, too


def test_what_was_removed_stays_so(any_server):
  folder = bucket.local_copy(ADDRESS)
  for name in ('evaluate/scores.json', 'evaluate/summary.json', 'data/a'):
    write(folder, name)
  bucket.push()
  (folder / 'evaluate').rmtree()
  bucket.push()
  assert files(restart(machine_lost=True)) == {'data/a': 'x'}


def test_only_differences_travel_in_the_order_of_writing(server):
  folder = bucket.local_copy(ADDRESS)
  for age, name in enumerate(('b', 'judge/summary.json', 'c', 'a'), start=1):
    write(folder, name, age=age)
  bucket.push()
  assert [name for _, name in server.log] == [f'runs/one/{name}' for name in ('a', 'c', 'b', 'judge/summary.json')]
  bucket.push()
  assert len(server.log) == 4
  write(folder, 'b', 'changed')
  (folder / 'judge').rmtree()
  (folder / 'a').unlink()
  bucket.push()
  assert server.log[4:] == [('DELETE', 'runs/one/judge/summary.json'), ('DELETE', 'runs/one/a'), ('PUT', 'runs/one/b')]
  write(folder, 'c', 'changed')
  bucket.push(every=60.0)
  assert len(server.log) == 7
  asked = []
  server.refuse = lambda method, name: asked.append(name)
  restart()
  assert [name for name in asked if name] == ['runs/one/c']  # the one file here that is not as in the bucket


def test_processes_of_a_job_see_what_others_sent(server):
  one = bucket.local_copy(ADDRESS)
  first = bucket._COPIES[0]
  second = bucket._Copy(ADDRESS)
  assert first.folder != second.folder
  write(one, 'a')
  write(epath.Path(second.folder), 'b')
  for copy in (first, second):
    copy.push(0)
  for copy in (first, second):
    copy.pull()
  assert files(one) == files(epath.Path(second.folder)) == {'a': 'x', 'b': 'x'}
  (one / 'b').unlink()
  first.push(0)
  second.pull()
  assert files(epath.Path(second.folder)) == {'a': 'x'}


@pytest.mark.parametrize('name', ['../evil', '../../../evil', '/etc/evil', 'a/../../evil', 'a//b', './a', 'a\nb', '..\\evil',
                                  'a/\x1b[2J'])
def test_hostile_names_are_refused(server, tmp_path, name):
  server.put(f'runs/one/{name}', b'evil')
  server.put('runs/one/good', b'good')
  with pytest.raises(UserError, match='holds an object .* remove it'):
    bucket.local_copy(ADDRESS)
  assert not [path for path in tmp_path.rglob('*') if 'evil' in path.name or (path.is_file() and b'evil' in path.read_bytes())]


def test_a_file_and_a_folder_of_one_name_are_told(server):
  server.put('runs/one/a', b'')
  server.put('runs/one/a/b', b'')
  with pytest.raises(UserError, match=ADDRESS):
    bucket.local_copy(ADDRESS)


@pytest.mark.parametrize('end', [stopping.Stopped, KeyboardInterrupt, UserError('mistake')])
def test_what_is_there_is_sent_when_a_program_ends(server, end):
  folder = bucket.local_copy(ADDRESS)
  with pytest.raises(type(end) if isinstance(end, Exception) else end), bucket.kept():
    write(folder, 'curves')
    raise end
  assert 'runs/one/curves' in server.objects


@pytest.mark.parametrize('address', ['s3://b/runs', 'gs://b', 'gs://b/', 'gs:///x', 'gs://b/../x', 'gs://b/x//y'])
def test_addresses(address, server):
  with pytest.raises(UserError, match='gs://BUCKET/FOLDER'):
    bucket.local_copy(address)


def refusal(capsys, *arguments: str) -> str:
  code = cli.main(['data', '--config=configs/storyworld.py:smoke', *arguments])
  lines = capsys.readouterr().err.strip().splitlines()
  assert code == 2 and len(lines) == 1, lines
  return lines[0]


def test_mistakes_are_one_line(server, monkeypatch, capsys):
  monkeypatch.chdir(pathlib.Path(__file__).parents[1])
  assert 'there is no bucket other' in refusal(capsys, '--workdir=gs://other/runs/one')
  server.refuse = lambda method, name: 403
  assert 'roles/storage.objectUser' in refusal(capsys, f'--workdir={ADDRESS}')
  server.refuse = lambda method, name: 403 if method == 'PUT' else None
  assert 'no right to the bucket' in refusal(capsys, f'--workdir={ADDRESS}')
  server.refuse = lambda method, name: None
  server.put('runs/one/data/config.json', b'{"data": {"seed": 99}}')
  restart(machine_lost=True)
  told = refusal(capsys, f'--workdir={ADDRESS}')
  assert ADDRESS in told and 'cache' not in told
  monkeypatch.setattr(bucket, 'PATIENCE', 1.0)
  monkeypatch.setenv('STORAGE_EMULATOR_HOST', 'http://127.0.0.1:9')
  bucket._client.cache_clear()
  assert 'does not answer' in refusal(capsys, '--workdir=gs://unseen/runs/two')


def test_a_missing_extra_is_named(monkeypatch, server):
  bucket._cloud.cache_clear()
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  with pytest.raises(UserError, match=r"pip install 'intersyn_jax\[gcs\]'"):
    bucket.local_copy(ADDRESS)
  monkeypatch.undo()
  bucket._cloud.cache_clear()


def test_an_outage_is_no_mistake(server, monkeypatch):
  folder = bucket.local_copy(ADDRESS)
  monkeypatch.setattr(bucket, 'PATIENCE', 1.0)
  server.refuse = lambda method, name: 503
  write(folder, 'a')
  with pytest.raises(bucket.Unreachable, match='does not answer'):
    bucket.push()
  server.refuse = lambda method, name: None
  bucket.push()
  assert 'runs/one/a' in server.objects


def state(step: int) -> dict:
  return {'params': {'a': jnp.arange(12.0).reshape(3, 4) * step}, 'step': jnp.int32(step)}


def test_checkpoints_lie_in_the_bucket_alone(server):
  folder = bucket.local_copy(ADDRESS)
  saved = checkpoints.Checkpoints(folder / 'warmup' / 'checkpoints')
  write(folder, 'warmup/metrics.jsonl', '{"step": 1}')
  for step in (1, 2, 3):
    saved.save(state(step), data={'place': step})
  assert files(folder) == {'warmup/metrics.jsonl': '{"step": 1}'}
  changes = [name for method, name in server.log if method == 'PUT']
  assert changes.index('runs/one/warmup/metrics.jsonl') == 0  # the curves before the checkpoint that they reach
  again = restart(machine_lost=True) / 'warmup' / 'checkpoints'
  assert checkpoints.latest_step(again) == 3 and checkpoints.read_meta(again)['data'] == {'place': 3}
  loaded = checkpoints.load_params(again, state(0)['params'])
  assert (loaded['a'] == state(3)['params']['a']).all()
  kept = {name.split('/')[4] for name in server.objects if '/checkpoints/' in name}
  assert kept == {'2', '3', '2.files.json', '3.files.json'}


def test_damaged_and_cut_checkpoints_are_passed_over(server, capsys):
  folder = bucket.local_copy(ADDRESS) / 'warmup' / 'checkpoints'
  saved = checkpoints.Checkpoints(folder)
  for step in (1, 2):
    saved.save(state(step), place=step)
  saved.close()
  name = 'runs/one/warmup/checkpoints/2/meta/metadata'
  server.put(name, server.objects[name].data[:-3])
  saved = checkpoints.Checkpoints(folder)
  assert saved.latest() == 1 and '2.damaged, the run goes on from step 1' in capsys.readouterr().err
  assert not [name for name in server.objects if '/checkpoints/2/' in name]
  saved.save(state(2), place=2)
  saved.close()
  del server.objects['runs/one/warmup/checkpoints/2/commit_success.txt']  # a machine that was lost while it wrote
  assert checkpoints.latest_step(folder) == 1
  saved = checkpoints.Checkpoints(folder)
  assert saved.latest() == 1
  saved.save(state(2), place=2)
  assert saved.latest() == 2 and saved.restore(state(0))[1]['place'] == 2


def test_an_outage_makes_no_checkpoint_a_damaged_one(server, monkeypatch):
  folder = bucket.local_copy(ADDRESS) / 'warmup' / 'checkpoints'
  saved = checkpoints.Checkpoints(folder)
  for step in (1, 2):
    saved.save(state(step))
  before = dict(server.objects)
  monkeypatch.setattr(bucket, 'PATIENCE', 1.0)
  server.refuse = lambda method, name: 503 if method == 'GET' and name and 'metadata' in name else None
  with pytest.raises(bucket.Unreachable):
    checkpoints.Checkpoints(folder)
  assert server.objects == before


def test_a_checkpoint_that_cannot_be_written_is_worth_another_start(server):
  saved = checkpoints.Checkpoints(bucket.local_copy(ADDRESS) / 'warmup' / 'checkpoints')
  saved.save(state(1))
  server.refuse = lambda method, name: 400 if method in ('PUT', 'POST') and name and '/checkpoints/2/' in name else None
  with pytest.raises(bucket.Unreachable, match='checkpoints/2 cannot be written'):
    saved.save(state(2))
  with contextlib.suppress(Exception):
    saved.close()  # waits for what orbax still writes after the first refusal, which would land in the next test's bucket
  server.refuse = lambda method, name: None
  assert checkpoints.latest_step(saved.folder) == 1


def test_the_notes_of_a_copy_may_be_damaged(server):
  write(bucket.local_copy(ADDRESS), 'a', json.dumps([1]))
  bucket.push()
  bucket._COPIES[0]._notes.write_text('{"a": [')
  assert files(restart()) == {'a': '[1]'}


PROCESS = """
import sys
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from intersyn_jax import bucket
from intersyn_jax.stages import settings
settings.start_processes()
from intersyn_jax.stages.common import barrier
from intersyn_jax.training import checkpoints

folder = bucket.local_copy(sys.argv[1])
(folder / 'windows').mkdir(exist_ok=True)
(folder / 'windows' / f'{jax.process_index()}.json').write_text('{}')
barrier('written')
assert sorted(p.name for p in (folder / 'windows').iterdir()) == ['0.json', '1.json']

mesh = jax.make_mesh((2,), ('fsdp',))
place = lambda a, *axes: jax.make_array_from_callback(a.shape, NamedSharding(mesh, PartitionSpec(*axes)), lambda i: a[i])
made = {'params': {'a': place(np.arange(4.0, dtype=np.float32), 'fsdp')}, 'step': place(np.asarray(1, np.int32))}
saved = checkpoints.Checkpoints(folder / 'warmup' / 'checkpoints')
saved.save(made)
saved.close()
found, _ = checkpoints.Checkpoints(folder / 'warmup' / 'checkpoints').restore(made)
(shard,) = found['params']['a'].addressable_shards
assert np.array_equal(shard.data, [2.0 * jax.process_index(), 2.0 * jax.process_index() + 1])
"""


def test_two_processes_share_a_bucket_and_no_disk(server, tmp_path):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  root = pathlib.Path(__file__).parents[1]
  made = [subprocess.Popen(
      [sys.executable, '-c', PROCESS, ADDRESS], cwd=root, stderr=subprocess.PIPE, text=True, env=os.environ | {
          'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '1', 'PYTHONPATH': str(root),
          'XDG_CACHE_HOME': str(tmp_path / f'machine{index}'), 'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
          'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': str(index)}) for index in range(2)]
  said = [process.communicate(timeout=200)[1] for process in made]
  assert [process.returncode for process in made] == [0, 0], said
  assert {'runs/one/windows/0.json', 'runs/one/windows/1.json', 'runs/one/warmup/checkpoints/1.files.json'} <= set(server.objects)
  again = restart() / 'warmup' / 'checkpoints'
  loaded = checkpoints.load_params(again, {'a': jnp.zeros(4)})
  assert loaded['a'].tolist() == [0.0, 1.0, 2.0, 3.0]
