"""Folders as they are downloaded, of tiny models with random weights: every tensor holds other values."""

from __future__ import annotations

import json
import pathlib

import ml_collections
import numpy as np
import PIL.Image

from intersyn_jax.models.families import folder, table, weights
from intersyn_jax.models.families.entries import prefixed
from intersyn_jax.models.families.folder import Part
from intersyn_jax.stages.converted import Checkpoint
from intersyn_jax.training import trees
from tests.families import tiny_tokenizers

ROOM = ml_collections.ConfigDict({'model': {'dtype': 'float32', 'remat': 'none'}})
"""What of a configuration `Checkpoint` reads."""


def write(root: pathlib.Path, family: str, *, dtype: str = 'BF16', seed: int = 0, shard_bytes: int = 60_000) -> Checkpoint:
  """Writes a folder of the family's `tiny` size and gives what its files tell."""
  known = table.FAMILIES[family]
  hf = dict(known.sizes['tiny'])
  for below in known.folders:
    place = root / below
    place.mkdir(parents=True, exist_ok=True)
    (place / 'config.json').write_text(json.dumps(hf.pop(below) if below else hf))
  (root / 'config.json').write_text(json.dumps(hf))
  tiny_tokenizers.write(family, root, known.sizes['tiny'])
  checkpoint = Checkpoint(known, root, ROOM)
  found = drawn(checkpoint, dtype, seed)
  for below in known.folders:
    prefix = f'{below}/' if below else ''
    mine = {name.removeprefix(prefix): array for name, array in found.items() if name.startswith(prefix)}
    kinds = {np.dtype(kind): name for name, kind in weights.KINDS.items()}
    weights.write_tensors(root / below, {name: weights.Spec(kinds[a.dtype], a.shape) for name, a in mine.items()},
                          iter(mine.items()), shard_bytes=shard_bytes)
  return checkpoint


def picture(path: pathlib.Path, seed: int) -> None:
  """A picture that the tiny image tokenizers can read as it is."""
  pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
  PIL.Image.fromarray(pixels).save(path)


def drawn(checkpoint: Checkpoint, dtype: str, seed: int) -> dict[str, np.ndarray]:
  """Every tensor of the checkpoint, and a few that nothing needs."""
  codec = checkpoint.codec
  parts = [checkpoint.model_part('float32'), checkpoint.features_part(),
           Part(trees.flat(codec.definition.shapes), prefixed(codec.entries, theirs=codec.prefix))]
  rng = np.random.default_rng(seed)
  found = {}
  for part in filter(None, parts):
    ours = (_draw(rng, path, part.shapes[path].shape) for entry in part.entries for path in entry.ours)
    specs = {name: weights.Spec(dtype, shape) for name, shape in part.theirs().items()}
    found |= dict(folder.written(part.entries, ours, specs))
  prefix = checkpoint.family.folders[0] and f'{checkpoint.family.folders[0]}/'
  found[f'{prefix}model.rotary_emb.inv_freq'] = rng.normal(size=4).astype(np.float32)
  return found | {codec.prefix + name: rng.integers(0, 9, 3) for name in codec.unused[:2]}


def _draw(rng: np.random.Generator, path: str, shape: tuple[int, ...]) -> np.ndarray:
  values = rng.normal(size=shape)
  if path.endswith('variance'):
    values = 0.5 + np.abs(values)
  elif path.endswith('scale'):
    values = 1 + 0.1 * values
  else:
    values *= 0.3 * (shape[-2] if len(shape) > 1 else 1) ** -0.5
  return values.astype(np.float32)
