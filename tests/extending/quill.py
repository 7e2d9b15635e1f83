"""A family: Quill, a Llama whose last ids are the codes of an image tokenizer like Chameleon's, kept in the same folder."""

import numpy as np

from intersyn_jax.interleave.layout import CODE, TAGS, ImageBlock, Layout, Template
from intersyn_jax.models.families import chameleon, language
from intersyn_jax.models.families.family import Family, differs
from intersyn_jax.models.unified import ModelConfig
from intersyn_jax.models.vision.codec import chameleon_codec

TINY = {
    'model_type': 'quill', 'vocab_size': 400, 'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 2,
    'num_attention_heads': 2, 'rms_norm_eps': 1e-5,
    'vq_config': {'resolution': 8, 'num_embeddings': 16, 'embed_dim': 8, 'base_channels': 32, 'channel_multiplier': [1, 2],
                  'num_res_blocks': 1, 'latent_channels': 8}}


def code_rows(hf):
  """The checkpoint's id of each code."""
  return np.arange(hf['vocab_size'])[-chameleon.codes(hf):]


def model(hf):
  """The unified model: text and image codes have tables of their own, whatever the checkpoint did."""
  return ModelConfig(
      language.trunk(language.fields(hf, {})), vocabulary=hf['vocab_size'] - chameleon.codes(hf), places=chameleon.places(hf),
      depth=1, codebook=chameleon.codes(hf), image_embedding='table')


def entries(hf):
  """Where every parameter of that model lies: a table and a head cut in two, and a Llama's layers by their usual names."""
  return [*language.joint(code_rows(hf), hf['vocab_size'], 'model.embed_tokens.weight', 'lm_head.weight', tied=False),
          *language.trunk_entries(model(hf).trunk, 'model.')]


def layout(tokenizer, config, template):
  """How Quill writes conversations. The tags of steps are new rows: `convert` fills them with the mean of their words' rows."""
  tokenizer = tokenizer.with_rows(TAGS)
  of, spell = tokenizer.special, lambda text: tuple(tokenizer.spell(text))
  block = ImageBlock(of('<image>'), (CODE,) * config.places + (of('</image>'),), config.depth, config.codebook)
  chat = Template(start=(of('<s>'),), user=spell('USER:'), model=spell('ASSISTANT:'), end=(of('</s>'),), null=(of('<s>'),))
  return Layout(tokenizer, block, chat, tuple(map(of, TAGS)))


FAMILY = Family(
    name='quill', sizes={'tiny': TINY}, contradiction=lambda hf: differs(hf, 'model_type', 'quill'), model=model,
    entries=entries, codec=chameleon_codec, layout=layout, code_rows=code_rows, decode={'guidance': 3.0})
