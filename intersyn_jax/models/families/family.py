"""What this program knows of a family of public checkpoints: one record, from config.json to the model that answers.

Everything is built from the checkpoint's own config.json, a plain dictionary called `hf` here, so that public sizes and tiny ones
of tests take one path. Where a checkpoint has folders below with a config.json each (VILA-U), theirs are `hf[FOLDER]`.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

if typing.TYPE_CHECKING:
  from intersyn_jax.interleave.checkpoint_tokenizer import CheckpointTokenizer
  from intersyn_jax.interleave.layout import Layout
  from intersyn_jax.models.families.entries import Entry
  from intersyn_jax.models.unified import ModelConfig
  from intersyn_jax.models.vision.codec import Codec, FeatureEncoder

HF = Mapping[str, Any]
"""The fields of config.json."""

COMPUTED = (r'.*rotary_emb\.inv_freq', r'.*\.position_ids')
"""Names of buffers that old checkpoints hold and that follow from config.json."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """One family. A user's own file can hold another one (DESIGN 9).

  Attributes:
    name: for the command line.
    sizes: config.json of each public size, and `tiny`, for tests with random weights.
    contradiction: the first thing in a config.json that speaks against the family, '' where nothing does.
    model: the unified model.
    entries: where each of its parameters lies.
    codec: the image tokenizer, with entries of its own.
    layout: how the family writes conversations, from its tokenizer, its model and the name of a template.
    decode: fields of `DecodeConfig` as the family's authors sample; the family's file names the source.
    code_rows: ids of the codes, int[C], where text and images share a vocabulary.
    text_folder: below the checkpoint's, that holds the tokenizer's files.
    features: the encoder of pictures to understand, where that is not the codec.
    folders: below the checkpoint's, that hold weights; '' is itself. Tensors have the folder in front of their name.
    codec_files: stems of files that may lie beside and hold the codec by its original names (`vqgan` for `vqgan.ckpt`).
    older: regular expressions and replacements that turn names of earlier releases into those of `entries`.
    unused: regular expressions of names that no parameter needs: buffers that are computed, moving averages of training.
      Such tensors are kept as they are, for export.
    copies: names of unused tensors that must equal another one: a head that is stored although it is tied.
  """

  name: str
  sizes: Mapping[str, HF]
  contradiction: Callable[[HF], str]
  model: Callable[[HF], ModelConfig]
  entries: Callable[[HF], list[Entry]]
  codec: Callable[[HF], Codec]
  layout: Callable[[CheckpointTokenizer, ModelConfig, str], Layout]
  decode: Mapping[str, Any]
  code_rows: Callable[[HF], np.ndarray] | None = None
  text_folder: str = ''
  features: Callable[[HF], FeatureEncoder] | None = None
  folders: tuple[str, ...] = ('',)
  codec_files: tuple[str, ...] = ()
  older: tuple[tuple[str, str], ...] = ()
  unused: tuple[str, ...] = ()
  copies: Mapping[str, str] = dataclasses.field(default_factory=dict)


def differs(hf: HF, field: str, *wanted: Any) -> str:
  """What to say where a field of config.json is none of the values wanted, '' where it is."""
  value = hf.get(field)
  return '' if value in wanted else f'{field} is {value!r}, not {" or ".join(map(repr, wanted))}'
