"""The conversation template that a checkpoint brings along, as runs of ids.

The checkpoint's Jinja template is rendered once, for a conversation whose contents are words that stand nowhere else; what it
writes around them is cut at these words. Everything that a template can do beside that (dates, tools, what depends on the
content) is no part of a layout.
"""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from intersyn_jax.errors import UserError
from intersyn_jax.interleave.checkpoint_tokenizer import CheckpointTokenizer
from intersyn_jax.interleave.layout import NO_LEAD, Lead, Template
from intersyn_jax.interleave.sentencepiece import SPACE

CONTENTS = ('qzfirstquestion', 'qzfirstanswer', 'qzsecondquestion')
RENDERER = pathlib.Path(__file__).with_name('render.py')
WAIT = 30.0
"""Seconds after which a renderer that does not answer is ended: its own limit is on processor time."""


def lead_of_space(tokenizer: CheckpointTokenizer) -> Lead:
  """A space before what is said: most tokenizers make it a part of the first word, some do so unasked."""
  return Lead('', (tokenizer.special(SPACE),)) if tokenizer.spaced else Lead(' ', tuple(tokenizer.encode(' ')))


def of_checkpoint(tokenizer: CheckpointTokenizer, null: Sequence[int]) -> Template:
  """The template of the checkpoint itself.

  Args:
    tokenizer: with its `chat_template`.
    null: the null context, which chat templates know nothing of.

  Raises:
    UserError: there is none, it cannot be rendered within its limits, or is none of turns that alternate.
  """
  if not tokenizer.chat_template:
    raise UserError('this checkpoint brings no chat_template; use the template of its family')
  before, middle, after, last = _cut(tokenizer)
  # Behind the role's name stands a space or nothing; a prompt ends right behind the name.
  question, answer = before.endswith(' ') and after.endswith(' '), middle.endswith(' ')
  if middle.removesuffix(' ') != last.removesuffix(' '):
    raise UserError(_wrong(f'it ends a prompt with {last!r}, but writes {middle!r} between question and answer'))
  space = lead_of_space(tokenizer)
  opening, closing = (tokenizer.spell(text.removesuffix(' ') if question else text) for text in (before, after))
  stop = next((n for n, i in enumerate(closing) if i in tokenizer.specials), None)
  if stop is None:
    raise UserError(_wrong(f'it closes answers with plain text, {after!r}'))
  end, rest = closing[:stop + 1], closing[stop + 1:]
  same = 0
  while same < min(len(opening), len(rest)) and opening[-1 - same] == rest[-1 - same]:
    same += 1
  start, user = opening[:len(opening) - same], opening[len(opening) - same:]
  bos = tokenizer.roles.get('bos_token', '')
  if bos in tokenizer and [*start, *user][:1] != [tokenizer.special(bos)]:
    start = [tokenizer.special(bos), *start]  # the library's tokenizers add it themselves
  return Template(
      tuple(start), tuple(user), tuple(tokenizer.spell(last.removesuffix(' '))), tuple(end), tuple(null),
      between=tuple(rest[:len(rest) - same]), question=space if question else NO_LEAD,
      answer=Lead(space.text) if answer else NO_LEAD)


def _cut(tokenizer: CheckpointTokenizer) -> list[str]:
  """What the template writes before, between and behind CONTENTS. Contents are plain text, or parts with a type."""
  asked = []
  for content in (lambda text: text, lambda text: [{'type': 'text', 'text': text}]):
    messages = [{'role': role, 'content': content(text)}
                for role, text in zip(('user', 'assistant', 'user'), CONTENTS, strict=True)]
    asked.append({**tokenizer.roles, 'messages': messages, 'add_generation_prompt': True})
  answers = render(tokenizer.chat_template, asked)
  for answer in answers:
    pieces = re.split('|'.join(CONTENTS), answer.get('text', ''))
    if re.findall('|'.join(CONTENTS), answer.get('text', '')) == list(CONTENTS):
      return pieces
  raise UserError(_wrong(answers[0].get('error', 'it does not write the messages one after another')))


def render(template: str, variables: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
  """Renders a template of unknown origin, in a sandbox and in a process of its own with little time and memory.

  Returns:
    for each of the variables, `text`, or the `error` of the template.

  Raises:
    UserError: it asks for too much.
  """
  asked = json.dumps({'template': template, 'variables': variables})
  command = [sys.executable, '-I', str(RENDERER)]
  try:
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=WAIT, check=False)
  except subprocess.TimeoutExpired:
    done = None
  if done is None or done.returncode:
    raise UserError(_wrong('it takes too much time or memory'))
  return json.loads(done.stdout)


def _wrong(why: str) -> str:
  return f"the checkpoint's chat_template cannot be used: {' '.join(why.split())}; use the template of its family"
