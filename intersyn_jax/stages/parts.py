"""What stages build from a configuration and a work folder: mesh, tokenizers, model, policies, decoder, judge."""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from intersyn_jax import sharding
from intersyn_jax.data import shards
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import Decoder
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import Layout, plain_layout
from intersyn_jax.interleave.text import TextTokenizer
from intersyn_jax.interleave.types import Conversation
from intersyn_jax.judge.model import SynJudge
from intersyn_jax.models import image_tokenizer, unified
from intersyn_jax.models.definition import Definition, Params
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.stages.common import Run
from intersyn_jax.training import checkpoints

POLICIES = {
    'warmup': ('warmup', 'checkpoints'),
    'warmup_long': ('warmup', 'long', 'checkpoints'),
    'writer': ('warmup', 'writer', 'checkpoints'),
    'finetune': ('finetune', 'checkpoints'),
    'finetune_k0': ('finetune', 'k0', 'checkpoints'),
    'finetune_gold': ('finetune', 'gold', 'checkpoints'),
    'grpo': ('grpo', 'checkpoints'),
}
"""Where the checkpoints of each policy lie in a work folder."""


def policy_folder(workdir: epath.PathLike, name: str) -> epath.Path:
  """Where the checkpoints of a policy lie."""
  if name not in POLICIES:
    raise UserError(f'there is no policy {name!r}; there are {", ".join(POLICIES)}')
  return epath.Path(workdir).joinpath(*POLICIES[name])


class Parts:
  """The parts of one run, built when first asked for."""

  def __init__(self, run: Run):
    self.run = run
    self.config = run.config

  @functools.cached_property
  def mesh(self) -> Mesh:
    return sharding.make_mesh(self.config.mesh)

  # Tokenizers.

  @property
  def image_config(self) -> image_tokenizer.ImageTokenizerConfig:
    fields = {name: self.config.image[name]
              for name in ('downsample', 'channels', 'blocks', 'kernel', 'codebook', 'depth', 'code_dim')}
    return image_tokenizer.ImageTokenizerConfig(pixels=self.config.data.pixels, **fields)

  @functools.cached_property
  def layout(self) -> Layout:
    text = TextTokenizer.load(self.run.workdir / 'tokenizer' / 'text.json')
    image = self.image_config
    return plain_layout(text, places=image.places, depth=image.depth, codebook=image.codebook)

  @functools.cached_property
  def _image_params(self) -> Params:
    return self.load(image_tokenizer.define(self.image_config), self.run.workdir / 'tokenizer' / 'checkpoints')

  @functools.cached_property
  def _image_functions(self):
    definition = image_tokenizer.define(self.image_config)
    return (jax.jit(lambda params, pictures: image_tokenizer.encode(definition.bind(params), pictures)),
            jax.jit(lambda params, codes: image_tokenizer.decode(definition.bind(params), codes)))

  def encode(self, pictures: np.ndarray) -> np.ndarray:
    """uint8[n,H,W,3] -> int32[n,P,D]."""
    return image_tokenizer.in_chunks(lambda rows: self._image_functions[0](self._image_params, rows), pictures)

  def decode(self, codes: np.ndarray) -> np.ndarray:
    """int32[n,P,D] -> uint8[n,H,W,3]."""
    return image_tokenizer.in_chunks(lambda rows: self._image_functions[1](self._image_params, rows), codes)

  # Data.

  def conversations(self, split: str) -> Sequence[Conversation]:
    """A split of the data set, with image codes."""
    return shards.open_split(self.run.workdir / 'tokenizer' / 'data', split)

  # Models.

  @property
  def model_config(self) -> unified.ModelConfig:
    model = self.config.model
    trunk = {name: model[name] for name in ('width', 'layers', 'heads', 'kv_heads', 'head_width', 'mlp_width', 'rope_base',
                                            'remat', 'dtype')}
    block = self.layout.block
    return unified.ModelConfig(
        TrunkConfig(**trunk), vocabulary=self.layout.tokenizer.size, places=block.places, depth=block.depth,
        codebook=block.codebook, mix=model.mix, image_head=resolve(model.image_head, 'model.image_head'))

  @functools.cached_property
  def model(self) -> Definition:
    return unified.define(self.model_config)

  def load(self, definition: Definition, folder: epath.PathLike) -> Params:
    """The latest parameters in a checkpoint folder, each in its own sharding."""
    places = definition.shardings(self.mesh)
    like = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), definition.shapes, places)
    return checkpoints.load_params(folder, like)

  def policy_folder(self, name: str) -> epath.Path:
    return policy_folder(self.run.workdir, name)

  def policy(self, name: str) -> Params:
    """Parameters of a trained policy."""
    return self.load(self.model, self.policy_folder(name))

  def judge(self) -> tuple[SynJudge, Params]:
    """The trained judge."""
    judge = SynJudge.of(self.model_config, self.layout, self.config.judge)
    return judge, self.load(judge.definition, self.run.workdir / 'judge' / 'checkpoints')

  def decoder(self, **overrides) -> Decoder:
    """A decoder under `config.decode`, some of its fields changed."""
    return Decoder(self.model, self.layout, self.mesh, DecodeConfig(**(self.config.decode.to_dict() | overrides)))


def resolve(name, field: str):
  """A constructor given by itself, by a short name, or as `module:attribute` (DESIGN 9)."""
  if callable(name) or ':' not in name:
    return name
  module, _, attribute = name.partition(':')
  try:
    return getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError) as error:
    raise UserError(f'config.{field} is {name!r}, which cannot be imported ({error}); write module:attribute') from error


def identity(folder: epath.PathLike) -> str:
  """Names the weights in a checkpoint folder, for the manifests of what is made with them."""
  folder = epath.Path(folder)
  step = checkpoints.latest_step(folder)
  listing = (folder / f'{step}.files.json').read_bytes() if step is not None else b''
  return hashlib.sha256(listing).hexdigest()[:12]
