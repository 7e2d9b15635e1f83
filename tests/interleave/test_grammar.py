"""The format rule against a regular expression, and the places where steps end."""

from __future__ import annotations

import re

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies

from intersyn_jax.interleave import grammar, layout
from intersyn_jax.interleave.layout import CODE, CODES, TEXT, Layout, TokenBatch
from intersyn_jax.interleave.types import Conversation, Text, Turn
from tests import small_model

LAYOUT = small_model.lined(2)
LENGTH, STEPS = 80, 3
# One letter for each thing an answer may hold: T </think> and so on; i is a begin token with its block after it.
LETTERS = {'t': '<think>', 'T': '</think>', 'v': '<vis>', 'V': '</vis>', 'e': '</s>', 'u': '<user>', 's': '<s>'}


def rows(spellings: list[str], layout_: Layout = LAYOUT) -> TokenBatch:
  """Answers spelled in letters as a batch padded on the right."""
  word = layout_.tokenizer.encode('a')[0]
  documents = []
  for spelling in spellings:
    text, modality, forced = [], [], []
    for letter in spelling:
      text.append(layout_.block.begin if letter == 'i' else layout_.special(LETTERS[letter]) if letter in LETTERS else word)
      modality.append(TEXT)
      forced.append(False)
      for entry in layout_.block.template if letter == 'i' else ():
        text.append(max(entry, 0))
        modality.append(CODES if entry == CODE else TEXT)
        forced.append(entry != CODE)
    n, zero = len(text), np.zeros(len(text), np.int32)
    documents.append(TokenBatch(
        text=np.asarray(text, np.int32), codes=np.zeros((n, layout_.block.depth), np.int32),
        modality=np.asarray(modality, np.int8), loss=np.ones(n, np.float32), forced=np.asarray(forced, bool), document=zero + 1,
        position=np.arange(n, dtype=np.int32),
        turn=zero, step=zero - 1))
  return layout.stack(documents, LENGTH)


PARSE = jax.jit(lambda batch: grammar.parse(batch, LAYOUT, STEPS))


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(strategies.lists(
    strategies.lists(strategies.sampled_from(['twTviV', 'tw', 'w', 'TviV', 'T', 'v', 'i', 'V', 'e', 't', 'u', 's']),
                     min_size=1, max_size=6).map(''.join), min_size=4, max_size=4))
def test_well_formed_is_the_regular_expression(spellings):
  spellings = [s[:9] for s in spellings]
  parse = PARSE(rows(spellings))
  expected = [bool(re.fullmatch('(tw+TviV)+e', s)) for s in spellings]
  assert np.asarray(parse.well_formed).tolist() == expected


@pytest.mark.parametrize('spelling, formed', [
    ('twTviVe', True), ('twwwTviVtwTviVe', True), ('twTviV', False), ('e', False), ('we', False), ('tTviVe', False),
    ('twTvVe', False), ('twTviiVe', False), ('viVe', False), ('twTe', False), ('twTviVee', False), ('wtwTviVe', False),
    ('twTvwiVe', False), ('twuTviVe', False), ('twTviVwe', False)])
def test_cases(spelling, formed):
  assert bool(PARSE(rows([spelling])).well_formed[0]) == formed


def test_steps_and_where_they_end():
  size = 1 + len(LAYOUT.block.template)  # positions of a whole block
  parse = jax.device_get(PARSE(rows(['twTviVtwTviVe', 'wviVtw', 'w'])))
  first = 5 + size
  np.testing.assert_array_equal(parse.steps, [2, 2, 0])
  np.testing.assert_array_equal(parse.think_end[0], [2, first + 2, -1])
  np.testing.assert_array_equal(parse.vis_end[0], [first - 1, 2 * first - 1, -1])
  np.testing.assert_array_equal(parse.think_end[1], [-1, -1, -1])
  np.testing.assert_array_equal(parse.vis_end[1], [2 + size, -1, -1])
  np.testing.assert_array_equal(parse.step[0, :2 * first + 1], [0] * first + [1] * (first + 1))
  assert (parse.step[0, 2 * first + 1:] == -1).all() and (parse.step[2] == -1).all()


def test_agrees_with_the_tokeniser():
  answer = (Text('one'), small_model.image(LAYOUT), Text('two'), small_model.image(LAYOUT, 1))
  conversation = Conversation('c', 't', (Turn((Text('a'),), answer),))
  start = len(layout.prompt(conversation, LAYOUT).text)
  document = jax.tree.map(lambda a: a[start:], layout.tokenise(conversation, LAYOUT))
  parse = jax.device_get(PARSE(layout.stack([document], LENGTH)))
  assert parse.well_formed[0] and parse.steps[0] == 2
  np.testing.assert_array_equal(parse.step[0, :len(document.text) - 1], document.step[:-1])
