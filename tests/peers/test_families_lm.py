"""Every family's language side gives the logits of other implementations, from the checkpoint's own tensors (issue 4)."""

import json
import math

import numpy as np
import pytest
import torch

from intersyn_jax.models import unified
from intersyn_jax.models.families import chameleon, emu3, janus, liquid
from intersyn_jax.training import trees
from tests.models import tiny_lm
from tests.peers import families_lm


@pytest.mark.parametrize('case', tiny_lm.CASES)
def test_logits(case):
  theirs = families_lm.outputs(case)
  ours, _ = tiny_lm.outputs(case, tiny_lm.tensors(case))
  for name, found, wanted in zip(ours._fields, ours, theirs, strict=True):
    assert found.shape == wanted.shape, name
    assert wanted.std() > 0.5  # a difference in any weight would show
    assert np.abs(found - wanted).max() < 1e-4, name
  # What the tests without torch compare with is this.
  with np.load(tiny_lm.golden_file(case)) as golden:
    for name, wanted in tiny_lm.kept(theirs).items():
      np.testing.assert_allclose(golden[name], wanted, atol=1e-4)  # float32 differs from processor to processor


@pytest.mark.parametrize('module, size, case', [
    (chameleon, '7b', 'chameleon'), (emu3, '8b', 'emu3'), (janus, '1b', 'janus'), (janus, '7b', 'janus'),
    (liquid, '7b', 'liquid')])
def test_public_sizes_have_as_many_values_as_theirs(module, size, case):
  """Of the same config.json; their module is made without its numbers."""
  hf = json.loads(json.dumps(module.SIZES[size]))
  with torch.device('meta'):
    theirs = families_lm.built(case, hf | ({'vocabulary_map': {'<image>': 1}} if case in ('chameleon', 'emu3') else {}))
  vision = ('model.vqmodel.', 'model.vision_model.')
  wanted = {name: tuple(p.shape) for name, p in theirs.named_parameters() if not name.startswith(vision)}
  shapes = trees.flat(unified.define(module.model(hf)).shapes)
  assert sum(math.prod(s.shape) for s in shapes.values()) == sum(math.prod(shape) for shape in wanted.values())
  assert {name for entry in module.entries(hf) for name in entry.theirs} == set(wanted)
