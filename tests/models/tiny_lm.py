"""Tiny language sides of the families, their weights and what they read: the same for the tests with and without torch.

A tensor's values depend on its name and shape only, so that no two tensors are alike and nothing needs to be stored. Names are
the checkpoint's: how they reach our parameters is part of what is tested.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax.interleave.layout import CODES, FEATURES, TEXT, TokenBatch
from intersyn_jax.models import unified
from intersyn_jax.models.families import chameleon, emu3, janus, liquid, vila_u
from intersyn_jax.models.trunk import LayerCache
from intersyn_jax.training import trees
from tests.models.vision import tiny

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
LENGTH, CUT = 16, 6
COLUMNS = 16
"""Text logits that a golden keeps, spread over the vocabulary: a file is to stay small."""

CODEBOOK = 'vision_tower/rqvaesiglip.quantizer.codebooks.0.weight'


def _shuffled(names: list[str], first: int) -> dict[str, int]:
  """Image tokens whose order in the vocabulary is not that of their codes."""
  order = np.random.default_rng(3).permutation(len(names))
  return {'<image>': 1} | {name: first + int(i) for name, i in zip(names, order, strict=True)}


def _chameleon_map() -> dict[str, int]:
  return _shuffled([f'IMGIMG{str(i).translate(str.maketrans("0123456789", "ABCDEFGHIJ"))}Z' for i in range(60)], 4)


def _emu3_map() -> dict[str, int]:
  return _shuffled([f'<|visual token {i:06d}|>' for i in range(60)], 580)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    'chameleon': (chameleon, {**chameleon.SIZES['tiny'], 'vocabulary_map': _chameleon_map()}),
    'swin': (chameleon, {**chameleon.SIZES['tiny'], 'vocabulary_map': _chameleon_map(), 'swin_norm': True}),
    'emu3': (emu3, {**emu3.SIZES['tiny'], 'vocabulary_map': _emu3_map()}),
    'janus': (janus, dict(janus.SIZES['tiny'])),
    'liquid': (liquid, dict(liquid.SIZES['tiny'])),
    'vila_u': (vila_u, dict(vila_u.SIZES['tiny'])),
}
"""Module and config.json."""


class Outputs(NamedTuple):
  """What a model makes of `batch`: float32 logits of text [B,T,V], and of the codes of the following position [B,T-1,D,C]."""

  text: np.ndarray
  codes: np.ndarray


@functools.cache
def definition(case: str):
  module, hf = CASES[case]
  return unified.define(module.model(hf))


@functools.cache
def shapes(case: str) -> dict[str, tuple[int, ...]]:
  """Of the checkpoint's tensors, as our parameters and the entries say."""
  module, hf = CASES[case]
  ours = trees.flat(definition(case).shapes)
  found = {}
  for entry in module.entries(hf):
    arrays = entry.write([np.empty(ours[path].shape, np.float32) for path in entry.ours])
    found |= dict(zip(entry.theirs, [a.shape for a in arrays], strict=bool(arrays)))
  if case == 'vila_u':
    rows, width = ours['backbone/image_embedding/codebook'].shape
    found[CODEBOOK] = (rows + 1, width)
  return found


def tensors(case: str) -> dict[str, np.ndarray]:
  """The checkpoint."""
  return {name: tiny.values(name.replace('.ln', '.layernorm'), shape) for name, shape in shapes(case).items()}


def params(case: str, found: dict[str, np.ndarray]) -> dict[str, Any]:
  """Our parameters of a checkpoint."""
  module, hf = CASES[case]
  leaves = {}
  for entry in module.entries(hf):
    leaves |= dict(zip(entry.ours, entry.read([found[name] for name in entry.theirs]), strict=True))
  return trees.unflat(definition(case).shapes, leaves)


def batch(case: str) -> tuple[TokenBatch, np.ndarray | None]:
  """Two rows of text, codes and text, with features in the first text where the family reads them; and those features."""
  module, hf = CASES[case]
  config = module.model(hf)
  rng = np.random.default_rng(17)
  where = np.arange(LENGTH)
  modality = np.tile(np.where((where >= 5) & (where < 12), CODES, TEXT), (2, 1)).astype(np.int8)
  features = None
  if config.features:
    modality[:, 1:3] = FEATURES
    features = rng.standard_normal((7, config.features)).astype(np.float32)
  text = np.where(modality == TEXT, rng.integers(5, config.vocabulary, (2, LENGTH)), 0).astype(np.int32)
  codes = rng.integers(0, config.codebook, (2, LENGTH, config.depth)) * (modality == CODES)[..., None]
  if features is not None:
    codes[:, 1:3, 0] = [[4, 0], [6, 2]]
  zero = np.zeros((2, LENGTH), np.int32)
  return TokenBatch(
      text=text, codes=codes.astype(np.int32), modality=modality, loss=np.ones((2, LENGTH), np.float32), forced=zero > 0,
      document=zero + 1, position=np.tile(where, (2, 1)).astype(np.int32), turn=zero, step=zero), features


def joint_ids(case: str, rows: TokenBatch) -> np.ndarray:
  """The checkpoint's own ids of text and codes, for a family with one vocabulary."""
  module, hf = CASES[case]
  codes = module.code_rows(hf)
  text = np.delete(np.arange(module.model(hf).vocabulary + len(codes)), codes)
  return np.where(rows.modality == CODES, codes[rows.codes[..., 0]], text[rows.text])


@functools.cache
def _run(case: str):
  # Compiled with little optimisation, which is most of what these tests would take.
  @functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True})
  def run(params, rows, features):
    with jax.default_matmul_precision('highest'):
      model = definition(case).bind(params)
      hidden = model(rows, features)
      following = rows.codes[:, 1:]
      whole = Outputs(model.text_logits(hidden), model.code_logits(hidden[:, :-1], following))
      steps = _step_by_step(model, rows, features)
      codes, last = model.code_logits(steps[:, :-1], following), following.shape[-1] - 1
      for i in {0, last}:  # as they are drawn: those after are not known yet
        known = jnp.where(jnp.arange(last + 1) < i, following, 0)
        codes = codes.at[..., i, :].set(model.next_code_logits(steps[:, :-1], known, i))
      return whole, Outputs(model.text_logits(steps), codes)

  return run


def _step_by_step(model, rows: TokenBatch, features) -> jax.Array:
  """Hidden states [B,T,d] as the decoder gets them: a prompt of CUT positions read at once, then one position at a time."""
  backbone = model.backbone
  first, cache = backbone.prefill(jax.tree.map(lambda a: a[:, :CUT], rows), features)
  room = ((0, 0), (0, 0), (0, LENGTH - CUT), (0, 0))
  cache = unified.Cache([LayerCache(jnp.pad(c.keys, room), jnp.pad(c.values, room)) for c in cache.layers], cache.recent)
  layers, place = backbone.trunk.unstack(), unified.places_of(rows.modality)

  def step(cache, t):
    at = lambda a: jax.lax.dynamic_index_in_dim(a, t, 1, keepdims=False)
    visible = jnp.broadcast_to(jnp.arange(LENGTH) <= t, (2, LENGTH))
    hidden, cache = backbone.decode(layers, at(rows.text), at(rows.codes), at(rows.modality), at(place), at(rows.position),
                                    cache, t, visible)
    return cache, hidden

  rest = jax.lax.scan(step, cache, jnp.arange(CUT, LENGTH))[1]
  return jnp.concatenate([first, rest.swapaxes(0, 1)], axis=1)


def outputs(case: str, found: dict[str, np.ndarray]) -> tuple[Outputs, Outputs]:
  """Ours of a checkpoint: of the whole rows at once, and read as the decoder reads."""
  return jax.device_get(_run(case)(params(case, found), *batch(case)))


def kept(found: Outputs) -> dict[str, np.ndarray]:
  """What a golden file holds of them."""
  columns = np.linspace(0, found.text.shape[-1] - 1, COLUMNS).astype(int)
  return {'text': found.text[..., columns], 'codes': found.codes[..., ::4]}


def golden_file(case: str) -> pathlib.Path:
  return GOLDENS / f'lm_{case}.npz'


def difference(found: Outputs, golden: dict[str, np.ndarray]) -> dict[str, float]:
  """The largest distance from a golden file, of text logits and of code logits."""
  return {name: float(np.abs(a - golden[name]).max()) for name, a in kept(found).items()}
