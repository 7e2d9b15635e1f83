"""The way in from Python: a trained work folder as an object that answers questions.

    from intersyn_jax import Generator

    generator = Generator.from_workdir('runs/tiny')
    (answers,) = generator.generate('show a red circle top left on sand , then paint it green . use two pictures .', n=4)
    answers[0].turns[-1].answer      # texts and pictures in turn
    answers[0].turns[-1].answer[1].pil()
"""

from __future__ import annotations

from typing import Any

import ml_collections
from etils import epath

from intersyn_jax import bucket
from intersyn_jax.decoding import generator
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.errors import UserError
from intersyn_jax.stages import imports
from intersyn_jax.stages.common import Run, read_json
from intersyn_jax.stages.parts import POLICIES, Parts, policy_folder
from intersyn_jax.training import checkpoints


class Generator(generator.Generator):
  """`decoding.generator.Generator` of a policy that a work folder holds."""

  @classmethod
  def from_workdir(cls, workdir: epath.PathLike, policy: str = 'grpo', **decode: Any) -> Generator:
    """Loads a policy with its tokenizers.

    Args:
      workdir: of a finished `run`, or of one in which at least that policy was trained.
      policy: one of `parts.POLICIES`.
      decode: fields of `DecodeConfig` that are to differ from the folder's configuration, e.g. `text_temperature=0.7`.

    Raises:
      UserError: no such folder, policy or field.
    """
    folder = bucket.local_copy(workdir)
    if not (folder / 'config.json').exists():
      raise UserError(f'{workdir}: no work folder here (it has no config.json); name the --workdir of a run')
    config = ml_collections.ConfigDict(imports.read_back(read_json(folder / 'config.json')))
    # What answering needs is told at once; names that other stages would look up are not met here.
    imports.check(config.get('family'), 'family')
    for name, value in config.get('model', {}).items():
      imports.check(value, f'model.{name}')
    return cls.of(Parts(Run(config.lock(), folder)), policy, **decode)

  @classmethod
  def of(cls, parts: Parts, policy: str = 'grpo', **decode: Any) -> Generator:
    """The same from parts that stand already."""
    unknown = sorted(set(decode) - set(DecodeConfig.__dataclass_fields__))
    if unknown:
      raise UserError(f'decode has no field {unknown[0]}; it has {", ".join(DecodeConfig.__dataclass_fields__)}')
    source = policy_folder(parts.run.workdir, policy)
    if checkpoints.latest_step(source) is None:
      there = [name for name in POLICIES if checkpoints.latest_step(policy_folder(parts.run.workdir, name)) is not None]
      raise UserError(f'policy {policy} is not trained in {parts.run.workdir} yet: ' + (
          f'there are {", ".join(there)}' if there else 'run its stage first'))
    config = DecodeConfig(**(parts.config.decode.to_dict() | decode))
    params = parts.load(parts.model, source)
    return cls(parts.model, params, parts.layout, parts.decode, parts.mesh, config, parts.eyes())
