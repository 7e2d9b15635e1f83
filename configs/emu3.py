"""Emu3 8B: checkpoints of transformers' class, language model and image tokenizer in one (BAAI/Emu3-Gen-hf, BAAI/Emu3-Chat-hf).

    python -m intersyn_jax convert --config=configs/emu3.py --workdir=runs/emu3 --from=Emu3-Gen-hf
    python -m intersyn_jax sample  --config=configs/emu3.py --workdir=runs/emu3 --question='a red bicycle in the snow'
    python -m intersyn_jax export  --config=configs/emu3.py --workdir=runs/emu3 --out=emu3-again

Emu3-Gen draws (`generation`); for Emu3-Chat add `--config.template=chat`.
"""

import public
from ml_collections import ConfigDict


def get_config(size: str = '8b') -> ConfigDict:
  """`size`: `8b`, or `tiny` for random weights."""
  c = public.config('emu3', size, pixels=720, images=1, words=256, fit='crop_bicubic')
  c.template = 'generation'
  if size != 'tiny':
    c.hf.image_pixels = 720  # Emu3 draws any size, a work folder has one; another one needs `data.pixels` too
  return c
