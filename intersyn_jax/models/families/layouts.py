"""How each public family writes conversations and images: its layout, from its tokenizer and the sizes of its model.

Ids are those of our text tables: the checkpoint's without its image ids. Every family gets the four tags of interleaved
answers as ids of their own: tokens that it reserved, else rows that no token uses, else rows behind the others.

Templates by name: `chat` is how the family talks; `generation` what it was given to draw from, where that differs;
`checkpoint` the chat template that the folder brings along. Pieces of a template and what people say are encoded apart. That
gives the ids of the family's own processor unless its BPE would join the two: a question that ends with a full stop before
Emu3's `. ASSISTANT:`, say.

Sources: the inference code of the families' projects, and transformers' processors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping

from intersyn_jax.errors import UserError
from intersyn_jax.interleave import templates
from intersyn_jax.interleave.checkpoint_tokenizer import CheckpointTokenizer
from intersyn_jax.interleave.layout import CODE, TAGS, ImageBlock, Layout, Lead, Template
from intersyn_jax.models.unified import ModelConfig

EMU3_AVOID = ('lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, '
              'low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry.')
"""The negative prompt that Emu3's guidance starts from (its image_generation.py)."""
JANUS_SYSTEM = ('You are a helpful language and vision assistant. You are able to understand the visual content that the user '
                'provides, and assist the user with a variety of tasks using natural language.\n\n')
VILA_U_SYSTEM = ('A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, '
                 "and polite answers to the user's questions.")


def chameleon(tokenizer: CheckpointTokenizer, config: ModelConfig, template: str = 'chat') -> Layout:
  """Chameleon's and Anole's: a question is closed by a reserved token, an answer by `</s>`; the null context is `<s>` alone."""
  block = _block(tokenizer, '<racm3:break>', [CODE] * config.places + ['<eoss>'], config)
  bos, eos, turn = (_id(tokenizer, name) for name in ('<s>', '</s>', '<reserved08706>'))
  chat = Template((bos,), (), (turn,), (eos,), null=(bos,))
  reserved = (f'<reserved{number:05d}>' for number in range(8708, 10_000))
  return _layout(tokenizer, block, {'chat': chat}, template, chat.null, reserved)


def emu3(tokenizer: CheckpointTokenizer, config: ModelConfig, template: str = 'chat') -> Layout:
  """Emu3's: an image says its size in text, and closes every line of codes; guidance starts from a negative prompt."""
  side = round(config.places ** 0.5)
  lines = ([CODE] * side + ['<|extra_200|>']) * side
  size = tokenizer.encode(f'{side}*{side}')
  block = _block(tokenizer, '<|image start|>', [*size, '<|image token|>', *lines, '<|extra_201|>', '<|image end|>'], config)
  bos, eos = _id(tokenizer, '<|extra_203|>'), _id(tokenizer, '<|extra_204|>')
  null = (bos, *tokenizer.encode(EMU3_AVOID))
  space, spell = templates.lead_of_space(tokenizer), lambda text: tuple(tokenizer.spell(text))
  chat = Template((bos, *spell('You are a helpful assistant.')), spell(' USER:'), spell('. ASSISTANT:'), (eos,), null,
                  question=space, answer=Lead(space.text))
  named = {'chat': chat, 'generation': Template((bos,), (), (), (eos,), null)}
  return _layout(tokenizer, block, named, template, null, (f'<|extra_{number}|>' for number in range(200)))


def janus(tokenizer: CheckpointTokenizer, config: ModelConfig, template: str = 'chat') -> Layout:
  """Janus's: images of questions are read as features. `chat` has the system prompt of understanding, `generation` none.

  Its null context is the prompt with all ids but the first replaced by padding, so that its length is the prompt's. Here it
  is that of an empty question's prompt, the same for all.
  """
  block = _block(tokenizer, '<begin_of_image>', [CODE] * config.places + ['<end_of_image>'], config)
  bos, eos, pad = (_id(tokenizer, f'<｜{name}｜>') for name in ('begin▁of▁sentence', 'end▁of▁sentence', '▁pad▁'))
  space, spell = templates.lead_of_space(tokenizer), lambda text: tuple(tokenizer.spell(text))
  user, model = spell('<|User|>:'), spell('\n\n<|Assistant|>:')
  null = (bos, *[pad] * len((*user, *model)))
  written = lambda *system: Template((bos, *system), user, model, (eos,), null, question=space, answer=Lead(space.text))
  named = {'chat': written(*spell(JANUS_SYSTEM)), 'generation': written()}
  return _layout(tokenizer, block, named, template, null, (f'<｜place▁holder▁no▁{number}｜>' for number in range(800)),
                 features=True)


def liquid(tokenizer: CheckpointTokenizer, config: ModelConfig, template: str = 'chat') -> Layout:
  """Liquid's: Gemma's turns to talk, a sentence behind the question to draw; `<unconditional>` is the null context."""
  block = _block(tokenizer, '<boi>', [CODE] * config.places + ['<eoi>'], config)
  bos, eos, null = (_id(tokenizer, name) for name in ('<bos>', '<eos>', '<unconditional>'))
  spell = lambda text: tuple(tokenizer.spell(text))
  close = spell('<end_of_turn>\n')
  chat = Template((bos,), spell('<start_of_turn>user\n'), close + spell('<start_of_turn>model\n'), (*close, eos), (bos, null))
  draw = Template((bos,), (), spell(' Generate an image based on this description.'), (eos,), (bos, null))
  return _layout(tokenizer, block, {'chat': chat, 'generation': draw}, template, chat.null,
                 (f'<unused{number}>' for number in range(3, 99)))


def vila_u(tokenizer: CheckpointTokenizer, config: ModelConfig, template: str = 'chat') -> Layout:
  """VILA-U's: the turns of Vicuna; the null context is an empty turn as its code writes one, without the spaces.

  Its authors train the end token of an image as well.
  """
  block = _block(tokenizer, '<im_start>', [CODE] * config.places + ['<im_end>'], config)
  bos, eos = _id(tokenizer, '<s>'), _id(tokenizer, '</s>')
  space, spell = templates.lead_of_space(tokenizer), lambda text: tuple(tokenizer.spell(text))
  null = (bos, *spell(f'{VILA_U_SYSTEM} USER:ASSISTANT: '))
  chat = Template((bos, *spell(VILA_U_SYSTEM)), spell(' USER:'), spell(' ASSISTANT:'), (eos,), null, question=space, answer=space)
  return _layout(tokenizer, block, {'chat': chat}, template, null, (), trains_forced=True)


LAYOUTS: dict[str, Callable[..., Layout]] = {f.__name__: f for f in (chameleon, emu3, janus, liquid, vila_u)}
"""By family."""


def _id(tokenizer: CheckpointTokenizer, name: str) -> int:
  if name not in tokenizer:
    raise UserError(f'the tokenizer has no token {name}; it is not that of this family, or its added tokens are missing')
  return tokenizer.special(name)


def _block(tokenizer: CheckpointTokenizer, begin: str, template: list[int | str], config: ModelConfig) -> ImageBlock:
  """An image block whose forced entries are ids or names."""
  entries = tuple(_id(tokenizer, entry) if isinstance(entry, str) else entry for entry in template)
  return ImageBlock(_id(tokenizer, begin), entries, config.depth, config.codebook)


def _layout(tokenizer: CheckpointTokenizer, block: ImageBlock, named: Mapping[str, Template], template: str,
            null: tuple[int, ...], reserved: Iterable[str], **facts: bool) -> Layout:
  if template == 'checkpoint':
    chosen = templates.of_checkpoint(tokenizer, null)
  elif template in named:
    chosen = named[template]
  else:
    raise UserError(f'template is {template!r}; this family has {", ".join(named)} and checkpoint')
  tokenizer, tags = _tags(tokenizer, reserved)
  return Layout(tokenizer, block, chosen, tags, **facts)


def _tags(tokenizer: CheckpointTokenizer, reserved: Iterable[str]) -> tuple[CheckpointTokenizer, tuple[int, ...]]:
  if not all(name in tokenizer for name in TAGS):
    free = list(itertools.islice((tokenizer.special(name) for name in reserved if name in tokenizer), len(TAGS)))
    free = free if len(free) == len(TAGS) else list(tokenizer.spare[-len(TAGS):])
    if len(free) == len(TAGS):
      return tokenizer, tuple(free)
    tokenizer = tokenizer.with_rows(TAGS)
  return tokenizer, tuple(tokenizer.special(name) for name in TAGS)
