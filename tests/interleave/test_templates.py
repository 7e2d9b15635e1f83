"""Chat templates of checkpoints: cut into runs, and harmless, whatever is in them."""

from __future__ import annotations

import time

import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.interleave import sentencepiece, templates
from intersyn_jax.interleave.checkpoint_tokenizer import CheckpointTokenizer
from intersyn_jax.interleave.layout import Lead, Template
from tests.families import tiny_tokenizers as tiny

MARKS = {'<s>': 0, '</s>': 1, '<|im_start|>': 2, '<|im_end|>': 3, '<|User|>': 4, '<|Assistant|>': 5}
LOOP = '{% for m in messages %}'
CHATML = (LOOP + '<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}'
          '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}')
VICUNA = ('{{ bos_token }}A chat.' + LOOP + "{% if m.role == 'user' %} USER: {{ m.content | trim }}{% else %} ASSISTANT: "
          "{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}")
PARTS = (LOOP + "{% if m.role == 'user' %}<|User|>: {% else %}<|Assistant|>: {% endif %}{% for part in m.content %}"
         "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
         "{% if m.role == 'user' %}{{ '\\n\\n' }}{% else %}</s>{% endif %}{% endfor %}"
         "{% if add_generation_prompt %}<|Assistant|>:{% endif %}")


def tokenizer(template: str, spaced: bool = False) -> CheckpointTokenizer:
  definition = sentencepiece.definition_of(tiny.sentencepiece()) if spaced else tiny.byte_level(MARKS)
  return CheckpointTokenizer(definition, rows=400, chat_template=template, roles={'bos_token': '<s>', 'eos_token': '</s>'})


def test_chatml():
  found = tokenizer(CHATML)
  run = lambda text: tuple(found.spell(text))
  assert templates.of_checkpoint(found, (0,)) == Template(
      (0,), run('<|im_start|>user\n'), run('<|im_end|>\n<|im_start|>assistant\n'), run('<|im_end|>'), (0,), between=run('\n'))


@pytest.mark.parametrize('spaced', [False, True])
def test_roles_in_plain_words(spaced):
  """The space behind a role is a part of what is said."""
  found = tokenizer(VICUNA, spaced)
  run = lambda text: tuple(found.spell(text))
  lead = Lead('', run(' ')) if spaced else Lead(' ', run(' '))
  bos, eos = found.special('<s>'), found.special('</s>')
  expected = Template((bos, *run('A chat.')), run(' USER:'), run(' ASSISTANT:'), (eos,), (bos,), question=lead,
                      answer=Lead(lead.text))
  assert templates.of_checkpoint(found, (bos,)) == expected


def test_contents_in_parts():
  found = tokenizer(PARTS)
  run = lambda text: tuple(found.spell(text))
  lead = Lead(' ', run(' '))
  assert templates.of_checkpoint(found, (0,)) == Template(
      (0,), run('<|User|>:'), run('\n\n<|Assistant|>:'), run('</s>'), (0,), question=lead, answer=Lead(' '))


@pytest.mark.parametrize('template, message', [
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", 'SecurityError'),
    ("{{ messages.append.__globals__ }}", 'SecurityError|UndefinedError'),
    ("{{ cycler.__init__.__globals__.os.system('touch broken') }}", 'SecurityError|UndefinedError'),
    ("{% import 'os' as os %}{{ os }}", 'chat_template'),
    ("{% include '/etc/passwd' %}", 'chat_template'),
    ("{% set _ = messages.append(1) %}", 'SecurityError'),
    ('{% for i in range(10000000) %}x{% endfor %}', 'OverflowError'),
    ('{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}', 'too much time'),
    ("{{ 'x' * 10000000000 }}", 'MemoryError|too much'),
    ("{{ 'x' * 1000000 }}", 'more than 100000 characters'),
    ('{{ messages', 'TemplateSyntaxError'), ("{{ raise_exception('roles must alternate\\nhere') }}", 'roles must alternate here'),
    ('nothing at all', 'one after another'), (LOOP + '{{ m.content }}{{ m.content }}{% endfor %}', 'one after another|prompt'),
    (VICUNA.replace('{{ eos_token }}', '.'), 'plain text'), (VICUNA.replace(' ASSISTANT:{% endif %}', '{% endif %}'), 'prompt')])
def test_bad_templates_end_in_one_line(template, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  start = time.monotonic()
  with pytest.raises(UserError, match=message) as error:
    templates.of_checkpoint(tokenizer(template), (0,))
  assert 'chat_template' in str(error.value) and '\n' not in str(error.value)
  assert time.monotonic() - start < templates.WAIT and not list(tmp_path.iterdir())
