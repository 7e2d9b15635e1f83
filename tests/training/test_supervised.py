"""The supervised loss: text and image positions 1:1, an image position the sum over its codes, whatever is built at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax.interleave import layout
from intersyn_jax.models import unified
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.training.supervised import next_token_loss
from tests import small_model as small

WRITTEN = small.plain(depth=2)
BLOCK = WRITTEN.block


@pytest.fixture(scope='module')
def case():
  """Definition, drawn parameters and packed rows of two documents of unlike length."""
  config = unified.ModelConfig(TrunkConfig(16, 1, 2, 2, 8, 16), WRITTEN.tokenizer.size, BLOCK.places, 2, BLOCK.codebook,
                               image_head='residual')
  definition = unified.define(config)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype), definition.shapes)
  documents = [layout.tokenise(small.conversation(WRITTEN, s), WRITTEN) for s in range(4)]
  rows = [jax.tree.map(lambda a, n=n: a[:n], d) for d, n in zip(documents, (40, 12, 30, 21), strict=True)]
  return definition, params, layout.stack(rows, 40)


def test_it_is_the_negative_log_likelihood_of_text_and_codes(case):
  definition, params, batch = case
  @jax.jit
  def logits(params, batch):
    model = definition.bind(params)
    before = jnp.pad(model(batch)[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return model.text_logits(before), model.code_logits(before, batch.codes)

  text, codes = (np.asarray(a, np.float64) for a in logits(params, batch))
  total, count = {'text': 0.0, 'image': 0.0}, {'text': 0.0, 'image': 0.0}
  chance = lambda row, i: row[i] - np.log(np.exp(row).sum())
  for r, t in zip(*np.nonzero(np.asarray(batch.loss) * (np.arange(40) > 0)), strict=True):
    picture = batch.modality[r, t] == layout.CODES
    name = 'image' if picture else 'text'
    weight = float(batch.loss[r, t])
    seen = [(codes[r, t, d], batch.codes[r, t, d]) for d in range(2)] if picture else [(text[r, t], batch.text[r, t])]
    total[name] -= weight * sum(chance(row, i) for row, i in seen)
    count[name] += weight
  assert count['text'] > 10 and count['image'] > 10
  found = jax.jit(next_token_loss(definition))(params, batch, jax.random.key(0))
  for name in ('text', 'image'):
    np.testing.assert_allclose(found[name][0], total[name], rtol=1e-4)
    np.testing.assert_allclose(found[name][1], count[name], rtol=1e-6)
  np.testing.assert_allclose(found['loss'][0] / found['loss'][1], sum(total.values()) / sum(count.values()), rtol=1e-4)


def test_chunks_change_nothing_and_micro_batches_add_up(case):
  """Of gradients `test_loop` shows the same; what they need is that each pair is a sum over rows."""
  definition, params, batch = case
  run = lambda chunk: jax.jit(next_token_loss(definition, chunk=chunk))
  whole, key = run(0)(params, batch, jax.random.key(0)), jax.random.key(0)
  chunked = run(7)
  parts = [chunked(params, jax.tree.map(lambda a, i=i: a[i::2], batch), key) for i in range(2)]
  for name, pair in whole.items():
    for i in range(2):
      np.testing.assert_allclose(sum(part[name][i] for part in parts), pair[i], rtol=1e-5, err_msg=name)
