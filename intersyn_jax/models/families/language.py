"""What the language sides of all families share: a Llama by the names of transformers, and a vocabulary cut in two.

config.json leaves out what is as its class has it by default, so a family's file states those defaults and hands them in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from intersyn_jax.errors import UserError
from intersyn_jax.models.families.entries import Entry, linear, rows, same, stacked
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.vision.fields import Fields

ACTIVATIONS = {'silu': 'silu', 'gelu_pytorch_tanh': 'gelu_tanh'}
"""Of the gated MLP: names of config.json and ours."""

TEXT, CODES = 'backbone/text_embedding', 'backbone/image_embedding/code_embedding'
TEXT_HEAD, CODE_HEAD = 'text_head', 'image_head/head'

_KERNELS = {
    'query_kernel': 'self_attn.q_proj', 'key_kernel': 'self_attn.k_proj', 'value_kernel': 'self_attn.v_proj',
    'out_kernel': 'self_attn.o_proj', 'gate_kernel': 'mlp.gate_proj', 'up_kernel': 'mlp.up_proj', 'down_kernel': 'mlp.down_proj',
}
_NORMS = {'attention_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm'}
_HEAD_NORMS = {'query_norm': 'self_attn.q_norm', 'key_norm': 'self_attn.k_norm'}


def fields(given: Mapping[str, Any], defaults: Mapping[str, Any], where: str = '') -> Fields:
  """The fields of a config, with the defaults of its class where it leaves them out or null."""
  return Fields({**defaults, **{name: value for name, value in given.items() if value is not None}}, where)


def trunk(c: Fields, **others: Any) -> TrunkConfig:
  """The trunk of a Llama's fields; `others` are fields of TrunkConfig that no field of config.json tells.

  Raises:
    UserError: a field is missing or of another kind than it should be, or asks for what no family has: biases, or another
      scaling of positions than a linear one.
  """
  for name in ('attention_bias', 'mlp_bias'):
    c.only(name, False)
  width, heads = c.size('hidden_size'), c.size('num_attention_heads')
  base, scale = _rope(c)
  return TrunkConfig(**dict(
      width=width, layers=c.size('num_hidden_layers'), heads=heads, kv_heads=c.size('num_key_value_heads', heads),
      head_width=c.size('head_dim', width // heads), mlp_width=c.size('intermediate_size'), rope_base=base, rope_scale=scale,
      norm_epsilon=c.number('rms_norm_eps'),
      activation=ACTIVATIONS[c.choice('hidden_act', ACTIVATIONS, 'silu')]) | others)


def _rope(c: Fields) -> tuple[float, float]:
  """Base and linear scale: one object since transformers 5, two fields before. `type` is the old name of `rope_type`."""
  kinds = ('default', 'linear')
  r = c.section('rope_parameters' if c.given.get('rope_parameters') else 'rope_scaling')
  kind = r.choice('rope_type', dict.fromkeys(kinds), r.choice('type', dict.fromkeys(kinds), 'default'))
  base = r.number('rope_theta', c.number('rope_theta', 10_000.0))
  return base, r.number('factor') if kind == 'linear' else 1.0


def trunk_entries(config: TrunkConfig, theirs: str) -> list[Entry]:
  """Entries of a trunk whose tensors have `theirs` before their names."""
  layer = [(linear, ours, f'{name}.weight') for ours, name in _KERNELS.items()]
  layer += [(same, f'{ours}/scale', f'{name}.weight') for ours, name in _NORMS.items()]
  if config.qk_norm:
    layer += [(same, f'{ours}/{part}', f'{name}.{leaf}') for ours, name in _HEAD_NORMS.items()
              for part, leaf in (('scale', 'weight'), ('bias', 'bias'))]
  return [*(stacked(make, f'backbone/trunk/layers/{ours}', f'{theirs}layers.{{}}.{name}', config.layers)
            for make, ours, name in layer), same('backbone/trunk/norm/scale', f'{theirs}norm.weight')]


def projector_entries(ours: str, into: str, out: str) -> list[Entry]:
  """Entries of a Projector from the names of its two linear layers."""
  return [make(f'{ours}/{side}_{part}', f'{theirs}.{leaf}') for side, theirs in (('in', into), ('out', out))
          for make, part, leaf in ((linear, 'kernel', 'weight'), (same, 'bias', 'bias'))]


def apart(embedding: str, head: str, *, tied: bool) -> list[Entry]:
  """Entries of a vocabulary of text alone: its table and, where it is not tied to that, its head."""
  return [same(TEXT, embedding), *([] if tied else [linear(TEXT_HEAD, head)])]


def joint(codes: np.ndarray, size: int, embedding: str, head: str, *, tied: bool) -> list[Entry]:
  """Entries of a vocabulary that has image rows among its `size` rows.

  Args:
    codes: int[C], the row of each code. The other rows, in their order, are the text's.
  """
  text_rows(size, codes)
  text = np.delete(np.arange(size), codes)
  found = [rows({TEXT: text, CODES: codes}, embedding, size)]
  return found if tied else [*found, rows({TEXT_HEAD: text, CODE_HEAD: codes}, head, size, transpose=True)]


def text_rows(size: int, codes: np.ndarray) -> int:
  """How many of the `size` rows of a joint vocabulary are text, int[C] `codes` being the others."""
  if codes.min() < 0 or codes.max() >= size or len(codes) >= size:
    raise UserError(f'config.json: vocab_size is {size}, which has no room for text and {len(codes)} image tokens')
  return size - len(codes)


def rows_by_name(hf: Mapping[str, Any], pattern: str, code: Callable[[str], int], *, first: int, count: int,
                 size: int) -> np.ndarray:
  """The row of each code, from the names of the vocabulary.

  Args:
    hf: config.json; its `vocabulary_map` gives ids by name. Where no name in it is an image token, the codes stand in order.
    pattern: regular expression of an image token's name; its group tells the code.
    code: reads that group.
    first: row of code 0 where no names tell.
    count: C.
    size: of the vocabulary.

  Returns:
    int[C].

  Raises:
    UserError: the names do not give each code a row of its own.
  """
  named = [(code(found[1]), row) for name, row in Fields(hf).section('vocabulary_map').given.items()
           if (found := re.fullmatch(pattern, name))]
  if not named:
    return np.arange(first, first + count)
  if any(type(row) is not int or not 0 <= row < size for _, row in named):
    raise UserError(f'config.json: vocabulary_map has an image token outside the {size} rows of the vocabulary')
  codes, found = (np.array(column) for column in zip(*sorted(named), strict=True))
  if not np.array_equal(codes, np.arange(count)) or len(np.unique(found)) != count:
    raise UserError(f'config.json: the image tokens of vocabulary_map are not one for each of the {count} codes of vq_config')
  return found
