"""Janus-Pro 1B and 7B: checkpoints of transformers' class (deepseek-community/Janus-Pro-1B, deepseek-community/Janus-Pro-7B).

    python -m intersyn_jax convert --config=configs/janus_pro.py:1b --workdir=runs/janus --from=Janus-Pro-1B
    python -m intersyn_jax sample  --config=configs/janus_pro.py:1b --workdir=runs/janus --question='a red bicycle'
    python -m intersyn_jax export  --config=configs/janus_pro.py:1b --workdir=runs/janus --out=janus-again
"""

import public
from ml_collections import ConfigDict


def get_config(size: str = '7b') -> ConfigDict:
  """`size`: `1b`, `7b`, or `tiny` for random weights."""
  c = public.config('janus', size, pixels=384, images=3, fit='crop_bicubic')
  c.template = 'generation'
  return c
