"""The CLIP-like reward: which text and codes belong to a step, and that likeness pays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax.grpo import clip as reward
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.types import Conversation, Text, Turn
from intersyn_jax.judge.baselines import clip
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.unified import ModelConfig
from tests import small_model

PLACE = small_model.plain(depth=2)
WORDS = [[Text('one'), 0], [Text('a red circle at the top'), 1], [2]]


def rows():
  """Two answers: three steps, of which the last has no text; and one step without picture."""
  picture = lambda step: small_model.image(PLACE, step)
  whole = tuple(picture(part) if isinstance(part, int) else part for step in WORDS for part in step)
  answers = [whole, (Text('nothing to see'),)]
  made = [layout.tokenise(Conversation('c', '', (Turn((Text('a red'),), answer),)), PLACE) for answer in answers]
  return jax.tree.map(jnp.asarray, layout.stack(made, 96))


def test_text_and_codes_of_steps():
  texts, codes, whole = reward.parts_of_steps(rows(), PLACE, 3, 8)
  decode = lambda ids: PLACE.tokenizer.decode([int(i) for i in ids if i >= 0])
  assert [decode(step).strip() for step in texts[0]] == ['one', decode(PLACE.tokenizer.encode('a red circle at the top')[:8]), '']
  for step in range(3):
    np.testing.assert_array_equal(codes[0, step], small_model.image(PLACE, step).codes)
  assert whole.tolist() == [[True, True, False], [False] * 3]


@pytest.mark.slow
def test_what_belongs_together_is_worth_more():
  texts = ['one', 'a red circle at the top']
  said = [Conversation(str(i), '', (Turn((Text('draw'),), (Text(text), small_model.image(PLACE, i))),))
          for i, text in enumerate(texts)]
  config = clip.ClipConfig(width=32, layers=1, steps=40, rows=8, longest=16)
  model = ModelConfig(TrunkConfig(32, 2, 4, 2, 8, 64), PLACE.tokenizer.size, 4, 2, small_model.CODEBOOK)
  definition, params = clip.train(clip.pairs_of(said * 4, PLACE, config.longest), model, config, small_model.one_device(), 0)
  score = jax.jit(reward.similarity(definition, params, PLACE, 2, config.longest))
  own, other = (score(jax.tree.map(jnp.asarray, layout.stack([layout.tokenise(Conversation('c', '', (Turn(
      (Text('draw'),), (Text(texts[0]), small_model.image(PLACE, a), Text(texts[1]), small_model.image(PLACE, b))),)), PLACE)],
      64)))[0] for a, b in ((0, 1), (1, 0)))
  assert own.min() > 0.5 > other.max() and other.min() >= 0
