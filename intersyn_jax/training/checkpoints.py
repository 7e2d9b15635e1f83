"""Checkpoints of a training run: orbax arrays, data position and metadata, written atomically and checked when read.

A folder holds one sub-folder a step with three items: `params` (all that inference needs), `state` (optimizer moments,
step counter, whatever else the state holds) and `meta` (JSON: step, data iterator state, seed, metrics, shapes).
Orbax commits a step by renaming it, so a cut write is never seen as a checkpoint. Beside the steps, `<step>.files.json`
lists sizes and checksums; with it a truncated or changed file is named instead of read.

`begin_save` returns when the arrays are on the host; they are written while training goes on. The loop donates its state to
the next update, and on CPU the arrays that orbax would write are the very buffers, so that there they are copied first.

Below the copy of a work folder on gs:// all of this lies in the bucket itself (`intersyn_jax.bucket`). There the last file of a
step marks it as complete, and files are checked by size only: the bucket keeps checksums of its own.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from intersyn_jax import bucket
from intersyn_jax.errors import UserError
from intersyn_jax.training.trees import abstract, flat, nested, unflat

_FORMAT = 1
_CHUNK_BYTES = 64 << 20  # of a parameter that is written by itself
_TOGETHER_BYTES = 256 << 20  # parameters that are made, or read, at once: each alone would take orbax tens of milliseconds
_HASHED_BYTES = 64 << 20  # larger files are checked by size only: hashing them would cost more than reading them


class Checkpoints:
  """The checkpoints of one stage.

  A damaged latest checkpoint is set aside (`STEP.damaged`), with a line on stderr, where one before it is whole; the run then
  goes on from that one.

  Arguments:
    folder: created when missing.
    keep: how many of the latest steps stay.
    identity: names the config (its hash); a checkpoint of another identity is refused. '' checks nothing.
  """

  def __init__(self, folder: epath.PathLike, keep: int = 2, identity: str = ''):
    self.folder = bucket.durable(folder)
    self.identity = identity
    self.folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
      _set_aside_damaged(self.folder)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f'checkpoints {self.folder}')
    self._manager = ocp.CheckpointManager(
        _absolute(self.folder),
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True))
    self._begun: int | None = None  # the step that is being written, or whose listing is

  def latest(self) -> int | None:
    """The last complete step, None where there is none; waits for one that is being written."""
    self.finish()
    return self._manager.latest_step()

  @property
  def done(self) -> int:
    """The last complete step, -1 where there is none: what metric writers and progress lines begin behind."""
    step = self.latest()
    return -1 if step is None else step

  def save(self, state: dict[str, Any], *, data: Any = None, **meta: Any) -> None:
    """As `begin_save`, and returns when all is on disk."""
    self.begin_save(state, data=data, **meta)
    self.finish()

  def begin_save(self, state: dict[str, Any], *, data: Any = None, **meta: Any) -> None:
    """Begins to write `state` (a dict with `params` and `step`), when what was begun before is on disk; `finish` ends it.

    `data` is the state of the data iterator (JSON, the same in every process: data order is planned globally). Other
    keywords go to the metadata as they are; they must be JSON.
    """
    self.finish()
    bucket.push()  # curves reach as far as any checkpoint that is there
    step = int(state['step'])
    params = flat(state['params'])
    rest = flat({name: value for name, value in state.items() if name != 'params'})
    meta = meta | {
        'format': _FORMAT, 'step': step, 'identity': self.identity, 'data': data,
        'shapes': {f'{item}/{path}': [str(x.dtype), *x.shape]
                   for item, tree in (('params', params), ('state', rest)) for path, x in tree.items()}}
    meta = json.loads(json.dumps(meta, default=_plain))
    if jax.process_index() == 0:  # of a step that the user deleted; a new one must not be checked against it
      (self.folder / f'{step}.files.json').unlink(missing_ok=True)
    if jax.default_backend() == 'cpu':
      params, rest = _copies((params, rest))
    self._begun = step
    with bucket.written(self.folder / str(step)):
      self._manager.save(step, args=ocp.args.Composite(
          params=ocp.args.PyTreeSave(nested(params)), state=ocp.args.PyTreeSave(nested(rest)),
          meta=ocp.args.JsonSave(meta)))

  def finish(self, wait: bool = True) -> None:
    """Ends what `begin_save` began; without `wait` only if all is written already, and by a single process: several would not
    find that at the same update, and orbax has them wait for each other.

    Raises:
      UserError: it could not be written; the checkpoint before it is whole.
      bucket.Unreachable: the same, in a bucket.
    """
    if self._begun is None or (not wait and (jax.process_count() > 1 or self._manager.is_saving_in_progress())):
      return
    step, self._begun = self._begun, None
    with bucket.written(self.folder / str(step)):
      self._manager.wait_until_finished()
    if jax.process_index() == 0:
      _write_listing(self.folder, step)

  def restore(self, like: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The latest checkpoint as (state, meta), laid out on the shapes, types and shardings of `like`.

    `like` may be abstract. Raises UserError when there is none, when a file is damaged, or when the checkpoint
    belongs to another config or another shape of model.
    """
    step = self.latest()
    if step is None:
      raise UserError(f'{self.folder} holds no checkpoint: run the stage that writes it')
    meta = read_meta(self.folder, step)
    if self.identity and meta['identity'] != self.identity:
      raise UserError(f'{self.folder / str(step)} was written under config {meta["identity"]}, this run has '
                      f'{self.identity}: use another --workdir, or the config it was started with')
    rest = {name: value for name, value in like.items() if name != 'params'}
    params = _restore(self.folder, step, 'params', like['params'], meta)
    state = {'params': params, **_restore(self.folder, step, 'state', rest, meta)}
    if jax.process_index() == 0 and not (self.folder / f'{step}.files.json').exists():
      _write_listing(self.folder, step)  # killed between the commit and the listing, by which others know the weights
    return state, meta

  def close(self) -> None:
    self.finish()
    self._manager.close()


@jax.jit
def _copies(tree: Any) -> Any:
  return jax.tree.map(jnp.copy, tree)


def latest_step(folder: epath.PathLike) -> int | None:
  """The last complete step in a folder, None where there is none."""
  return max(_steps(bucket.durable(folder)), default=None)


def _steps(folder: epath.Path) -> list[int]:
  """All complete steps in a folder."""
  if bucket.holds(folder):
    return bucket.steps(folder)
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


def read_meta(folder: epath.PathLike, step: int | None = None) -> dict[str, Any]:
  """Metadata of a checkpoint (the latest by default), after its files were checked."""
  folder = bucket.durable(folder)
  step = _step(folder, step)
  _check_listing(folder, step)
  path = folder / str(step) / 'meta' / 'metadata'
  try:
    meta = json.loads(bucket.read_text(path))
  except (OSError, ValueError) as error:
    raise UserError(f'checkpoint file {path} cannot be read ({error}): {_mend(folder, step)}') from error
  if meta.get('format') != _FORMAT:
    raise UserError(f'checkpoint {path} has format {meta.get("format")}, this version reads {_FORMAT}: train it again')
  return meta


@dataclasses.dataclass(frozen=True)
class Pending:
  """An array that is made when its turn to be written comes; no pytree, so that it is a leaf."""

  shape: tuple[int, ...]
  dtype: np.dtype
  make: Callable[[], np.ndarray]

  @property
  def nbytes(self) -> int:
    return self.dtype.itemsize * math.prod(self.shape)


class _PendingHandler(ocp.type_handlers.NumpyHandler):
  """Makes and writes a few arrays at a time, where orbax would hold all of them at once."""

  def __init__(self):
    super().__init__(deepcopy_host_arrays=False)

  async def serialize(self, values, infos, args=None):
    for some in _batches([value.nbytes for value in values]):
      made, infos_, args_ = [values[i].make() for i in some], [infos[i] for i in some], [args[i] for i in some]
      for written in await super().serialize(made, infos_, args_):
        written.result()
      del made
    return []


def _batches(sizes: Sequence[int]) -> Iterator[list[int]]:
  """Numbers of arrays in order, in runs of _TOGETHER_BYTES at most, or of one larger array."""
  run: list[int] = []
  for number, size in enumerate(sizes):
    if run and sum(sizes[i] for i in run) + size > _TOGETHER_BYTES:
      yield run
      run = []
    run.append(number)
  if run:
    yield run


def save_params(folder: epath.PathLike, params: Mapping[str, Pending], *, identity: str = '') -> None:
  """Writes parameters, given by path, as the checkpoint of step 0, for `load_params`; few of them are in memory at a time.

  They are cut into chunks, so that each device of a later mesh reads little more than its own part.
  """
  folder = bucket.durable(folder)
  if bucket.holds(folder) and folder.exists():  # of a conversion that was cut, whose folder on the disk is gone already
    folder.rmtree()
  folder.mkdir(parents=True, exist_ok=True)
  tree = nested(dict(params))
  registry = ocp.type_handlers.create_type_handler_registry(
      (Pending, _PendingHandler()), (jax.Array, ocp.type_handlers.ArrayHandler()))
  meta = {'format': _FORMAT, 'step': 0, 'identity': identity, 'data': None,
          'shapes': {f'params/{path}': [str(p.dtype), *p.shape] for path, p in params.items()}}
  handlers = {'params': ocp.PyTreeCheckpointHandler(type_handler_registry=registry), 'meta': ocp.JsonCheckpointHandler()}
  options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
  with ocp.CheckpointManager(_absolute(folder), item_handlers=handlers, options=options) as manager:
    manager.save(0, args=ocp.args.Composite(
        params=ocp.args.PyTreeSave(tree, save_args=jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)),
        meta=ocp.args.JsonSave(meta)))
  _write_listing(folder, 0)


def param_shapes(folder: epath.PathLike, step: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and types of the parameters of a checkpoint, by path. Raises UserError as `Checkpoints.restore`."""
  stored = read_meta(folder, step)['shapes']
  return {path.removeprefix('params/'): jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
          for path, (dtype, *shape) in stored.items() if path.startswith('params/')}


def read_params(folder: epath.PathLike, likes: Mapping[str, jax.ShapeDtypeStruct],
                step: int | None = None) -> Iterator[tuple[str, np.ndarray]]:
  """Some parameters of a checkpoint by path, in the order of `likes`, on the host; few of them are in memory at a time.

  Its files are not checked again; `param_shapes`, which gives `likes`, does that.
  """
  folder, paths = bucket.durable(folder), list(likes)
  step = _step(folder, step)
  for some in _batches([math.prod(like.shape) * like.dtype.itemsize for like in likes.values()]):
    wanted = {paths[i]: likes[paths[i]] for i in some}
    plain = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in wanted}
    try:
      with ocp.PyTreeCheckpointer() as reader:
        restored = flat(reader.restore(_absolute(folder / str(step) / 'params'), args=ocp.args.PyTreeRestore(
            nested(wanted), restore_args=nested(plain), partial_restore=True)))
    except (OSError, ValueError, KeyError) as error:
      raise _unreadable(folder, step, 'params', error) from error
    for path in wanted:
      yield path, restored.pop(path)


def load_params(folder: epath.PathLike, like: Any, step: int | None = None) -> Any:
  """Only the parameters of a checkpoint, onto the shapes, types and shardings of `like` (arrays or abstract).

  The result is built like `like`: nested dict, NNX state or NNX module. Raises UserError as `Checkpoints.restore`.
  """
  folder = bucket.durable(folder)
  step = _step(folder, step)
  return _restore(folder, step, 'params', like, read_meta(folder, step))


def _step(folder: epath.Path, step: int | None) -> int:
  found = latest_step(folder) if step is None else step
  if found is None or found not in _steps(folder):
    raise UserError(f'{folder} holds no checkpoint{"" if step is None else f" of step {step}"}: '
                    'run the stage that writes it, or name another folder')
  return found


def _restore(folder: epath.Path, step: int, item: str, like: Any, meta: dict[str, Any]) -> Any:
  like = abstract(like)
  wanted = flat(like)
  stored = {path.removeprefix(item + '/'): value for path, value in meta['shapes'].items()
            if path.startswith(item + '/')}
  for path in sorted(wanted.keys() | stored.keys()):
    have = stored.get(path)
    need = [str(wanted[path].dtype), *wanted[path].shape] if path in wanted else None
    if have != need:
      raise UserError(f'{folder / str(step)}: {item} {path} is {have or "absent"} in the checkpoint but '
                      f'{need or "absent"} in this model: use the config it was trained with')
  tree = nested(wanted)
  try:
    with ocp.PyTreeCheckpointer() as reader:
      restored = reader.restore(_absolute(folder / str(step) / item), args=ocp.args.PyTreeRestore(
          tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree)))
  except (OSError, ValueError, KeyError) as error:
    raise _unreadable(folder, step, item, error) from error
  return unflat(like, flat(restored))


def _unreadable(folder: epath.Path, step: int, item: str, error: Exception) -> Exception:
  if bucket.holds(folder) and bucket.unanswered(error):
    return bucket.Unreachable(f'{folder / str(step)}: the bucket does not answer ({str(error)[:200]})')
  reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
  return UserError(f'checkpoint {folder / str(step) / item} cannot be read ({reason}): {_mend(folder, step)}')


def _absolute(path: epath.Path) -> epath.Path:
  """As orbax wants it; addresses in a bucket are so already, and epath would take them for relative ones."""
  return path if bucket.holds(path) else path.resolve()


def _mend(folder: epath.Path, step: int) -> str:
  return f'delete {folder / str(step)} and run again, it goes on from the checkpoint before (or from the start)'


def _plain(value: Any) -> Any:
  if hasattr(value, 'tolist'):
    return value.tolist()
  raise TypeError(f'{type(value).__name__} cannot be kept in a checkpoint as JSON')


def _checksum(path: epath.Path, size: int) -> int:
  """0 where it is not checked."""
  return 0 if size > _HASHED_BYTES or bucket.holds(path) else zlib.crc32(path.read_bytes())


def _write_listing(folder: epath.Path, step: int) -> None:
  root = folder / str(step)
  listing = {name: [size, _checksum(root / name, size)] for name, size in bucket.sizes(root).items()}
  bucket.write_text(folder / f'{step}.files.json', json.dumps(listing))
  for old in folder.glob('*.files.json'):
    if not (folder / old.name.split('.')[0]).exists():
      old.unlink()


def _set_aside_damaged(folder: epath.Path) -> None:
  """Renames the latest steps that are damaged, if one before them is whole; else they stay, and reading them tells why."""
  reasons: dict[int, UserError] = {}
  for step in reversed(_steps(folder)):
    try:
      read_meta(folder, step)
    except UserError as error:
      reasons[step] = error
      continue
    for bad, error in reasons.items():
      aside = folder / f'{bad}.damaged'
      if aside.exists():
        aside.rmtree()
      bucket.rename(folder / str(bad), aside)
      (folder / f'{bad}.files.json').unlink(missing_ok=True)
      reason = str(error).split(': delete ')[0]
      print(f'{reason}; it was renamed to {aside.name}, the run goes on from step {step}', file=sys.stderr, flush=True)
    return


def _check_listing(folder: epath.Path, step: int) -> None:
  listing = folder / f'{step}.files.json'
  try:
    wanted = json.loads(bucket.read_text(listing))
  except FileNotFoundError:  # killed between the commit and the listing; orbax's own checks remain
    return
  except ValueError as error:
    raise UserError(f'checkpoint file {listing} is damaged: {_mend(folder, step)}') from error
  there = bucket.sizes(folder / str(step))
  for name, (size, checksum) in wanted.items():
    path = folder / str(step) / name
    if name not in there:
      raise UserError(f'checkpoint file {path} is missing: {_mend(folder, step)}')
    if there[name] != size:
      raise UserError(f'checkpoint file {path} is truncated or changed ({there[name]} bytes, {size} were written): '
                      f'{_mend(folder, step)}')
    if checksum and _checksum(path, size) not in (0, checksum):
      raise UserError(f'checkpoint file {path} is damaged (its checksum differs): {_mend(folder, step)}')
