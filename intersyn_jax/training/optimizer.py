"""Optimizers from a config section: Muon or AdamW, schedule, clipping, decay mask, frozen parameters.

    optimizer = make_optimizer(OptimizerConfig(**config.warmup.optimizer), steps=1000)
    opt_state = optimizer.init(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)

What kind a parameter is follows from its path alone (`KINDS`). Inside, optax sees one flat dictionary
`{path: array}` of the trainable parameters, so that the state of every moment is keyed by parameter path and frozen
parameters cost no state.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from intersyn_jax.errors import UserError
from intersyn_jax.training import precision
from intersyn_jax.training.trees import flat, unflat

MATRIX, TABLE, VECTOR = 'matrix', 'table', 'vector'

KINDS = (
    (r'(^|/)[^/]*(embedding|head|codebook)(/kernel)?$', TABLE),  # input tables and output heads: Adam, also under Muon
    (r'kernel$', MATRIX),
    (r'', VECTOR),  # norms, biases, gates, LoRA factors
)
"""First match decides. Muon updates matrices only; weight decay applies to matrices only."""

STACKED = re.compile(r'(^|/)[^/]*layers/')
"""Parameters below such a part carry a leading layer axis (a scan over layers)."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Fields of an `optimizer` config section.

  Attributes:
    name: `muon` (matrices by Muon, the rest by Adam) or `adamw`.
    learning_rate: peak rate; of the matrices under `muon`.
    adam_learning_rate: peak rate of what Adam updates under `muon`; 0 means `learning_rate`.
    schedule: `constant`, `cosine` or `linear`, after the warm-up.
    warmup: steps of linear warm-up; below 1 a share of all steps.
    floor: last rate as a share of the peak (cosine, linear).
    clip: largest global norm of the gradient; 0 turns clipping off.
    weight_decay: decoupled decay of matrices, as optax applies it (times the rate).
    b1, b2: moments of Adam.
    momentum: of Muon.
    frozen: regular expressions; a parameter whose path one of them finds is not trained.
    precision: of parameters and moments while they train: `full` (float32) or `lean` (bfloat16, see `training.precision`).
  """

  name: str = 'adamw'
  learning_rate: float = 1e-3
  adam_learning_rate: float = 0.0
  schedule: str = 'constant'
  warmup: float = 0.0
  floor: float = 0.0
  clip: float = 1.0
  weight_decay: float = 0.0
  b1: float = 0.9
  b2: float = 0.95
  momentum: float = 0.95
  frozen: Sequence[str] = ()
  precision: str = precision.FULL

  def __post_init__(self) -> None:
    for field, choices in (('name', ('muon', 'adamw')), ('schedule', ('constant', 'cosine', 'linear')),
                           ('precision', tuple(precision.HELD))):
      if getattr(self, field) not in choices:
        raise UserError(f'optimizer.{field} is {getattr(self, field)!r}: choose one of {", ".join(choices)}')
    if isinstance(self.frozen, str):
      raise UserError(f'optimizer.frozen is a string, {self.frozen!r}: give a tuple of regular expressions')
    for pattern in self.frozen:
      try:
        re.compile(pattern)
      except re.error as error:
        raise UserError(f'optimizer.frozen holds {pattern!r}, no regular expression ({error}): mend it') from error


class Optimizer(NamedTuple):
  """An optax transformation (`init`, `update`) with what a loop wants to know about it.

  Attributes:
    init: params -> state. Of all parameters, so that a misspelt pattern is told; the state is of those that train.
    update: (gradients, state, params) -> (updates, state), in the types that these have.
    apply: (gradients, state, params, key) -> (params, state): one whole update as `precision` says; the key is of it alone.
    learning_rate: step -> rate (of matrices under Muon), for metrics.
    trains: path -> whether the parameter is updated.
    precision: `full` or `lean`.
  """

  init: Callable[[Any], Any]
  update: Callable[..., tuple[Any, Any]]
  apply: Callable[[Any, Any, Any, jax.Array], tuple[Any, Any]]
  learning_rate: Callable[[Any], Any]
  trains: Callable[[str], bool]
  precision: str


def kind_of(path: str, ndim: int) -> str:
  """`matrix`, `table` or `vector`, from the path of a parameter and its number of axes."""
  kind = next(kind for pattern, kind in KINDS if re.search(pattern, path))
  axes = ndim - bool(STACKED.search(path))
  return VECTOR if kind == MATRIX and axes < 2 else kind


def matrix_axes(path: str, ndim: int) -> contrib.MuonDimensionNumbers:
  """Which axes of a kernel are input and output: [in, out], or [height, width, in, out] of a convolution.

  A layer axis before them is batch: each layer is orthogonalised on its own.
  """
  axes = tuple(range(int(bool(STACKED.search(path))), ndim))
  if len(axes) not in (2, 4):
    raise UserError(f'parameter {path} has {ndim} axes; Muon takes [in, out] and [height, width, in, out] '
                    '(a layer axis before them below `*layers/`): use adamw or freeze it')
  return contrib.MuonDimensionNumbers(reduction_axis=axes[:-1], output_axis=axes[-1:])


def make_schedule(config: OptimizerConfig, peak: float, steps: int) -> optax.Schedule:
  """step -> rate: linear warm-up from 0, then constant, or cosine or linear to `floor * peak` at step `steps`."""
  warmup = int(config.warmup if config.warmup >= 1 else config.warmup * steps)
  rest = max(steps - warmup, 1)
  after = {
      'constant': lambda: optax.constant_schedule(peak),
      'cosine': lambda: optax.cosine_decay_schedule(peak, rest, alpha=config.floor),
      'linear': lambda: optax.linear_schedule(peak, config.floor * peak, rest),
  }[config.schedule]()
  if not warmup:
    return after
  # The first step must move: a rate of exactly 0 would waste it.
  return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1)), after], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> Optimizer:
  """Builds the optimizer of a run of `steps` updates.

  Parameters and gradients may be nested dicts, NNX states or NNX modules. Raises UserError when a frozen pattern finds
  nothing (a misspelt pattern would train what should stand still) or when nothing is left to train.
  """
  patterns = [re.compile(p) for p in config.frozen]
  rate = make_schedule(config, config.learning_rate, steps)
  is_matrix = lambda params: {path: kind_of(path, x.ndim) == MATRIX for path, x in params.items()}

  def trains(path: str) -> bool:
    return not any(p.search(path) for p in patterns)

  def adamw(schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=is_matrix)

  def muon() -> optax.GradientTransformation:
    axes = lambda params: {path: matrix_axes(path, x.ndim) for path, x in params.items()}
    matrices = contrib.muon(
        rate, beta=config.momentum, weight_decay=config.weight_decay, muon_weight_dimension_numbers=axes)
    adam = make_schedule(config, config.adam_learning_rate or config.learning_rate, steps)
    return _split(is_matrix, matrices, adamw(adam))

  inner = muon() if config.name == 'muon' else adamw(rate)
  if config.clip > 0:
    inner = optax.chain(optax.clip_by_global_norm(config.clip), inner)

  def trainable(tree: Any) -> dict[str, Any]:
    return {path: leaf for path, leaf in flat(tree).items() if trains(path)}

  def init(params: Any) -> Any:
    paths = list(flat(params))
    for pattern in patterns:
      if not any(pattern.search(path) for path in paths):
        raise UserError(f'optimizer.frozen: {pattern.pattern!r} finds no parameter; paths look like {paths[0]!r}')
    if not any(map(trains, paths)):
      raise UserError('optimizer.frozen leaves no parameter to train: take a pattern out')
    return inner.init(trainable(params))

  def update(gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
    updates, state = inner.update(trainable(gradients), state, trainable(params))
    every = {path: jnp.zeros_like(x) for path, x in flat(params).items() if not trains(path)} | updates
    return unflat(params, every), state

  def apply(gradients: Any, state: Any, params: Any, key: jax.Array) -> tuple[Any, Any]:
    if config.precision == precision.FULL:
      updates, state = update(gradients, state, params)
      return apply_updates(params, updates), state
    leaves = trainable(params)
    updates, new = inner.update(*precision.widened((trainable(gradients), state, leaves)))
    found = {'params': {path: leaf.astype(jnp.float32) + updates[path] for path, leaf in leaves.items()}, 'state': new}
    found = precision.narrowed(found, {'params': leaves, 'state': state}, key)
    return unflat(params, flat(params) | found['params']), found['state']

  return Optimizer(init, update, apply, rate, trains, config.precision)


def _split(which: Callable[[dict[str, Any]], dict[str, bool]], yes: optax.GradientTransformation,
           no: optax.GradientTransformation) -> optax.GradientTransformation:
  """`yes` for the paths that `which` picks, `no` for the others; neither meets placeholders of the other's."""

  def of(tree: dict[str, Any], picked: bool) -> dict[str, Any]:
    names = which(tree)
    return {path: leaf for path, leaf in tree.items() if names[path] == picked}

  def init(params: dict[str, Any]) -> dict[str, Any]:
    return {'matrix': yes.init(of(params, True)), 'other': no.init(of(params, False))}

  def update(gradients: dict[str, Any], state: dict[str, Any], params: dict[str, Any]) -> tuple[Any, Any]:
    first, matrix = yes.update(of(gradients, True), state['matrix'], of(params, True))
    second, other = no.update(of(gradients, False), state['other'], of(params, False))
    return first | second, {'matrix': matrix, 'other': other}

  return optax.GradientTransformation(init, update)


def apply_updates(params: Any, updates: Any) -> Any:
  """params + updates in the type of the parameters."""
  return jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)
