"""The families this program knows, and which of them a downloaded folder belongs to."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from intersyn_jax.errors import UserError
from intersyn_jax.models.families import chameleon, emu3, janus, liquid, vila_u, weights
from intersyn_jax.models.families.family import Family

FAMILIES: dict[str, Family] = {f.name: f for f in (chameleon.FAMILY, emu3.FAMILY, janus.FAMILY, liquid.FAMILY, vila_u.FAMILY)}


def named(name: str, known: Mapping[str, Family] = FAMILIES) -> Family:
  """The family of this name; UserError where there is none."""
  if name not in known:
    raise UserError(f'there is no family {name!r}; there are {", ".join(known)}')
  return known[name]


def read_config(root: pathlib.Path, known: Mapping[str, Family] = FAMILIES) -> dict[str, Any]:
  """config.json of a folder, with those of folders below, where any family has such.

  Raises:
    UserError: there is none, or it is no JSON object.
  """
  hf = weights.read_json(root / 'config.json', root)
  below = sorted({folder for family in known.values() for folder in family.folders if folder})
  return hf | {folder: weights.read_json(root / folder / 'config.json', root)
               for folder in below if (root / folder / 'config.json').exists()}


def recognise(root: pathlib.Path, hf: Mapping[str, Any], known: Mapping[str, Family] = FAMILIES) -> Family:
  """The one family that nothing in `hf`, the config.json of `root`, speaks against.

  Raises:
    UserError: there is none, or several; tells what config.json says.
  """
  fits = [family for family in known.values() if not family.contradiction(hf)]
  if len(fits) == 1:
    return fits[0]
  seen = ', '.join(f'{field} {hf[field]!r}' for field in ('model_type', 'architectures', 'vocab_size') if field in hf)
  below = sorted(path.parent.name for path in root.glob('*/config.json'))
  seen += f', folders {", ".join(below)}' if below else ''
  which = f'fits {" and ".join(f.name for f in fits)}' if fits else f'is of no known family ({", ".join(known)})'
  raise UserError(f'{root / "config.json"} {which}: it has {seen or "neither model_type nor architectures"}. '
                  'If you know better, say --family=NAME')


def forced(name: str, root: pathlib.Path, hf: Mapping[str, Any], known: Mapping[str, Family] = FAMILIES) -> Family:
  """The family of this name, where the folder does not speak against it.

  Raises:
    UserError: no such family, or config.json contradicts; tells the first contradiction.
  """
  family = named(name, known)
  if why := family.contradiction(hf):
    raise UserError(f'{root / "config.json"} is not of family {name}: {why}')
  return family
