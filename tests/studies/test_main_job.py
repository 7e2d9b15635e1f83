"""Studies: the command line, rows, verdicts and pooling on made-up scores, and what seeds share."""

import json
import pathlib
import shlex

import ml_collections
import numpy as np

from intersyn_jax.evaluation import statistics
from intersyn_jax.stages import common, evaluate
from intersyn_jax.studies import __main__ as cli
from intersyn_jax.studies import main_job, seeds, table

LEVELS = {'chance': 1.0, 'warmup': 3.0, 'warmup_long': 3.1, 'finetune': 3.3, 'finetune_k0': 3.1, 'grpo': 3.6}


def scores(seed: int, **levels: float):
  """Raw scores of 300 prompts whose means lie near the levels."""
  rng = np.random.default_rng(seed)
  prompt = rng.normal(0, 0.3, (300, 1))
  return {p: {d: {s: prompt + level + rng.normal(0, 0.3, (300, 4)) for s in ('truth', 'judge')} for d in ('sampled', 'greedy')}
          for p, level in (LEVELS | levels).items()}


def rows_of(seed: int, **levels: float):
  made = statistics.summary(scores(seed, **levels), evaluate.PAIRS, resamples=200, seed=0)
  return table.rows(made, seed, {'grpo': {'diversity': {'texts': 0.5}, 'format': {'sampled': {'steps_asked': 0.9}}}})


def error_of(capsys, *arguments) -> str:
  assert cli.main(list(arguments)) == 2
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith('error: '), lines
  return lines[0]


def test_command_line(capsys, tmp_path):
  assert cli.main([]) == 2
  assert 'main_job' in capsys.readouterr().out
  assert cli.main(['--help']) == 0
  capsys.readouterr()
  assert "unknown study 'main_jop'" in error_of(capsys, 'main_jop')
  assert '--config is missing' in error_of(capsys, 'main_job', f'--workdir={tmp_path}')
  assert '--seeds=a' in error_of(capsys, 'main_job', '--seeds=a')
  assert 'different whole numbers' in error_of(capsys, 'main_job', '--seeds=1,1')
  assert 'equals sign' in error_of(capsys, 'main_job', '--seeds', '1')


def test_the_command_on_a_page_can_be_pasted_into_a_shell(monkeypatch, tmp_path):
  told = []
  monkeypatch.setattr(main_job, 'run', lambda config, workdir, seeds, command: told.append(command))
  config = pathlib.Path(__file__).parents[2] / 'configs/storyworld.py:smoke'
  arguments = ['main_job', f'--config={config}', f'--workdir={tmp_path}', "--config.judge.baselines=('mean', 'clip')"]
  assert cli.main(arguments) == 0
  assert shlex.split(told[0]) == ['python', '-m', 'intersyn_jax.studies', *arguments]


def test_seeds():
  assert cli.take_seeds(['--a=1']) == ((0, 1, 2), ['--a=1'])
  assert cli.take_seeds(['--seeds=4,0', '--b']) == ((4, 0), ['--b'])


def test_rows_hold_means_intervals_and_differences():
  made = rows_of(0)
  assert len(made) == len(LEVELS) * 4
  row = next(r for r in made if (r['setting'], r['decoding'], r['scorer']) == ('grpo', 'sampled', 'truth'))
  assert row['n'] == 300 and abs(row['mean'] - 3.6) < 0.1 and row['ci95']['mean'][0] < row['mean'] < row['ci95']['mean'][1]
  assert set(row['differences']) == {'chance', 'warmup', 'warmup_long', 'finetune'}
  assert abs(row['differences']['finetune']['difference'] - 0.3) < 0.1
  assert row['skills']['diversity']['texts'] == 0.5
  json.dumps(made, allow_nan=False)


def test_verdicts_say_where_a_claim_holds():
  lines = table.verdicts(rows_of(0) + rows_of(1), 'finetune')
  assert all(line.startswith('holds: ') for line in lines), lines
  assert sum('GRPO betters' in line for line in lines) == 2  # sampled and greedy
  assert sum('is above chance' in line for line in lines) == 2 * 5
  assert any('(grpo - finetune), sampled' in line and 'seed 0 +0.' in line and 'seed 1 +0.' in line for line in lines)


def test_verdicts_say_where_a_claim_fails():
  lines = table.verdicts(rows_of(0) + rows_of(1, grpo=3.3) + rows_of(2, grpo=2.0), 'finetune')
  line = next(x for x in lines if '(grpo - finetune), sampled' in x)
  assert line.startswith('DOES NOT HOLD in seed 1, 2: ') and line.endswith('the opposite in seed 2')
  assert next(x for x in lines if '(finetune - finetune_k0), greedy' in x).startswith('holds')


def test_verdicts_use_the_truth_alone_and_not_the_pooled_seeds():
  made = rows_of(0, grpo=3.3)
  far = {'difference': 9.0, 'ci95': [8.0, 10.0]}
  made += [row | {'seed': 'all', 'differences': dict.fromkeys(row['differences'], far)} for row in made]
  for row in made:
    if row['scorer'] == 'judge':
      row['differences'] = dict.fromkeys(row['differences'], far)
  line = next(x for x in table.verdicts(made, 'finetune') if '(grpo - finetune), sampled' in x)
  assert line.startswith('DOES NOT HOLD in seed 0: ') and '+9' not in line


def test_claims_follow_the_policies_there_are():
  made = [r for r in rows_of(0) if r['setting'] in ('chance', 'warmup', 'grpo')]
  assert [(a, b) for a, b, _ in table.claims(made, 'warmup')] == [('warmup', 'grpo'), ('chance', 'warmup'), ('chance', 'grpo')]


def test_pooling():
  seeds = [scores(0), scores(1)]
  mean = main_job.pool(seeds, same_prompts=True)['grpo']['sampled']['truth']
  assert np.allclose(mean, (seeds[0]['grpo']['sampled']['truth'] + seeds[1]['grpo']['sampled']['truth']) / 2)
  assert main_job.pool(seeds, same_prompts=False)['grpo']['sampled']['truth'].shape == (600, 4)
  del seeds[1]['grpo']
  assert 'grpo' not in main_job.pool(seeds, same_prompts=True)


def test_page_is_markdown_with_all_tables():
  made = rows_of(0)
  times = table.times({0: {'data': {'seconds': 3.2, 'peak_rss_mib': 900.0}, 'grpo': None}})
  page = table.page(made, table.verdicts(made, 'finetune'), times, sizes=['seed 0: finetune 5'], command='python -m x',
                    prompts=300, machine='2 cores')
  for words in ('# The main job', '## truth, sampled', '## judge, greedy', '## Retained skills', '| 0 | 3 | - | 3 s | 900 |'):
    assert words in page
  for line in page.splitlines():
    if line.startswith('|'):
      assert line.endswith('|')


CONFIG = {'seed': 0, 'data': {'seed': 0, 'counts': {'test': 1500}}, 'warmup': {'steps': 3}, 'finetune': {'steps': 2},
          'grpo': {'init': 'finetune'}, 'evaluate': {'prompts': 200}, 'report': {'wandb': ''}}


def test_configurations_of_seeds():
  config = ml_collections.ConfigDict(CONFIG).lock()
  mine = main_job.of_seed(config, 2)
  assert mine.seed == 2 and mine.evaluate.prompts == 1000 and config.seed == 0
  config = ml_collections.ConfigDict(CONFIG | {'data': {'counts': {'test': 32}}})
  assert main_job.of_seed(config, 0).evaluate.prompts == 200  # what the split lacks is told by evaluate
  config.evaluate.prompts = 16
  assert main_job.of_seed(config, 0).evaluate.prompts == 32


def complete(run: common.Run, stage: str) -> None:
  run.begin(stage)
  (run.directory(stage) / 'sub').mkdir(parents=True, exist_ok=True)
  (run.directory(stage) / 'sub' / 'file').write_text(f'of {run.workdir.name}')
  run.write_summary(stage, {'x': 1})


def test_seeds_share_what_is_the_same(tmp_path, monkeypatch):
  config = ml_collections.ConfigDict(CONFIG)
  monkeypatch.setitem(common.SECTIONS, 'data', ('data',))
  monkeypatch.setitem(common.SECTIONS, 'warmup', ('seed', 'warmup'))
  one, two = (common.Run(main_job.of_seed(config, s), tmp_path / f'seed{s}') for s in (0, 1))
  assert not seeds.adopt(two, 'data', [one])
  complete(one, 'data')
  assert seeds.adopt(two, 'data', [one]) and two.complete('data')
  assert (two.workdir / 'data' / 'sub' / 'file').read_text() == 'of seed0'
  assert not seeds.adopt(two, 'data', [one])  # it is there
  complete(one, 'warmup')
  assert not seeds.adopt(two, 'warmup', [one])  # another seed


def test_announcement(tmp_path):
  config = ml_collections.ConfigDict(CONFIG)
  runs = {s: common.Run(main_job.of_seed(config, s), tmp_path / f'seed{s}') for s in (0, 1)}
  text = main_job.announcement(tmp_path, runs, 'tiny')
  assert '2 seeds' in text and 'left (as on 2 CPU cores' in text
  assert 'not known before they were run once' in main_job.announcement(tmp_path, runs, 'mine')
  assert main_job.size_of('x main_job --config=configs/storyworld.py:tiny --workdir=w') == 'tiny'
  complete(runs[0], 'data')
  assert 'as measured in this folder' in main_job.announcement(tmp_path, runs, 'tiny')


def test_controls_have_the_size_of_finetune(tmp_path, monkeypatch, capsys):
  run = common.Run(main_job.of_seed(ml_collections.ConfigDict(CONFIG), 0), tmp_path)
  trained = []
  monkeypatch.setattr(common.Run, 'require', lambda self, *stages: None)
  sizes = {'refined': 5, 'unrefined': 4, 'gold': 9}
  opened = lambda folder, split: list(range(sizes[split]))
  monkeypatch.setattr(main_job.shards, 'open_split', opened)
  monkeypatch.setattr(main_job.shards, 'splits', lambda folder: sorted(sizes))
  parts = type('Parts', (), {'conversations': lambda self, split: opened('', split)})
  monkeypatch.setattr(seeds, 'Parts', lambda run: parts())
  monkeypatch.setattr(seeds, 'finetune', lambda run, parts, given, label, folder: trained.append(
      (label, len(given), folder.name)))
  main_job.train_controls(run)
  assert trained == [('finetune_k0', 4, 'k0'), ('finetune_gold', 5, 'gold')]
  assert 'finetune_k0: 4 conversations, finetune had 5' in capsys.readouterr().err
  del sizes['gold']
  trained.clear()
  main_job.train_controls(run)
  assert trained == [('finetune_k0', 4, 'k0')]
