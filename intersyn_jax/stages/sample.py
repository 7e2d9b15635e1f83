"""Stage `sample`: one question in, one interleaved answer out, as files and as a look in the terminal.

    python -m intersyn_jax sample --config=... --workdir=... --question='...' [--policy=grpo] [--greedy] [--seed=0] [--out=DIR]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jinja2
import numpy as np
from etils import epath

from intersyn_jax.data import images
from intersyn_jax.data.storyworld import language
from intersyn_jax.errors import UserError
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.types import Conversation, Segment, Text, Turn, steps_of, text_of
from intersyn_jax.stages import converted
from intersyn_jax.stages.common import Run
from intersyn_jax.stages.evaluate import DECODINGS
from intersyn_jax.stages.notebook import Generator
from intersyn_jax.stages.parts import Parts
from intersyn_jax.training.metrics import replace_text

ZOOM, SMALL = 8, 64
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ question }}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src 'self'; style-src 'unsafe-inline'">
<style>body { font: 16px sans-serif; max-width: 44em; margin: 2em auto; } img { image-rendering: pixelated; }</style></head>
<body><h1>{{ question }}</h1>
{% for step in steps %}<p>{{ step.text }}</p>{% if step.file %}<p><img src="{{ step.file }}" alt="step {{ loop.index }}"></p>
{% endif %}{% endfor %}<p><small>{{ policy }}, {{ decoding }}, seed {{ seed }}</small></p></body></html>
"""


class Step(NamedTuple):
  """One step of the answer: text, picture uint8[H,W,3] or None, and the file that holds it ('' for none)."""

  text: str
  picture: np.ndarray | None
  file: str


def run(run: Run) -> epath.Path:
  """Answers `--question` and gives the folder of the files."""
  options = run.options
  seed = _number(options.get('seed', '0'))
  greedy = _truth(options.get('greedy', 'false'))
  policy = options.get('policy', 'convert' if converted.wanted(run.config) else 'grpo')
  if 'question' in options and not options['question'].strip():
    raise UserError("--question is empty: write what to show, or leave the flag out to try a held-out question")
  of_family = bool(converted.wanted(run.config))
  if not of_family:
    run.require('tokenizer')
  elif 'question' not in options and not run.complete('tokenizer'):
    raise UserError('--question is missing: write what to show')
  parts = Parts(run)
  decoding = 'greedy' if greedy else 'sampled'
  # A family is sampled as its authors do, which its configuration says.
  generator = Generator.of(parts, policy, **({} if of_family and not greedy else DECODINGS[decoding]), rows=1)
  question = options.get('question') or _held_out(parts, seed)
  document = layout.prompt(Conversation('question', '', (Turn((Text(question),)),)), parts.layout)
  limit = max(run.config[stage].row_length for stage in ('warmup', 'finetune')) - run.config.decode.max_positions
  if len(document.text) > limit:
    raise UserError(f'--question takes {len(document.text)} positions, and {limit} is what the rows this model has learnt '
                    'from leave beside an answer: ask a shorter one')
  if run.config.data.source == 'storyworld' and not of_family and (strange := strange_words(question)):
    run.say(f'this model knows the small language of Storyworld only, and not these words: {", ".join(strange)}. '
            'Leave --question out to see what a question looks like')
  ((answer,),) = generator.generate(question, seed=seed, name=policy)
  steps = _steps(answer.turns[-1].answer)
  folder = epath.Path(options['out']) if options.get('out') else run.workdir / 'sample' / slug(question)
  if run.active:
    _write(folder, question, steps, policy=policy, decoding=decoding, seed=seed)
    show(question, steps, sys.stdout)
    run.say(f'files: {folder}')
  return folder


def _number(text: str) -> int:
  try:
    return int(text)
  except ValueError:
    raise UserError(f'--seed={text} is not a whole number') from None


def _truth(text: str) -> bool:
  if text.lower() not in ('true', 'false', '1', '0'):
    raise UserError(f'--greedy={text}: write true or false')
  return text.lower() in ('true', '1')


def _held_out(parts: Parts, seed: int) -> str:
  validation = parts.conversations('validation')
  return text_of(validation[seed % len(validation)].turns[0].question)


def strange_words(question: str) -> list[str]:
  """The words of a question that Storyworld does not have."""
  words = dict.fromkeys(language.normalise(question).split())
  return [word for word in words if word not in language.vocabulary() and word not in '.,:;?!']


def slug(text: str) -> str:
  """A folder name that tells the question."""
  return re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')[:60].strip('-') or 'question'


def _steps(answer: Sequence[Segment]) -> list[Step]:
  return [Step(text or '', None if image is None else images.pixels(image.data), '' if image is None else f'step-{number}.png')
          for number, (text, image) in enumerate(steps_of(answer), start=1)]


def _write(folder: epath.Path, question: str, steps: Sequence[Step], **facts: object) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  for old in folder.glob('step-*.png'):
    old.unlink()
  for step in steps:
    if step.picture is not None:
      zoom = ZOOM if len(step.picture) <= SMALL else 1
      (folder / step.file).write_bytes(images.png(step.picture.repeat(zoom, axis=0).repeat(zoom, axis=1)))
  env = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
  replace_text(folder / 'index.html', env.from_string(PAGE).render(question=question, steps=steps, **facts))


def show(question: str, steps: Sequence[Step], stream) -> None:
  """Prints the answer; pictures as half blocks in colour where the stream is a terminal, else by their file names."""
  lines = [f'question: {printable(question)}']
  for number, step in enumerate(steps, start=1):
    lines.append(f'step {number}: {printable(step.text) or "(no text)"}')
    if step.picture is None:
      lines.append('(no picture)')
    elif stream.isatty():
      lines += blocks(step.picture)
    else:
      lines.append(step.file)
  if not steps:
    lines.append('(the answer is empty)')
  print('\n'.join(lines), file=stream)


def printable(text: str) -> str:
  """The text without control characters, which could steer a terminal."""
  return ''.join(c if c.isprintable() else ' ' for c in text)


def blocks(picture: np.ndarray) -> list[str]:
  """Lines of terminal text, one for two rows of pixels: the upper one as foreground, the lower one as background."""
  rows = []
  for upper, lower in zip(picture[::2].tolist(), picture[1::2].tolist()):
    cells = ('\x1b[38;2;{};{};{}m\x1b[48;2;{};{};{}m▀'.format(*a, *b) for a, b in zip(upper, lower))
    rows.append(''.join(cells) + '\x1b[0m')
  return rows
