"""Prompts against the processors of transformers, and sentencepiece files against the library that wrote them."""

from __future__ import annotations

import io
import json
import pathlib
import random

import numpy as np
import PIL.Image
import sentencepiece
import transformers

from intersyn_jax.interleave import layout
from intersyn_jax.interleave.checkpoint_tokenizer import CheckpointTokenizer
from intersyn_jax.interleave.layout import CODE, CODES, FEATURES, Layout
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn
from tests.families import tiny_tokenizers as tiny

WORDS = 'a red circle at the top left'


def tokenizer(family: str, root: pathlib.Path, bos: str, **named: str) -> transformers.PreTrainedTokenizerFast:
  """The library's tokenizer of the same files, which puts the first token before every text."""
  definition = json.loads((root / 'tokenizer.json').read_text())
  first = {'SpecialToken': {'id': bos, 'type_id': 0}}
  definition['post_processor'] = {
      'type': 'TemplateProcessing', 'single': [first, {'Sequence': {'id': 'A', 'type_id': 0}}], 'pair': [],
      'special_tokens': {bos: {'id': bos, 'ids': [tiny.names(family, tiny.MODULES[family].SIZES['tiny'])[bos]], 'tokens': [bos]}}}
  path = root / 'with_first.json'
  path.write_text(json.dumps(definition))
  roles = {name: named.pop(name) for name in ('sep_token', 'eos_token', 'pad_token') if name in named}
  return transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token=bos, extra_special_tokens=named, **roles)


def theirs(layout_: Layout, family: str, document: layout.TokenBatch, image: str) -> list[int]:
  """Ids of a document in the checkpoint's index space, pictures as the placeholder that processors write."""
  hf = tiny.MODULES[family].SIZES['tiny']
  module = tiny.MODULES[family]
  images = module.code_rows(hf) if hasattr(module, 'code_rows') else []
  rows = np.delete(np.arange(layout_.tokenizer.size + len(images)), images)
  placeholder = tiny.names(family, hf)[image]
  return [placeholder if m in (CODES, FEATURES) else int(rows[i]) for i, m in zip(document.text, document.modality, strict=True)]


def picture(layout_: Layout, pixels: int) -> tuple[Image, PIL.Image.Image]:
  pil = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (pixels, pixels, 3)).astype(np.uint8))
  data = io.BytesIO()
  pil.save(data, 'PNG')
  return Image(data.getvalue(), np.zeros((layout_.block.places, layout_.block.depth), np.int32)), pil


def ask(layout_: Layout, *question) -> layout.TokenBatch:
  return layout.prompt(Conversation('c', 't', (Turn(question),)), layout_)


def test_chameleon(tmp_path):
  layout_ = tiny.layout('chameleon', tmp_path)
  found = tokenizer('chameleon', tmp_path, '<s>', sep_token='<reserved08706>', image_token='<image>', boi_token='<racm3:break>',
                    eoi_token='<eoss>')
  processor = transformers.ChameleonProcessor(transformers.ChameleonImageProcessor(), found, image_seq_length=16)
  assert processor(text=WORDS)['input_ids'].tolist()[0] == theirs(layout_, 'chameleon', ask(layout_, Text(WORDS)), '<image>')
  image, pil = picture(layout_, 64)
  found = processor(text=f'{WORDS}<image> what is it?', images=[pil])['input_ids'].tolist()[0]
  document = ask(layout_, Text(WORDS), image, Text(' what is it?'))
  assert found == theirs(layout_, 'chameleon', document, '<image>')


def test_emu3(tmp_path):
  special = dict(image_token='<|extra_0|>', boi_token='<|image start|>', eoi_token='<|image end|>',
                 image_wrapper_token='<|image token|>', eof_token='<|extra_201|>')
  layout_, talk = (tiny.layout('emu3', tmp_path, name) for name in ('generation', 'chat'))
  path = tmp_path / 'tokenizer.json'
  found = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token='<|extra_203|>', pad_token='<|endoftext|>',
                                               extra_special_tokens=special)
  processor = transformers.Emu3Processor(transformers.Emu3ImageProcessor(min_pixels=64, max_pixels=64 * 64), found)
  drawn = processor(text=WORDS, return_for_image_generation=True, image_area=64 * 64)['input_ids'][0]
  begun = (layout_.block.begin, *layout_.block.template[:layout_.block.template.index(CODE)])
  assert drawn == [*theirs(layout_, 'emu3', ask(layout_, Text(WORDS)), '<|extra_0|>'), *begun]
  image, pil = picture(talk, 64)
  text = f'You are a helpful assistant. USER: <|extra_0|>{WORDS}. ASSISTANT:'
  asked = processor(text=text, images=[pil])['input_ids'][0]
  ours = theirs(talk, 'emu3', ask(talk, image, Text(WORDS)), '<|extra_0|>')
  line, placeholder = found.convert_tokens_to_ids('<|extra_200|>'), found.convert_tokens_to_ids('<|extra_0|>')
  assert asked == [placeholder if i == line else i for i in ours]  # they leave the ends of lines to the model's code


def test_janus(tmp_path):
  layout_, talk = (tiny.layout('janus', tmp_path, name) for name in ('generation', 'chat'))
  found = tokenizer('janus', tmp_path, '<｜begin▁of▁sentence｜>', pad_token='<｜▁pad▁｜>', image_token='<image_placeholder>',
                    boi_token='<begin_of_image>', eoi_token='<end_of_image>')
  processor = transformers.JanusProcessor(transformers.JanusImageProcessor(), found, use_default_system_prompt=True)
  processor.num_image_tokens = layout_.block.places
  text = f'<|User|>: {WORDS}\n\n<|Assistant|>:'
  drawn = processor(text=[text], generation_mode='image')['input_ids'].tolist()[0]
  ours = theirs(layout_, 'janus', ask(layout_, Text(WORDS)), '<image_placeholder>')
  assert drawn == [*ours, layout_.block.begin]
  image, pil = picture(talk, 32)
  asked = processor(text=[f'<|User|>: <image_placeholder>\n{WORDS}\n\n<|Assistant|>:'], images=[pil])['input_ids'].tolist()[0]
  assert asked == theirs(talk, 'janus', ask(talk, image, Text(f'\n{WORDS}')), '<image_placeholder>')


def test_sentencepiece(tmp_path):
  """A model trained by the library gives the same ids by our reading of its file."""
  rng = random.Random(0)
  lines = [' '.join(rng.choice(['red', 'reddest', 'circle', 'circus', 'blue', 'square', 'USER:', 'ASSISTANT:', 'aaab'])
                    for _ in range(8)) for _ in range(200)]
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(lines), model_prefix=str(tmp_path / 'tokenizer'), vocab_size=330, model_type='bpe',
      byte_fallback=True, normalization_rule_name='identity', remove_extra_whitespaces=False, minloglevel=2)
  library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / 'tokenizer.model'))
  ours = CheckpointTokenizer.read(tmp_path, rows=330)
  letters = 'abcdersuiqlUSERATN: é😀\n'
  texts = [*lines[:40], *(''.join(rng.choice(letters) for _ in range(rng.randrange(1, 40))) for _ in range(300))]
  for text in texts:
    assert ours.encode(text) == library.encode(text), text
    assert ours.decode(ours.encode(text)) == text
  assert [ours.special(name) for name in ('<unk>', '<s>', '</s>')] == [0, 1, 2]
