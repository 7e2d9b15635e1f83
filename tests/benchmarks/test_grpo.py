"""The benchmark of GRPO: that its iterations are whole ones, what its floor counts, and the talk with peers."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from intersyn_jax.benchmarks import decode, grpo, grpo_peers
from intersyn_jax.interleave.layout import CODES, PADDING
from intersyn_jax.models.trunk import TrunkConfig

TINY = decode.Model('tiny', TrunkConfig(width=32, layers=2, heads=8, kv_heads=8, head_width=4, mlp_width=64), 64, places=4,
                    codebook=16)
WORK = grpo.Work(prompts=2, group=4, prompt=8, new=12, micro_batches=(4,))


def test_rows_of_text(monkeypatch):
  """Without peers: phases that add up to the iteration, each against its floor."""
  taken = {'rollout': 1.0, 'reference': 2.0, 'update': 3.0}
  monkeypatch.setattr(grpo, 'PEERS', {})
  monkeypatch.setattr(grpo, 'Ours', lambda *arguments: lambda: taken)
  monkeypatch.setattr(grpo, 'rate', lambda: 1e9)
  found = list(grpo._text('text', TINY, WORK, 1))
  assert [r['metric'] for r in found] == [f'{name}, 4 answers at a time' for name in ('iteration', *reversed(taken))]
  assert [r['ours'] for r in found] == [6.0, 3.0, 2.0, 1.0] and all(r['unit'] == 's' and r['peer'] is None for r in found)
  np.testing.assert_allclose(found[1]['floor_fraction'], grpo.operations(TINY, WORK)['update'] / 1e9 / 3.0)


def test_all_answers_are_written_and_learnt_from():
  params = decode._eager(decode._params(TINY), TINY.layout, every=3)
  ours = grpo.Ours(TINY, params, WORK._replace(images=2), 4)
  before = jax.tree.map(np.asarray, ours._state['params'])
  ours()
  assert ours.modality.shape == (8, 12) and (ours.modality != PADDING).all() and (ours.modality == CODES).any()
  assert not np.array_equal(before['backbone']['text_embedding'], ours._state['params']['backbone']['text_embedding'])


def test_operations_are_those_of_the_lowered_program():
  """One row, one layer: XLA counts no product that the floor has not, but also what is no product, and keys that are not seen."""
  shape = TINY._replace(trunk=TrunkConfig(width=128, layers=1, heads=4, kv_heads=4, head_width=32, mlp_width=256))
  work = WORK._replace(prompts=1, group=1)
  definition, batch = shape.definition, decode.prompts(1, work.prompt + work.new, shape.vocabulary)

  def forward(params, batch):
    model = definition.bind(params)
    return model.text_logits(model(batch)[:, -work.new:])

  counted = jax.jit(forward).lower(definition.shapes, batch).cost_analysis()['flops']
  floor = grpo.operations(shape, work)
  assert 0.9 * counted < floor['rollout'] < counted
  assert floor['update'] == 3 * floor['reference'] == 3 * floor['rollout'] == floor['iteration'] * 3 / 5


def test_the_quickest_size_is_kept():
  made = []

  def make(size):
    made.append(size)
    return lambda: {'rollout': abs(size - 16), 'update': 0.0}

  assert grpo.quickest(make, (8, 16, 32))[0] == 16 and made == [8, 16, 32]


def test_medians_of_runs_in_turn(monkeypatch):
  monkeypatch.setattr(grpo, 'rate', lambda: 1e9)
  taken = iter([1.0, 5.0, 3.0])
  order = []
  one = lambda: order.append('one') or {'rollout': next(taken), 'update': 1.0}
  two = lambda: order.append('two') or {'rollout': 2.0, 'update': 0.0}
  (a, b), rate = grpo.in_turn([one, two], 3)
  assert order == ['one', 'two'] * 3 and a == {'rollout': 3.0, 'update': 1.0, 'iteration': 4.0} and b['iteration'] == 2.0
  assert rate == 1e9


JOB = grpo_peers.Job([[1, 2], [3, 4]], group=2, new=3, vocabulary=8, micro_batch=2, kl=0.1)


def test_turns(tmp_path):
  """What a peer's process answers: phases that were timed, the rest as the update, and the tokens."""
  program = f'''
import sys, time
from intersyn_jax.benchmarks import grpo_peers
turns = grpo_peers.Turns(sys.stdout)
while turns.begin():
  turns.timed('rollout', time.sleep)(0.03)
  turns.tokens += {JOB.rows * JOB.new}
  turns.end()
'''
  done = subprocess.run([sys.executable, '-c', program], input='go\ngo\n', capture_output=True, text=True, check=True)
  found = [json.loads(line) for line in done.stdout.splitlines()]
  assert len(found) == 2 and all(set(one) == {*grpo_peers.PHASES, 'tokens'} for one in found)
  assert all(one['rollout'] >= 0.03 and one['reference'] == 0 and one['update'] >= 0 for one in found)
  assert [one['tokens'] for one in found] == [12, 12]


def test_a_peer_that_ends_says_why(tmp_path):
  peer = grpo_peers.Peer('nobody', tmp_path, JOB)
  with pytest.raises(RuntimeError, match="KeyError: 'nobody'"):
    peer()
  peer.close()
