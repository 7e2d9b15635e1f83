"""`run` killed with SIGKILL inside every stage and started again ends with the same numbers, to the bit."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import intersyn_jax
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import images_of
from intersyn_jax.stages import PIPELINE
from intersyn_jax.training import checkpoints
from intersyn_jax.training.trees import flat, nested

ROOT = pathlib.Path(__file__).parents[2]
SMALLER = (
    '--config.image.steps=120', '--config.warmup.steps=20', '--config.warmup.long_steps=20', '--config.writer.steps=20',
    '--config.judge.steps=10', '--config.finetune.steps=20', '--config.finetune.checkpoint_every=10',
    '--config.grpo.steps=4', '--config.grpo.checkpoint_every=2', '--config.image.pictures=128',
    '--config.judge.log_every=5', '--config.judge.checkpoint_every=5', '--config.evaluate.decodings=sampled,greedy')
"""`smoke`, but every trained part has a checkpoint in its middle, so that there is something to go on from."""

CHANGING = ('seconds', 'finished', 'peak_rss_mib')
"""What a summary says of the machine's time and memory; stages add `seconds.*` and rates of their own."""

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

PATIENCE = 600


class Killed:
  """Starts `run` on one folder, again and again."""

  def __init__(self, workdir: pathlib.Path, cache: pathlib.Path):
    self.workdir = workdir
    self.log = workdir.with_suffix('.log')
    self.environment = os.environ | {
        'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': str(cache), 'PYTHONPATH': str(ROOT)}

  def start(self) -> subprocess.Popen:
    command = [sys.executable, '-m', 'intersyn_jax', 'run', '--config=configs/storyworld.py:smoke',
               f'--workdir={self.workdir}', *SMALLER]
    with self.log.open('a') as log:
      return subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=log, stderr=log)

  def finish(self) -> None:
    process = self.start()
    assert process.wait(PATIENCE) == 0, self.tail()

  def kill_inside(self, stage: str, pattern: str, delay: float) -> bool:
    """Runs until something new in `stage` matches `pattern`, and kills it there; False where the stage had ended by then."""
    folder = self.workdir / stage
    before = set(folder.glob(pattern or 'config.json'))
    process = self.start()
    end = time.monotonic() + PATIENCE
    try:
      while before >= set(folder.glob(pattern or 'config.json')):
        assert process.poll() is None and time.monotonic() < end, self.tail()
        if (folder / 'summary.json').exists():
          break
        time.sleep(0.005)
      time.sleep(delay)
      # Stopped first: whether the stage had ended must still be true when it is killed.
      process.send_signal(signal.SIGSTOP)
      return not (folder / 'summary.json').exists()
    finally:
      process.kill()
      process.wait()

  def tail(self) -> str:
    return self.log.read_text()[-3000:]


def numbers(workdir: pathlib.Path) -> dict[str, object]:
  """Every metric of every summary that does not tell of time or memory."""
  found = {}
  for stage in PIPELINE:
    summary = json.loads((workdir / stage / 'summary.json').read_text())
    found |= {f'{stage}.{name}': value for name, value in summary.items()
              if name not in CHANGING and 'seconds' not in name and 'per_second' not in name}
  del found['report.page_kib']  # the page tells the seconds of every stage
  return found


def final_params(workdir: pathlib.Path) -> dict[str, bytes]:
  """Bytes of every array of the last checkpoint in each checkpoint folder."""
  found = {}
  for folder in sorted(workdir.rglob('checkpoints')):
    shapes = checkpoints.read_meta(folder)['shapes']
    like = nested({name.removeprefix('params/'): jax.ShapeDtypeStruct(tuple(shape), dtype)
                   for name, (dtype, *shape) in shapes.items() if name.startswith('params/')})
    params = flat(checkpoints.load_params(folder, like))
    at = f'{folder.parent.relative_to(workdir)}@{checkpoints.latest_step(folder)}'
    found |= {f'{at} {name}': np.asarray(array).tobytes() for name, array in params.items()}
  return found


def metric_rows(workdir: pathlib.Path) -> dict[str, list]:
  """The curves: every step stands in its file once, with the same values."""
  found = {}
  for path in sorted(workdir.rglob('metrics.jsonl')):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found[str(path.relative_to(workdir))] = [
        {name: value for name, value in row.items() if 'second' not in name} for row in rows]
  return found


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A folder made without a disturbance, and one whose run was killed in every stage."""
  base = tmp_path_factory.mktemp('kill')
  plain, killed = base / 'plain', base / 'killed'
  start = time.monotonic()
  Killed(plain, base / 'cache').finish()
  print(f'undisturbed: {time.monotonic() - start:.0f} s')
  run = Killed(killed, base / 'cache')
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


def test_a_work_folder_names_no_code_to_load(folders, tmp_path):
  config = json.loads((folders[0] / 'config.json').read_text())
  config['model']['image_head'] = 'os:system'
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match='image_head is os:system'):
    intersyn_jax.Generator.from_workdir(tmp_path)
