"""What the public code makes of the tiny codecs, for tests without torch: `python -m tests.peers.make_goldens_vision`."""

import pathlib

import numpy as np

from tests.models.vision import tiny
from tests.peers import vision_reference

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens' / 'vision_tiny.npz'


def results() -> dict[str, np.ndarray]:
  return {f'{name}/{key}': array for name in tiny.CODECS for key, array in vision_reference.reference(name).items()}


if __name__ == '__main__':
  GOLDENS.parent.mkdir(exist_ok=True)
  np.savez_compressed(GOLDENS, **results())
