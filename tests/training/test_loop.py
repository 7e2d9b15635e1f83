"""The loop: exact gradients over micro-batches, metric windows, and the same bits after SIGKILL."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.training import stopping
from intersyn_jax.training.checkpoints import Checkpoints, latest_step
from intersyn_jax.training.loop import Indexed, fit, gradients_of, init_state, make_step, put, whole
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer
from intersyn_jax.training.times import Profile


def loss(params, batch, key):
  """Two terms with different, uneven denominators, as text and image positions have."""
  del key
  y = jnp.tanh(batch['x'] @ params['up_kernel']) @ params['head']
  error = (y - batch['y']) ** 2
  return {'text': (jnp.sum(error * batch['text']), jnp.sum(batch['text'])),
          'image': (jnp.sum(jnp.abs(y) * batch['image']), jnp.sum(batch['image']))}


WEIGHTS = {'text': 1.0, 'image': 0.3}


def make_params():
  draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
  return {'up_kernel': draw(0, 4, 8), 'head': draw(1, 8)}


def batch_of(i, rows=12):
  draw = np.random.default_rng(i)
  x = draw.normal(size=(rows, 4)).astype(np.float32)
  text = (draw.random(rows) < 0.5).astype(np.float32)
  return {'x': x, 'y': x[:, 0] * x[:, 1], 'text': text, 'image': 1 - text}


class Rows:
  """Rows of numbers that are the same in every run, and the seconds beside them."""

  def __init__(self):
    self.rows, self.seconds = [], []

  def write(self, step, values):
    told = lambda name: name.startswith('seconds.')
    self.rows.append((step, {name: value for name, value in values.items() if not told(name)}))
    self.seconds.append({name: value for name, value in values.items() if told(name)})


class Line:
  """A progress line that remembers, and may take its time."""

  def __init__(self, seconds=0.0, stream=None):
    self.seconds, self.stream, self.seen, self.closed = seconds, stream, [], False

  def update(self, done, **values):
    self.seen.append((done, values))
    if self.stream is not None:
      print('step', done, file=self.stream, flush=True)
    time.sleep(self.seconds)

  def close(self, **values):
    self.closed = True


def run(steps, folder=None, **options):
  optimizer = make_optimizer(OptimizerConfig(name='muon', learning_rate=0.02, adam_learning_rate=3e-3), 1000)
  checkpoints = Checkpoints(folder) if folder else None
  rows = options.pop('rows', None) or Rows()
  state, last = fit(make_step(loss, optimizer, weights=WEIGHTS), init_state(make_params(), optimizer),
                    options.pop('batches', Indexed(batch_of)), steps=steps, seed=5, checkpoints=checkpoints,
                    metrics=rows, metrics_every=4, save_every=8, **options)
  return state, last, rows.rows


def same(a, b):
  return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize('micro', [2, 3, 12])
def test_micro_batches_give_the_gradient_of_the_whole_batch(micro):
  key = jax.random.key(0)
  text = np.isin(np.arange(12), (0, 2, 4, 6, 7)).astype(np.float32)
  batch = batch_of(0) | {'text': text, 'image': 1 - text}
  whole, metrics = gradients_of(loss, make_params(), batch, key, WEIGHTS)
  parts, other = gradients_of(loss, make_params(), batch, key, WEIGHTS, micro)
  for name in whole:
    np.testing.assert_allclose(parts[name], whole[name], rtol=2e-5, atol=1e-6)
  for name in ('loss', 'text', 'image'):
    np.testing.assert_allclose(other[name], metrics[name], rtol=1e-5)
  # The mean of the means of parts is another number: uneven denominators must matter in this test.
  means = np.mean([float(gradients_of(loss, make_params(), jax.tree.map(lambda x, i=i: x[i::micro], batch), key,
                                      WEIGHTS)[1]['loss']) for i in range(micro)])
  assert abs(means - float(metrics['loss'])) > 1e-3


def test_counting_pass_does_no_forward_work():
  text = jax.jit(lambda p, b: gradients_of(loss, p, b, jax.random.key(0), WEIGHTS, 3)).lower(
      make_params(), batch_of(0)).compile().as_text()
  assert text.count(' tanh(') == 1


def test_micro_batch_mistakes_are_told():
  with pytest.raises(UserError, match='12 rows cannot be cut into micro_batches=5'):
    gradients_of(loss, make_params(), batch_of(0), jax.random.key(0), WEIGHTS, 5)
  with pytest.raises(UserError, match="name \\['vision'\\], the loss returns"):
    gradients_of(loss, make_params(), batch_of(0), jax.random.key(0), {'vision': 1.0})


def test_a_part_that_trains_over_a_base_moves_as_among_all_parameters():
  optimizer = make_optimizer(OptimizerConfig(learning_rate=0.02, frozen=('^head$',)), 10)
  step = jax.jit(make_step(loss, optimizer, weights=WEIGHTS, micro_batches=3))
  params = make_params()
  one = init_state(params, optimizer)
  other = init_state({'up_kernel': params['up_kernel']}, optimizer, base={'head': params['head']})
  assert whole(one) == one['params'] and whole(other).keys() == params.keys()
  assert jax.tree.structure(one['opt_state']) == jax.tree.structure(other['opt_state'])
  for number in range(3):
    (one, metrics), (other, values) = (step(state, batch_of(number), jax.random.key(number)) for state in (one, other))
    assert metrics.keys() == values.keys() and np.isclose(metrics['gradient_norm'], values['gradient_norm'])
  assert other['params'].keys() == {'up_kernel'} and np.array_equal(other['base']['head'], params['head'])
  assert not np.array_equal(other['params']['up_kernel'], params['up_kernel'])
  np.testing.assert_allclose(other['params']['up_kernel'], one['params']['up_kernel'], rtol=1e-6)


def test_empty_denominator_is_nought_not_nan():
  batch = batch_of(0) | {'image': np.zeros(12, np.float32)}
  gradients, metrics = gradients_of(loss, make_params(), batch, jax.random.key(0), WEIGHTS)
  assert metrics['image'] == 0 and np.isfinite(gradients['up_kernel']).all()


def test_learns_and_reports_windows():
  line = Line()
  state, last, rows = run(42, progress=line)
  assert int(state['step']) == 42
  assert [step for step, _ in rows] == [*range(4, 41, 4), 42] == [done for done, _ in line.seen]
  assert rows[-1][1] == last and last['text'] < rows[0][1]['text']
  assert last.keys() == {'loss', 'text', 'image', 'gradient_norm', 'learning_rate', 'skipped'}
  assert line.seen[-1] == (42, {'loss': last['loss']}) and line.closed


def test_resumes_to_the_same_bits_and_windows(tmp_path):
  whole, last, rows = run(30)
  run(16, tmp_path)
  batches = Indexed(batch_of)
  resumed, again, later = run(30, tmp_path, batches=batches)
  assert same(whole, resumed) and again == last
  assert later == rows[-len(later):] and later[0][0] == 20
  # Complete: nothing is done again, and the last numbers are still there.
  third, numbers, none = run(30, tmp_path)
  assert same(third, whole) and numbers == last and not none


def test_draws_depend_on_seed_and_step_only():
  def noisy(state, batch, key):
    draw = jax.random.normal(key)
    return state | {'params': {'x': state['params']['x'] * 0.5 + draw}, 'step': state['step'] + 1}, {'draw': draw}
  start = lambda: {'params': {'x': jnp.zeros(())}, 'step': jnp.zeros((), jnp.int32),
                   'skipped': {'row': jnp.zeros((), jnp.int32), 'all': jnp.zeros((), jnp.int32)}}
  a = fit(noisy, start(), Indexed(batch_of), steps=3, seed=1, metrics_every=1)
  half = fit(noisy, start(), Indexed(batch_of), steps=2, seed=1, metrics_every=1)[0]
  b = fit(noisy, half, Indexed(batch_of), steps=3, seed=1, metrics_every=1)
  c = fit(noisy, start(), Indexed(batch_of), steps=3, seed=2, metrics_every=1)
  assert a[1] == b[1] and same(a[0], b[0]) and a[1] != c[1]


def test_other_seed_or_fewer_steps_are_told(tmp_path):
  run(8, tmp_path)
  with pytest.raises(UserError, match='is at step 8, this run ends at 4'):
    run(4, tmp_path)
  optimizer = make_optimizer(OptimizerConfig(name='muon'), 10)
  with pytest.raises(UserError, match='written with seed 5, this run has 6'):
    fit(make_step(loss, optimizer, weights=WEIGHTS), init_state(make_params(), optimizer), Indexed(batch_of), steps=9,
        seed=6, checkpoints=Checkpoints(tmp_path))


def test_grain_iterator_resumes(tmp_path):
  grain = pytest.importorskip('grain')
  make = lambda: iter(grain.MapDataset.source(np.arange(40)).shuffle(seed=3).repeat().to_iter_dataset()
                      .map(lambda i: batch_of(int(i))))
  whole, last, _ = run(24, batches=make())
  run(8, tmp_path, batches=make())
  resumed, again, _ = run(24, tmp_path, batches=make())
  assert same(whole, resumed) and again == last


def test_put_places_rows():
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('fsdp',))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('fsdp'))
  assert all(x.sharding == sharding for x in jax.tree.leaves(put(batch_of(0), sharding)))


CHILD = """
import pathlib, sys
sys.path.insert(0, sys.argv[2])
import numpy as np
import test_loop
line = test_loop.Line(float(sys.argv[3]), sys.stdout)
state, last, _ = test_loop.run(40, sys.argv[1], progress=line)
np.savez(pathlib.Path(sys.argv[1]) / 'final.npz', loss=last['loss'], **state['params'])
"""


def test_killed_and_started_again_ends_with_the_same_bits(tmp_path):
  here = str(pathlib.Path(__file__).parent)

  def child(folder, slow=0.0):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, '-c', CHILD, str(folder), here, str(slow)], stdout=subprocess.PIPE,
                            env=os.environ | {'JAX_PLATFORMS': 'cpu'}, text=True)

  whole = child(tmp_path / 'whole')
  cut = child(tmp_path / 'cut', 0.2)
  for line in cut.stdout:
    if int(line.split()[1]) >= 20:  # between the checkpoints of 16 and 24
      os.kill(cut.pid, signal.SIGKILL)
      break
  assert cut.wait(60) == -signal.SIGKILL
  assert latest_step(tmp_path / 'cut') in (8, 16) and not (tmp_path / 'cut' / 'final.npz').exists()
  again = child(tmp_path / 'cut')
  steps = [int(line.split()[1]) for line in again.communicate(timeout=120)[0].splitlines()]
  whole.communicate(timeout=120)
  assert again.returncode == whole.returncode == 0 and steps[0] in (12, 20)
  a, b = (np.load(tmp_path / name / 'final.npz') for name in ('whole', 'cut'))
  assert set(a.files) == {'up_kernel', 'head', 'loss'}
  for name in a.files:
    assert a[name].tobytes() == b[name].tobytes()


def test_killed_inside_a_save_leaves_the_checkpoint_before(tmp_path):
  code = CHILD.replace('test_loop.run(40', 'test_loop.run(4000')
  process = subprocess.Popen([sys.executable, '-c', code, str(tmp_path), str(pathlib.Path(__file__).parent), '0'],
                             stdout=subprocess.PIPE, env=os.environ | {'JAX_PLATFORMS': 'cpu'}, text=True)
  for _ in zip(range(6), process.stdout, strict=False):
    pass
  time.sleep(0.05)  # saves take most of the time of this run, so this falls into one
  process.kill()
  process.wait(60)
  process.stdout.close()
  if latest_step(tmp_path) is not None:
    state, _ = Checkpoints(tmp_path).restore(run(0)[0])
    whole, _, _ = run(int(state['step']))
    assert same(state, whole)


def poisoned(*numbers):
  def bad(i):
    batch = batch_of(i)
    return batch | ({'x': batch['x'] * np.float32('nan')} if i in numbers else {})
  return Indexed(bad)


def test_an_update_without_finite_loss_changes_nothing_and_is_counted(tmp_path):
  clean = run(8, batches=Indexed(lambda i: batch_of(i + (i >= 5))))[0]
  state, last, rows = run(9, tmp_path, batches=poisoned(5))
  # One batch more was used, so that rates, which do not change here, are all that the step could decide.
  assert same(state['params'], clean['params']) and same(state['opt_state'], clean['opt_state'])
  assert int(state['step']) == 9 and last['skipped'] == 1
  assert [values['skipped'] for _, values in rows] == [0, 1, 1]
  assert all(np.isfinite(values['loss']) for _, values in rows), 'the mean of a window is of what was a number'
  assert same(run(30, tmp_path, batches=poisoned(5))[0], run(30, batches=poisoned(5))[0])


def test_many_in_a_row_end_the_run_and_the_last_checkpoint_stays(tmp_path):
  with pytest.raises(UserError, match=r'last 2[0-3] updates had no finite loss .* keeps step 24'):
    run(100, tmp_path, batches=poisoned(*range(7, 100)))
  state, meta = Checkpoints(tmp_path).restore(run(0)[0])
  assert meta['step'] == 24 and same(state['params'], run(7)[0]['params'])
  with pytest.raises(UserError, match='had no finite loss'):
    run(100, tmp_path, batches=poisoned(*range(7, 100)))
  # With the data mended it goes on.
  assert int(run(40, tmp_path)[0]['step']) == 40


@pytest.mark.parametrize('after', [6, 8, 13])
def test_sigterm_saves_and_the_next_start_ends_with_the_same_bits_and_rows(tmp_path, after, monkeypatch):
  before = signal.getsignal(signal.SIGTERM)
  monkeypatch.setattr(stopping._Signal, 'came', False)
  stopping.install()

  def batch(number):
    if number == after - 1:  # fetched ahead, behind the look at signals
      os.kill(os.getpid(), signal.SIGTERM)
    return batch_of(number)

  try:
    first = Rows()
    with pytest.raises(stopping.Stopped):
      run(30, tmp_path, batches=Indexed(batch), rows=first)
    assert latest_step(tmp_path) == after
    stopping._Signal.came = False
    whole, last, rows = run(30)
    resumed, again, later = run(30, tmp_path)
    assert same(whole, resumed) and again == last
    assert first.rows + later == rows
    with pytest.raises(stopping.Stopped):  # nothing is held here
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(1)
  finally:
    signal.signal(signal.SIGTERM, before)


def test_rows_tell_where_the_time_went(tmp_path):
  rows = Rows()

  def slow(number):
    time.sleep(0.05)
    return batch_of(number)

  began = time.monotonic()
  run(16, tmp_path, batches=Indexed(slow), rows=rows)
  whole = time.monotonic() - began
  parts = {name: sum(row.get(name, 0) for row in rows.seconds) for name in set().union(*rows.seconds)}
  assert parts.keys() == {'seconds.data', 'seconds.update', 'seconds.checkpoint', 'seconds.compile'}
  assert parts['seconds.data'] >= 16 * 0.05 and sum(parts.values()) <= whole
  assert 'seconds.compile' in rows.seconds[0] and 'seconds.compile' not in rows.seconds[1]


def test_some_steps_are_traced(tmp_path):
  run(9, profile=Profile('3:4', tmp_path / 'profile'))
  traces = list((tmp_path / 'profile').rglob('*.xplane.pb'))
  assert len(traces) == 1 and b'step' in traces[0].read_bytes()
  run(9, profile=Profile('12:13', tmp_path / 'none'))
  assert not (tmp_path / 'none').exists()
  for wrong in ('3', '4:3', '0:2', 'a:b', '1:2:3'):
    with pytest.raises(UserError, match='config.profile_steps'):
      Profile(wrong, tmp_path)


def test_next_batch_is_on_its_way_before_the_host_waits_and_no_batch_is_lost(tmp_path):
  events = []

  class Told(Indexed):
    def __next__(self):
      events.append(('batch', self._next))
      return super().__next__()

  class Written(Rows):
    def write(self, step, values):
      events.append(('row', step))
      assert values['read'] == step, 'counts are those of the batches used, not of the one ahead'
      super().write(step, values)

  def go(steps):
    batches = Told(batch_of)
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    return fit(make_step(loss, optimizer, weights=WEIGHTS), init_state(make_params(), optimizer), batches, steps=steps, seed=5,
               checkpoints=Checkpoints(tmp_path), metrics=Written(), metrics_every=4, save_every=8,
               counts=lambda: {'read': batches.get_state()['next_index']})[1]

  assert go(10)['read'] == 10
  assert events == [('batch', 0), *(('batch', i) for i in range(1, 5)), ('row', 4), *(('batch', i) for i in range(5, 9)),
                    ('row', 8), ('batch', 9), ('row', 10)]
  assert Checkpoints(tmp_path).restore(init_state(make_params(), make_optimizer(OptimizerConfig(), 1000)))[1]['data'] == {
      'next_index': 10}
  del events[:]
  go(12)
  assert events == [('batch', 10), ('batch', 11), ('row', 12)]
