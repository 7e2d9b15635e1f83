"""A judge of your own: SynJudge learns from answers that people have scored, on a model of your own data (docs/data.md).

    SET="--config=configs/judged.py --config.data.path=FOLDER/test_data.jsonl --config.judge.source=SCORED/rows.jsonl"
    python -m intersyn_jax judge --workdir=runs/judged $SET

after the stages `data`, `tokenizer` and `warmup` with the same flags.
"""

import opening
from ml_collections import ConfigDict


def get_config(size: str = 'tiny') -> ConfigDict:
  """`size` is that of the model: one of configs/storyworld.py."""
  c = opening.get_config(size)
  c.name = 'judged'
  # `source` is a file of scored answers, or a folder of shards; `images` is the folder of the pictures where they do not
  # lie beside the file; `held_out_generators` are kept for the test.
  c.judge.update(dict(source='', images='', held_out_generators=(), held_out=0.2, init='warmup', max_steps=3))
  # A picture takes 66 positions; rows longer than `row_length` are left out and counted.
  c.judge.update(dict(row_length=512, widths=ConfigDict(dict(tcc=384, icc=512, its=512)), rows=8, steps=400, balance=0.3))
  return c
