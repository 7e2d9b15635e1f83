"""Own data: InterSyn rows with pictures are imported, tokenised and trained on with a falling loss (docs/data.md)."""

import json
import pathlib

import numpy as np
import pytest

from intersyn_jax.data import images, manifest, shards
from intersyn_jax.errors import UserError
from intersyn_jax.stages import settings
from intersyn_jax.stages.common import Run, run_stage
from intersyn_jax.stages.parts import policy_folder
from intersyn_jax.training import checkpoints
from intersyn_jax.training.metrics import read_rows

CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'opening.py'
COLOURS = {'red': (220, 30, 30), 'green': (30, 180, 60), 'blue': (40, 60, 220), 'yellow': (230, 210, 40)}
SMALL = {
    'data.pixels': '16', 'text.size': '320', 'image.channels': '16', 'image.codebook': '16', 'image.code_dim': '8',
    'image.kernel': '1', 'image.steps': '30', 'image.autoencoder': '10', 'image.batch': '8', 'warmup.steps': '30',
    'warmup.rows': '8', 'warmup.row_length': '192', 'warmup.log_every': '5', 'warmup.optimizer.warmup': '5'}


def write_rows(folder: pathlib.Path) -> pathlib.Path:
  """Twelve rows of one or two turns, one of them with a picture that is missing, and the placeholder row of the release."""
  (folder / 'images').mkdir(parents=True)
  rows = []
  for number in range(12):
    name = list(COLOURS)[number % len(COLOURS)]
    picture = np.full((20, 24, 3), COLOURS[name], np.uint8)
    picture[: 4 + number] //= 2
    (folder / f'images/{number}.png').write_bytes(images.png(picture))
    messages = [{'from': 'human', 'value': f'Please show me a {name} wall with a dark top.'},
                {'from': 'gpt', 'value': f'Here is a {name} wall.', 'caption': f'a {name} wall', 'image': f'images/{number}.png'}]
    rows.append({'id': f'walls_{number:010d}', 'topic': 'Walls', 'conversations': messages * (1 + number % 2)})
  rows[11]['conversations'][1] = rows[11]['conversations'][1] | {'image': 'images/none.png'}
  rows.append({'id': 'id', 'question': 'The question from the data', 'conversations': []})
  path = folder / 'rows.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def config(path: pathlib.Path, **changes):
  made = settings.load_config(f'{CONFIG}:smoke')
  fields = SMALL | {'data.source': 'intersyn_release', 'data.path': str(path)} | changes
  for field, text in fields.items():
    settings.set_field(made, field, text)
  return made.lock()


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  base = tmp_path_factory.mktemp('own')
  run = Run(config(write_rows(base / 'source')), base / 'work')
  for stage in ('data', 'tokenizer', 'warmup'):
    run_stage(run, stage)
  return run


def test_rows_are_imported_and_the_rest_is_listed(run):
  assert run.summary('data')['records.interleaved'] == 11 and run.summary('data')['rejected.interleaved'] == 2
  rejected = manifest.load(run.workdir / 'data').splits['interleaved'].rejected
  assert [r.where for r in rejected] == ['rows.jsonl line 12', 'rows.jsonl line 13']
  assert 'none.png' in rejected[0].reason and 'placeholder' in rejected[1].reason
  coded = shards.open_split(run.workdir / 'tokenizer' / 'data', 'interleaved')
  assert len(coded) == 11 and coded[0].turns[0].answer[1].codes.shape == (4, 1)


def test_the_loss_falls(run):
  summary, rows = run.summary('warmup'), read_rows(run.workdir / 'warmup' / 'metrics.jsonl')
  assert summary['student.documents'] == 11 and summary['student.too_long'] == 0
  assert rows[-1]['step'] == 30
  assert rows[-1]['loss'] < 0.8 * rows[0]['loss']


def test_policies_of_no_steps_are_left_out(run):
  assert checkpoints.latest_step(policy_folder(run.workdir, 'warmup')) == 30
  for policy in ('warmup_long', 'writer'):
    assert checkpoints.latest_step(policy_folder(run.workdir, policy)) is None
  assert not any(name.startswith(('long.', 'writer.')) for name in run.summary('warmup'))


def test_without_a_path_the_field_is_named(tmp_path):
  with pytest.raises(UserError, match='data.path'):
    run_stage(Run(config(''), tmp_path), 'data')
