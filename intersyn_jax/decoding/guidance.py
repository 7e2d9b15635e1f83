"""Log-probabilities under the distribution drawn from, by teacher forcing: the branches of a completion rebuilt as token rows
(DESIGN 6).

What was drawn under guidance has a probability that depends on all branches. The streams of the branches follow from the
prompt and the completion alone, so that the probability can be computed again, by other parameters and with a gradient.

Letters: R rows, T prompt positions, M completion positions, I image blocks at most, E entries of the block's template,
D codes per image position, C codebook, V vocabulary, W branches, d model width, n positions of the null prompt
or scored together.
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
from intersyn_jax.models.unified import UnifiedModel, by_chunks

IMPOSSIBLE = -50.0
"""Log-probability of what cannot be drawn."""


def log_probs(model: UnifiedModel, rows: TokenBatch, start: int, layout_: Layout, config: DecodeConfig,
              chunk: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Log-probability of each position under the distribution it was drawn from: guided, tempered, truncated, only among what was
  allowed there. A penalty on repetition is not counted in.

  Args:
    model: its parameters may be others than those that wrote.
    rows: [R,T+M], prompts and completions as `decoder.join` gives them.
    start: T.
    config: of the decoder that wrote them.
    chunk: positions of every row whose logits are built at a time; 0 all at once.

  Returns:
    text log-probs float32[R,M] (0 where a position holds codes, is forced or padding), code log-probs [R,M,D] (0 where it
    holds none), entropy [R,M] in nats, of an image position the sum over its codes. Everywhere 0 for temperature 0.
  """
  done = jax.tree.map(lambda a: a[:, start:], rows)
  hidden = jnp.stack(hidden_before(model, rows, start, layout_, config), axis=2)  # [R,M,W,d]
  chosen = (done.modality == TEXT) & ~done.forced
  before = lambda kind: jnp.cumsum(chosen & (done.text == kind), axis=1) - (chosen & (done.text == kind))
  steps = before(layout_.special('<think>')) if config.min_steps or config.max_steps else jnp.zeros_like(done.text)
  written = jnp.broadcast_to(jnp.arange(done.text.shape[1]), done.text.shape)

  def score(piece):
    shape = piece[1].shape  # [R,c]
    h, text, codes, is_code, is_text, written, images, steps = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), piece)
    words = model.text_logits(h[:, 0])
    words = jnp.where(sampling.allowed(layout_, config, words.shape[-1], written, images, steps), words, -jnp.inf)
    text_log_prob, text_entropy = _under(words, text, config.text)
    logits = jnp.stack([model.code_logits(h[:, w], codes) for w in range(h.shape[1])], axis=-2)  # [n,D,W,C]
    n, depth, branches, size = logits.shape
    guided = sampling.guide(logits.reshape(n * depth, branches, size), config.guidance, config.image_guidance)
    code_log_prob, code_entropy = (a.reshape(n, depth) for a in _under(guided, codes.reshape(-1), config.image))
    found = (jnp.where(is_text, text_log_prob, 0.0), jnp.where(is_code[:, None], code_log_prob, 0.0),
             jnp.where(is_code, jnp.sum(code_entropy, axis=-1), jnp.where(is_text, text_entropy, 0.0)))
    return jax.tree.map(lambda a: a.reshape(*shape, *a.shape[1:]), found)

  pieces = (hidden, done.text, done.codes, done.modality == CODES, chosen, written, before(layout_.block.begin), steps)
  return by_chunks(score, pieces, chunk)


def _under(logits: jax.Array, ids: jax.Array, how: sampling.Sampling) -> tuple[jax.Array, jax.Array]:
  """Log-prob of ids [n] and entropy [n] of what is drawn from logits [n,V]."""
  if how.temperature == 0:
    return jnp.zeros(ids.shape, jnp.float32), jnp.zeros(ids.shape, jnp.float32)
  log_prob = jax.nn.log_softmax(sampling.truncate(logits, how))
  possible = jnp.isfinite(log_prob)
  kept = jnp.where(possible, log_prob, 0.0)  # what is cut off must not reach the gradient as 0 x infinity
  entropy = -jnp.sum(jnp.where(possible, jnp.exp(kept) * kept, 0.0), axis=-1)
  # An id that other parameters would have cut off has no probability; it keeps a floor, so that its ratio is 0 and finite.
  picked = jnp.where(sampling.pick(possible, ids), sampling.pick(kept, ids), IMPOSSIBLE)
  return picked, entropy


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
