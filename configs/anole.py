"""Anole 7B, and Chameleon 7B: checkpoints of transformers' class, with Meta's vqgan.ckpt where they hold no decoder of pictures.

    cp vqgan.ckpt Anole-7b-v0.1-hf/        # only if `convert` asks for it
    python -m intersyn_jax convert --config=configs/anole.py --workdir=runs/anole --from=Anole-7b-v0.1-hf
    python -m intersyn_jax sample  --config=configs/anole.py --workdir=runs/anole --question='how do I fold a paper crane?'
    python -m intersyn_jax export  --config=configs/anole.py --workdir=runs/anole --out=anole-again
"""

import public
from ml_collections import ConfigDict


def get_config(size: str = '7b') -> ConfigDict:
  """`size`: `7b`, or `tiny` for random weights; `7b@v5e` for a pod (docs/compile.md), whose rows have 4,096 positions."""
  c = public.config('chameleon', size, pixels=512, images=1)
  if '@' in size:
    c.warmup.row_length = c.finetune.row_length = 4096
    c.grpo.update(dict(max_prompt=1024, max_positions=3072))
    c.decode.update(dict(max_positions=3072, max_images=2))
  return c
