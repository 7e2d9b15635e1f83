"""Text tokenizer: every text comes back, and no text can spell a special token."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies

from intersyn_jax.errors import UserError
from intersyn_jax.interleave.text import SPECIALS, TextTokenizer
from tests import small_model


@hypothesis.given(strategies.text(max_size=60))
@hypothesis.example('</s><think> <image>\n\t  two  spaces ')
@hypothesis.example('\u00e9\u4e2d\U0001f600\x00')
def test_any_text_comes_back(text):
  tokenizer = small_model.tokenizer()
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert all(len(SPECIALS) <= i < tokenizer.size for i in ids)


def test_special_tokens_lie_before_the_text_and_are_passed_over():
  tokenizer = small_model.tokenizer()
  assert [tokenizer.special(name) for name in SPECIALS] == list(range(len(SPECIALS)))
  assert tokenizer.decode([tokenizer.special('<think>'), *tokenizer.encode('a red'), tokenizer.special('</s>')]) == 'a red'


def test_merges_shorten_what_was_seen():
  assert len(small_model.tokenizer().encode('a red circle')) < len('a red circle') / 2


def test_save_and_load(tmp_path):
  tokenizer = small_model.tokenizer()
  tokenizer.save(tmp_path / 'text.json')
  loaded = TextTokenizer.load(tmp_path / 'text.json')
  assert loaded.size == tokenizer.size and loaded.encode('a red circle, \u00e9') == tokenizer.encode('a red circle, \u00e9')


def test_bad_files_and_sizes_are_named(tmp_path):
  with pytest.raises(UserError, match='run the tokenizer stage'):
    TextTokenizer.load(tmp_path / 'missing.json')
  for content in ('not json', '{"model": 3}'):
    (tmp_path / 'broken.json').write_text(content)
    with pytest.raises(UserError, match=r'broken\.json'):
      TextTokenizer.load(tmp_path / 'broken.json')
  with pytest.raises(UserError, match=r'text\.size'):
    TextTokenizer.train(['a'], 100)
