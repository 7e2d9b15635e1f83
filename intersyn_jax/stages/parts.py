"""What stages build from a configuration and a work folder: mesh, tokenizers, model, policies, decoder, judge."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Sequence

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from intersyn_jax import bucket, sharding
from intersyn_jax.data import images, shards
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import Decoder
from intersyn_jax.decoding.generator import Eyes
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import Layout, plain_layout
from intersyn_jax.interleave.text import TextTokenizer
from intersyn_jax.interleave.types import DIMENSIONS, Conversation
from intersyn_jax.judge.model import SynJudge
from intersyn_jax.models import image_tokenizer, unified
from intersyn_jax.models.definition import Definition, Params
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.vision import jobs
from intersyn_jax.stages import converted, imports
from intersyn_jax.stages.common import Run, read_json
from intersyn_jax.stages.converted import Converted
from intersyn_jax.training import checkpoints

POLICIES = {
    'convert': ('convert', 'checkpoints'),
    'warmup': ('warmup', 'checkpoints'),
    'warmup_long': ('warmup', 'long', 'checkpoints'),
    'writer': ('warmup', 'writer', 'checkpoints'),
    'finetune': ('finetune', 'checkpoints'),
    'finetune_k0': ('finetune', 'k0', 'checkpoints'),
    'finetune_gold': ('finetune', 'gold', 'checkpoints'),
    'finetune_25': ('finetune', 'part25', 'checkpoints'),
    'finetune_50': ('finetune', 'part50', 'checkpoints'),
    'finetune_100': ('finetune', 'part100', 'checkpoints'),
    'grpo': ('grpo', 'checkpoints'),
}
"""Where the checkpoints of each policy lie in a work folder."""

_VARIANT = re.compile(r'grpo/[\w=+]+')
"""Policies of a study, beside that of the stage: `grpo/NAME`."""


def policy_folder(workdir: epath.PathLike, name: str) -> epath.Path:
  """Where the checkpoints of a policy lie."""
  if _VARIANT.fullmatch(name):
    return epath.Path(workdir) / name / 'checkpoints'
  if name not in POLICIES:
    raise UserError(f'there is no policy {name!r}; there are {", ".join(POLICIES)}')
  return epath.Path(workdir).joinpath(*POLICIES[name])


def temperatures_file(workdir: epath.PathLike) -> epath.Path:
  """Where the stage `judge` keeps the temperatures of its probabilities, by dimension."""
  return epath.Path(workdir) / 'judge' / 'temperatures.json'


class Parts:
  """The parts of one run, built when first asked for."""

  def __init__(self, run: Run, devices: Sequence[jax.Device] | None = None):
    self.run = run
    self.config = run.config
    self._devices = devices

  @functools.cached_property
  def mesh(self) -> Mesh:
    return sharding.make_mesh(self.config.mesh, self._devices)

  @functools.cached_property
  def checkpoint(self) -> Converted | None:
    """The converted checkpoint of the family that `config.family` names; None where the model is one of our own."""
    return Converted(self.run.workdir, self.config) if converted.wanted(self.config) else None

  # Tokenizers.

  @property
  def image_config(self) -> image_tokenizer.ImageTokenizerConfig:
    fields = {name: self.config.image[name]
              for name in ('downsample', 'channels', 'blocks', 'kernel', 'codebook', 'depth', 'code_dim')}
    return image_tokenizer.ImageTokenizerConfig(pixels=self.config.data.pixels, **fields)

  @functools.cached_property
  def layout(self) -> Layout:
    if self.checkpoint:
      return self.checkpoint.layout
    text = TextTokenizer.load(self.run.workdir / 'tokenizer' / 'text.json')
    image = self.image_config
    return plain_layout(text, places=image.places, depth=image.depth, codebook=image.codebook)

  @property
  def image_folder(self) -> epath.Path:
    """Where the checkpoints of the image tokenizer lie."""
    workdir = self.run.workdir
    return converted.folder_of(workdir, converted.IMAGE) if self.checkpoint else workdir / 'tokenizer' / 'checkpoints'

  @functools.cached_property
  def image_functions(self) -> tuple[Callable[[np.ndarray], np.ndarray], ...]:
    """Encode and decode, on any number of rows."""
    if self.checkpoint:
      codec = self.checkpoint.codec
      params = self.load(codec.definition, self.image_folder)
      return tuple(jobs.runner(codec, params, self.mesh, function, self.config.image.rows)
                   for function in (codec.encode, codec.decode))
    definition = image_tokenizer.define(self.image_config)
    params = self.load(definition, self.image_folder)
    compiled = [jax.jit(lambda params, rows, f=function: f(definition.bind(params), rows))
                for function in (image_tokenizer.encode, image_tokenizer.decode)]
    return tuple(functools.partial(image_tokenizer.in_chunks, functools.partial(function, params)) for function in compiled)

  def encode(self, pictures: np.ndarray) -> np.ndarray:
    """uint8[n,H,W,3] -> int32[n,P,D]."""
    return self.image_functions[0](pictures)

  def decode(self, codes: np.ndarray) -> np.ndarray:
    """int32[n,P,D] -> uint8[n,H,W,3]."""
    return self.image_functions[1](codes)

  def eyes(self) -> Eyes:
    """Reads pictures of questions, of any size for a converted family."""
    if not self.checkpoint:
      return Eyes(lambda found: self.encode(np.stack([images.pixels(data, 'a picture of a question') for data in found])))
    seen = lambda vision, found: np.stack([jobs.pixels(vision, data, 'a picture of a question') for data in found])
    codec, vision = self.checkpoint.codec, self.checkpoint.features
    codes = lambda found: self.encode(seen(codec, found))
    if vision is None:
      return Eyes(codes)
    params = self.load(vision.definition, converted.folder_of(self.run.workdir, converted.FEATURES))
    encode = jobs.runner(vision, params, self.mesh, vision.encode, self.config.image.rows)
    return Eyes(codes, lambda found: encode(seen(vision, found)))

  # Data.

  def conversations(self, split: str) -> Sequence[Conversation]:
    """A split of the data set, with image codes."""
    return shards.open_split(self.run.workdir / 'tokenizer' / 'data', split)

  def splits(self) -> Sequence[str]:
    """The splits of the data set."""
    return shards.splits(self.run.workdir / 'tokenizer' / 'data')

  # Models.

  @property
  def model_config(self) -> unified.ModelConfig:
    if self.checkpoint:
      return self.checkpoint.model_config(self.checkpoint.dtype)
    model = self.config.model
    trunk = {name: model[name] for name in ('width', 'layers', 'heads', 'kv_heads', 'head_width', 'mlp_width', 'rope_base',
                                            'remat', 'dtype')}
    block = self.layout.block
    return unified.ModelConfig(
        TrunkConfig(**trunk), vocabulary=self.layout.tokenizer.size, places=block.places, depth=block.depth,
        codebook=block.codebook, mix=model.mix, image_head=imports.resolve(model.image_head, 'model.image_head'))

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

  def start(self) -> Params:
    """What training begins with: the converted weights, or fresh ones."""
    return self.policy('convert') if self.checkpoint else self.model.init(jax.random.key(self.config.seed), self.mesh)

  def judge(self) -> tuple[SynJudge, Params]:
    """The trained judge."""
    judge = SynJudge.of(self.model_config, self.layout, self.config.judge)
    params = self.load(judge.definition, self.run.workdir / 'judge' / 'checkpoints')
    found = read_json(temperatures_file(self.run.workdir))
    return judge.at([float(found[name]) for name in DIMENSIONS]), params

  def decoder(self, definition: Definition | None = None, **overrides) -> Decoder:
    """A decoder under `config.decode`, some of its fields changed, of the model or of another form of it."""
    config = DecodeConfig(**(self.config.decode.to_dict() | overrides))
    return Decoder(definition or self.model, self.layout, self.mesh, config)


def identity(folder: epath.PathLike) -> str:
  """Names the weights in a checkpoint folder, for the manifests of what is made with them."""
  folder = bucket.durable(folder)
  step = checkpoints.latest_step(folder)
  listing = (folder / f'{step}.files.json').read_bytes() if step is not None else b''
  return hashlib.sha256(listing).hexdigest()[:12]
