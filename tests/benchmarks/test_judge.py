"""The benchmark of judging: its rows, that whole answers are judged, and that what is computed is what would be run."""

import dataclasses
import re

import numpy as np

from intersyn_jax.benchmarks import BENCHMARKS, judge, rows
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.unified import ModelConfig

SMALL = judge.Shapes(ModelConfig(TrunkConfig(width=32, layers=2, heads=2, kv_heads=2, head_width=16, mlp_width=64), 64, places=4,
                                 depth=1, codebook=16, mix=4), reader=1, prompts=2, group=4, prompt=8, positions=40)


def test_rows_of_the_measured_case():
  """All answers use their positions, hold images and have room in the views; times stand beside one another."""
  shallow = dataclasses.replace(SMALL.model, trunk=dataclasses.replace(SMALL.model.trunk, layers=1))
  found = list(judge._measured('small', SMALL._replace(model=shallow), layers=1, runs=1))
  assert 'judge' in BENCHMARKS and [r['unit'] for r in found] == ['s', '1/s', 'of the rollout']
  judging, rate, part = found
  what = re.fullmatch(r'judging 8 answers of 40 positions, (\d+)% of images', judging['metric'])
  assert 15 < int(what[1]) < 40
  assert judging['peer'] > 0 and judging['peer_name'] == 'writing them'
  np.testing.assert_allclose(part['ours'], judging['ours'] / judging['peer'])
  np.testing.assert_allclose(rate['ours'], 8 / judging['ours'])
  np.testing.assert_allclose(part['ratio'], judge.GOAL / part['ours'])


def test_computed_flops_count_every_layer():
  one, two = (judge.judging_cost(SMALL, layers) for layers in (1, 2))
  # Matrix products of one layer at each of the positions of all views, twice a multiplication; attention comes on top.
  widths, trunk = SMALL.judge(2).widths, SMALL.model.trunk
  positions = 8 * (widths.tcc + widths.icc + widths.its + 3 * (2 + SMALL.model.places))
  products = 2 * positions * (4 * trunk.width * trunk.heads * trunk.head_width + 3 * trunk.width * trunk.mlp_width)
  assert products < two.flops - one.flops < 2 * products
  # What that is added to: a scan counts as one layer, however many it runs.
  bound = SMALL.judge(2)
  as_counted = judge.Cost.of(bound.score, bound.definition.shapes, judge._abstract(8, 48, 1))
  np.testing.assert_allclose(as_counted.flops, one.flops, rtol=1e-3)


def test_rows_of_the_computed_case_say_so(monkeypatch):
  monkeypatch.setattr(judge, 'judging_cost', lambda shapes, layers: judge.Cost(1e15, 1e12))
  found = list(judge._computed('7b', SMALL, 2))
  assert all(r['metric'].startswith('computed') and r['runs'] == 0 for r in found) and len(found) == 2 + 4 * len(judge.CHIPS)
  floors = [r for r in found if r['unit'] == 's']
  np.testing.assert_allclose(floors[0]['ours'], 1e15 / judge.CHIPS[0].flops)
  assert all(r['peer_name'].startswith('computed floor') and r['ours'] > 0 for r in floors)
  alone, cached = floors[:2]
  weights = judge._bytes(judge.unified.define(SMALL.model).shapes['backbone']['trunk'])
  assert cached['peer'] > alone['peer'] > SMALL.positions * weights / judge.CHIPS[0].bandwidth
  assert all(rows.line(r) for r in found)
