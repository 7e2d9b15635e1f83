"""Errors of the machine become one line with the mend; what was written before them stays whole."""

import pathlib
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.stages.advice import advice, advised
from intersyn_jax.training.checkpoints import Checkpoints
from intersyn_jax.training.loop import Indexed, fit, init_state, make_step
from intersyn_jax.training.metrics import replace_text
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer

MIB = 2**20


def mount(folder: pathlib.Path, *options: str) -> bool:
  folder.mkdir(exist_ok=True)
  return subprocess.run(['mount', '-t', 'tmpfs', *options, 'none', folder], capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path):
  """A file system of 3 MiB."""
  folder = tmp_path / 'disk'
  if not mount(folder, '-o', f'size={3 * MIB}'):
    pytest.skip('this user may not mount file systems')
  yield folder
  subprocess.run(['umount', '-l', folder], check=True)


def train(folder, steps):
  """Half a megabyte of noise and its moments: 1.5 MB a checkpoint, hardly compressible."""
  params = {'head': jax.random.normal(jax.random.key(0), (256, 512))}
  optimizer = make_optimizer(OptimizerConfig(), 100)
  loss = lambda params, batch, key: {'loss': (jnp.sum((batch @ params['head']) ** 2), jnp.float32(1))}
  return fit(make_step(loss, optimizer), init_state(params, optimizer),
             Indexed(lambda i: np.random.default_rng(i).normal(size=(2, 256)).astype(np.float32)), steps=steps, seed=0,
             checkpoints=Checkpoints(folder, keep=1), metrics_every=1, save_every=2)[0]


def test_a_full_disk_is_told_the_checkpoint_before_stays_and_the_run_goes_on(disk, tmp_path):
  (disk / 'other').write_bytes(bytes(MIB // 2))
  with pytest.raises(UserError, match='the disk is full: free some space'), advised('warmup'):
    train(disk / 'checkpoints', 10)
  kept = Checkpoints(disk / 'checkpoints').latest()
  assert kept == 2
  # It stays full: the same again, and nothing gets worse.
  with pytest.raises(UserError, match='the disk is full'), advised('warmup'):
    train(disk / 'checkpoints', 10)
  subprocess.run(['mount', '-o', f'remount,size={64 * MIB}', disk], check=True)
  state, whole = train(disk / 'checkpoints', 10), train(tmp_path / 'whole', 10)
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
    np.testing.assert_array_equal(a, b)


def test_small_files_are_whole_or_as_before_on_a_full_disk(disk):
  replace_text(disk / 'summary.json', 'old')
  with pytest.raises(UserError, match='the disk is full'), advised('report'):
    replace_text(disk / 'summary.json', 'x' * 8 * MIB)
  assert [(path.name, path.read_text()) for path in disk.iterdir()] == [('summary.json', 'old')]


def test_a_disk_that_can_only_be_read_is_told(disk):
  train(disk / 'checkpoints', 2)
  subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)
  with pytest.raises(UserError, match='can only be read: make it writable, or name another --workdir'), advised('warmup'):
    train(disk / 'checkpoints', 4)
  subprocess.run(['mount', '-o', 'remount,rw', disk], check=True)
  assert Checkpoints(disk / 'checkpoints').latest() == 2


@pytest.mark.parametrize('stage, field', [('warmup', 'warmup.micro_batches'), ('grpo', 'grpo.micro_batches'),
                                          ('evaluate', 'decode.rows')])
def test_memory_that_is_not_there_names_the_fields_to_lower(stage, field):
  with pytest.raises(UserError, match='needs more memory than there is') as caught, advised(stage):
    jnp.zeros(1 << 50).block_until_ready()
  assert field in str(caught.value) and 'RESOURCE_EXHAUSTED' in str(caught.value) and '\n' not in str(caught.value)


def test_what_caused_an_error_counts_and_bugs_pass():
  with pytest.raises(UserError, match='disk is full'), advised('data'):
    try:
      raise OSError(28, 'No space left on device', 'shard.part')
    except OSError as error:
      raise RuntimeError('the writer broke') from error
  with pytest.raises(KeyError), advised('data'):
    raise KeyError('a bug')
  with pytest.raises(UserError, match='^mine$'), advised('data'):
    raise UserError('mine')
  assert advice(FileNotFoundError(2, 'No such file'), 'data') is None
