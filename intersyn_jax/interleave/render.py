"""Renders a chat template that came with a checkpoint. Run as a program of its own, by `templates.render`.

A template is a program of unknown origin. Jinja's sandbox keeps it from Python's insides; this process, which has nothing to
lose, bounds its time and memory. It reads one JSON object from standard input, renders its template once for each set of
variables in it, and writes a list of results to standard output.
"""

import contextlib
import json
import resource
import sys

import jinja2
import jinja2.sandbox

SECONDS, MEMORY, OUTPUT = 2, 1 << 30, 100_000
"""Processor seconds, bytes, and characters that a template may use."""


def refuse(message: str = '') -> None:
  """What templates call `raise_exception`."""
  raise jinja2.TemplateError(message)


def render(source: str, variables: dict) -> str:
  """The text. Raises jinja2.TemplateError, or whatever a wrong template runs into."""
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols'])
  environment.globals['raise_exception'] = refuse
  size, pieces = 0, []
  for piece in environment.from_string(source).generate(**variables):
    size += len(piece)
    if size > OUTPUT:
      raise jinja2.TemplateError(f'it writes more than {OUTPUT} characters')
    pieces.append(piece)
  return ''.join(pieces)


def main() -> None:
  for kind, limit in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, MEMORY)):
    with contextlib.suppress(ValueError, OSError):  # a system that does not know the limit, or has a lower one
      resource.setrlimit(kind, (limit, limit))
  asked = json.load(sys.stdin)
  answers = []
  for variables in asked['variables']:
    try:
      answers.append({'text': render(asked['template'], variables)})
    except Exception as error:  # whatever it is, it is the template's fault and is told in one line
      answers.append({'error': f'{type(error).__name__}: {error}'[:300]})
  json.dump(answers, sys.stdout)


if __name__ == '__main__':
  main()
