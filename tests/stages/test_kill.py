"""`run` killed with SIGKILL inside every stage and started again ends with the same numbers, to the bit."""

import json
import pathlib
import shutil
import sys
import time

import pytest

import intersyn_jax
from intersyn_jax.benchmarks import __main__ as benchmarks
from intersyn_jax.benchmarks import rows, seir
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import images_of
from intersyn_jax.stages import PIPELINE

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from pipeline import SMALLER, Job, final_params, metric_rows, numbers

KILLS = {
    'data': (('', 0.3),),
    'tokenizer': (('checkpoints/100', 0.1),),
    'warmup': (('checkpoints/10', 0.0), ('writer/checkpoints/10', 0.2)),
    'judge': (('checkpoints/5', 0.1),),
    'synthesize': (('windows/window-*', 0.2),),
    'finetune': (('checkpoints/10', 0.0),),
    'grpo': (('checkpoints/2', 0.3),),
    'evaluate': (('answers/warmup.sampled.npz', 0.2),),
    'report': (('', 0.0),),
}
"""When a stage is killed: this path in its folder is there, and so many seconds have gone since."""

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A folder made without a disturbance, and one whose run was killed in every stage."""
  base = tmp_path_factory.mktemp('kill')
  plain, killed = base / 'plain', base / 'killed'
  start = time.monotonic()
  Job(plain, base / 'cache').finish()
  print(f'undisturbed: {time.monotonic() - start:.0f} s')
  run = Job(killed, base / 'cache')
  for stage in PIPELINE:
    for pattern, delay in KILLS[stage]:
      if not run.kill_inside(stage, pattern, delay):
        # Too late on this machine: the stage is done again, and killed as soon as it is there.
        for later in PIPELINE[PIPELINE.index(stage):]:
          shutil.rmtree(killed / later, ignore_errors=True)
        assert run.kill_inside(stage, pattern, 0.0), f'{stage} ended before it could be killed'
      print(f'killed in {stage} at {pattern or "its start"} after {time.monotonic() - start:.0f} s')
  run.finish()
  print(f'all: {time.monotonic() - start:.0f} s')
  return plain, killed


def test_summaries_are_equal(folders):
  plain, killed = map(numbers, folders)
  assert len(plain) > 100
  assert plain == killed


def test_scores_are_equal(folders):
  plain, killed = ((folder / 'evaluate' / 'scores.json').read_bytes() for folder in folders)
  assert plain == killed


def test_parameters_are_equal(folders):
  plain, killed = map(final_params, folders)
  assert {name.split('@')[0] for name in plain} == {
      'tokenizer', 'warmup', 'warmup/long', 'warmup/writer', 'judge', 'judge/without_text', 'finetune', 'grpo'}
  assert plain.keys() == killed.keys()
  assert [name for name in plain if plain[name] != killed[name]] == []


def test_curves_are_equal(folders):
  plain, killed = map(metric_rows, folders)
  assert plain.keys() == killed.keys()
  for name in plain:
    assert plain[name] == killed[name], name


def test_a_finished_folder_answers_from_python(folders, tmp_path):
  generator = intersyn_jax.Generator.from_workdir(folders[0], max_positions=40, rows=8, image_temperature=0.0)
  question = 'show a red circle top left on sand , then paint the red circle green . use two pictures .'
  (answers,) = generator.generate(question, n=3)
  assert len(answers) == 3 and generator.server.decoder.config.max_positions == 40
  pictures = [image.pil() for answer in answers for image in images_of(answer.turns[-1].answer)]
  assert all(picture.size == (32, 32) for picture in pictures)
  for arguments, words in (((tmp_path,), 'no work folder here'), ((folders[0], 'best'), "there is no policy 'best'"),
                           ((folders[0], 'finetune_gold'), 'policy finetune_gold is not trained')):
    with pytest.raises(UserError, match=words):
      intersyn_jax.Generator.from_workdir(*arguments)
  with pytest.raises(UserError, match='decode has no field warmth'):
    intersyn_jax.Generator.from_workdir(folders[0], warmth=2)


def test_seir_of_a_finished_folder_is_timed(folders, monkeypatch):
  """By the benchmark, which writes nothing into the folder; batches are as full as they can be, few conversations in flight."""
  monkeypatch.setattr(seir, 'WINDOW', 6)
  before = sorted(folders[0].rglob('*'))
  found = seir.measure(2, ['--config=configs/storyworld.py:smoke', f'--workdir={folders[0]}', *SMALLER])
  assert len(found['rates']) == 2 and min(found['rates']) > 0 and 0 < found['fill'] <= 1
  assert sorted(folders[0].rglob('*')) == before
  with pytest.raises(UserError, match='name a finished run, --config=configs/storyworld.py:tiny --workdir=runs/tiny'):
    next(seir.run(rows.options(['--runs=1'])))


def test_only_seir_takes_a_run(capsys):
  assert benchmarks.main(['train', '--workdir=runs/none']) == 2
  assert 'benchmarks train takes no --workdir' in capsys.readouterr().err


def test_a_work_folder_names_no_code_to_load(folders, tmp_path):
  config = json.loads((folders[0] / 'config.json').read_text())
  config['model']['image_head'] = 'os:system'
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match='image_head is os:system'):
    intersyn_jax.Generator.from_workdir(tmp_path)
