"""VILA-U 7B: a checkpoint with the folders `llm`, `vision_tower` and `mm_projector` (mit-han-lab/vila-u-7b-256).

    python -m intersyn_jax convert --config=configs/vila_u.py --workdir=runs/vila_u --from=vila-u-7b-256
    python -m intersyn_jax sample  --config=configs/vila_u.py --workdir=runs/vila_u --question='a red bicycle in the snow'
    python -m intersyn_jax export  --config=configs/vila_u.py --workdir=runs/vila_u --out=vila-u-again
"""

import public
from ml_collections import ConfigDict


def get_config(size: str = '7b-256') -> ConfigDict:
  """`size`: `7b-256`, `7b-384`, or `tiny` for random weights; `7b-256@v5e` for a pod (docs/compile.md)."""
  c = public.config('vila_u', size, pixels=384 if size.startswith('7b-384') else 256, images=3, fit='top_bicubic')
  # Its authors train language model, projector and depth transformer; the codebook stays as it is.
  for section in (c.warmup, c.finetune, c.grpo):
    section.optimizer.frozen = (r'image_embedding/codebook$',)
  return c
