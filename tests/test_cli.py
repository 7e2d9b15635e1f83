"""The command line as a user meets it: help, mistakes (one line, exit code 2), and how a work folder keeps its configuration."""

import json
import os
import pathlib
import subprocess
import sys

import ml_collections
import pytest

from intersyn_jax import __main__ as cli
from intersyn_jax.errors import UserError
from intersyn_jax.stages import PIPELINE, STAGES, common, settings
from intersyn_jax.stages import run as run_module
from intersyn_jax.stages.common import Run

CONFIG = """
import ml_collections
def get_config(size='smoke'):
  if size not in ('smoke', 'tiny'):
    raise ValueError(f'no size {size!r}; there are smoke and tiny')
  return ml_collections.ConfigDict({
      'seed': 0, 'mesh': {'fsdp': -1}, 'data': {'train': 10 if size == 'smoke' else 100, 'name': 'world'},
      'warmup': {'steps': 5, 'rate': 1e-3, 'nesterov': True, 'betas': (0.9, 0.99)},
      'grpo': {'steps': 2, 'group_size': 4, 'reward': None}, 'evaluate': {'prompts': 8}, 'report': {'wandb': ''}})
"""


@pytest.fixture
def config_file(tmp_path):
  path = tmp_path / 'world.py'
  path.write_text(CONFIG)
  return path


@pytest.fixture
def stages(monkeypatch):
  """Replaces what the stages of the pipeline do by noting that they were done."""
  import importlib
  import types
  done = []

  def fake(name):
    def run(run: Run):
      done.append(name)
      return {'value': 1.5}
    return types.SimpleNamespace(run=run)

  real = importlib.import_module
  monkeypatch.setattr(importlib, 'import_module', lambda name: (
      fake(name.rsplit('.', 1)[1]) if name.startswith('intersyn_jax.stages.') and name.rsplit('.', 1)[1] in PIPELINE
      else real(name)))
  return done


def error_of(capsys, *arguments) -> str:
  """The one line that a mistaken command prints."""
  assert cli.main([str(a) for a in arguments]) == 2
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith('error: '), lines
  return lines[0]


def test_nothing_is_said_after_the_one_line():
  """Not by threads that go on writing to the file descriptor, as libraries in C do."""
  code = """
import os, runpy, sys, threading, time
def chatter():
  while True:
    os.write(2, b'noise' + os.linesep.encode())
    time.sleep(0.0005)
threading.Thread(target=chatter, daemon=True).start()
sys.argv = ['intersyn_jax', 'warmpu', '--config=none.py', '--workdir=none']
sys.setswitchinterval(1e-5)
try:
  runpy.run_module('intersyn_jax', run_name='__main__')
finally:
  time.sleep(0.1)
"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  lines = done.stderr.splitlines()
  assert done.returncode == 2 and 'noise' in lines and lines[-1].startswith('error: ') and 'warmup' in lines[-1]


def test_help_names_every_stage_without_importing_jax():
  code = "import sys; sys.argv = ['x', '--help']; from intersyn_jax.__main__ import main; main(sys.argv[1:]); " \
         "assert 'jax' not in sys.modules and 'ml_collections' not in sys.modules"
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
  assert all(f'\n  {name} ' in out for name in STAGES)


def test_mistakes_are_one_line(capsys, config_file, tmp_path):
  work = f'--workdir={tmp_path / "w"}'
  config = f'--config={config_file}:smoke'
  assert 'unknown stage' in error_of(capsys, 'warmpu', config, work)
  assert 'warmup, judge' in error_of(capsys, 'warmpu', config, work)
  assert '--config is missing' in error_of(capsys, 'warmup', work)
  assert '--workdir is missing' in error_of(capsys, 'warmup', config)
  assert 'no file nowhere.py' in error_of(capsys, 'warmup', '--config=nowhere.py:smoke', work)
  assert 'no size' in error_of(capsys, 'warmup', f'--config={config_file}:huge', work)
  assert '--configg' in error_of(capsys, 'warmup', config, work, '--configg=1')
  assert '--question' in error_of(capsys, 'warmup', config, work, '--question=x')
  assert "'extra' is no flag" in error_of(capsys, 'warmup', 'extra', config, work)
  assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('field, value, words', [
    ('grpo.grop_size', '8', ['config.grpo.grop_size', 'config.grpo.group_size']),
    ('group_size', '8', ['config.grpo.group_size']),
    ('grpo', '8', ['section', 'config.grpo.steps']),
    ('grpo.group_size.x', '8', ['config.grpo.group_size.x']),
    ('grpo.group_size', '8.5', ['whole number', '4']),
    ('grpo.group_size', 'many', ['whole number']),
    ('warmup.rate', 'fast', ['a number']),
    ('warmup.nesterov', 'maybe', ['true or false']),
    ('warmup.betas', '0.9,high', ['a number']),
])
def test_bad_overrides_name_the_field(capsys, config_file, tmp_path, field, value, words):
  line = error_of(capsys, 'warmup', f'--config={config_file}:smoke', f'--workdir={tmp_path / "w"}', f'--config.{field}={value}')
  assert all(word in line for word in words), line


def test_overrides_keep_types(config_file):
  command = settings.parse(['warmup', '--config', f'{config_file}:tiny', '--workdir=w', '--config.warmup.rate=3',
                            '--config.warmup.nesterov=false', '--config.warmup.betas=(0.8, 0.95)', '--config.data.name=7',
                            '--config.grpo.steps', '1_000', '--config.grpo.reward=my.module:reward'])
  config = command.config
  assert config.warmup.rate == 3.0 and isinstance(config.warmup.rate, float)
  assert config.warmup.nesterov is False and config.warmup.betas == (0.8, 0.95)
  assert config.data.name == '7' and config.grpo.steps == 1000 and config.data.train == 100
  assert config.grpo.reward == 'my.module:reward'


def test_options_of_a_stage(config_file):
  command = settings.parse(['sample', f'--config={config_file}', '--workdir=w', '--question=draw = a circle', '--greedy'])
  assert command.options == {'question': 'draw = a circle', 'greedy': 'true'}


def test_broken_config_files(tmp_path):
  path = tmp_path / 'c.py'
  path.write_text('x = 1\ndef get_config(:\n')
  with pytest.raises(UserError, match='line 2'):
    settings.load_config(str(path))
  path.write_text('x = 1\n')
  with pytest.raises(UserError, match='has no function get_config'):
    settings.load_config(str(path))


def start(config_file, workdir, *flags, stage='run'):
  """What the command line does after it has set up the process."""
  command = settings.parse([stage, f'--config={config_file}:smoke', f'--workdir={workdir}', *flags])
  run = Run(command.config, command.workdir)
  if stage == 'run':
    return run_module.run(run)
  return common.run_stage(run, stage)


def test_run_does_each_stage_once(config_file, tmp_path, stages):
  work = tmp_path / 'w'
  start(config_file, work)
  assert stages == list(PIPELINE)
  start(config_file, work)
  assert stages == list(PIPELINE)
  summary = json.loads((work / 'grpo' / 'summary.json').read_text())
  assert summary['stage'] == 'grpo' and summary['value'] == 1.5 and summary['seconds'] >= 0
  assert summary['peak_rss_mib'] > 50 and 'jax' in summary['versions'] and len(summary['config_hash']) == 12
  assert not any(isinstance(v, (dict, list)) for v in summary.values())


def test_a_changed_evaluation_redoes_only_what_reads(config_file, tmp_path, stages):
  work = tmp_path / 'w'
  start(config_file, work)
  (work / 'evaluate' / 'scores.json').write_text('{"policies": {}}')
  stages.clear()
  start(config_file, work, '--config.evaluate.prompts=9')
  assert stages == ['evaluate', 'report']
  assert not (work / 'evaluate' / 'scores.json').exists()
  stages.clear()
  start(config_file, work, '--config.evaluate.prompts=9', '--config.mesh.fsdp=2')
  assert stages == []


def test_the_report_is_made_again_after_a_stage_before_it(config_file, tmp_path, stages):
  work = tmp_path / 'w'
  start(config_file, work, stage='data')
  start(config_file, work, stage='report')
  start(config_file, work, stage='report')
  assert stages == ['data', 'report']
  stages.clear()
  start(config_file, work)
  assert stages == list(PIPELINE[1:])


def test_a_clock_that_jumps_back_redoes_nothing_and_hides_nothing(config_file, tmp_path, stages):
  work = tmp_path / 'w'
  start(config_file, work)
  config = settings.load_config(f'{config_file}:smoke').lock()

  def ended_in_1970(stage):
    path = work / stage / 'summary.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'finished': '1970-01-01T00:00:00.000+00:00'}))

  ended_in_1970('report')
  assert Run(config, work).complete('report')
  ended_in_1970('warmup')  # done again, by a clock that is behind
  assert not Run(config, work).complete('report')
  stages.clear()
  start(config_file, work)
  start(config_file, work)
  assert stages == ['evaluate', 'report']


def test_goodput_counts_the_time_of_updates_that_were_kept(config_file, tmp_path):
  run = Run(settings.load_config(f'{config_file}:smoke').lock(), tmp_path / 'w')
  run.begin('warmup')
  (tmp_path / 'w' / 'warmup' / 'clock.json').write_text('{"seconds": 100000.0}')
  run = Run(run.config, run.workdir)
  run.begin('warmup')
  with run.metrics('warmup') as rows:
    for step in range(1, 7):
      rows.write(step, {'loss': 1.0, 'seconds.update': 10000.0, 'seconds.data': 3.0, 'seconds.checkpoint': 1.0})
  # Killed, and gone on from the checkpoint of step 4.
  with run.metrics('warmup', 4) as rows:
    rows.write(5, {'loss': 1.0, 'seconds.update': 10000.0, 'seconds.compile': 2.0})
  assert run.write_summary('warmup', {})['goodput'] == pytest.approx(0.5, abs=0.01)
  run.begin('data')
  assert 'goodput' not in run.write_summary('data', {})


def test_a_heartbeat_tells_the_stage_and_goes_on_with_the_work(config_file, tmp_path, monkeypatch):
  monkeypatch.setattr(common, 'HEARTBEAT', 0.0)
  run = Run(settings.load_config(f'{config_file}:smoke').lock(), tmp_path / 'w')
  run.begin('warmup')
  read = lambda: json.loads((tmp_path / 'w' / 'heartbeat.json').read_text())
  first = read()
  assert first['stage'] == 'warmup' and first['pid'] == os.getpid()
  line = run.progress('warmup', 10)
  (tmp_path / 'w' / 'heartbeat.json').unlink()
  line.update(1)
  assert read()['time'] >= first['time']


def test_a_folder_of_another_configuration_is_an_error(config_file, tmp_path, stages):
  work = tmp_path / 'w'
  start(config_file, work, stage='data')
  start(config_file, work, stage='warmup')
  with pytest.raises(UserError, match=r'config\.warmup\.steps is 6, .* made with 5: .* remove the folders warmup in'):
    start(config_file, work, '--config.warmup.steps=6')
  with pytest.raises(UserError, match=r'config\.data\.train is 11, .* remove the folders data, warmup in'):
    start(config_file, work, '--config.data.train=11', stage='grpo')
  # What has not begun may change, and again after its folder is gone.
  stages.clear()
  start(config_file, work, '--config.grpo.steps=3', stage='grpo')
  with pytest.raises(UserError, match=r'config\.grpo\.steps'):
    start(config_file, work)
  assert stages == ['grpo']


def test_the_error_reaches_the_command_line(config_file, tmp_path, stages, capsys):
  work = tmp_path / 'w'
  start(config_file, work, stage='data')
  capsys.readouterr()
  line = error_of(capsys, 'data', f'--config={config_file}:tiny', f'--workdir={work}')
  assert 'config.data.train is 100' in line and 'made with 10' in line


def test_a_stage_that_failed_is_not_complete(config_file, tmp_path):
  run = Run(settings.load_config(f'{config_file}:smoke').lock(), tmp_path / 'w')
  run.begin('data')
  assert not run.complete('data')
  with pytest.raises(UserError, match='run the stage data first'):
    run.require('data')
  run.write_summary('data', {'rows': 3, 'loss': float('nan')})
  assert run.complete('data') and run.summary('data')['loss'] is None
  with pytest.raises(ValueError, match='seconds'):
    run.write_summary('data', {'seconds': 3})


def test_seconds_add_up_over_starts(config_file, tmp_path):
  run = Run(settings.load_config(f'{config_file}:smoke').lock(), tmp_path / 'w')
  run.begin('data')
  (tmp_path / 'w' / 'data' / 'clock.json').write_text('{"seconds": 100.0}')
  again = Run(run.config, run.workdir)
  again.begin('data')
  assert 100 <= again.write_summary('data', {})['seconds'] < 110


def test_every_section_of_the_configurations_has_a_stage():
  known = {section for sections in common.SECTIONS.values() for section in sections} | set(common.HARMLESS)
  assert set(common.SECTIONS) == set(PIPELINE)
  config = pathlib.Path(__file__).parents[1] / 'configs' / 'storyworld.py'
  sections = set(settings.load_config(f'{config}:smoke').keys())
  assert sections <= known | {'name'}, 'these would count for every stage'


def test_functions_in_a_configuration_have_a_stable_hash():
  config = ml_collections.ConfigDict({'head': json.dumps, 'sizes': (1, 2)})
  assert common.plain(config) == {'head': 'json:dumps', 'sizes': [1, 2]}


def test_doctor_needs_no_config():
  done = subprocess.run([sys.executable, '-m', 'intersyn_jax', 'doctor'], capture_output=True, text=True,
                        env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, cwd=pathlib.Path(__file__).parents[1])
  assert done.returncode == 0, done.stderr
  for word in ('python', 'jaxlib', 'flax', 'cores', 'GiB', 'mesh', 'extra peers'):
    assert word in done.stdout


def test_processes_are_joined_only_when_named(monkeypatch):
  import jax
  calls = []
  monkeypatch.setattr(jax.distributed, 'initialize', lambda *a, **patience: calls.append((*a, patience)))
  for name in ('JAX_COORDINATOR_ADDRESS', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE', 'INTERSYN_HEARTBEAT_SECONDS'):
    monkeypatch.delenv(name, raising=False)
  settings.start_processes()
  assert calls == []
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'localhost:1234')
  with pytest.raises(UserError, match='JAX_NUM_PROCESSES'):
    settings.start_processes()
  monkeypatch.setenv('JAX_NUM_PROCESSES', '2')
  monkeypatch.setenv('JAX_PROCESS_ID', '1')
  settings.start_processes()
  monkeypatch.setenv('INTERSYN_HEARTBEAT_SECONDS', '7')
  settings.start_processes()
  assert calls == [('localhost:1234', 2, 1, {'heartbeat_timeout_seconds': seconds}) for seconds in (60, 7)]
  monkeypatch.setenv('INTERSYN_HEARTBEAT_SECONDS', 'soon')
  with pytest.raises(UserError, match="INTERSYN_HEARTBEAT_SECONDS is 'soon'; set it to a whole number"):
    settings.start_processes()
