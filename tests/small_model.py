"""A small layout and model that the tests of layout, model and decoder share."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from intersyn_jax import sharding
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.layout import CODE, ImageBlock, Layout
from intersyn_jax.interleave.text import TextTokenizer
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn
from intersyn_jax.models.definition import Definition
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.unified import ModelConfig, define

CODEBOOK = 16


@functools.cache
def tokenizer() -> TextTokenizer:
  return TextTokenizer.train(['a red circle at the top left', 'move the blue square'] * 20, 300)


def plain(depth: int = 1, places: int = 4) -> Layout:
  return layout.plain_layout(tokenizer(), places=places, depth=depth, codebook=CODEBOOK)


def lined(depth: int = 1) -> Layout:
  """Two lines of two codes, each closed by a forced token, then two forced ones: a template with all there can be."""
  close, end = tokenizer().encode('a')[0], tokenizer().special('</image>')
  template = (CODE, CODE, close, CODE, CODE, close, end)
  return dataclasses.replace(plain(), block=ImageBlock(tokenizer().special('<image>'), template, depth, CODEBOOK))


def definition(layout_: Layout, mix: int = 4, **trunk) -> Definition:
  block = layout_.block
  sizes = dict(width=32, layers=2, heads=4, kv_heads=2, head_width=8, mlp_width=64) | trunk
  return define(ModelConfig(TrunkConfig(**sizes), layout_.tokenizer.size, block.places, block.depth, block.codebook,
                            mix=mix, image_head='flat' if block.depth == 1 else 'residual'))


def one_device():
  return sharding.make_mesh({}, jax.devices()[:1])


def image(layout_: Layout, seed: int = 0) -> Image:
  shape = (layout_.block.places, layout_.block.depth)
  return Image(codes=np.random.default_rng(seed).integers(0, CODEBOOK, shape).astype(np.int32))


def conversation(layout_: Layout, seed: int = 0) -> Conversation:
  """Two turns: an interleaved answer of two steps, then a question with a picture and an answer of text."""
  turns = (Turn((Text('a red'),), (Text('one'), image(layout_, seed), Text('two <vis>'), image(layout_, seed + 1))),
           Turn((image(layout_, seed + 2), Text('what is it?')), (Text('a circle'),)))
  return Conversation(f'c{seed}', 'shapes', turns)


def question(text: str) -> Conversation:
  return Conversation('q', 'shapes', (Turn((Text(text),)),))


def eager(params, layout_: Layout, begin: float = 5.0, end: float = 3.5):
  """The parameters with sharper heads that often begin images and end, so that random completions show every state.

  Coordinate 0 of the hidden state is made the same everywhere, so the text head's row 0 acts as a bias.
  """
  params = jax.tree.map(lambda a: a, params)
  backbone, special = params['backbone'], layout_.special
  for tables in (backbone, backbone['image_embedding']):
    for name in tables.keys() & {'text_embedding', 'code_embedding', 'place_embedding', 'mix_embedding'}:
      value = {'text_embedding': 2.0, 'code_embedding': 2.0 / layout_.block.depth}.get(name, 0.0)
      tables[name] = tables[name].at[:, 0].set(value)
  layers = backbone['trunk']['layers']
  for name in ('out_kernel', 'down_kernel'):
    layers[name] = layers[name].at[..., 0].set(0.0)
  bias = np.zeros(layout_.tokenizer.size, np.float32)
  bias[[layout_.block.begin, special('</s>'), special('<think>'), special('<pad>')]] = [begin, end, 2.0, 3.0]
  params['text_head'] = (params['text_head'] * 10).at[0].set(bias / 2)
  params['image_head']['head'] = params['image_head']['head'] * 30
  return params
