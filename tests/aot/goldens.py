"""Memory and collectives of compiled programs as they were, by case, and by the versions of jax and libtpu.

    python tests/aot/goldens.py            # compiles every case and writes tests/goldens/aot/CASE.json; an hour or more
    python tests/aot/goldens.py storyworld-smoke-judge-v5e-2x4 anole-7b-v5p-grpo-v5p-4x4x4:grpo.reward   # of this one, a program

A file keeps what other versions gave. The level of optimisation is the quick one, O1.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

if __name__ == '__main__':  # before jax
  import os
  sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
  os.environ['JAX_PLATFORMS'] = 'cpu'
  from intersyn_jax.stages.aot import chips
  chips.prepare()

import jax

from intersyn_jax.stages import settings
from intersyn_jax.stages.aot import chips, nearest, report

FOLDER = pathlib.Path(__file__).parents[1] / 'goldens' / 'aot'
TOLERANCE = 0.05
SMALL = 2e6
"""Bytes by which anything may differ."""


class Case(NamedTuple):
  """One stage of one configuration on one pod."""

  config: str
  stage: str
  topology: str
  flags: tuple[str, ...] = ()

  @property
  def name(self) -> str:
    config = pathlib.Path(self.config).name.replace('.py', '').replace(':', '-').replace('@', '-')
    split = ''.join(f'-tensor{flag.rpartition("=")[2]}' for flag in self.flags if flag.startswith('--config.mesh.tensor='))
    return f'{config}-{self.stage}-{self.topology.replace(":", "-")}{split}'


EIGHT = tuple(f'--config.{field}=8' for field in ('judge.rows', 'decode.rows', 'grpo.prompts'))
QUICK = (Case('configs/storyworld.py:smoke', 'judge', 'v5e:2x4', EIGHT),
         Case('configs/storyworld.py:smoke', 'decode', 'v5e:2x4',
              (*EIGHT, '--config.model.layers=1', '--config.decode.max_positions=16')))
"""What `make test` compiles too."""

PAIRS = ('--config.mesh.tensor=2',)
"""Layers split between two chips, which many chips receive less by."""

CASES = {case.name: case for case in (
    *QUICK,
    *(Case(f'configs/{name}.py:7b{size}@{chip}{"-rollout" if stage != "warmup" and chip != "v5p" else ""}', stage, topology)
      for chip, topology in (('v5e', 'v5e:4x4'), ('v6e', 'v6e:4x4'), ('v5p', 'v5p:4x4x4'))
      for stage in ('warmup', 'grpo', 'decode') for name, size in (('vila_u', '-256'), ('anole', ''))),
    *(Case(f'configs/{name}.py', 'warmup', 'v5e:4x4', ('--config.warmup.rows=16',)) for name in ('opening', 'own', 'judged')),
    *(Case(f'configs/{name}@v5e', 'warmup', 'v5e:4x4') for name in ('emu3.py:8b', 'liquid.py:7b', 'janus_pro.py:7b')),
    *(Case('configs/vila_u.py:7b-256@v5e', 'warmup', 'v5e:16x16', ('--config.warmup.rows=256', *more)) for more in ((), PAIRS)),
    *(Case('configs/vila_u.py:7b-256@v5p', 'warmup', 'v5p:4x8x8', ('--config.warmup.rows=512', *more)) for more in ((), PAIRS)),
    Case('configs/vila_u.py:7b-256@v5p', 'warmup', 'v5p:4x4x4', PAIRS),
    Case('configs/vila_u.py:7b-256@v5p', 'warmup', 'v5p:8x8x16', ('--config.warmup.rows=1024', '--config.mesh.tensor=8')),
)}


def found(case: Case, tell: bool = False, only: str = '') -> dict[str, Any]:
  """What the compiler makes of a case now, by program, or of the program `only`; `tell` prints it."""
  jax.config.update('jax_enable_compilation_cache', False)
  jax.config.update('jax_optimization_level', 'O1')
  root = pathlib.Path(__file__).parents[2]
  config = nearest.changed(settings.load_config(str(root / case.config)), list(case.flags))
  pod, out = chips.pod(case.topology), {}
  for one in report.stage(config, pod, case.stage, only):
    for line in report.lines(one, pod) if tell else ():
      report.say(line)
    out[one.program] = {'fits': one.fits, 'total': one.total, 'temporaries': one.temporaries, 'aliased': one.aliased,
                        'received': {kind: v['bytes'] for kind, v in one.collectives.items()}}
  return out


def differences(now: dict[str, Any], then: dict[str, Any]) -> Iterator[str]:
  """What differs by more than the tolerance."""
  for program in now.keys() | then.keys():
    a, b = _flat(now.get(program, {})), _flat(then.get(program, {}))
    for name in sorted(a.keys() | b.keys()):
      new, old = a.get(name, 0.0), b.get(name, 0.0)
      if abs(new - old) > max(SMALL, TOLERANCE * max(new, old)) or (name == 'fits' and new != old):
        yield f'{program} {name}: {new:.4g}, was {old:.4g}'


def _flat(tree: dict[str, Any], above: str = '') -> dict[str, float]:
  out = {}
  for name, value in tree.items():
    out |= _flat(value, f'{above}{name}.') if isinstance(value, dict) else {above + name: float(value)}
  return out


def golden(case: Case) -> dict[str, Any]:
  """What was found before, by versions; {} where there is nothing yet."""
  path = FOLDER / f'{case.name}.json'
  return json.loads(path.read_text()) if path.exists() else {}


def main(names: list[str]) -> None:
  FOLDER.mkdir(parents=True, exist_ok=True)
  for each in names or CASES:
    report.say(f'\n{each}')
    name, _, only = each.partition(':')
    kept, now = golden(CASES[name]), found(CASES[name], tell=True, only=only)
    kept[report.versions()] = kept.get(report.versions(), {}) | now if only else now
    (FOLDER / f'{name}.json').write_text(json.dumps(kept, indent=1, sort_keys=True) + '\n')


if __name__ == '__main__':
  main(sys.argv[1:])
