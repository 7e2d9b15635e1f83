"""What the configurations of public checkpoint families share: settings for weights that were trained by others.

A model's own sizes stand in its config.json, not here. `tiny` is for checkpoints of random weights, as the tests make them.
"""

import storyworld
from ml_collections import ConfigDict

from intersyn_jax.errors import UserError
from intersyn_jax.models.families.table import named


def config(family: str, size: str, *, pixels: int, images: int = 1, words: int = 512,
           fit: str = 'crop') -> ConfigDict:
  """The configuration of a family.

  Args:
    family: its name.
    size: one of the sizes that the family's file knows; of another one, take the nearest.
    pixels: side of a picture of the public sizes; those of `tiny` have 16.
    images, words: room of an answer.
    fit: how imported pictures become square (docs/data.md), as the family's own processor does it.
  """
  known = named(family)
  if size not in known.sizes:
    raise UserError(f'size {size!r} of family {family} is not known; use {", ".join(known.sizes)}')
  tiny, places = size == 'tiny', known.model(known.sizes[size]).places
  room = places + 40 if tiny else images * (places + 64) + words  # 64: what stands around an image, and its tags
  row = room + 400 if tiny else 2 * room  # the tokenizers of tests have hardly a word: questions are long

  c = storyworld.get_config('smoke' if tiny else 'small')
  c.name = family
  c.family = family  # or the import path of a Family of your own
  c.template = 'chat'  # `checkpoint` takes the chat template that the folder brings along
  c.hf = ConfigDict()  # fields of config.json that are to have other values
  c.data.update(dict(source='intersyn_release', pixels=16 if tiny else pixels, jitter=0, fit=fit, encoding='PNG',
                     shard_records=500))
  c.image = ConfigDict(dict(rows=1 if tiny else 4))  # pictures a device encodes or decodes at once
  c.model = ConfigDict(dict(dtype='float32' if tiny else 'bfloat16', remat='none' if tiny else 'full'))
  del c.text
  c.decode.update(dict(known.decode))
  c.decode.update(dict(rows=1 if tiny else 4, max_positions=room, max_images=images, chunk=0 if tiny else 256))

  # As the families' own authors fine-tune: AdamW at 1e-5, cosine, no decay.
  optimizer = dict(name='adamw', learning_rate=1e-5, adam_learning_rate=0.0, schedule='cosine', warmup=30, floor=0.0, b2=0.95)
  for section, split in ((c.warmup, 'interleaved'), (c.finetune, 'synthesized')):
    section.mix = ConfigDict({split: 1.0})
    section.update(dict(rows=8, micro_batches=1 if tiny else 8, row_length=row))
    section.optimizer.update(optimizer)
  c.warmup.update(dict(steps=2 if tiny else 1000, long_steps=0, null_prompt_rate=0.1))
  c.writer.steps = 0
  c.judge.update(dict(init='warmup', row_length=3 * row, widths=ConfigDict(dict(tcc=row, icc=row, its=row)), max_steps=images))
  c.grpo.update(dict(init='warmup', questions='interleaved', max_prompt=room // 2, max_positions=room, group_size=4, prompts=2,
                     log_prob_chunk=0 if tiny else 1024))
  c.grpo.optimizer.update(optimizer | dict(learning_rate=1e-6, schedule='constant'))
  return c
