"""The supervised loop: warm-up, SEIR writer, judge, fine-tuning and image tokenizer all run through `fit`.

    state = init_state(params, optimizer)
    step = make_step(loss, optimizer, weights={'text': 1.0, 'image': 1.0}, micro_batches=2)
    state, last = fit(step, state, batches, steps=1000, seed=0, checkpoints=Checkpoints(folder))

A state is a dict pytree with `params`, `opt_state`, `step` (int32 scalar, batches used) and `skipped`; a stage may add
entries. Where a part of the parameters stands still, `params` may hold the part that trains and `base` the rest
(`training.tuning`): gradients and moments are then of the former alone, and the latter passes through each update in the same
memory. A loss is a function (params, batch, key) of all parameters -> {name: (sum, denominator)}: sums are reduced once, over
all micro-batches and devices.

Resume is exact: the key of an update is `fold_in(key(seed), step)`, the position of the data iterator lies in the
checkpoint, and metric windows and checkpoints fall on fixed steps. A run that was killed anywhere ends with the same bits.

An update whose loss or gradient is no finite number changes nothing but the counters: `step`, and `skipped`, how many such
updates there were in a row and in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax import sharding
from intersyn_jax.errors import UserError
from intersyn_jax.models.definition import joined
from intersyn_jax.training import precision, stopping
from intersyn_jax.training.checkpoints import Checkpoints
from intersyn_jax.training.optimizer import Optimizer
from intersyn_jax.training.times import Profile, Times, device_memory
from intersyn_jax.training.trees import flat

State = dict[str, Any]
Pairs = Mapping[str, tuple[jax.Array, jax.Array]]
Loss = Callable[[Any, Any, jax.Array], Pairs]
Step = Callable[[State, Any, jax.Array], tuple[State, dict[str, jax.Array]]]


class Batches(Protocol):
  """An endless iterator of batches with a position that JSON can hold; Grain iterators are such."""

  def __next__(self) -> Any: ...
  def get_state(self) -> Any: ...
  def set_state(self, state: Any) -> None: ...


class MetricWriter(Protocol):
  def write(self, step: int, values: dict[str, float]) -> None: ...


class Progress(Protocol):
  """What shows a person how far the run is; `training.progress.Progress` is one."""

  def update(self, done: int, **values: float) -> None: ...
  def close(self, **values: float) -> None: ...


class Indexed(Iterator[Any]):
  """Batches as a function of their number: `Indexed(lambda i: batch)`. Of these global batches each process gives its rows of
  the mesh; without one all of them."""

  def __init__(self, batch_of: Callable[[int], Any], mesh: jax.sharding.Mesh | None = None):
    self._batch_of, self._mesh = batch_of, mesh
    self._next = 0

  def __next__(self) -> Any:
    self._next += 1
    batch = self._batch_of(self._next - 1)
    if self._mesh is None or jax.process_count() == 1:
      return batch
    mine = sharding.process_rows(self._mesh, len(jax.tree.leaves(batch)[0]))
    return jax.tree.map(lambda a: a[mine], batch)

  def get_state(self) -> dict[str, int]:
    return {'next_index': self._next}

  def set_state(self, state: dict[str, int]) -> None:
    self._next = int(state['next_index'])


def init_state(params: Any, optimizer: Optimizer, base: Any = None, **extra: Any) -> State:
  """A fresh state. Moments get the sharding of their parameter, all else is replicated on the same devices.

  Args:
    params: all parameters, or those that train.
    base: the others, as they are.
  """
  every = joined(params, base) if base else params
  shardings = {path: x.sharding for path, x in flat(params).items()}
  shapes = {path: x.shape for path, x in flat(params).items()}
  named = next((s for s in shardings.values() if isinstance(s, jax.sharding.NamedSharding)), None)
  alone = jax.sharding.NamedSharding(named.mesh, jax.sharding.PartitionSpec()) if named else None

  def place(keys: tuple[Any, ...], leaf: Any) -> Any:
    # optax sees {path: array}, so the path of the parameter is the last key of its moments.
    path = getattr(keys[-1], 'key', None) if keys else None
    return shardings[path] if shapes.get(path) == leaf.shape else alone

  abstract_moments = jax.eval_shape(optimizer.init, every)
  places = jax.tree_util.tree_map_with_path(place, abstract_moments) if named else None
  opt_state = jax.jit(optimizer.init, out_shardings=places)(every)
  counters = {'step': np.zeros((), np.int32), 'skipped': {name: np.zeros((), np.int32) for name in ('row', 'all')}}
  rest = jax.device_put(jax.device_get(counters | extra), alone)
  return {'params': params, 'opt_state': opt_state, **rest} | ({'base': base} if base else {})


def whole(state: State) -> Any:
  """All parameters of a state; arrays are shared, not copied."""
  return joined(state['params'], state['base']) if 'base' in state else state['params']


def ratio(total: jax.Array, count: jax.Array) -> jax.Array:
  """total / count, and 0 where nothing was counted."""
  return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0.0)


def gradients_of(
    loss: Loss, params: Any, batch: Any, key: jax.Array, weights: Mapping[str, float], micro_batches: int = 1,
    lean: bool = False,
) -> tuple[Any, dict[str, jax.Array]]:
  """Gradient of sum_n weights[n] * sum_n / denominator_n over the whole batch, and all ratios by name.

  With micro-batches the denominators of the whole batch are counted first (they must not depend on what is learnt; the
  compiler drops the rest of that pass), so the accumulated gradient is that of one large batch up to rounding. Every leaf of
  the batch has the batch axis first; its size must be a multiple of `micro_batches`. Micro-batch i draws from
  `fold_in(key, i)`. Gradients are added up in float32, or, if `lean`, in the type of the parameters: bfloat16 rounds each
  of M sums by up to a 512th of itself, which gradient noise hides, and loses a part only where it is less than that.
  """

  def objective(params: Any, part: Any, key: jax.Array, counts: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
    pairs = loss(params, part, key)
    missing = weights.keys() - pairs.keys()
    if missing:
      raise UserError(f'loss weights name {sorted(missing)}, the loss returns {sorted(pairs)}: weigh one of these')
    counts = counts or {name: count for name, (_, count) in pairs.items()}
    total = sum(weight * ratio(pairs[name][0], jax.lax.stop_gradient(counts[name])) for name, weight in weights.items())
    return total, dict(pairs)

  if micro_batches == 1:
    (total, pairs), gradients = jax.value_and_grad(objective, has_aux=True)(params, batch, key, {})
    return gradients, {'loss': total} | {name: ratio(*pair) for name, pair in pairs.items()}

  def split(x: jax.Array) -> jax.Array:
    if x.shape[0] % micro_batches:
      raise UserError(f'batch of {x.shape[0]} rows cannot be cut into micro_batches={micro_batches}: use a divisor')
    # Rows i, i + M, ... form micro-batch i: the sharded batch axis stays the leading part of the split.
    return jnp.moveaxis(x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]), 1, 0)

  parts = jax.tree.map(split, batch)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(micro_batches))

  def count(_: None, inputs: tuple[Any, jax.Array]) -> tuple[None, dict[str, jax.Array]]:
    return None, {name: n for name, (_, n) in loss(params, *inputs).items()}

  counts = jax.tree.map(lambda n: n.sum(0), jax.lax.scan(count, None, (parts, keys))[1])

  def accumulate(carry: Any, inputs: tuple[Any, jax.Array]) -> tuple[Any, None]:
    part, key = inputs
    (total, pairs), gradients = jax.value_and_grad(objective, has_aux=True)(params, part, key, counts)
    found = (gradients, total, {name: s for name, (s, _) in pairs.items()})
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), carry, found), None

  one = jax.tree.map(lambda x: x[0], (parts, keys))
  first = jax.eval_shape(lambda: {name: total for name, (total, _) in loss(params, *one).items()})
  summed = lambda p: p.dtype if lean else jnp.promote_types(p.dtype, jnp.float32)
  zeros = (jax.tree.map(lambda p: jnp.zeros_like(p, dtype=summed(p)), params),
           jnp.zeros(()), {name: jnp.zeros(s.shape, s.dtype) for name, s in first.items()})
  (gradients, total, sums), _ = jax.lax.scan(accumulate, zeros, (parts, keys))
  return gradients, {'loss': total} | {name: ratio(sums[name], counts[name]) for name in sums}


def make_step(
    loss: Loss, optimizer: Optimizer, *, weights: Mapping[str, float] | None = None, micro_batches: int = 1) -> Step:
  """The update that `fit` jits: gradient of the weighted loss (default `{'loss': 1}`), optimizer, metrics.

  Metrics: `loss` (the weighted sum), every ratio of the loss by its name, `gradient_norm` (before clipping, of what is
  trained) and `learning_rate`.
  """
  weights = dict(weights or {'loss': 1.0})

  def step(state: State, batch: Any, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    of_part = lambda params, batch, key: loss(whole(state | {'params': params}), batch, key)
    params = state['params']
    gradients, metrics = gradients_of(
        of_part, params, batch, key, weights, micro_batches, lean=optimizer.precision == precision.LEAN)
    squares = [jnp.sum(jnp.square(g.astype(jnp.float32)))
               for path, g in flat(gradients).items() if optimizer.trains(path)]
    metrics |= {'gradient_norm': jnp.sqrt(sum(squares)), 'learning_rate': optimizer.learning_rate(state['step'])}
    # Several updates may share a key, as those of one batch of rollouts do; no two have the step in common.
    params, opt_state = optimizer.apply(gradients, state['opt_state'], params, jax.random.fold_in(key, state['step']))
    return state | {'params': params, 'opt_state': opt_state, 'step': state['step'] + 1}, metrics

  return step


def guarded(step: Step) -> Step:
  """The same update, but one whose loss or gradient (or, where neither is told, any metric) is no finite number is left out.

  Metrics: also how many were left out in all, `skipped`, and `skipped_in_a_row`.
  """

  def checked(state: State, batch: Any, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    new, metrics = step(state, batch, key)
    told = [metrics[name] for name in ('loss', 'gradient_norm') if name in metrics] or list(metrics.values())
    finite = jnp.all(jnp.isfinite(jnp.stack(told)))
    choose = lambda a, b: a if a is b else jnp.where(finite, a, b)
    row, every = state['skipped']['row'], state['skipped']['all']
    skipped = {'row': jnp.where(finite, 0, row + 1), 'all': jnp.where(finite, every, every + 1)}
    kept = {name: jax.tree.map(choose, value, state[name]) for name, value in new.items()}
    metrics = metrics | {'skipped': skipped['all'], 'skipped_in_a_row': skipped['row']}
    return kept | {'step': new['step'], 'skipped': skipped}, metrics

  return checked


def jitted(step: Step, state: State) -> Callable[[State, Any, jax.Array], tuple[State, dict[str, jax.Array]]]:
  """The update as `fit` runs it, guarded: (state, batch, key of the run), the state donated and laid out as `state`, which may be
  shapes."""

  def keyed(state: State, batch: Any, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    return guarded(step)(state, batch, jax.random.fold_in(key, state['step']))

  return jax.jit(keyed, donate_argnums=0, out_shardings=(jax.tree.map(lambda x: x.sharding, state), None))


def put(batch: Any, sharding: jax.sharding.Sharding | None = None) -> Any:
  """Host batch to devices. With several processes each holds its own rows of the global batch."""
  if jax.process_count() == 1:
    return jax.device_put(batch, sharding)
  if sharding is None:
    raise ValueError('several processes need the sharding of a batch')
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def fit(
    step: Step, state: State, batches: Batches, *, steps: int, seed: int, checkpoints: Checkpoints | None = None,
    metrics: MetricWriter | None = None, metrics_every: int = 10, save_every: int = 100,
    progress: Progress | None = None, batch_sharding: jax.sharding.Sharding | None = None,
    counts: Callable[[], Mapping[str, float]] | None = None, profile: Profile | None = None,
) -> tuple[State, dict[str, float]]:
  """Runs updates until `state['step']` is `steps`; goes on from the latest checkpoint where there is one.

  Arguments:
    step: pure (state, batch, key) -> (state, metrics); guarded and jitted here, the state donated: the one passed in is gone.
    state: a fresh state; its shapes and shardings are those a checkpoint is restored onto.
    batches: yields host batches; left behind the last batch used.
    progress: told of every window, closed at the end.
    metrics_every: window of updates whose metrics are averaged and written, and between which the host does not wait.
    save_every: rounded up to a multiple of `metrics_every`, so that a resumed run has the same windows. The last step
      is always saved.
    batch_sharding: of every array of a batch.
    counts: what `batches` has given so far, for the metrics of a window; asked behind the window's last batch.
    profile: of some steps.

  The next batch is fetched and sent to the devices while they compute; what a checkpoint keeps is the place before it.
  Metrics that are written hold where the time since the row before went (`training.times`) and the devices' memory as well.

  Returns the state and the means of the last window (`{}` when there was none).

  Raises:
    UserError: `MAX_SKIPPED` updates in a row had no finite loss or gradient.
    Stopped: SIGTERM came; the state is saved.
  """
  metrics_every = max(1, metrics_every)
  save_every = -(-max(1, save_every) // metrics_every) * metrics_every
  last: dict[str, float] = {}
  begun: list[dict[str, Any]] = []  # values of a window that a stop has cut
  if checkpoints is not None and checkpoints.latest() is not None:
    state, meta = checkpoints.restore(state)
    if meta['seed'] != seed:
      raise UserError(f'{checkpoints.folder} was written with seed {meta["seed"]}, this run has {seed}: '
                      'use another --workdir, or that seed')
    if meta['step'] > steps:
      raise UserError(f'{checkpoints.folder} is at step {meta["step"]}, this run ends at {steps}: '
                      'use another --workdir, or more steps')
    last, begun = meta['metrics'], meta['window']
    batches.set_state(meta['data'])

  key = jax.jit(jax.random.key, out_shardings=_replicated(state))(seed)
  update = jitted(step, state)
  profile = profile or Profile('', '')
  times = Times()

  def fetch() -> Any:
    with times.of('data'):
      return put(next(batches), batch_sharding)

  done = int(state['step'])
  window: list[dict[str, Any]] = begun
  with stopping.held():
    ahead = fetch() if done < steps else None
    while done < steps:
      with times.of('update'), profile.step(done + 1, state):
        state, values = update(state, ahead, key)
      window.append(values)
      done += 1
      ends, stops = not done % metrics_every or done == steps, stopping.wanted()
      saves = checkpoints is not None and (done % save_every == 0 or done == steps or stops)
      place, read = batches.get_state() if saves else None, counts() if ends and counts is not None else {}
      if done < steps:  # before the host waits for anything, so that the devices go on at once
        ahead = fetch()
      if not (ends or stops):
        continue
      with times.of('update'):
        window = jax.device_get(window)
      check_skipped(window[-1], checkpoints)
      if ends:
        last = _means(window) | read
        window = []
        if metrics is not None:
          metrics.write(done, last | times.take() | device_memory())
        if progress is not None:
          progress.update(done, **_shown(last))
      if saves:
        with times.of('checkpoint'):
          checkpoints.begin_save(state, data=place, seed=seed, metrics=last, window=window)
      elif checkpoints is not None:
        checkpoints.finish(wait=False)
      if stops:
        break
    profile.close(state)
    if checkpoints is not None:
      checkpoints.finish()
    if done < steps:
      raise stopping.Stopped
  if progress is not None:
    progress.close(**_shown(last))
  return state, last


MAX_SKIPPED = 20
"""So many updates in a row that have no finite loss or gradient are no accident: training ends."""


def check_skipped(metrics: Mapping[str, Any], checkpoints: Checkpoints | None) -> None:
  """Raises UserError where the metrics of an update tell of too many that were left out before it."""
  row = int(metrics['skipped_in_a_row'])
  if row >= MAX_SKIPPED:
    kept = f'; {checkpoints.folder} keeps step {checkpoints.done}' if checkpoints and checkpoints.done >= 0 else ''
    raise UserError(f'the last {row} updates had no finite loss or gradient and changed nothing: lower '
                    f'optimizer.learning_rate, set optimizer.clip, or look for a broken record in the data{kept}')


def _replicated(state: State) -> jax.sharding.Sharding | None:
  """Where a scalar goes: to all devices of the mesh of the state."""
  sharding = state['step'].sharding
  return sharding if isinstance(sharding, jax.sharding.NamedSharding) else None


def _shown(values: dict[str, float]) -> dict[str, float]:
  """What the progress line has room for: the loss, or everything where nothing is called so."""
  return {'loss': values['loss']} if 'loss' in values else values


def _means(window: list[dict[str, Any]]) -> dict[str, float]:
  """Means over a window; of what was no number once, over the others. Counters are told as they stand at its end."""
  found = {}
  for name in (name for name in window[0] if name != 'skipped_in_a_row'):
    values = np.asarray([values[name] for values in window], np.float64)
    finite = values[np.isfinite(values)]
    found[name] = float(values[-1] if name == 'skipped' else finite.mean() if len(finite) else np.nan)
  return found
