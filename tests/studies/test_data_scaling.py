"""Slope, verdicts and page of the study of data size, on made-up scores."""

import json
import types

import ml_collections
import numpy as np
import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.evaluation import statistics
from intersyn_jax.stages import evaluate
from intersyn_jax.studies import data_scaling, table


def scores(gain, seed=0):
  """Raw scores of 300 questions; each doubling of the data adds `gain`."""
  rng = np.random.default_rng(seed)
  prompt = rng.normal(0, 0.5, (300, 1))
  levels = {'finetune_25': 0, 'finetune_50': 1, 'finetune_100': 2, 'finetune': 3, 'finetune_k0': 1.5}
  return {name: {'sampled': {'truth': 3 + prompt + gain * doublings + rng.normal(0, 0.3, (300, 4))}}
          for name, doublings in levels.items()}


def rows(gain, seed=0):
  raw = scores(gain, seed)
  made = table.rows(statistics.summary(raw, evaluate.PAIRS, resamples=200, seed=0), seed, {})
  made = [row | {'share': data_scaling.SHARES.get(row['setting'])} for row in made]
  found = data_scaling.slope({share: raw[name]['sampled']['truth'] for name, share in data_scaling.SHARES.items()}, 200)
  return [*made, {'setting': 'slope', 'seed': seed, 'decoding': 'sampled'} | found]


def test_the_slope_is_what_a_doubling_adds():
  raw = {share: scores(0.1)[name]['sampled']['truth'] for name, share in data_scaling.SHARES.items()}
  found = data_scaling.slope(raw, 500)
  assert found['slope'] == pytest.approx(0.1, abs=0.02) and found['ci95'][0] < found['slope'] < found['ci95'][1]
  # Questions are compared with themselves: how much they differ from one another does not widen the interval.
  assert np.diff(found['ci95'])[0] < 0.04
  same = data_scaling.slope({25: raw[25], 200: raw[25]}, 50)
  assert [same['slope'], *same['ci95']] == pytest.approx([0, 0, 0], abs=1e-12)


def test_verdicts_and_page(monkeypatch):
  lines = data_scaling.verdicts([*rows(0.1), *rows(0.1, 1)])
  assert len(lines) == 3 and all(line.startswith('holds') for line in lines), lines
  lines = data_scaling.verdicts([*rows(0.1), *rows(-0.1, 1)])
  assert all(line.startswith('DOES NOT HOLD in seed 1') for line in lines), lines
  run = types.SimpleNamespace(summary=lambda stage: {'devices': '1 x cpu', 'versions': 'v'}, workdir=None)
  monkeypatch.setattr(data_scaling, 'sizes', lambda run: {'finetune_25': 7})
  text = data_scaling.page(json.loads(json.dumps(rows(0.1))), {0: run}, 'the command')
  for part in ('the command', '| finetune_50 | 0 |', 'seed 0: finetune_25 7', 'slope over doublings'):
    assert part in text, part


def test_configuration_of_a_seed():
  config = ml_collections.ConfigDict(dict(
      seed=0, warmup=dict(long_steps=9), synthesize=dict(conversations=30, unrefined=False), evaluate=dict(prompts=5),
      data=dict(source='opening', counts=dict(test=1200))))
  mine = data_scaling.of_seed(config, 2)
  assert (mine.seed, mine.synthesize.conversations, mine.synthesize.unrefined, mine.evaluate.prompts) == (2, 60, True, 1000)
  with pytest.raises(UserError, match=r'data\.source is storyworld'):
    data_scaling.run(config, 'nowhere', (0,), 'x')
