"""Guided log-probabilities by teacher forcing: the branches of a completion rebuilt as token rows (DESIGN 6).

What was drawn under guidance has a probability that depends on all branches. The streams of the branches follow from the
prompt and the completion alone, so that the probability can be computed again, by other parameters and with a gradient.

Letters: R rows, T prompt positions, M completion positions, I image blocks at most, E entries of the block's template,
D codes per image position, C codebook, d model width, n positions of the null prompt.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax.decoding import sampling
from intersyn_jax.decoding.config import IMAGES, NULL, DecodeConfig
from intersyn_jax.decoding.decoder import images_only
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.layout import CODES, TEXT, Layout, TokenBatch
from intersyn_jax.models.unified import UnifiedModel


def code_log_probs(model: UnifiedModel, rows: TokenBatch, start: int, layout_: Layout, config: DecodeConfig) -> jax.Array:
  """Log-probability of each code under the distribution it was drawn from: guided, tempered, truncated.

  Args:
    rows: [R,T+M], prompts and completions as `decoder.join` gives them.
    start: T.
    config: of the decoder that wrote them.

  Returns:
    float32[R,M,D], 0 at text positions, and everywhere for temperature 0.
  """
  done = jax.tree.map(lambda a: a[:, start:], rows)
  is_code = (done.modality == CODES)[..., None]
  if config.image_temperature == 0:
    return jnp.zeros(done.codes.shape, jnp.float32)
  logits = jnp.stack([model.code_logits(hidden, done.codes) for hidden in hidden_before(
      model, rows, start, layout_, config)])  # [W,R,M,D,C]
  drawn_from = sampling.guide(jnp.moveaxis(logits, 0, -2).reshape(-1, len(logits), logits.shape[-1]), config.guidance,
                              config.image_guidance)
  log_prob = jax.nn.log_softmax(sampling.truncate(drawn_from, config.image))
  picked = sampling.pick(log_prob, done.codes.reshape(-1)).reshape(done.codes.shape)
  return jnp.where(is_code, picked, 0.0)


def hidden_before(model: UnifiedModel, rows: TokenBatch, start: int, layout_: Layout,
                  config: DecodeConfig) -> list[jax.Array]:
  """Of each branch, the hidden state [R,M,d] that every position of a completion was drawn from.

  Only image positions mean something in a branch that is not the full one.
  """
  out = []
  for kind in config.branches:
    if kind == NULL:
      out.append(_null_hidden(model, rows, start, layout_, config))
      continue
    context, target = (rows, None) if kind != IMAGES else images_only(rows, layout_)
    hidden = model(context)
    before = np.arange(start, rows.text.shape[1])[None] if target is None else target[:, start:]
    out.append(jnp.take_along_axis(hidden, jnp.maximum(before - 1, 0)[..., None], axis=1))
  return out


def _null_hidden(model: UnifiedModel, rows: TokenBatch, start: int, layout_: Layout, config: DecodeConfig) -> jax.Array:
  """Each image block of the completions behind a null prompt of its own, as R I documents of n + 1 + E positions."""
  null, block = layout.null_prompt(layout_), layout_.block
  n, entries, most = len(null.text), len(block.template), max(1, config.max_images)
  done = jax.tree.map(lambda a: a[:, start:], rows)
  count, m = done.text.shape
  begins = (done.modality == TEXT) & (done.text == block.begin) & ~done.forced
  number = jnp.cumsum(begins, axis=1) - 1  # of the latest block
  where = jnp.argmax(begins[:, None] & (number[:, None] == jnp.arange(most)[:, None]), axis=-1)  # [R,I]
  source = jnp.minimum(where[..., None] + jnp.arange(1 + entries), m - 1)
  take = lambda a: a[jnp.arange(count)[:, None, None], source]
  prompt = jax.tree.map(lambda a: jnp.broadcast_to(jnp.asarray(a), (count, most, *a.shape)), null)
  whole = jax.tree.map(lambda a, b: jnp.concatenate([a, take(b)], axis=2).reshape(count * most, n + 1 + entries, *b.shape[2:]),
                       prompt, done)
  place = jnp.broadcast_to(jnp.arange(n + 1 + entries), whole.text.shape)
  hidden = model(whole.replace(document=jnp.ones_like(whole.document), position=place))
  hidden = hidden.reshape(count, most * (n + 1 + entries), -1)
  inside = jnp.arange(m) - jnp.take_along_axis(where, jnp.clip(number, 0, most - 1), axis=1) - 1  # entry of the template
  before = jnp.clip(number, 0, most - 1) * (n + 1 + entries) + n + jnp.clip(inside, 0, entries)
  return jnp.take_along_axis(hidden, before[..., None], axis=1)
