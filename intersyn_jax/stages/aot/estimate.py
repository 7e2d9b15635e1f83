"""What a compiled program holds and sends, and by a roofline how long it would take.

Nothing is run, so that times and utilisations are estimates: the time of a step is the largest of what its products take at
the peak of all chips, what a chip's memory traffic takes, and what its links take, as if the three overlapped fully.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import time

import jax

from intersyn_jax.stages.aot import hlo, work
from intersyn_jax.stages.aot.chips import Pod
from intersyn_jax.stages.aot.programs import Program

FORMULA = """step = max(compute, memory, links), each for one chip, as if they overlapped fully:
  compute = FLOP / (chips x peak); FLOP: of all matrix products of the traced program, loops counted
  memory  = (products' operands and results / chips + passes x weights / tensor + arguments + outputs) / bandwidth
  links   = sum over collectives of bytes received / (link x directions of the torus axes that the group spans)
  at worst = compute + memory + links, as if nothing overlapped
MFU = model FLOP / (chips x peak x step); model FLOP of an update: 3 x its loss alone, of others: as many as computed"""

RESERVED = 2**28
"""Bytes of a chip's memory that its runtime keeps, seen in what the compiler of v5e calls available (15.75 of 16 GiB)."""


@dataclasses.dataclass
class Compiled:
  """What is known of one program on one chip; bytes and seconds.

  Attributes:
    program: its name.
    arguments, outputs, temporaries, aliased: bytes. beside: of what lies in memory meanwhile without being given to it.
    total: all of it; `arguments + outputs - aliased + temporaries + beside`.
    limit: of a chip. fits: the total is within it, and the compiler took it.
    collectives: by kind, how many run in a step and the bytes that a chip receives by them.
    flops, model_flops: of all chips in a step.
    compute, memory, links, step: seconds, estimates. mfu: estimate.
    compile_seconds: as measured.
  """

  program: str
  limit: float
  fits: bool = False
  arguments: float = 0.0
  outputs: float = 0.0
  temporaries: float = 0.0
  aliased: float = 0.0
  beside: float = 0.0
  total: float = 0.0
  collectives: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
  positions: int = 0
  flops: float = 0.0
  model_flops: float = 0.0
  compute: float = 0.0
  memory: float = 0.0
  links: float = 0.0
  step: float = 0.0
  mfu: float = 0.0
  compile_seconds: float = 0.0

  @property
  def worst(self) -> float:
    """Seconds of a step in which nothing overlaps."""
    return self.compute + self.memory + self.links

  @property
  def received(self) -> float:
    return sum(one['bytes'] for one in self.collectives.values())


def compiled(program: Program, pod: Pod, mesh: jax.sharding.Mesh) -> Compiled:
  """Compiles a program and reads off what it holds and sends. One that is too large is no error: it does not fit."""
  beside = sum(work.held(tree) for tree in program.beside.values())
  found = Compiled(program.name, pod.chip.memory - RESERVED, beside=beside, positions=program.positions)
  traced = program.trace()
  done = work.count(traced.jaxpr, program.rounds)
  found.flops = done.flops
  found.model_flops = 3 * work.count(program.forward()).flops if program.forward else done.flops
  lowered = traced.lower()
  began = time.monotonic()
  try:
    result = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    needed = re.search(r'temporaries \(([\d.]+)([KMG])\)|Used ([\d.]+)([KMG]) of', str(error))
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    found.compile_seconds = time.monotonic() - began
    if needed:
      number, unit = needed[1] or needed[3], needed[2] or needed[4]
      found.temporaries = float(number) * 2 ** {'K': 10, 'M': 20, 'G': 30}[unit]
      found.total = found.temporaries + beside
    return found
  found.compile_seconds = time.monotonic() - began
  sizes = result.memory_analysis()
  found.arguments, found.outputs = float(sizes.argument_size_in_bytes), float(sizes.output_size_in_bytes)
  found.temporaries, found.aliased = float(sizes.temp_size_in_bytes), float(sizes.alias_size_in_bytes)
  found.total = found.arguments + found.outputs - found.aliased + found.temporaries + beside
  found.fits = found.total <= found.limit
  _roofline(found, program, done, hlo.collectives(result.as_text(), program.rounds), pod, mesh)
  return found


def _roofline(found: Compiled, program: Program, done: work.Work, sent: list[hlo.Collective], pod: Pod,
              mesh: jax.sharding.Mesh) -> None:
  chip, partitions = pod.chip, list(mesh.devices.flat)
  kinds: dict[str, dict[str, float]] = collections.defaultdict(lambda: {'count': 0, 'bytes': 0.0})
  for one in sent:
    kinds[one.kind]['count'] += one.count
    kinds[one.kind]['bytes'] += one.count * one.received
    found.links += one.count * one.received / pod.rate([partitions[i] for i in one.group])
  found.collectives = dict(kinds)
  # Gathered weights are read whole but for what `tensor` spreads, in the type of the activations.
  weights = sum(a.size for a in jax.tree.leaves(program.weights)) * 2 / mesh.shape['tensor']
  passes = program.passes * max(1, program.rounds)
  found.compute = found.flops / (pod.chips * chip.flops)
  found.memory = (done.traffic / pod.chips + passes * weights + found.arguments + found.outputs) / chip.bandwidth
  found.step = max(found.compute, found.memory, found.links)
  found.mfu = found.model_flops / (pod.chips * chip.flops * found.step) if found.step else 0.0


def together(programs: list[Compiled]) -> float:
  """The most that the programs of one stage hold at once: they run one after another, and each counts what lies beside it."""
  return max(one.total for one in programs)
