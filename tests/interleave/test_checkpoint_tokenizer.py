"""Tokenizers of checkpoints: the library's ids for plain text, no mark whatever is said, one line for what is wrong."""

from __future__ import annotations

import copy
import json

import hypothesis
import numpy as np
import pytest
import tokenizers
from hypothesis import strategies

from intersyn_jax.errors import UserError
from intersyn_jax.interleave import sentencepiece
from intersyn_jax.interleave.checkpoint_tokenizer import CheckpointTokenizer
from tests.families import tiny_tokenizers as tiny

IMAGES = [3, 5, 6, 320]
MARKS = {'<s>': 0, '</s>': 1, '<image>': 2, 'IMGA': 3, '<cut>': 4, 'IMGB': 5, 'IMGC': 6, 'end': 319, 'IMGD': 320, '<extra>': 321}
DEFINITION = tiny.byte_level(MARKS)
TOKENIZER = CheckpointTokenizer(DEFINITION, rows=330, images=IMAGES)


def test_words_have_the_ids_of_the_library_less_the_images():
  plain = {**DEFINITION, 'added_tokens': []}
  library = tokenizers.Tokenizer.from_str(json.dumps(plain))
  for text in ('show a red circle', '  two  spaces\n\n', 'é😀\x00', ''):
    theirs = library.encode(text, add_special_tokens=False).ids
    ours = TOKENIZER.encode(text)
    assert ours == [i - sum(image < i for image in IMAGES) for i in theirs] and TOKENIZER.decode(ours) == text
  assert TOKENIZER.size == 326
  assert [TOKENIZER.special(name) for name in ('<s>', '<image>', '<cut>', '<extra>')] == [0, 2, 3, 317]
  taken = {TOKENIZER.special(name) for name in (*DEFINITION['model']['vocab'], *MARKS) if name in TOKENIZER}
  assert TOKENIZER.spare == tuple(i for i in range(326) if i not in taken) and TOKENIZER.spare[-1] == 325
  for name in ('IMGA', 'IMGD', '<none>'):
    assert name not in TOKENIZER
    with pytest.raises(ValueError, match=name):
      TOKENIZER.special(name)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(strategies.lists(strategies.one_of(strategies.text(max_size=8), strategies.sampled_from([*MARKS, '<', 's>']))))
def test_every_text_comes_back_and_is_words(parts):
  text = ''.join(parts)
  ids = TOKENIZER.encode(text)
  assert not TOKENIZER.specials & set(ids) and TOKENIZER.decode(ids) == text


def test_spelling_knows_marks():
  encode, special = TOKENIZER.encode, TOKENIZER.special
  assert TOKENIZER.spell('<s>a red</s>\n<cut>') == [
      special('<s>'), *encode('a red'), special('</s>'), *encode('\n'), special('<cut>')]
  assert special('end') in TOKENIZER.specials and special('end') not in encode('the end')


@pytest.mark.parametrize('change', ['merges', 'same id', 'no added tokens', 'ignore merges'])
def test_a_file_cannot_make_text_a_mark(change):
  """Merges that spell a mark; a word with a mark's id, or an image's; marks that stand in the vocabulary alone."""
  definition = copy.deepcopy(DEFINITION)
  model = definition['model']
  if change == 'merges':
    model['vocab'] |= {'s>': 322, '<s': 323}
    model['merges'] = [['s', '>'], ['<', 's'], ['<', 's>'], ['<s', '>'], *model['merges']]
  elif change == 'same id':
    model['vocab'] |= {'re': 0, 'th': 5}
    model['merges'] = [['r', 'e'], ['t', 'h'], *model['merges']]
  elif change == 'no added tokens':
    definition['added_tokens'] = []
  else:
    model['ignore_merges'] = True
  found = CheckpointTokenizer(definition, rows=330, images=IMAGES)
  for text in ('<s>', '<s> the red <image>IMGAIMGD', 'end', '</s><cut><extra>'):
    ids = found.encode(text)
    assert found.decode(ids) == text and not found.specials & set(ids)
    assert not {found.special(name) for name in ('<s>', '<image>', '</s>', '<cut>', '<extra>')} & set(ids)


def test_appended_rows():
  longer = TOKENIZER.with_rows(['<think>', '</think>'])
  assert longer.size == 328 and [longer.special(name) for name in ('<think>', '</think>')] == [326, 327]
  assert longer.appended == {'<think>': tuple(longer.encode('think')), '</think>': tuple(longer.encode('/think'))}
  assert {326, 327} <= longer.specials and longer.spell('<think>a') == [326, *longer.encode('a')]
  assert not longer.specials & set(longer.encode('<think>')) and '<think>' not in TOKENIZER


def test_sentencepiece():
  """Highest score first; bytes for what has no piece; a space before every text that is not in it."""
  definition = sentencepiece.definition_of(tiny.sentencepiece())
  found = CheckpointTokenizer(definition, rows=400)
  assert found.spaced and not TOKENIZER.spaced
  spelled = lambda text: [name for i in found.encode(text) for name, j in found._ids.items() if i == j]
  assert spelled('a red circle') == ['▁a', '▁red', '▁circle']
  assert spelled('the') == ['▁the'] and spelled('é') == ['▁', '<0xC3>', '<0xA9>']
  assert found.spell('<s> USER: a</s>') == [1, *found.encode('USER: a'), 2]
  for text in ('a red', ' a  red ', '\n', '<s></s><unk><0x0A>', 'é😀'):
    ids = found.encode(text)
    assert found.decode(ids) == text and not found.specials & set(ids)


def test_files(tmp_path):
  (tmp_path / 'tokenizer.json').write_text(json.dumps(DEFINITION))
  config = {'bos_token': {'content': '<s>'}, 'eos_token': '</s>', 'pad_token': None,
            'chat_template': [{'name': 'tools', 'template': 'x'}, {'name': 'default', 'template': 'y'}]}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  found = CheckpointTokenizer.read(tmp_path, rows=330, images=np.asarray(IMAGES))
  assert found.roles == {'bos_token': '<s>', 'eos_token': '</s>'} and found.chat_template == 'y'
  (tmp_path / 'chat_template.jinja').write_text('z')
  found = CheckpointTokenizer.read(tmp_path, rows=330, images=IMAGES).with_rows(['<think>'])
  found.save(tmp_path / 'text.json')
  loaded = CheckpointTokenizer.load(tmp_path / 'text.json')
  assert loaded.dumps() == found.dumps() and loaded.chat_template == 'z' and loaded.size == 327 == found.size
  assert (loaded.specials, loaded.encode('a red<s>')) == (found.specials, found.encode('a red<s>'))


@pytest.mark.parametrize('name, content, message', [
    (None, b'', 'no tokenizer.json and no tokenizer.model'), ('tokenizer.json', b'{"model": ', 'tokenizer.json: not a tokenizer'),
    ('tokenizer.json', b'[]', 'not a tokenizer'), ('tokenizer.json', b'{"model": {"type": "WordPiece"}}', "'WordPiece'"),
    ('tokenizer.json', json.dumps(DEFINITION).encode().replace(b'"id": 321', b'"id": 9321'), 'has id 9321'),
    ('tokenizer.json', json.dumps({**DEFINITION, 'model': {**DEFINITION['model'], 'merges': [['no', 'pe']]}}).encode(), "'no"),
    ('tokenizer.json', json.dumps({**DEFINITION, 'pre_tokenizer': {'type': 'Surprise'}}).encode(), 'tokenizer.json'),
    ('tokenizer.json', json.dumps({**DEFINITION, 'model': {'type': 'BPE', 'vocab': {'a': 9}, 'merges': []}}).encode(), 'byte'),
    ('tokenizer.model', tiny.sentencepiece()[:-3], 'cut short'), ('tokenizer.model', b'\x80\x04K\x01.', 'tokenizer.model'),
    ('tokenizer.model', tiny.sentencepiece()[:-10], 'only BPE'),
    ('tokenizer.model', b'\x0a\x06\x0a\x01a\x12\x01b', 'not a tokenizer'),  # a score of one byte
    ('tokenizer.json', b'[' * 200_000, 'not a tokenizer'), ('tokenizer_config.json', b'[' * 200_000, 'no JSON'),
    ('tokenizer_config.json', b'[1]', 'no JSON object')])
def test_damaged_files_are_named(name, content, message, tmp_path):
  if name:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=message) as error:
    CheckpointTokenizer.read(tmp_path, rows=400)
  assert str(tmp_path) in str(error.value) and '\n' not in str(error.value)


def test_damaged_saves_are_named(tmp_path):
  with pytest.raises(UserError, match='convert'):
    CheckpointTokenizer.load(tmp_path / 'text.json')
  for content in ('{}', '[]', '{"definition": {}, "rows": 3}', 'x'):
    (tmp_path / 'text.json').write_text(content)
    with pytest.raises(UserError, match=r'text\.json: not a tokenizer file'):
      CheckpointTokenizer.load(tmp_path / 'text.json')


def test_letters_that_a_vocabulary_lacks():
  """Without bytes to fall back to, what cannot be written is said, not left out."""
  model = {'type': 'BPE', 'unk_token': '<unk>', 'vocab': {'<unk>': 0, 'a': 1, 'b': 2, 'ab': 3}, 'merges': [['a', 'b']]}
  found = CheckpointTokenizer({'version': '1.0', 'added_tokens': [], 'model': model}, rows=4)
  assert found.encode('ab') == [3] and 0 in found.specials
  with pytest.raises(UserError, match='no letters'):
    found.encode('abc')
