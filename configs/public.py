"""What the configurations of public checkpoint families share: settings for weights that were trained by others.

A model's own sizes stand in its config.json, not here. `tiny` is for checkpoints of random weights, as the tests make them.
Behind a size may stand the chips of a pod, `7b@v5e`: then rows, parts of a batch and mesh are such that full-parameter training
of a 7B model fits 16 chips of v5e or v6e, or 64 of v5p (not so Emu3's long rows on v5e); `7b@v5e-rollout` is for stages that
write answers (docs/compile.md). On more chips, rows grow with them.
"""

import storyworld
from ml_collections import ConfigDict

from intersyn_jax.errors import UserError
from intersyn_jax.models.families.table import named

# What fits a pod, by its chips; a chip of v5e has 16 GB, of v6e 32 and of v5p 95.
_CHIPS = dict(
    v5e=dict(rows=16, micro_batches=1, answers=(4, 4), parts=8, answer_chunk=1024, decode=16),
    v6e=dict(rows=32, micro_batches=1, answers=(4, 8), parts=8, answer_chunk=1024, decode=32),
    v5p=dict(rows=128, micro_batches=1, answers=(16, 8), parts=1, answer_chunk=512, decode=128))

# A rollout has all weights in every group of chips that `tensor` splits; only a chip of v5p has room for them alone.
_PODS = {name: dict(chip, tensor=1, head_remat='') for name, chip in _CHIPS.items()} | {
    f'{name}-rollout': dict(_CHIPS[name], tensor=8, head_remat='none') for name in ('v5e', 'v6e')}


def config(family: str, size: str, *, pixels: int, images: int = 1, words: int = 512,
           fit: str = 'crop') -> ConfigDict:
  """The configuration of a family.

  Args:
    family: its name.
    size: one of the sizes that the family's file knows; of another one, take the nearest. `SIZE@CHIP` is for a pod.
    pixels: side of a picture of the public sizes; those of `tiny` have 16.
    images, words: room of an answer.
    fit: how imported pictures become square (docs/data.md), as the family's own processor does it.
  """
  known = named(family)
  size, _, chip = size.partition('@')
  if chip and chip not in _PODS:
    raise UserError(f'there are no settings for a pod of {chip!r}; use {", ".join(_PODS)}')
  if size not in known.sizes:
    raise UserError(f'size {size!r} of family {family} is not known; use {", ".join(known.sizes)}')
  tiny, model = size == 'tiny', known.model(known.sizes[size])
  places = model.places
  room = places + 40 if tiny else images * (places + 64) + words  # 64: what stands around an image, and its tags
  row = room + 400 if tiny else 2 * room  # the tokenizers of tests have hardly a word: questions are long

  c = storyworld.get_config('smoke' if tiny else 'small')
  c.name = family
  c.family = family  # or the import path of a Family of your own
  c.size = size  # what `compile`, which sees no config.json, takes the model to be
  c.template = 'chat'  # `checkpoint` takes the chat template that the folder brings along
  c.hf = ConfigDict()  # fields of config.json that are to have other values
  c.data.update(dict(source='intersyn_release', pixels=16 if tiny else pixels, jitter=0, fit=fit, encoding='PNG',
                     shard_records=500))
  c.image = ConfigDict(dict(rows=1 if tiny else 4))  # pictures a device encodes or decodes at once
  c.model = ConfigDict(dict(dtype='float32' if tiny else 'bfloat16', remat='none' if tiny else 'full', head_remat=''))
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
                     log_prob_chunk=0 if tiny else 128))
  c.grpo.optimizer.update(optimizer | dict(learning_rate=1e-6, schedule='constant'))
  if chip:
    logits = row * (model.vocabulary + model.depth * model.codebook)
    _spread(c, **_PODS[chip], chunk=0 if logits < 2**30 else 1024)  # each chunk has the head sent anew
  return c


def _spread(c: ConfigDict, *, tensor: int, rows: int, micro_batches: int, answers: tuple[int, int], parts: int, answer_chunk: int,
            decode: int, chunk: int, head_remat: str) -> None:
  """Makes a configuration that of a pod.

  Args:
    tensor: chips that split every layer.
    rows, micro_batches: of supervised training.
    answers: prompts and answers of each in an iteration of GRPO. parts, answer_chunk: its micro-batches and `log_prob_chunk`.
    decode: completions written at once, and answers judged.
    chunk: `log_prob_chunk` of supervised training.
    head_remat: 'none' where chunks of the logits are made again anyway, and that twice would not fit.
  """
  c.mesh.tensor, c.model.head_remat = tensor, head_remat
  for section in (c.warmup, c.finetune):
    section.update(dict(rows=rows, micro_batches=micro_batches, log_prob_chunk=chunk))
  c.grpo.update(dict(prompts=answers[0], group_size=answers[1], micro_batches=parts, log_prob_chunk=answer_chunk))
  c.judge.rows = c.decode.rows = decode
