"""Role prompts and parsers."""

import dataclasses

import pytest

from intersyn_jax.data import roles
from intersyn_jax.data.roles import AnswerStep, Critique
from intersyn_jax.interleave.types import Image, text_of

STEPS = [AnswerStep('a cat sits .', 'a black cat on a mat'), AnswerStep('it leaps .', 'a black cat in the air')]


@pytest.mark.parametrize('text', [
    '', ' ', 'none', 'None', 'None.', ' NONE!\n', '"none"', 'null', '{}', '[]', '{"suggestion": null}',
    '{"suggestion": "None."}', '{"suggestion": ""}', '```json\n{"suggestion": null}\n```', '```\nnone\n```',
    'suggestion: none', 'no suggestions.', '{"suggestion": {"answer": "none", "caption": null}}', 'false', '**None**'])
def test_all_that_means_stop(text):
  assert roles.parse_critique(text) == Critique(True)


@pytest.mark.parametrize(('text', 'suggestion'), [
    ('the cat must be black', 'the cat must be black'),
    ('{"suggestion": "make it\\n shorter"}', 'make it shorter'),
    ('```json\n{"suggestion": "more light"}\n```', 'more light'),
    ('Suggestion: none of the cats is black', 'none of the cats is black'),
    ('{"suggestion": {"answer": "shorter", "caption": "none"}}', 'shorter'),
    ('{"suggestion": broken', '{"suggestion": broken'),
])
def test_suggestions(text, suggestion):
  assert roles.parse_critique(text) == Critique(False, suggestion)


def test_critiques_round_trip():
  for critique in (Critique(True), Critique(False, 'the cat must be black')):
    assert roles.parse_critique(roles.write_critique(critique)) == critique


def test_answers_round_trip():
  assert roles.parse_answer(roles.write_answer(STEPS)) == STEPS
  assert roles.parse_answer('Sure!\nAnswer: a cat sits .\nCaption: a black cat\n  on a mat') == STEPS[:1]


@pytest.mark.parametrize(('text', 'reason'), [
    ('', 'no `answer'), ('a cat', 'no `answer'), ('caption : x', 'no `answer'), ('answer : x', 'step 1: wants'),
    ('answer : x answer : y', 'step 1: wants'), ('answer : caption : y', 'step 1: empty answer'),
    ('answer : x caption :', 'step 1: empty caption'), ('answer : x caption : y caption : z', 'step 2: wants'),
    (f'answer : x caption : {"y " * 66}', 'step 1: caption of 66 words'),
])
def test_broken_answers_say_why(text, reason):
  with pytest.raises(ValueError, match=reason):
    roles.parse_answer(text)


def test_word_limits():
  assert roles.parse_question(' a  b ') == 'a b'
  assert roles.parse_caption('Caption: a cat') == 'a cat'
  for parse, text in ((roles.parse_question, ''), (roles.parse_question, 'a ' * 51), (roles.parse_caption, ' '),
                      (roles.parse_caption, 'a ' * 66)):
    with pytest.raises(ValueError, match='empty|words'):
      parse(text)


def test_prompts_begin_with_their_tag_and_hold_their_parts():
  history = [roles.Shown('old question', 'old caption'), roles.Shown('last question', 'last caption')]
  image = Image(b'png', caption='secret')
  prompts = {
      'question_write': roles.question_write('cats', 'show *', history),
      'question_critique': roles.question_critique('cats', 'show a cat', history),
      'question_revise': roles.question_revise('show a cat', 'shorter'),
      'answer_write': roles.answer_write('show a cat', history),
      'answer_critique': roles.answer_critique('show a cat', STEPS, history),
      'answer_revise': roles.answer_revise('show a cat', STEPS, 'shorter'),
      'image_critique': roles.image_critique('show a cat', 'a cat sits', 'black cat', image),
      'caption_revise': roles.caption_revise('black cat', 'white'),
  }
  assert set(prompts) == set(roles.TAGS)
  for role, segments in prompts.items():
    text = text_of(segments)
    assert text.startswith(roles.TAGS[role])
    assert 'secret' not in text
    assert 'old question' not in text
    assert ('last question' in text) == (role in ('question_write', 'question_critique', 'answer_write',
                                                  'answer_critique'))
  assert prompts['image_critique'][1] == Image(b'png')
  assert len({text_of(segments) for segments in prompts.values()}) == len(prompts)


def test_history_carries_the_last_picture_where_there_is_one():
  shown = Image(b'png', caption='secret')
  history = [roles.Shown('old', 'a dog', Image(b'old')), roles.Shown('last', 'a cat', shown)]
  for segments in (roles.answer_write('show it', history), roles.question_write('cats', 'show *', history)):
    before, image, after = segments
    assert before.text.endswith('after : last shown : a cat') and image == Image(b'png') and after.text.startswith('now :')
  (alone,) = roles.answer_write('show it', [dataclasses.replace(history[-1], image=None)])
  assert alone.text.endswith('shown : a cat now : show it')
