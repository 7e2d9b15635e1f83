"""Metric rows, the clock and the progress line."""

import io
import json
import struct

import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event

from intersyn_jax.errors import UserError
from intersyn_jax.training import progress
from intersyn_jax.training.metrics import Clock, MetricsWriter, read_rows, replace_text


def scalars(path):
  """Step and values of each event that has any, as TensorBoard reads them."""
  data, found = path.read_bytes(), []
  while data:
    (size,) = struct.unpack('<Q', data[:8])
    event, data = Event.FromString(data[12:12 + size]), data[16 + size:]
    if event.summary.value:
      found.append((event.step, {value.tag: value.simple_value for value in event.summary.value}))
  return found


def test_rows_are_written_at_once_and_for_tensorboard(tmp_path):
  writer = MetricsWriter(tmp_path)
  writer.write(1, {'loss': jnp.float32(0.5), 'bad': float('inf')})
  assert read_rows(tmp_path / 'metrics.jsonl') == [{'step': 1, 'loss': 0.5, 'bad': None}]
  writer.write(2, {'loss': 0.25})
  writer.close()
  (path,) = (tmp_path / 'tensorboard').glob('events*')
  assert scalars(path) == [(1, {'loss': 0.5}), (2, {'loss': 0.25})]


def test_a_resumed_stage_has_each_step_once(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    for step in range(6):
      writer.write(step, {'loss': step})
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 6, "lo')  # killed while it wrote
  with MetricsWriter(tmp_path, done=3) as writer:
    writer.write(4, {'loss': 40})
  assert [(r['step'], r['loss']) for r in read_rows(tmp_path / 'metrics.jsonl')] == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 40)]
  with MetricsWriter(tmp_path):
    pass
  assert read_rows(tmp_path / 'metrics.jsonl') == []


def test_a_broken_row_is_named(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 0}\nrubbish\n{"step": 2}\n')
  with pytest.raises(UserError, match='line 2'):
    read_rows(tmp_path / 'metrics.jsonl')


def test_an_inactive_process_writes_nothing(tmp_path):
  with MetricsWriter(tmp_path / 'x', active=False) as writer:
    writer.write(0, {'loss': 1})
  assert not (tmp_path / 'x').exists()


def test_wandb_missing_is_a_users_mistake(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'wandb', None)
  with pytest.raises(UserError, match='extra wandb'):
    MetricsWriter(tmp_path, wandb='project')


def test_replacing_leaves_no_part(tmp_path):
  replace_text(tmp_path / 'a.json', 'one')
  replace_text(tmp_path / 'a.json', 'two')
  assert [p.name for p in tmp_path.iterdir()] == ['a.json'] and (tmp_path / 'a.json').read_text() == 'two'


def test_the_clock_counts_killed_starts(tmp_path):
  clock = Clock(tmp_path / 'clock.json', every=0.0)
  clock._before = 50.0
  clock.tick()
  assert json.loads((tmp_path / 'clock.json').read_text())['seconds'] >= 50
  assert Clock(tmp_path / 'clock.json').seconds >= 50


def test_progress_says_rate_and_time_left(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
  stream = io.StringIO()
  line = progress.Progress('warmup', 100, stream=stream)
  now[0] += 60  # the first step compiles
  line.update(1, loss=2.5)
  for step in range(2, 42):
    now[0] += 0.5
    line.update(step, loss=2.5)
  lines = stream.getvalue().splitlines()
  assert 4 <= len(lines) <= 6  # not a terminal: a line every five seconds
  assert lines[-1].startswith('warmup: 41/100 (41 %)  2 steps/s  30 s left  loss 2.5')
  line.close()
  assert stream.getvalue().splitlines()[-1] == 'warmup: 41/100 steps in 1:20'


def test_the_last_piece_closes_the_line_once():
  stream = io.StringIO()
  line = progress.Progress('grpo', 3, stream=stream)
  line(3, 3, 1.0, 0.0, {'loss': 0.5, 'kl': 1.0})
  line.close()
  assert stream.getvalue() == 'grpo: 3/3 steps in 0 s  loss 0.5\n'


def test_a_total_nobody_knows():
  stream = io.StringIO()
  line = progress.Progress('rows', 0, unit='row', stream=stream)
  line.update(7)
  line.close()
  first, last = stream.getvalue().splitlines()
  assert first.startswith('rows: 7') and '/' not in first.split('  ')[0] and '%' not in first and 'left' not in first
  assert last == 'rows: 7 rows in 0 s'


def test_durations():
  assert [progress.duration(s) for s in (8.2, 185, 7420)] == ['8 s', '3:05', '2:03:40']
  assert [progress.amount(v) for v in (12345, 0.01234, 2_500_000, 1234)] == ['12.3k', '0.0123', '2.5M', '1234']
