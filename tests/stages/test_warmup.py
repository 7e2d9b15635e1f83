"""Supervised training of a policy as the stages call it: the mix, LoRA, what is kept, and going on after a cut."""

import pathlib
import shutil
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from intersyn_jax.models import lora, unified
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.stages import warmup
from intersyn_jax.stages.common import Run
from intersyn_jax.training import checkpoints
from intersyn_jax.training.trees import flat
from tests import small_model as small

WRITTEN = small.plain()
BLOCK = WRITTEN.block
MODEL = unified.ModelConfig(TrunkConfig(16, 2, 2, 2, 8, 16), WRITTEN.tokenizer.size, BLOCK.places, 1, BLOCK.codebook)


def parts():
  """What `train` asks of the parts of a run."""
  split = {'interleaved': [small.conversation(WRITTEN, s) for s in range(6)], 'understanding': []}
  return types.SimpleNamespace(mesh=small.one_device(), model_config=MODEL, layout=WRITTEN, conversations=split.__getitem__)


def policy():
  rng, definition = np.random.default_rng(0), unified.define(MODEL)
  params = jax.tree.map(lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype), definition.shapes)
  return jax.device_put(params, definition.shardings(small.one_device()))


def run_of(workdir: pathlib.Path) -> Run:
  section = dict(
      mix=dict(interleaved=0.7, understanding=0.3), steps=4, rows=2, row_length=64, micro_batches=2, null_prompt_rate=0.0,
      question_weight=0.0, optimizer=dict(name='adamw', learning_rate=1e-2, precision='lean'), checkpoint_every=2, log_every=1,
      log_prob_chunk=32, lora_rank=2, lora_alpha=8.0)
  return Run(ml_collections.ConfigDict(dict(seed=0, finetune=section)).lock(), workdir)


def train(workdir: pathlib.Path) -> dict[str, float]:
  run = run_of(workdir)
  return warmup.train(run, parts(), run.config.finetune, 'finetune', run.directory('finetune'), policy())


def stored(folder: pathlib.Path, step: int | None = None) -> dict[str, np.ndarray]:
  return dict(checkpoints.read_params(folder, checkpoints.param_shapes(folder, step), step))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  return workdir / 'finetune', train(workdir)


def test_lora_keeps_a_plain_policy_and_adapters_to_go_on_with(trained):
  folder, last = trained
  kept, before = stored(folder / 'checkpoints'), flat(policy())
  assert kept.keys() == before.keys() and {a.dtype for a in kept.values()} == {np.dtype('float32')}
  changed = {path for path in kept if not np.array_equal(kept[path], before[path])}
  assert changed == {path for path in kept if path.startswith('backbone/trunk/layers/') and path.endswith('_kernel')}
  factors = stored(folder / 'resume')
  assert all(map(lora.is_factor, factors)) and {str(a.dtype) for a in factors.values()} == {'bfloat16'}
  layers = 'backbone/trunk/layers'
  update = factors[f'{layers}/up_lora_in'].astype(np.float32) @ factors[f'{layers}/up_lora_out'].astype(np.float32)
  np.testing.assert_allclose(kept[f'{layers}/up_kernel'] - before[f'{layers}/up_kernel'], 4 * update, atol=1e-5)
  assert np.isfinite(last['loss']) and last['documents'] == 6, 'the empty split is left out'


def test_a_run_that_was_cut_off_ends_with_the_same_bits(trained, tmp_path):
  folder, last = trained
  shutil.copytree(folder, tmp_path / 'finetune')
  for step in ('4', '4.files.json'):
    path = tmp_path / 'finetune' / 'resume' / step
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  shutil.rmtree(tmp_path / 'finetune' / 'checkpoints')
  assert train(tmp_path) == last
  for name in ('resume', 'checkpoints'):
    whole, again = stored(folder / name), stored(tmp_path / 'finetune' / name)
    assert whole.keys() == again.keys()
    for path, value in whole.items():
      np.testing.assert_array_equal(again[path], value, err_msg=path)
