"""TPU chips and pods: what a chip has, and the devices of a pod that is not here.

Figures of a chip are the manufacturer's, cloud.google.com/tpu/docs/v5e, /v5p and /v6e (memory, peak of bfloat16, bandwidth of
memory, all links together). One link in one direction is that sum over twice the links, as Austin et al., "How to Scale Your
Model" (2025, jax-ml.github.io/scaling-book, TPUs), have it; so v5e has 4 links of 45 GB/s each way and v5p 6 of 90 GB/s.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax

from intersyn_jax.errors import UserError

KNOWN = ('v5e:4x4', 'v5e:8x8', 'v5e:16x16', 'v6e:4x4', 'v6e:16x16', 'v5p:4x4x4 (64 chips)', 'v5p:8x8x16 (1024 chips)')
"""Some topologies, for help."""


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip.

  Attributes:
    name: as in a topology.
    prefix: of libtpu's name for a topology.
    memory: bytes of HBM.
    flops: peak FLOP/s of bfloat16.
    bandwidth: bytes/s of HBM.
    link: bytes/s of one link between chips, in one direction.
    axes: of its torus; there are two links an axis.
    wraps: an axis of at least so many chips is closed to a ring.
  """

  name: str
  prefix: str
  memory: float
  flops: float
  bandwidth: float
  link: float
  axes: int
  wraps: int


CHIPS = {chip.name: chip for chip in (
    Chip('v5e', 'v5e', 16 * 2**30, 197e12, 819e9, 45e9, axes=2, wraps=16),
    Chip('v5p', 'v5', 95 * 2**30, 459e12, 2765e9, 90e9, axes=3, wraps=4),
    Chip('v6e', 'v6e', 32 * 2**30, 918e12, 1638e9, 90e9, axes=2, wraps=16),
)}


@dataclasses.dataclass(frozen=True)
class Pod:
  """Chips of a topology.

  Attributes:
    shape: of the torus.
    devices: that programs can be compiled for, and nothing be run on.
  """

  chip: Chip
  shape: tuple[int, ...]
  devices: list[jax.Device]

  @property
  def name(self) -> str:
    return f'{self.chip.name}:{"x".join(map(str, self.shape))}'

  @property
  def chips(self) -> int:
    return math.prod(self.shape)

  def rate(self, group: Sequence[jax.Device]) -> float:
    """Bytes/s that each chip of a group takes in from the others of it, over all torus axes the group spans. An axis gives both
    of its directions where it is a ring, one where it is not."""
    coordinates = [device.coords for device in group]
    spans = [axis for axis in range(len(self.shape)) if len({c[axis] for c in coordinates}) > 1]
    return self.chip.link * max(1, sum(2 if self.shape[axis] >= self.chip.wraps else 1 for axis in spans))


def prepare() -> None:
  """What libtpu must be told before it is loaded on a machine without a TPU.

  Raises:
    UserError: it is not installed.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise UserError('libtpu is not here: install the extra tpu (launch/local.sh install tpu); no TPU is needed')
  # It asks the cloud which machine this is, and lets one process alone use it: neither matters where nothing is run.
  for name, value in dict(TPU_SKIP_MDS_QUERY='1', ALLOW_MULTIPLE_LIBTPU_LOAD='1', TPU_ACCELERATOR_TYPE='v5litepod-16',
                          TPU_WORKER_HOSTNAMES='localhost').items():
    os.environ.setdefault(name, value)


def pod(name: str) -> Pod:
  """The pod of a topology such as `v5e:4x4`.

  Raises:
    UserError: there is no such topology; names some that there are.
  """
  from jax.experimental import topologies
  some = f'some that are known: {", ".join(KNOWN)}'
  found = re.fullmatch(r'(\w+):(\d+(?:x\d+)+)', name)
  chip = CHIPS.get(found[1]) if found else None
  if chip is None:
    raise UserError(f'--topology={name} is no topology; {some}')
  shape = tuple(map(int, found[2].split('x')))
  if len(shape) != chip.axes:
    raise UserError(f'--topology={name}: chips of {chip.name} have {chip.axes} axes; {some}')
  # Rings must be told: without them libtpu makes all-reduces of all-gathers.
  more = dict(chips_per_host_bounds=(2, 2, 1), wrap=tuple(n >= chip.wraps for n in shape)) if chip.axes == 3 else {}
  try:
    topology = topologies.get_topology_desc(platform='tpu', topology_name=f'{chip.prefix}:{found[2]}', **more)
  except (jax.errors.JaxRuntimeError, IndexError, ValueError) as error:
    raise UserError(f'--topology={name}: libtpu does not know it ({str(error).splitlines()[0][:150]}); {some}') from None
  return Pod(chip, shape, list(topology.devices))
