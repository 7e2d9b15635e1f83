"""Checkpoints: what goes in comes out, on any sharding; damage and mismatch are one clear line."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.training.checkpoints import Checkpoints, latest_step, load_params, read_meta
from intersyn_jax.training.loop import init_state
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer
from intersyn_jax.training.trees import abstract


def make_state(step=3, width=5):
  params = {'layers': {'up_kernel': jax.random.normal(jax.random.key(0), (2, 4, width))},
            'scale': jnp.ones(3, jnp.bfloat16) / 3}
  state = init_state(params, make_optimizer(OptimizerConfig(name='muon'), 10), codes={'count': jnp.arange(3.0)})
  return state | {'step': jnp.asarray(step, jnp.int32)}


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp('written')
  checkpoints = Checkpoints(folder, keep=2, identity='abc')
  for step in (1, 2, 3):
    checkpoints.save(make_state(step), data={'next_index': np.int64(step)}, seed=7, metrics={'loss': 0.25})
  checkpoints.close()
  return folder


@pytest.fixture
def folder(written, tmp_path):
  shutil.copytree(written, tmp_path / 'checkpoints')
  return tmp_path / 'checkpoints'


def test_round_trip(folder):
  checkpoints = Checkpoints(folder, identity='abc')
  assert checkpoints.latest() == latest_step(folder) == 3
  state, meta = checkpoints.restore(abstract(make_state(0)))
  assert_same(state, make_state(3))
  assert (meta['step'], meta['data'], meta['seed'], meta['metrics']) == (3, {'next_index': 3}, 7, {'loss': 0.25})
  assert sorted(p.name for p in folder.iterdir()) == ['2', '2.files.json', '3', '3.files.json']  # keep=2


def test_parameters_alone(folder):
  assert_same(load_params(folder, make_state()['params']), make_state()['params'])
  shutil.rmtree(folder / '3' / 'state')  # inference never reads it
  (folder / '3.files.json').unlink()
  assert_same(load_params(folder, abstract(make_state()['params'])), make_state()['params'])


def files_of(folder):
  return sorted(p for p in (folder / '3').rglob('*') if p.is_file() and p.stat().st_size)


@pytest.mark.parametrize('damage', ['truncate', 'change', 'delete'])
def test_every_damaged_file_is_named_with_the_mend(folder, damage):
  for path in files_of(folder):
    whole = path.read_bytes()
    if damage == 'truncate':
      path.write_bytes(whole[:len(whole) // 2])
    elif damage == 'change':
      path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    else:
      path.unlink()
    with pytest.raises(UserError) as caught:
      load_params(folder, make_state()['params'])
    message = str(caught.value)
    assert str(path) in message and f'delete {folder / "3"}' in message and '\n' not in message
    path.write_bytes(whole)


def test_truncated_data_without_a_listing_is_still_told(folder):
  (folder / '3.files.json').unlink()
  for path in (folder / '3' / 'params').rglob('d/*'):
    path.write_bytes(path.read_bytes()[:10])
  with pytest.raises(UserError, match='cannot be read'):
    load_params(folder, make_state()['params'])


def test_a_listing_that_a_kill_left_out_is_made_when_the_run_goes_on(folder):
  listing = folder / '3.files.json'
  before = listing.read_bytes()
  listing.unlink()
  Checkpoints(folder, identity='abc').restore(make_state(0))
  assert listing.read_bytes() == before


def test_a_damaged_latest_checkpoint_is_set_aside_and_the_one_before_is_used(folder, capsys):
  path = next(p for p in files_of(folder) if 'params' in p.parts)
  path.write_bytes(path.read_bytes()[:5])
  checkpoints = Checkpoints(folder, identity='abc')
  told = capsys.readouterr().err
  assert str(path) in told and '3.damaged' in told and 'goes on from step 2' in told and told.count('\n') == 1
  assert checkpoints.latest() == 2 and (folder / '3.damaged').is_dir()
  state, _ = checkpoints.restore(make_state(0))
  assert_same(state, make_state(2))
  checkpoints.save(make_state(3), seed=7, metrics={})  # the same step again
  assert_same(load_params(folder, make_state()['params']), make_state()['params'])
  Checkpoints(folder)
  assert capsys.readouterr().err == ''


def test_where_all_are_damaged_nothing_is_renamed_and_nothing_starts_afresh(folder):
  for step in ('2', '3'):
    (folder / step / 'meta' / 'metadata').write_text('{')
  checkpoints = Checkpoints(folder, identity='abc')
  assert checkpoints.latest() == 3
  with pytest.raises(UserError, match='truncated or changed'):
    checkpoints.restore(make_state(0))


def test_deleting_the_damaged_step_goes_on_from_the_one_before(folder):
  shutil.rmtree(folder / '3')
  checkpoints = Checkpoints(folder, identity='abc')
  state, meta = checkpoints.restore(make_state(0))
  assert meta['step'] == int(state['step']) == 2
  checkpoints.save(make_state(3), seed=7, metrics={})
  assert_same(load_params(folder, make_state()['params']), make_state()['params'])


def test_other_config_other_model_and_empty_folder_are_told(folder, tmp_path):
  with pytest.raises(UserError, match='written under config abc, this run has xyz'):
    Checkpoints(folder, identity='xyz').restore(make_state())
  with pytest.raises(UserError, match=r"up_kernel is \['float32', 2, 4, 5\] in the checkpoint but \['float32', 2, 4, 6\]"):
    load_params(folder, make_state(width=6)['params'])
  with pytest.raises(UserError, match='params scale is .* but absent in this model'):
    load_params(folder, {'layers': make_state()['params']['layers']})
  with pytest.raises(UserError, match='holds no checkpoint'):
    load_params(tmp_path / 'nothing', make_state()['params'])
  with pytest.raises(UserError, match='holds no checkpoint of step 9'):
    read_meta(folder, 9)


def test_metadata_is_plain_json(folder):
  assert json.loads((folder / '3' / 'meta' / 'metadata').read_text())['step'] == 3
  with pytest.raises(TypeError, match='cannot be kept'):
    Checkpoints(folder).save(make_state(4), data=object())


RESHARD = """
import sys, jax, jax.numpy as jnp, numpy as np
jax.config.update('jax_num_cpu_devices', 4)
from jax.sharding import NamedSharding, PartitionSpec as P, Mesh, AxisType
from intersyn_jax.training.checkpoints import Checkpoints, load_params
from intersyn_jax.training.loop import init_state
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer
mesh = lambda n: Mesh(np.array(jax.devices()[:n]), ('fsdp',), axis_types=(AxisType.Auto,))
def state(n, value):
  s = NamedSharding(mesh(n), P('fsdp'))
  params = {'up_kernel': jax.device_put(value, s), 'bias': jax.device_put(jnp.ones(3), NamedSharding(mesh(n), P()))}
  return init_state(params, make_optimizer(OptimizerConfig(), 10))
value = jnp.arange(64.0).reshape(8, 8)
four = state(4, value)
moments = [x for p, x in jax.tree_util.tree_leaves_with_path(four['opt_state']) if x.shape == (8, 8)]
assert len(moments) == 2 and all(len(m.addressable_shards) == 4 for m in moments)
assert all(m.addressable_shards[0].data.shape == (2, 8) for m in moments)
Checkpoints(sys.argv[1]).save(four)
two, _ = Checkpoints(sys.argv[1]).restore(state(2, jnp.zeros((8, 8))))
assert two['params']['up_kernel'].addressable_shards[0].data.shape == (4, 8)
np.testing.assert_array_equal(two['params']['up_kernel'], value)
print('resharded')
"""


def test_restores_onto_another_number_of_devices(tmp_path):
  done = subprocess.run([sys.executable, '-c', RESHARD, str(tmp_path)], capture_output=True, text=True, timeout=120)
  assert 'resharded' in done.stdout, done.stderr
