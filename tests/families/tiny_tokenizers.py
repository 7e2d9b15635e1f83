"""Tokenizer files as each family's checkpoints have them, for vocabularies of a few hundred rows."""

from __future__ import annotations

import functools
import json
import pathlib
import struct
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import tokenizers

from intersyn_jax.interleave.checkpoint_tokenizer import CheckpointTokenizer
from intersyn_jax.interleave.layout import Layout
from intersyn_jax.models.families import chameleon, emu3, janus, layouts, liquid, vila_u

MODULES = {'chameleon': chameleon, 'emu3': emu3, 'janus': janus, 'liquid': liquid, 'vila_u': vila_u}
WORDS = ['USER: show a red circle ASSISTANT: the red circle is shown.', 'a helpful assistant: the blue square 8*8 90*90'] * 4
PIECES = ['▁a', 're', '▁re', '▁red', 'ci', 'rc', 'le', 'circ', '▁circ', '▁circle', 'AS', 'SI', 'ST', 'ASSI', 'STANT', 'AN',
          'ANT', 'SIST', '▁AS', '▁ASSI', 'US', 'ER', '▁US', '▁USER', '▁▁', 'th', 'the', '▁the']


def names(family: str, hf: Mapping[str, Any]) -> dict[str, int]:
  """Spellings and ids of the special tokens, in the checkpoint's index space."""
  if family == 'chameleon':
    digits = str.maketrans('0123456789', 'ABCDEFGHIJ')
    codes = chameleon.codes(hf)
    found = ['<s>', '<pad>', '</s>', '<unk>', *(f'IMGIMG{str(i).translate(digits)}Z' for i in range(codes)), '<eoss>',
             '<racm3:break>', *(f'<reserved{8706 + i:05d}>' if i != 1 else '<image>' for i in range(8))]
    return {name: i for i, name in enumerate(found)}
  if family == 'emu3':
    codes = hf['vq_config']['codebook_size']
    size = hf['text_config']['vocab_size'] - codes
    special = ['<|endoftext|>', '<|extra_0|>', '<|extra_1|>', '<|extra_2|>', '<|extra_3|>', '<|extra_200|>', '<|extra_201|>',
               '<|extra_203|>', '<|extra_204|>', '<|image token|>', '<|image start|>', '<|image end|>']
    special += [f'<|visual token {i:06d}|>' for i in range(codes)]
    return {name: size - 12 + i for i, name in enumerate(special)}
  if family == 'janus':
    special = ['<｜begin▁of▁sentence｜>', '<｜end▁of▁sentence｜>', '<｜▁pad▁｜>', '<begin_of_image>', '<end_of_image>',
               '<image_placeholder>', '<|User|>', '<|Assistant|>']
    return {name: 400 + i for i, name in enumerate(special)}
  if family == 'liquid':
    special = ['<pad>', '<eos>', '<bos>', '<unk>', '<boi>', '<eoi>', '<unconditional>', '<unused3>', '<unused4>', '<unused5>',
               '<unused6>', '<start_of_turn>', '<end_of_turn>']
    return {name: i for i, name in enumerate(special)}
  size = hf['llm']['vocab_size']
  return {'<im_start>': size - 4, '<im_end>': size - 3, '<vi_start>': size - 2, '<vi_end>': size - 1}


@functools.cache
def _trained() -> dict[str, Any]:
  bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
  bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.decoder = tokenizers.decoders.ByteLevel()
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  bpe.train_from_iterator(WORDS, tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
  return json.loads(bpe.to_str())


def byte_level(special: Mapping[str, int]) -> dict[str, Any]:
  """tokenizer.json of a byte-level BPE: words take the ids that special tokens leave."""
  definition = _trained()
  taken = set(special.values())
  free = (i for i in range(10_000) if i not in taken)
  order = sorted(definition['model']['vocab'], key=definition['model']['vocab'].get)
  vocab = {word: next(free) for word in order}
  added = [{'id': i, 'content': name, 'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False,
            'special': not name.startswith('<unused')} for name, i in special.items()]
  # As transformers' converters write it, most special tokens stand in the vocabulary too.
  return {**definition, 'added_tokens': added, 'model': {**definition['model'], 'vocab': vocab | dict(special)}}


def sentencepiece(pieces: Sequence[str] = PIECES, size: int = 0) -> bytes:
  """tokenizer.model of a BPE with bytes to fall back to, written field by field; `size` fills it up with unused pieces."""
  def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
      return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value

  def varint(value: int) -> bytes:
    head = b''
    while value > 127:
      head += bytes([value & 127 | 128])
      value >>= 7
    return head + bytes([value])

  def piece(text: str, score: float, kind: int) -> bytes:
    return field(1, field(1, text.encode()) + varint(2 << 3 | 5) + struct.pack('<f', score) + field(3, kind))

  letters = sorted({letter for word in pieces for letter in word} | {'▁'})
  out = piece('<unk>', 0, 2) + piece('<s>', 0, 3) + piece('</s>', 0, 3)
  out += b''.join(piece(f'<0x{b:02X}>', 0, 6) for b in range(256))
  out += b''.join(piece(text, -float(i), 1) for i, text in enumerate([*pieces, *letters]))
  for i in range(259 + len(pieces) + len(letters), size):
    out += piece(f'[unused{i}]', 0, 5)
  return out + field(2, field(3, 2)) + field(3, field(3, 1) + field(4, 0))


def write(family: str, root: pathlib.Path, hf: Mapping[str, Any]) -> None:
  """The tokenizer files of a checkpoint of this family."""
  special = names(family, hf)
  if family == 'vila_u':
    root = root / 'llm'
    root.mkdir(parents=True, exist_ok=True)
    (root / 'tokenizer.model').write_bytes(sentencepiece(size=hf['llm']['vocab_size'] - 4))
    (root / 'added_tokens.json').write_text(json.dumps(special))
    return
  root.mkdir(parents=True, exist_ok=True)
  (root / 'tokenizer.json').write_text(json.dumps(byte_level(special)))


def read(family: str, root: pathlib.Path, hf: Mapping[str, Any]) -> CheckpointTokenizer:
  """What `convert` reads of them."""
  module: ModuleType = MODULES[family]
  images = module.code_rows(hf) if hasattr(module, 'code_rows') else ()
  return CheckpointTokenizer.read(root / 'llm' if family == 'vila_u' else root, rows=module.model(hf).vocabulary + len(images),
                                  images=images)


def layout(family: str, root: pathlib.Path, template: str = 'chat', size: str = 'tiny') -> Layout:
  """The layout of one of the family's sizes, from files written to `root`."""
  hf = MODULES[family].SIZES[size]
  write(family, root, hf)
  return layouts.LAYOUTS[family](read(family, root, hf), MODULES[family].model(hf), template)
