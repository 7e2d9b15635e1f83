"""Repeated questions."""

from intersyn_jax.interleave.types import Conversation, Text, Turn
from intersyn_jax.synthesis import duplicates

LONG = ' '.join(f'word{i}' for i in range(60))


def asked(*questions):
  turns = lambda text: tuple(Turn((Text(part),)) for part in text.split('|'))
  return [Conversation(str(i), 't', turns(text)) for i, text in enumerate(questions)]


def test_case_and_punctuation_do_not_make_a_new_question():
  found = duplicates.repeats(asked('Draw a cat.', 'draw a dog .', ' draw  A cat !'), 1.0)
  assert found == {'2': '0'}


def test_nearly_the_same_words_repeat_from_the_threshold_on():
  questions = asked(LONG, LONG.replace('word30', 'other'), LONG.replace('word5 ', 'x ').replace('word50', 'y'))
  assert duplicates.repeats(questions, 0.85) == {'1': '0'}  # 55 of 61 triples in common; the third has 52 of 64
  assert duplicates.repeats(questions, 0.75) == {'1': '0', '2': '0'}
  assert duplicates.repeats(questions, 1.0) == {}


def test_the_first_by_id_stays():
  assert duplicates.repeats(asked('a b c', 'd e f', 'a b c', 'd e f', 'a b c'), 0.9) == {'2': '0', '3': '1', '4': '0'}


def test_turns_that_repeat_an_earlier_one_are_found():
  one = asked('draw a cat .|now paint it red .|Now paint it red|draw a cat')[0]
  assert duplicates.repeated_turns(one, 0.9) == [2, 3]
