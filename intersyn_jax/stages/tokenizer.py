"""Stage `tokenizer`: trains the text and the image tokenizer, then adds image codes to every shard.

A converted family has its tokenizers already; there it only adds the codes.
"""

from __future__ import annotations

import json

import jax
import numpy as np
import PIL.Image

from intersyn_jax import sharding
from intersyn_jax.data import codes, images, shards
from intersyn_jax.data.storyworld import story
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation import flaws
from intersyn_jax.interleave.text import TextTokenizer
from intersyn_jax.interleave.types import DIMENSIONS, Image, Text
from intersyn_jax.models import image_tokenizer
from intersyn_jax.stages.common import Run, barrier
from intersyn_jax.stages.parts import Parts, identity
from intersyn_jax.training import checkpoints, loop
from intersyn_jax.training.metrics import replace_text
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer

FLAW_ANSWERS = 40
"""Answers that each flaw is tried on."""

SHOWN = 16
"""Pictures of which reconstructions are shown."""


def run(run: Run) -> dict:
  run.require('data')
  parts = Parts(run)
  folder = run.directory('tokenizer')
  data = run.workdir / 'data'
  splits = {name: shards.open_split(data, name) for name in shards.splits(data)}
  if parts.checkpoint:
    return _only_codes(run, parts, splits)

  if run.active and not (folder / 'text.json').exists():
    # Evaluation splits are not read: what they hold must not shape the vocabulary.
    texts = (segment.text for name, split in splits.items() if name not in ('validation', 'test')
             for conversation in split for turn in conversation.turns for segment in _with_captions(turn)
             if segment.text)
    text = TextTokenizer.train(texts, run.config.text.size)
    replace_text(folder / 'text.json', text.dumps())
  barrier('text-tokenizer')

  pictures = _pictures(run, splits)
  last = _train_images(run, parts, pictures)
  _reconstructions(run, parts, pictures[:SHOWN])
  _add_codes(run, parts)
  metrics = {'text.size': parts.layout.tokenizer.size, 'image.psnr': _psnr(parts, pictures[:512])}
  return metrics | _flaws(run, parts) | {f'image.{name}': value for name, value in last.items()}


def _only_codes(run: Run, parts: Parts, splits) -> dict[str, float]:
  pixels = parts.checkpoint.codec.pixels
  if run.config.data.pixels != pixels:
    raise UserError(f'config.data.pixels is {run.config.data.pixels}, but the image tokenizer of this family reads {pixels}: '
                    'set it so and import the data again')
  _add_codes(run, parts)
  pictures = _imported(splits, SHOWN)
  if not len(pictures):
    return {}
  _reconstructions(run, parts, pictures)
  return {'image.psnr': _psnr(parts, pictures)}


def _add_codes(run: Run, parts: Parts) -> None:
  """One process writes the shards, with its own devices, and the others wait: shards have one writer."""
  local = parts if jax.process_count() == 1 else Parts(run, jax.local_devices())
  encode, _ = local.image_functions  # in all processes: they read a checkpoint together or not at all
  if run.active:
    codes.encode_folder(run.workdir / 'data', run.directory('tokenizer') / 'data', encode,
                        tokenizer=identity(parts.image_folder), progress=run.reporter('tokenizer', 'record'))
  barrier('codes-added')


def _psnr(parts: Parts, pictures: np.ndarray) -> float:
  """Decibels between pictures and what encode and decode make of them."""
  error = np.mean((parts.decode(parts.encode(pictures)).astype(np.float32) - pictures) ** 2) / 255 ** 2
  return -10 * np.log10(error)


def _flaws(run: Run, parts: Parts) -> dict[str, float]:
  """Writes WORKDIR/tokenizer/flaws.json: what this tokenizer leaves of gold answers and of each flaw. Storyworld only."""
  data = run.config.data
  if data.source != 'storyworld':
    return {}
  rows = flaws.measure(parts.encode, parts.decode, codebook=run.config.image.codebook, pixels=data.pixels,
                       jitter=data.jitter, seed=data.seed, answers=FLAW_ANSWERS)
  if run.active:
    replace_text(run.directory('tokenizer') / 'flaws.json', json.dumps(rows, indent=1))
  return {f'gold.{name}': rows[0][name] for name in DIMENSIONS}


def _with_captions(turn) -> list[Text]:
  return [Text(s.caption) if isinstance(s, Image) else s for s in (*turn.question, *turn.answer)]


def _pictures(run: Run, splits) -> np.ndarray:
  """Training pictures uint8[n,H,W,3]: dense Storyworld scenes, or those of the imported data."""
  data, count = run.config.data, run.config.image.pictures
  if data.source == 'storyworld':
    return story.scenes(data.seed, 0, count, pixels=data.pixels, jitter=data.jitter,
                         damaged=run.config.image.damaged)
  return _imported(splits, count)


def _imported(splits, count: int) -> np.ndarray:
  """The first `count` pictures of a data set, uint8[n,H,W,3]."""
  found = []
  for split in splits.values():
    for conversation in split:
      for turn in conversation.turns:
        found += [images.pixels(s.data) for s in (*turn.question, *turn.answer) if isinstance(s, Image) and s.data]
      if len(found) >= count:
        break
  return np.stack(found[:count]) if found else np.zeros((0, 0, 0, 3), np.uint8)


def _train_images(run: Run, parts: Parts, pictures: np.ndarray) -> dict[str, float]:
  image, seed = run.config.image, run.config.data.seed
  sharding.check_rows(parts.mesh, image.batch, 'image.batch')
  training = image_tokenizer.ImageTraining(steps=image.steps, autoencoder=image.autoencoder, batch=image.batch)
  optimizer = make_optimizer(OptimizerConfig(learning_rate=image.learning_rate, schedule='cosine', warmup=20, floor=0.02,
                                             b2=0.99), image.steps)
  definition = image_tokenizer.define(parts.image_config)
  params = definition.init(jax.random.key(seed), parts.mesh)
  state = loop.init_state(params, optimizer, codes=image_tokenizer.fresh_codes(parts.image_config, training))

  def batch(number: int) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(key=[seed, number]))
    return pictures[rng.integers(0, len(pictures), image.batch)]

  saved = checkpoints.Checkpoints(run.directory('tokenizer') / 'checkpoints', identity=run.config_hash('tokenizer'))
  state, last = loop.fit(
      image_tokenizer.make_step(parts.image_config, training, optimizer), state, loop.Indexed(batch, parts.mesh),
      steps=image.steps, seed=seed, checkpoints=saved, metrics=run.metrics('tokenizer', saved.done), metrics_every=20,
      save_every=max(100, image.steps // 4), progress=run.progress('tokenizer', image.steps, max(saved.done, 0)),
      batch_sharding=sharding.rows(parts.mesh), profile=run.profile('tokenizer'))
  return last


def _reconstructions(run: Run, parts: Parts, pictures: np.ndarray) -> None:
  """Writes WORKDIR/tokenizer/reconstructions.png: pictures above what encode and decode make of them, four times enlarged."""
  again = parts.decode(parts.encode(pictures))
  if not run.active:
    return
  sheet = np.concatenate([np.concatenate(list(rows), axis=1) for rows in (pictures, again)], axis=0)
  big = PIL.Image.fromarray(sheet).resize((sheet.shape[1] * 4, sheet.shape[0] * 4), PIL.Image.Resampling.NEAREST)
  path = run.directory('tokenizer') / 'reconstructions.png'
  part = path.parent / f'.{path.name}.part'
  with part.open('wb') as file:
    big.save(file, 'PNG')
  part.replace(path)
