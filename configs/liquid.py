"""Liquid 7B: a Gemma with image tokens (Junfeng5/Liquid_V1_7B), and Chameleon's vqgan.ckpt, which its folder does not hold.

    cp vqgan.ckpt Liquid_V1_7B/
    python -m intersyn_jax convert --config=configs/liquid.py --workdir=runs/liquid --from=Liquid_V1_7B
    python -m intersyn_jax sample  --config=configs/liquid.py --workdir=runs/liquid --question='a red bicycle in the snow'
    python -m intersyn_jax export  --config=configs/liquid.py --workdir=runs/liquid --out=liquid-again

It draws with the template `generation`; to talk, add `--config.template=chat`.
"""

import public
from ml_collections import ConfigDict


def get_config(size: str = '7b') -> ConfigDict:
  """`size`: `7b`, or `tiny` for random weights."""
  c = public.config('liquid', size, pixels=512, images=3)
  c.template = 'generation'
  return c
