"""The benchmark of the supervised step: its rows, and what its floor counts."""

import jax
import numpy as np
import pytest

from intersyn_jax.benchmarks import decode, train
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.training import precision

TINY = train.Shape(decode.Model('tiny', TrunkConfig(width=64, layers=1, heads=4, kv_heads=4, head_width=16, mlp_width=128), 64,
                                places=4, codebook=2), rows=2, length=16)


@pytest.mark.parametrize('peers', [(), ('eager', 'compiled')])
def test_rows(monkeypatch, peers):
  monkeypatch.setattr(train, 'make_ours', lambda *arguments: lambda: 4.0)
  monkeypatch.setattr(train, '_torch', lambda shape, params: dict.fromkeys(peers, lambda: 4.0))
  monkeypatch.setattr(train, 'rate', lambda dtype: 1e9)
  found = list(train._step('step', TINY, 1))
  assert [r['peer_name'] for r in found] == list(peers or [None])
  for r in found:
    assert r['unit'] == '1/s' and (r['ratio'] is None) == (not peers)
    # Tokens a second at the peak are the peak over the operations of a token.
    np.testing.assert_allclose(r['ours'] / r['floor_fraction'], 1e9 * TINY.tokens / train.operations(TINY))


def test_losses_of_the_first_step_must_agree(monkeypatch):
  monkeypatch.setattr(train, 'make_ours', lambda *arguments: lambda: 4.0)
  monkeypatch.setattr(train, '_torch', lambda shape, params: {'eager': lambda: 4.1})
  with pytest.raises(RuntimeError, match='not the same'):
    list(train._step('step', TINY, 1))


def test_steps_learn():
  """All that a GPU case uses; the batch stays the same, so that its loss falls."""
  trunk = TrunkConfig(width=64, layers=2, heads=4, kv_heads=2, head_width=16, mlp_width=128, dtype='bfloat16', remat='dots')
  shape = TINY._replace(model=TINY.model._replace(trunk=trunk), chunk=8, precision=precision.LEAN)
  step = train.make_ours(shape, train._definition(shape).init(jax.random.key(0), decode._one_device()), train._optimizer(shape))
  losses = [float(step()) for _ in range(8)]
  assert abs(losses[0] - np.log(64)) < 1 and losses[-1] < losses[0]


def test_operations_are_those_of_the_lowered_program():
  """One layer: XLA counts no product that the floor has not, but also what is no product, and keys that are not seen."""
  definition, batch = train._definition(TINY), train.batch_of(TINY)

  def forward(params, batch):
    model = definition.bind(params)
    return model.text_logits(model(batch))

  counted = jax.jit(forward).lower(definition.shapes, batch).cost_analysis()['flops']
  assert 0.8 * counted < train.operations(TINY) / 3 < counted
