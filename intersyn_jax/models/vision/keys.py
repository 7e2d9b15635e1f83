"""From the parameters of a codec to the names of its tensors in a checkpoint.

The modules are built like the published ones, so that the map is a rule: a few substitutions in the path, and the leaf's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import jax
import numpy as np

from intersyn_jax.errors import UserError
from intersyn_jax.models.definition import Params
from intersyn_jax.models.families import entries
from intersyn_jax.models.families.entries import Entry

Rules = Sequence[tuple[str, str | Callable[[re.Match], str]]]
"""Regular expressions and what they become, applied in this order to a path whose keys are joined by '/'."""

LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'variance': 'running_var'}

PYRAMID: Rules = (
    (r'\battn_1/(query|key|value)\b', lambda m: f'attn_1/{m[1][0]}'),
    (r'\battn/(\d+)/(query|key|value)\b', lambda m: f'attn/{m[1]}/{m[2][0]}'),
    (r'\b(attn_1|attn/\d+)/out\b', r'\1/proj_out'),
    (r'\b(down|up)/(\d+)/resample\b', r'\1/\2/\1sample/conv'),
    (r'^codebook$', 'quantize/embedding/kernel'),
)
"""Of VQGAN and its parts, as Chameleon's, Janus's and VILA-U's checkpoints have them."""

EMU3: Rules = (
    (r'^time_down/', 'encoder/'),
    (r'^time_up/', 'decoder/'),
    (r'\btime_conv/(\d+)/', r'time_conv/\1/conv/'),
    (r'\b(down|up)/(\d+)/resample\b', r'\1/\2/\1sample/conv'),
    (r'\battn_1/norm\b', 'attn_norm'),
    (r'\battn/(\d+)/norm\b', r'attn_norms/\1'),
    (r'\b(attn_1|attn/\d+)/(query|key|value)\b', lambda m: f'{m[1]}/{m[2][0]}_proj'),
    (r'\b(attn_1|attn/\d+)/out\b', r'\1/out_proj'),
    (r'\b(down|up)/(?=\d)', r'\1_block/\1/'),
    (r'\bmid/', 'middle_block/'),
    (r'^codebook$', 'quantize/embedding/kernel'),
)
"""Of Emu3's codec."""


def siglip(out: str) -> Rules:
  """Of SigLIP's encoder; `out` is what a checkpoint calls the last projection of attention."""
  return (
      (r'\blayers/(query|key|value)\b', lambda m: f'layers/self_attn/{m[1][0]}_proj'),
      (r'\blayers/out\b', f'layers/self_attn/{out}'),
      (r'\blayers/norm(\d)\b', r'layers/layer_norm\1'),
      (r'\blayers/(fc\d)\b', r'layers/mlp/\1'),
      (r'\blayers/', 'encoder/layers/{}/'),
      (r'\bpatch/', 'embeddings/patch_embedding/'),
      (r'\bposition_embedding$', 'embeddings/position_embedding/kernel'),
  )


def entries_of(shapes: Params, rules: Rules, linear: str = r'$.') -> list[Entry]:
  """Entries of all parameters.

  Args:
    shapes: the tree of a definition.
    rules: from our path to their name; '{}' in the result is the number of the layer, over which ours is stacked.
    linear: regular expression of their names whose weight is a matrix; other matrices of ours are convolutions of one pixel.
  """
  found = []
  for keys, shape in jax.tree_util.tree_flatten_with_path(shapes)[0]:
    ours = '/'.join(str(key.key) for key in keys)
    theirs = ours
    for pattern, becomes in rules:
      theirs = re.sub(pattern, becomes, theirs)
    *stem, leaf = theirs.split('/')
    theirs = '.'.join([*stem, LEAVES.get(leaf, leaf)])
    stacked = '{}' in theirs
    if not ours.endswith('kernel'):
      make = entries.same
    elif len(shape.shape) - stacked > 2:
      make = entries.conv
    else:
      make = entries.linear if re.search(linear, theirs) else one_pixel
    found.append(entries.stacked(make, ours, theirs, shape.shape[0]) if stacked else make(ours, theirs))
  return found


def one_pixel(ours: str, theirs: str) -> Entry:
  """Our matrix [in,out] is their convolution [out,in,1,1]."""
  return Entry((ours,), (theirs,), lambda arrays: [a.reshape(a.shape[:2]).T for a in arrays],
               lambda arrays: [a.T[:, :, None, None] for a in arrays])


def repeated_table(ours: str, padding: str, theirs: str, count: int) -> Entry:
  """Our table [C,c] and padding row [c] are the rows of `count` equal tables of theirs, [C+1,c] each.

  Reading raises UserError where the tables differ: a codec with a table per depth is another codec.
  """
  def read(arrays: entries.Arrays) -> entries.Arrays:
    first, *others = (np.ascontiguousarray(a).view(np.uint8) for a in arrays)
    for i, other in enumerate(others, 1):
      if not np.array_equal(first, other):
        raise UserError(f'{theirs.format(i)} differs from {theirs.format(0)}: only a codebook that all depths share can be '
                        'read; take a checkpoint with one (shared_codebook)')
    return [arrays[0][:-1], arrays[0][-1]]

  return Entry((ours, padding), tuple(theirs.format(i) for i in range(count)), read,
               lambda arrays: [np.concatenate([arrays[0], arrays[1][None]])] * count)


def unused_of_vila_u(layers: int, depth: int) -> tuple[str, ...]:
  """Tensors of VILA-U's codec that neither encoding nor decoding reads.

  SigLIP's last layer, pooling head and text side (it has as many layers), its two scalars, which lie there twice, and the
  moving averages that trained the codebooks.
  """
  pair = lambda *stems: [f'{stem}.{leaf}' for stem in stems for leaf in ('weight', 'bias')]
  layer = lambda stem: pair(f'{stem}.layer_norm1', f'{stem}.layer_norm2', f'{stem}.mlp.fc1', f'{stem}.mlp.fc2',
                            *(f'{stem}.self_attn.{name}_proj' for name in ('q', 'k', 'v', 'out')))
  tower, text = 'siglip_model.vision_model', 'siglip_model.text_model'
  names = [*layer(f'{tower}.encoder.layers.{layers - 1}'), *pair(f'{tower}.post_layernorm')]
  head = f'{tower}.head'
  names += [f'{head}.probe', f'{head}.attention.in_proj_weight', f'{head}.attention.in_proj_bias']
  names += pair(f'{head}.attention.out_proj', f'{head}.layernorm', f'{head}.mlp.fc1', f'{head}.mlp.fc2')
  names += [f'{text}.embeddings.{table}_embedding.weight' for table in ('token', 'position')]
  names += [name for i in range(layers) for name in layer(f'{text}.encoder.layers.{i}')]
  names += pair(f'{text}.final_layer_norm', f'{text}.head')
  names += [f'{stem}logit_{kind}' for stem in ('siglip_model.', '') for kind in ('scale', 'bias')]
  names += [f'quantizer.codebooks.{d}.{average}' for d in range(depth) for average in ('embed_ema', 'cluster_size_ema')]
  return tuple(names)
