"""Writes tests/goldens/lm_*.npz: what the other implementations make of `tests.models.tiny_lm`.

    JAX_PLATFORMS=cpu python -m tests.peers.make_goldens_lm
"""

import numpy as np

from tests.models import tiny_lm
from tests.peers import families_lm

if __name__ == '__main__':
  for case in tiny_lm.CASES:
    np.savez_compressed(tiny_lm.golden_file(case), **tiny_lm.kept(families_lm.outputs(case)))
    print(tiny_lm.golden_file(case), tiny_lm.golden_file(case).stat().st_size)
