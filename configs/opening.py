"""Own data: rows of OpenING, or of the InterSyn generator, with their pictures (docs/data.md).

    python -m intersyn_jax warmup --config=configs/opening.py --workdir=runs/opening --config.data.path=FOLDER/test_data.jsonl

after the stages `data` and `tokenizer` with the same flags. There is one split, `interleaved`, and no known world: what the
later stages need (SEIR roles, a judge of known answers, held-out questions) is not in such data.
"""

import storyworld
from ml_collections import ConfigDict


def get_config(size: str = 'tiny') -> ConfigDict:
  """`size` is that of the model: one of configs/storyworld.py."""
  c = storyworld.get_config(size)
  c.name = 'opening'
  # `source=intersyn_release` reads InterSyn rows. `images` is the folder of the pictures where `path` lies elsewhere.
  c.data.update(dict(source='opening', path='', images='', pixels=64, encoding='JPEG', shard_records=2000))
  c.text.size = 2048

  # Photographs: convolutions see the neighbours of a patch. A batch of 16 has as many patches as 64 of Storyworld.
  c.image.update(dict(channels=64, kernel=3, pictures=4000, batch=16, autoencoder=100, steps=400))
  # A document of OpenING has some 260 to 580 positions; longer ones are left out and counted.
  c.warmup.mix = ConfigDict(dict(interleaved=1.0))
  c.warmup.update(dict(steps=300, rows=4, row_length=768, null_prompt_rate=0.0, long_steps=0, checkpoint_every=100))
  c.warmup.optimizer.update(dict(learning_rate=0.01, adam_learning_rate=2e-3))
  c.writer.steps = 0  # SEIR's roles are learnt from Storyworld's splits
  c.decode.update(dict(max_positions=512))
  return c
