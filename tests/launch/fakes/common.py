"""What all fakes share: the record of calls, the plan of what goes wrong, flags refused as the real program refuses them.

Each call is recorded in `calls.jsonl` of the folder that FAKE_WORLD names. `plan.json` there holds what shall happen. A
machine is a folder that serves as home.
"""

import argparse
import json
import os
import pathlib
import sys
import time

WORLD = pathlib.Path(os.environ['FAKE_WORLD'])
PROGRAM = os.path.basename(sys.argv[0])


def record(**facts):
  with (WORLD / 'calls.jsonl').open('a') as file:
    file.write(json.dumps({'program': PROGRAM, **facts}) + '\n')


def read(name, default):
  path = WORLD / name
  return json.loads(path.read_text()) if path.exists() else default


def write(name, value):
  (WORLD / f'{name}.part').write_text(json.dumps(value))
  os.replace(WORLD / f'{name}.part', WORLD / name)


def end(text, code=1):
  print(text, file=sys.stderr)
  sys.exit(code)


class Flags(argparse.ArgumentParser):
  """Flags of a real program; what is not among them ends as there."""

  def __init__(self, name, style):
    super().__init__(prog=name, allow_abbrev=False, add_help=False)
    self._style = style

  def error(self, message):
    end(self._style.format(name=self.prog, message=message), 2)


def planned(command):
  """Fails as the plan says: the first failure that is meant for this command and has any times left."""
  plan = read('plan.json', {})
  for failure in plan.get('failures', []):
    if command.startswith(failure['command']) and failure.get('after', 0) <= 0 and failure.get('times', 1) > 0:
      failure['times'] = failure.get('times', 1) - 1
      write('plan.json', plan)
      end(failure['stderr'], failure.get('code', 1))
    if command.startswith(failure['command']):
      failure['after'] = failure.get('after', 0) - 1
      write('plan.json', plan)


def home(number, node, worker):
  return WORLD / 'machines' / f'{number}-{node}-{worker}'


def until(true):
  begun = time.monotonic()
  while not true():
    if time.monotonic() - begun > 60:
      end('the fake has waited for too long', 70)
    time.sleep(0.02)
