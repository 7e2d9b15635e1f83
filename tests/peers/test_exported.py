"""Folders that transformers itself wrote are converted and exported, and transformers loads them again, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from intersyn_jax import __main__ as cli
from intersyn_jax.models.families import table, weights
from intersyn_jax.models.families.entries import prefixed
from intersyn_jax.models.families.folder import Part, written
from intersyn_jax.training import trees
from tests.families import tiny_tokenizers
from tests.peers import families_lm

CONFIGS = {'chameleon': 'anole', 'emu3': 'emu3', 'janus': 'janus_pro', 'liquid': 'liquid'}


def original_codec(root, family) -> None:
  """A `vqgan.safetensors` as Meta's file has it, for the families whose folders hold no decoder of pictures."""
  codec = table.FAMILIES[family].codec(table.FAMILIES[family].sizes['tiny'])
  part = Part(trees.flat(codec.definition.shapes), prefixed(codec.entries))
  rng = np.random.default_rng(0)
  specs = {name: weights.Spec('F32', shape) for name, shape in part.theirs().items()}
  ours = (rng.standard_normal(part.shapes[path].shape).astype(np.float32) for entry in part.entries for path in entry.ours)
  weights.write_tensors(root, specs, written(part.entries, ours, specs), stem='vqgan')


@pytest.mark.parametrize('family', CONFIGS)
def test_transformers_loads_what_is_exported(tmp_path, family):
  hf = dict(table.FAMILIES[family].sizes['tiny'])
  if family in ('chameleon', 'emu3'):  # their classes want the names of the image tokens
    hf['vocabulary_map'] = tiny_tokenizers.names(family, hf)
  torch.manual_seed(0)
  model = families_lm.built(family, hf).float()
  for tensor in model.state_dict().values():  # norms and biases too
    if tensor.is_floating_point():
      tensor.copy_(torch.randn_like(tensor))
  down, again = tmp_path / 'down', tmp_path / 'again'
  model.save_pretrained(down, max_shard_size='100KB')
  tiny_tokenizers.write(family, down, hf)
  if family in ('chameleon', 'liquid'):
    original_codec(down, family)
  flags = [f'--config=configs/{CONFIGS[family]}.py:tiny', f'--workdir={tmp_path / "work"}']
  assert cli.main(['convert', *flags, f'--from={down}']) == 0
  assert cli.main(['export', *flags, f'--out={again}']) == 0
  theirs = getattr(transformers, families_lm.CLASSES[family][0]).from_pretrained(again, dtype=torch.float32)
  before, after = model.state_dict(), theirs.state_dict()
  assert before.keys() == after.keys()
  differ = [name for name in before if not torch.equal(before[name], after[name])]
  assert not differ
