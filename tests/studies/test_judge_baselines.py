"""Verdicts and page of the study of the judge, on made-up rows."""

import json
import types

import ml_collections
import numpy as np
import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import DIMENSIONS
from intersyn_jax.judge import metrics
from intersyn_jax.studies import STUDIES, judge_baselines


def row(setting, seed, rmse, a1=0.96, on='held_out', **more):
  values = {f'{d}.{key}': value for d in DIMENSIONS for key, value in (('rmse', rmse), ('a1', a1), ('tau', 0.8))}
  return {'setting': setting, 'seed': seed, 'on': on, 'n': 10} | values | more


def baseline(setting, seed, rmse, beaten=True, equal=()):
  flags = {f'{d}.rmse.beaten': beaten and d not in equal for d in DIMENSIONS} | {f'{d}.equal': d in equal for d in DIMENSIONS}
  return row(setting, seed, rmse) | flags


def ranking(policy, tau):
  values = {f'{d}.{key}': tau for d in (*DIMENSIONS, 'mean') for key in ('tau', 'tau.low', 'tau.high')}
  return {'setting': policy, 'seed': 0, 'on': 'ranking', 'mean.groups': 9, 'mean.share_of_ties': 0.1} | values


ROWS = [row('synjudge', 0, 0.5), row('synjudge', 1, 0.6), baseline('mean', 0, 1.2), baseline('mean', 1, 1.2),
        baseline('without_text', 0, 0.7, beaten=True, equal=('icc', 'iq')),
        baseline('without_text', 1, 0.7, beaten=False, equal=('icc', 'iq')), row('synjudge', 0, 1.0, on='unseen_flaws'),
        ranking('warmup', 0.75), ranking('grpo', None)]


def test_verdicts_say_what_holds_in_every_seed():
  lines = judge_baselines.verdicts(ROWS)
  of = lambda text: next(line for line in lines if text in line)
  assert of('TCC rmse').startswith('DOES NOT HOLD') and '0.50, 0.60' in of('TCC rmse')  # 0.6 > 0.55 in seed 1
  assert of('ICC rmse').startswith('holds') and of('ICC a1').startswith('holds')
  assert of('mean (RMSE').startswith('holds') and 'ICC beaten' in of('mean (RMSE')
  without = of('without_text')
  assert without.startswith('DOES NOT HOLD') and 'ICC equal' in without and 'TCC NOT beaten' in without
  assert of('of warmup').startswith('holds') and of('of grpo').startswith('DOES NOT HOLD')


def test_page_shows_every_row():
  summary = {'devices': '1 x cpu', 'versions': 'v', 'measured_on': 'held-out', 'n': 10, 'exploitable': 'token_soup.tcc'}
  run = types.SimpleNamespace(summary=lambda stage: summary)
  text = judge_baselines.page(ROWS, {0: run}, 'the command')
  for part in ('the command', '| without_text | 1 |', 'Kinds of flaws that training has not', '| warmup | 0 | 0.75 [0.75, 0.75]',
               'token_soup.tcc'):
    assert part in text, part


def test_rows_come_from_the_stage(tmp_path, monkeypatch):
  truth = np.repeat(np.arange(24)[:, None] % 6.0, 4, axis=1)
  table = metrics.compare(truth, {'synjudge': truth, 'mean': np.full((24, 4), 2.5)}, samples=20)
  (tmp_path / 'judge').mkdir()
  (tmp_path / 'judge' / 'table.json').write_text(json.dumps(table))
  monkeypatch.setattr(judge_baselines, 'ranking', lambda run: {'warmup': {'mean.tau': 0.8}})
  run = types.SimpleNamespace(workdir=tmp_path, summary=lambda stage: {'unseen_flaws.tcc.rmse': 1.0, 'tcc.rmse': 0.0})
  rows = judge_baselines.rows_of(run, 3)
  assert [(r['setting'], r['on'], r['seed']) for r in rows] == [
      ('synjudge', 'held_out', 3), ('mean', 'held_out', 3), ('synjudge', 'unseen_flaws', 3), ('warmup', 'ranking', 3)]
  assert rows[0]['tcc.rmse'] == 0 and rows[1]['tcc.rmse.beaten'] is True and rows[2]['tcc.rmse'] == 1.0


def test_configuration_of_a_seed():
  config = ml_collections.ConfigDict(dict(
      seed=0, data=dict(source='opening'), judge=dict(source='', baselines=('mean',)), grpo=dict(init='finetune')))
  mine = judge_baselines.of_seed(config, 2)
  assert mine.seed == 2 and judge_baselines.stages(mine)[-3:] == ('synthesize', 'finetune', 'grpo')
  config.grpo.init = 'warmup'
  assert judge_baselines.stages(config) == ('data', 'tokenizer', 'warmup', 'judge', 'grpo')
  assert mine.judge.baselines == ('mean', 'likelihood', 'clip', 'without_images', 'without_text')
  with pytest.raises(UserError, match=r'data\.source is storyworld'):
    judge_baselines.run(config, 'nowhere', (0,), 'x')
  assert 'judge_baselines' in STUDIES
