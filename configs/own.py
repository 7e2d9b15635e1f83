"""Own data from several published sources, each in the split that it is for: the hybrid mix of unified GRPO's warm-up.

    python -m intersyn_jax warmup --config=configs/own.py --workdir=runs/own \
      --config.data.sources.genhowto.path=genhowto/rows.jsonl --config.data.sources.dense_captions.path=activitynet/train.json \
      --config.data.sources.caption_pairs.path=journeydb/train_anno_realease_repath.jsonl \
      --config.data.sources.caption_pairs.images=journeydb/imgs --config.data.sources.llava.path=llava/rows.json

after the stages `data` and `tokenizer` with the same flags (docs/importing.md). A source without a path is left out; a split that
no source fills needs the weight 0: `--config.warmup.mix.understanding=0`.
"""

import opening
from ml_collections import ConfigDict

from intersyn_jax.data.importers import SOURCES


def get_config(size: str = 'tiny') -> ConfigDict:
  """`size` is that of the model: one of configs/storyworld.py."""
  c = opening.get_config(size)
  c.name = 'own'
  # Names are one's own: an entry that has another one than its format says it in `source`.
  c.data.update(dict(source='mixed', sources={name: dict(path='', images='') for name in SOURCES}))
  # Records that go to several processes; a pipeline of Apache Beam instead.
  c.data.update(dict(workers=0, beam=''))
  # The paper's 0.3 million interleaved samples, 1 million of understanding, 1 million of text to image.
  c.warmup.mix = ConfigDict(dict(interleaved=0.3, understanding=1.0, text_to_image=1.0))
  return c
