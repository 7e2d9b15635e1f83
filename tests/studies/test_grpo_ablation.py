"""The ablation of GRPO: what settings change, what is compared, and its page."""

import pathlib

import numpy as np
import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.evaluation import statistics
from intersyn_jax.grpo.advantages import AdvantageConfig
from intersyn_jax.grpo.loss import LossConfig
from intersyn_jax.grpo.trainer import GRPOConfig
from intersyn_jax.stages import imports, settings
from intersyn_jax.stages.grpo import _fields
from intersyn_jax.stages.parts import policy_folder
from intersyn_jax.studies import STUDIES, grpo_ablation, table

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def config():
  return settings.parse(['run', f'--config={ROOT}/configs/storyworld.py:tiny', '--workdir=unused']).config


def test_every_setting_is_a_legal_configuration_with_the_same_number_of_answers(config):
  whole = grpo_ablation.of_seed(config, 1)
  assert whole.seed == 1 and whole.grpo.init == 'warmup' and whole.grpo.group_size == 4 and whole.writer.steps == 0
  for name in grpo_ablation.SETTINGS:
    mine = grpo_ablation.of_setting(whole, name)
    assert mine.grpo.prompts * mine.grpo.group_size == config.grpo.prompts * config.grpo.group_size
    _fields(LossConfig, mine.grpo), _fields(GRPOConfig, mine.grpo, max_steps=3)
    _fields(AdvantageConfig, mine.grpo, weights=mine.grpo.reward.to_dict())
    for reward in mine.grpo.rewards:
      assert callable(imports.resolve(reward, 'grpo.rewards'))
  of = lambda name: grpo_ablation.of_setting(whole, name).grpo
  assert of('r_f').reward.to_dict() == {'textual': 0.0, 'visual': 0.0, 'format': 1.0, 'own': 1.0} and not of('r_f').process
  assert of('full') == whole.grpo and of('G=2').prompts == 2 * of('full').prompts
  # What a clip does shows only where a ratio can leave 1.
  assert all(of(name).inner_epochs >= 2 for name in ('asymmetric', 'gspo'))


def test_settings_of_a_seed_that_are_no_multiple_are_refused(config):
  odd = grpo_ablation.of_seed(config, 0)
  odd.unlock()
  odd.grpo.prompts, odd.grpo.group_size = 3, 3
  with pytest.raises(UserError, match='multiple of 4'):
    grpo_ablation.regroup(odd.grpo, 4)


def test_variants_lie_in_the_stage_and_nowhere_else(tmp_path):
  assert policy_folder(tmp_path, 'grpo/G=2+no_kl') == tmp_path / 'grpo' / 'G=2+no_kl' / 'checkpoints'
  for name in ('grpo/../warmup', 'grpo/', 'warmup/full', 'grpo/a/b'):
    with pytest.raises(UserError, match='there is no policy'):
      policy_folder(tmp_path, name)


def rows(better):
  """Rows of two seeds in which each policy is by `better[name]` above the first."""
  rng = np.random.default_rng(0)
  found = []
  for seed in (0, 1):
    base = rng.uniform(2, 3, (200, 4)).astype(np.float32)
    scores = {name: {'sampled': {'truth': base + by}} for name, by in better.items()}
    pairs = [*grpo_ablation.PAIRS, *((a, b) for a, b, _ in grpo_ablation.FINDINGS)]
    found += table.rows(statistics.summary(scores, pairs, resamples=50, seed=seed), seed, {})
  return found


def test_findings_hold_only_where_they_hold_in_every_seed():
  names = dict.fromkeys(('none', 'warmup', 'warmup_long', *grpo_ablation.SETTINGS), 0.1)
  lines = grpo_ablation.verdicts(rows(names | {'full': 0.5, 'none': 0.0, 'no_kl': 0.9}))
  assert len(lines) == len(grpo_ablation.FINDINGS)
  says = {words: line for line in lines for _, _, words in grpo_ablation.FINDINGS if words in line}
  assert says['the full method betters the policy it started from'].startswith('holds')
  assert says['a warm-up with interleaved samples is needed'].startswith('holds')
  needed = says['the divergence penalty is needed']
  assert needed.startswith('DOES NOT HOLD') and 'opposite' in needed
  assert says['r_v adds to both'].startswith('DOES NOT HOLD')


def test_the_table_of_differences_names_both_controls():
  lines = grpo_ablation._differences(rows({'none': 0.0, 'warmup': 0.1, 'warmup_long': 0.2, 'full': 0.5, 'r_f': 0.3}))
  full = next(line for line in lines if line.startswith('| full | 0'))
  assert '+0.400' in full and '+0.300' in full
  assert any(line.startswith('| warmup_long | 1') and '-0.300' in line for line in lines)
  assert any(line.startswith('| r_f | 0') and '-0.200' in line for line in lines)


def test_the_command_line_lists_it():
  assert 'grpo_ablation' in STUDIES
