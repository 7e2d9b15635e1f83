"""SEIR's roles as prompts and parsers (InterSyn, SEIR's prompts), independent of any world.

Each role has a function that gives the question segments (short, beginning with a fixed tag that names the role) and a
parser of the completion. A model that plays the roles learns them from conversations whose question is such a prompt and
whose answer is what the matching `write_*` function gives.

Of the earlier turns, prompts hold the last one only, which keeps them short.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence

from intersyn_jax.interleave.types import Image, Segment, Text

QUESTION_WORDS = 50
"""Most words of a question (InterSyn, SEIR's prompts)."""
CAPTION_WORDS = 65
"""Most words of a caption (InterSyn, SEIR's prompts)."""

TAGS = {
    'question_write': 'write question :',
    'question_critique': 'critique question :',
    'question_revise': 'revise question :',
    'answer_write': 'write answer :',
    'answer_critique': 'critique answer :',
    'answer_revise': 'revise answer :',
    'image_critique': 'critique image :',
    'caption_revise': 'revise caption :',
}
"""What each role's prompt begins with."""

STOP = 'none'
"""What a critic says when nothing is left to mend."""

_STOPS = frozenset({'', 'none', 'null', 'nil', 'no', 'nothing', 'n/a', 'na', 'ok', 'stop', 'no suggestion',
                    'no suggestions', 'no change', 'no changes', 'none needed', 'no issues', '{}', '[]'})


@dataclasses.dataclass(frozen=True)
class Shown:
  """An earlier turn as later prompts see it: its question, and of its last picture the caption, and the picture itself where the
  history is to carry it (InterSyn: the formal description does, the released code does not)."""

  question: str
  caption: str
  image: Image | None = None


History = Sequence[Shown]
"""Earlier turns, oldest first."""


@dataclasses.dataclass(frozen=True)
class Critique:
  """What a critic found: `stop` when nothing, else one suggestion."""

  stop: bool
  suggestion: str = ''


@dataclasses.dataclass(frozen=True)
class AnswerStep:
  """One step as the answer writer gives it: the text, and the caption its picture is drawn from."""

  text: str
  caption: str


# Prompts.


def _prompt(role: str, *parts: str | Image) -> tuple[Segment, ...]:
  """Tag and parts; texts that stand side by side are one."""
  segments: list[Segment] = [Text(TAGS[role])]
  for part in parts:
    if isinstance(part, Image):
      segments.append(dataclasses.replace(part, caption=''))
    elif isinstance(segments[-1], Text):
      segments[-1] = Text(f'{segments[-1].text} {part}')
    else:
      segments.append(Text(part))
  return tuple(segments)


def _after(history: History) -> tuple[str | Image, ...]:
  if not history:
    return ()
  last = history[-1]
  shown = f'after : {last.question} shown : {last.caption}'
  return (f'{shown} now :',) if last.image is None else (shown, last.image, 'now :')


def question_write(topic: str, template: str, history: History = ()) -> tuple[Segment, ...]:
  """Asks for a question on the topic that follows the template (`*` marks what is to be filled in)."""
  return _prompt('question_write', topic, *_after(history), f'like : {template}')


def question_critique(topic: str, question: str, history: History = ()) -> tuple[Segment, ...]:
  """Asks whether the question is on topic, answerable, and asks for pictures."""
  return _prompt('question_critique', topic, *_after(history), f'question : {question}')


def question_revise(question: str, suggestion: str) -> tuple[Segment, ...]:
  """Asks for the question with the suggestion taken up."""
  return _prompt('question_revise', question, f'but : {suggestion}')


def answer_write(question: str, history: History = ()) -> tuple[Segment, ...]:
  """Asks for all steps of the answer: text and caption each."""
  return _prompt('answer_write', *_after(history), question)


def answer_critique(question: str, steps: Sequence[AnswerStep], history: History = ()) -> tuple[Segment, ...]:
  """Asks whether texts and captions together meet the question without repeating one another."""
  return _prompt('answer_critique', *_after(history), question, write_answer(steps))


def answer_revise(question: str, steps: Sequence[AnswerStep], suggestion: str) -> tuple[Segment, ...]:
  """Asks for the answer with the suggestion taken up."""
  return _prompt('answer_revise', question, write_answer(steps), f'but : {suggestion}')


def image_critique(question: str, text: str, caption: str, image: Image) -> tuple[Segment, ...]:
  """Asks whether the picture shows its caption and supports the text. `caption` is the one the picture was drawn from."""
  return _prompt('image_critique', question, f'answer : {text}', f'caption : {caption}', image)


def caption_revise(caption: str, suggestion: str) -> tuple[Segment, ...]:
  """Asks for the caption with the suggestion taken up."""
  return _prompt('caption_revise', caption, f'but : {suggestion}')


# Completions.


def write_answer(steps: Sequence[AnswerStep]) -> str:
  """One line `answer : ... caption : ...` a step: what the answer roles complete."""
  return '\n'.join(f'answer : {step.text} caption : {step.caption}' for step in steps)


def write_critique(critique: Critique) -> str:
  """What a critic completes."""
  return STOP if critique.stop else critique.suggestion


def parse_question(text: str) -> str:
  """The question written or revised. Raises ValueError when it is empty or too long."""
  question = ' '.join(text.split())
  if not question:
    raise ValueError('empty question')
  if len(question.split()) > QUESTION_WORDS:
    raise ValueError(f'question of {len(question.split())} words; at most {QUESTION_WORDS}')
  return question


def parse_caption(text: str) -> str:
  """The caption revised. Raises ValueError when it is empty or too long."""
  caption = ' '.join(text.split())
  if caption.lower().startswith('caption :') or caption.lower().startswith('caption:'):
    caption = caption.split(':', 1)[1].strip()
  if not caption:
    raise ValueError('empty caption')
  if len(caption.split()) > CAPTION_WORDS:
    raise ValueError(f'caption of {len(caption.split())} words; at most {CAPTION_WORDS}')
  return caption


_MARK = re.compile(r'\b(answer|caption)\s*:', re.IGNORECASE)


def parse_answer(text: str) -> list[AnswerStep]:
  """The steps written or revised; anything before the first `answer :` is ignored.

  Raises ValueError, naming the step and the reason, when a text or caption is missing, empty or too long.
  """
  marks = list(_MARK.finditer(text))
  while marks and marks[0][1].lower() != 'answer':
    marks.pop(0)
  if not marks:
    raise ValueError('no `answer :` in the completion')
  ends = [mark.start() for mark in marks[1:]] + [len(text)]
  parts = [(mark[1].lower(), ' '.join(text[mark.end():end].split())) for mark, end in zip(marks, ends, strict=True)]
  steps = []
  for i in range(0, len(parts), 2):
    number = i // 2 + 1
    kinds = [kind for kind, _ in parts[i:i + 2]]
    if kinds != ['answer', 'caption']:
      raise ValueError(f'step {number}: wants `answer :` then `caption :`, has {" then ".join(kinds)}')
    (_, body), (_, caption) = parts[i:i + 2]
    if not body:
      raise ValueError(f'step {number}: empty answer')
    try:
      steps.append(AnswerStep(body, parse_caption(caption)))
    except ValueError as error:
      raise ValueError(f'step {number}: {error}') from error
  return steps


def _said(value: object) -> str:
  """The text inside a decoded JSON value; parts that mean `none` are dropped."""
  if isinstance(value, dict):
    value = [value['suggestion']] if 'suggestion' in value else list(value.values())
  if isinstance(value, list):
    return ' '.join(filter(None, (_said(part) for part in value)))
  text = '' if value is None or value is False else ' '.join(str(value).split())
  return '' if _bare(text) in _STOPS else text


def _bare(text: str) -> str:
  return text.lower().strip(' \t\r\n.!,;:\'"`*')


def parse_critique(text: str) -> Critique:
  """Reads a critic: `none`, `None.`, `null`, nothing, empty JSON and the like mean stop; all else is a suggestion."""
  body = re.sub(r'^```[a-z]*\s*|\s*```$', '', text.strip())
  body = re.sub(r'^\W*suggestions?\W*:\s*', '', body, flags=re.IGNORECASE) if not body.startswith('{') else body
  try:
    suggestion = _said(json.loads(body))
  except (json.JSONDecodeError, RecursionError):
    suggestion = _said(body)
  return Critique(not suggestion, suggestion)
