"""Compiles the programs of stages, and tells of each what it holds, sends and would take."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections

from intersyn_jax.errors import UserError
from intersyn_jax.stages.aot import estimate, nearest
from intersyn_jax.stages.aot.chips import Pod
from intersyn_jax.stages.aot.estimate import Compiled
from intersyn_jax.stages.aot.programs import PROGRAMS
from intersyn_jax.stages.aot.shapes import Shapes


def say(text: str) -> None:
  print(text, flush=True)


def stage(config: ml_collections.ConfigDict, pod: Pod, name: str, only: str = '') -> Iterator[Compiled]:
  """What is known of each program of a stage, or of the one that `only` names."""
  parts = Shapes(config, pod.devices)
  for program in PROGRAMS[name](parts):
    if only in ('', program.name):
      yield estimate.compiled(program, pod, parts.mesh)


def run(config: ml_collections.ConfigDict, pod: Pod, stages: Sequence[str]) -> dict[str, Any]:
  """Compiles stages, prints what is found, and gives it as JSON holds it."""
  say(f'{config.name} on {pod.name}, {pod.chips} chips; {versions()}; times are estimates, nothing is run')
  found: dict[str, Any] = {'config': config.name, 'topology': pod.name, 'versions': versions(), 'stages': {}}
  for name in stages:
    try:
      programs = []
      for one in stage(config, pod, name):
        programs.append(one)
        for line in lines(one, pod):
          say(line)
    except UserError as error:  # rows that do not divide, say: the other stages may be right
      if len(stages) == 1:
        raise
      say(f'\n{name}: {error}')
      continue
    most = estimate.together(programs)
    fits = all(one.fits for one in programs)
    if len(programs) > 1:
      say(f'{name}, living together: at most {gb(most)} of {gb(programs[0].limit)} a chip; {"fits" if fits else "does not fit"}')
    found['stages'][name] = {'fits': fits, 'bytes': most, 'programs': [dataclasses.asdict(one) for one in programs]}
    if not fits:
      change = nearest.setting(config, pod, name, say)
      say(f'{name}: ' + (f'the nearest setting that fits is {" ".join(change)}' if change else
                         'no setting near this one fits: take more chips, or optimizer.precision=lean'))
      found['stages'][name]['nearest'] = change
  say(f'\n{estimate.FORMULA}')
  return found


def lines(one: Compiled, pod: Pod) -> Iterator[str]:
  """What is printed of a program."""
  yield f'\n{one.program}: compiled in {one.compile_seconds:.0f} s; {"fits" if one.fits else "DOES NOT FIT"}'
  yield (f'  memory a chip    {gb(one.total)} of {gb(one.limit)}: arguments {gb(one.arguments)} + temporaries '
         f'{gb(one.temporaries)} + outputs {gb(one.outputs)} - donated {gb(one.aliased)} + beside {gb(one.beside)}')
  if not one.step:
    return
  sent = ', '.join(f'{kind} {int(v["count"])} x = {gb(v["bytes"])}' for kind, v in sorted(one.collectives.items()))
  yield f'  collectives      {sent or "none"}; {gb(one.received)} received by a chip in a step'
  yield (f'  estimated step   {one.step:.3g} s = max(compute {one.compute:.3g}, memory {one.memory:.3g}, links {one.links:.3g}); '
         f'{one.positions / one.step / pod.chips:,.0f} positions/s a chip')
  yield (f'  estimated MFU    {one.mfu:.0%}, at worst {one.mfu * one.step / one.worst:.0%} ({one.worst:.3g} s); '
         f'{one.model_flops:.3g} model FLOP, {one.flops:.3g} computed')


def gb(count: float) -> str:
  """Bytes in words."""
  return f'{count / 1e9:.2f} GB' if count >= 1e8 else f'{count / 1e6:.2f} MB'


def versions() -> str:
  return ' '.join(f'{name} {importlib.metadata.version(name)}' for name in ('jax', 'libtpu'))
