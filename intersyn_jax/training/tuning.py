"""What of a policy trains, in which type, and what is kept of it: all parameters, a part of them, or LoRA factors alone.

    tuned = Tuned(model_config, TuningConfig(lora_rank=8), optimizer_config, steps, mesh)
    state = tuned.begin(params, seed)
    step = make_step(next_token_loss(tuned.definition), tuned.optimizer)
    state, last = fit(step, state, batches, checkpoints=tuned.checkpoints(folder, identity), ...)
    tuned.keep(state, folder, identity)

What later stages read is always the plain model in the type it is held in, in `folder`/checkpoints. Where that is not what
trains (LoRA, frozen parts, float32 training of a bfloat16 model), training leaves off and goes on in `folder`/resume, which
holds what trains, its moments and the step; the base, which does not change, is read again from where training began, and
refused if it is another one.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from intersyn_jax.errors import UserError
from intersyn_jax.models import lora, quantised, unified
from intersyn_jax.models.definition import Params, joined, picked
from intersyn_jax.training import loop, precision
from intersyn_jax.training.checkpoints import Checkpoints
from intersyn_jax.training.optimizer import Optimizer, OptimizerConfig, make_optimizer
from intersyn_jax.training.trees import flat


@dataclasses.dataclass(frozen=True)
class TuningConfig:
  """Fields of a section that trains a policy (`warmup`, `writer`, `finetune`, `grpo`).

  Attributes:
    lora_rank: R of the factors that train in place of the parameters; 0 trains the parameters themselves.
    lora_alpha: what the factors' product is multiplied with is lora_alpha / lora_rank.
    quantise: how the kernels below the factors are held: '' as they are, or `int8`, `int4`, `nf4` (QLoRA).
  """

  lora_rank: int = 0
  lora_alpha: float = 16.0
  quantise: str = ''

  def __post_init__(self):
    if self.quantise and not self.lora_rank:
      raise UserError(f'quantise is {self.quantise!r} and lora_rank 0; quantised kernels cannot train: take a rank, or '
                      'leave quantise empty')

  @classmethod
  def of(cls, section: Mapping[str, Any]) -> TuningConfig:
    """From a config section; what it lacks has its default."""
    return cls(**{field.name: section[field.name] for field in dataclasses.fields(cls) if field.name in section})


class Tuned:
  """One training of a policy.

  Args:
    model: of the plain policy.
    config: what trains.
    optimizer: its `frozen` patterns are of the policy's parameters, and of factors.
    steps: updates.

  Attributes:
    definition: of the policy as it trains and decodes, for all parameters of a state (`loop.whole`).
    plain: of what is kept.
    optimizer: for `make_step`.
  """

  def __init__(self, model: unified.ModelConfig, config: TuningConfig, optimizer: OptimizerConfig, steps: int, mesh: Mesh):
    self.config, self.plain, self._mesh = config, unified.define(model), mesh
    self.definition = self._with_factors = self.plain
    if config.lora_rank:
      self._trunk = dataclasses.replace(model.trunk, lora_rank=config.lora_rank, lora_alpha=config.lora_alpha)
      self._with_factors = unified.define(dataclasses.replace(model, trunk=self._trunk))
      self.definition = self._with_factors
      optimizer = dataclasses.replace(optimizer, frozen=(*optimizer.frozen, lora.ALL_BUT_FACTORS))
    if config.quantise:
      self.definition = quantised.define(self._with_factors, config.quantise)
    self.optimizer: Optimizer = make_optimizer(optimizer, steps)
    self._merge = jax.jit(self._merged, out_shardings=self.plain.shardings(mesh))
    self._base = ''

  def begin(self, params: Params, seed: int) -> loop.State:
    """The state that training begins with; the plain policy's parameters are used up.

    Raises:
      UserError: a frozen pattern finds no parameter, or leaves none to train.
    """
    trains = self.optimizer.trains
    stands = lambda path: not trains(path)
    if self.config.lora_rank:
      params = joined(params, lora.fresh(self._with_factors, jax.random.key(seed), self._mesh))
    held = precision.HELD[self.optimizer.precision]
    moving, base = jax.tree.map(lambda a: a.astype(held), picked(params, trains)), picked(params, stands)
    state = loop.init_state(moving, self.optimizer, base)
    self._base = fingerprint(base) if base else ''
    if self.config.quantise:
      state['base'] = quantised.quantise(base, self.config.quantise, picked(self.definition.shardings(self._mesh), stands))
    return state

  def reference(self, state: loop.State) -> Params:
    """What trains, as a fresh `state` has it, for a policy that is frozen where training began.

    `loop.whole(state | {'params': it})` is that policy with any later state, whose base it shares. With LoRA it is factors
    of 0: there is no second copy of the weights.
    """
    if self.config.lora_rank:
      return jax.tree.map(jnp.zeros_like, state['params'])
    # In the type that the policy is held in, where it came from: nothing is lost.
    held = picked(self.plain.shapes, self.optimizer.trains)
    return jax.tree.map(lambda a, shape: jnp.array(a, shape.dtype, copy=True), state['params'], held)

  def kept(self, state: loop.State) -> Params:
    """Parameters of the plain policy, in the type it is held in; those of the state itself where nothing is different."""
    if not self._apart(state):
      return state['params']
    return self._merge(loop.whole(state))

  def _merged(self, params: Params) -> Params:
    merged = lora.merge(params, self._trunk) if self.config.lora_rank else params
    return jax.tree.map(lambda a, shape: a.astype(shape.dtype), merged, self.plain.shapes)

  def _apart(self, state: loop.State) -> bool:
    """Whether what trains is not the policy as it is kept."""
    types = lambda tree: [a.dtype for a in jax.tree.leaves(tree)]
    return 'base' in state or types(state['params']) != types(self.plain.shapes)

  def checkpoints(self, state: loop.State, folder: epath.PathLike, identity: str) -> Checkpoints:
    """Where a run that was cut off goes on from; `state` is what `begin` gave. See `Checkpoints` for `identity`."""
    if not self._apart(state):
      return Checkpoints(epath.Path(folder) / 'checkpoints', identity=identity)
    return _Moving(epath.Path(folder) / 'resume', identity, self._base)

  def keep(self, state: loop.State, folder: epath.PathLike, identity: str) -> None:
    """Writes the plain policy to `folder`/checkpoints when training has ended, where that has not been done."""
    saved = Checkpoints(epath.Path(folder) / 'checkpoints', identity=identity)
    if self._apart(state) and saved.latest() != int(state['step']):
      saved.save({'params': self.kept(state), 'step': state['step']})


class _Moving(Checkpoints):
  """Checkpoints of all but the base, which belong to one base."""

  def __init__(self, folder: epath.PathLike, identity: str, base: str):
    super().__init__(folder, identity=identity)
    self._base = base

  def begin_save(self, state: loop.State, *, data: Any = None, **meta: Any) -> None:
    super().begin_save({name: value for name, value in state.items() if name != 'base'}, data=data, base=self._base, **meta)

  def restore(self, like: loop.State) -> tuple[loop.State, dict[str, Any]]:
    base = {'base': like['base']} if 'base' in like else {}
    state, meta = super().restore({name: value for name, value in like.items() if name != 'base'})
    if meta['base'] != self._base:
      raise UserError(f'{self.folder} was trained on top of weights {meta["base"]}, and training would go on with '
                      f'{self._base}: bring back the policy that it began with, or remove {self.folder}')
    return state | base, meta


def fingerprint(params: Params) -> str:
  """Twelve hexadecimal digits that name the values of parameters, however they are spread over devices."""
  sums = jax.device_get(_checksums(params))
  listing = ' '.join(f'{path}={int(value)}' for path, value in sorted(flat(sums).items()))
  return hashlib.sha256(listing.encode()).hexdigest()[:12]


@jax.jit
def _checksums(params: Params) -> Params:
  """Sum modulo 2^32 of the bits, each number times an odd weight of its place: the same in any order; one change always shows."""
  def one(x: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}').astype(jnp.uint32)
    weight = jnp.ones(x.shape, jnp.uint32)
    for axis in range(x.ndim):
      weight = weight * jnp.uint32(2654435761) + 2 * jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(bits * weight, dtype=jnp.uint32)

  return jax.tree.map(one, params)
