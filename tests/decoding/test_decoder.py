"""The decoder: equal to the full forward, exact about its own probabilities, and true to the image template."""

from __future__ import annotations

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from intersyn_jax import sharding
from intersyn_jax.decoding import decoder, guidance, sampling
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import Decoder, join
from intersyn_jax.errors import UserError
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.layout import CODE, CODES, PADDING, TEXT, TokenBatch
from intersyn_jax.models.unified import position_log_probs
from tests import small_model

BASE = DecodeConfig(max_positions=30, max_images=3, text_temperature=0.9, image_temperature=0.8)
CONFIGS = {
    'plain': BASE,
    'guided': dataclasses.replace(BASE, guidance=3.0),
    'truncated': dataclasses.replace(BASE, guidance=2.0, text_top_k=40, text_top_p=0.9, image_top_k=9, image_top_p=0.8),
    'greedy': dataclasses.replace(BASE, guidance=2.0, text_temperature=0.0, image_temperature=0.0),
    'three': dataclasses.replace(BASE, guidance=2.0, image_guidance=1.5, image_top_k=12),
    'controlled': dataclasses.replace(BASE, text_repetition=1.7, text_temperature=1.3, min_steps=1, max_steps=2, max_images=2),
    'chunked': dataclasses.replace(BASE, guidance=3.0, chunk=4),
}
LAYOUTS = {'flat': functools.partial(small_model.plain, 1), 'lined': functools.partial(small_model.lined, 4)}
QUESTIONS = ('a red', 'move the blue square to the top left', 'circle', 'a red circle at the blue')


@functools.cache
def setting(name: str, **trunk):
  """Layout, definition and parameters on one device."""
  layout_ = LAYOUTS[name]()
  definition = small_model.definition(layout_, **trunk)
  params = small_model.eager(definition.init(jax.random.key(1), small_model.one_device()), layout_)
  return layout_, definition, params


def prompts_of(layout_):
  """Prompts of different lengths, one of them after a whole turn with images."""
  whole = small_model.conversation(layout_)
  return [layout.prompt(small_model.question(q), layout_) for q in QUESTIONS[:3]] + [layout.prompt(whole, layout_)]


@functools.cache
def decoded(name: str, config: str):
  layout_, _, params = setting(name)
  prompts = prompts_of(layout_)
  writer = writer_of(name, config)
  return writer.stack(prompts), jax.device_get(writer.decode(params, prompts, group=4))


@functools.cache
def writer_of(name: str, config: str) -> Decoder:
  """One program for each of these, compiled once: tests share its shapes, four prompts of four completions."""
  layout_, definition, _ = setting(name)
  return Decoder(definition, layout_, small_model.one_device(), CONFIGS[config])


def in_template(tokens: TokenBatch, row: int, layout_) -> int:
  """Checks one completion against the image template; returns how many blocks it opens."""
  block, blocks, t = layout_.block, 0, 0
  length = int((tokens.modality[row] != PADDING).sum())
  assert (tokens.modality[row, length:] == PADDING).all()
  forbidden = set(layout_.structure.tolist())
  while t < length:
    assert tokens.modality[row, t] == TEXT and not tokens.forced[row, t]
    assert int(tokens.text[row, t]) not in forbidden
    if tokens.text[row, t] == layout_.special('</s>'):
      assert t == length - 1
    opens = tokens.text[row, t] == block.begin
    t += 1
    for entry in block.template if opens else ():
      assert t < length
      assert tokens.modality[row, t] == (CODES if entry == CODE else TEXT)
      assert tokens.forced[row, t] == (entry != CODE)
      assert tokens.text[row, t] == max(entry, 0)
      assert (tokens.codes[row, t] < block.codebook).all()
      t += 1
    blocks += int(opens)
  return blocks


def hidden_of(definition, params, batch):
  return jax.jit(lambda params, batch: definition.bind(params)(batch))(params, batch)


def scores_of(definition, params, batch):
  """Teacher-forced log-probs: text [R,T] and codes [R,T,D]."""
  def score(params, batch):
    model = definition.bind(params)
    return position_log_probs(model, model(batch), batch)[:2]

  return jax.device_get(jax.jit(score)(params, batch))


@pytest.mark.parametrize('name', LAYOUTS)
@pytest.mark.parametrize('config', ['plain', 'guided'])
def test_plain_log_prob_is_that_of_the_full_forward(name, config):
  _, definition, params = setting(name)
  prompts, out = decoded(name, config)
  text, codes = scores_of(definition, params, join(prompts, out))
  room = prompts.text.shape[1]
  scored = (out.tokens.modality != PADDING) & ~out.tokens.forced
  expected = np.where(scored, (text + codes.sum(-1))[:, room:], 0.0)
  np.testing.assert_allclose(out.plain_log_prob, expected, atol=1e-4)
  np.testing.assert_allclose(out.plain_code_log_prob, codes[:, room:], atol=1e-4)
  assert (out.tokens.modality == CODES).sum() > 30 and out.tokens.forced.any()
  assert len(set((out.tokens.modality == CODES).argmax(1))) > 3, 'rows should stand in different modes at one step'
  assert {decoder.END, decoder.LENGTH} == set(out.finish.tolist())


def null_logits(definition, params, layout_, out, row, t):
  """Logits [D,C] of the image position t by the null context: null prompt, begin token, codes so far."""
  begin = t
  while not (out.tokens.modality[row, begin] == TEXT and out.tokens.text[row, begin] == layout_.block.begin):
    begin -= 1
  start = layout.null_prompt(layout_)
  piece = jax.tree.map(lambda a: a[row, begin:t], out.tokens)
  document = jax.tree.map(lambda a, b: np.concatenate([a, b]), start, piece)
  document = document.replace(position=np.arange(len(document.text), dtype=np.int32))
  return null_head(definition)(params, layout.stack([document], 24), len(document.text) - 1, out.tokens.codes[row, t])


def image_context(definition, params, layout_, prompts, out, row, t):
  """Hidden state that the image branch has before position t, and the codes there: by dropping all text, one by one."""
  kept = []
  group = len(out.finish) // len(prompts.text)
  for batch, source, stop in ((prompts, row // group, prompts.text.shape[1]), (out.tokens, row, t)):
    for i in range(stop):
      position = jax.tree.map(lambda a, at=(source, i): np.asarray(a)[at], batch)
      of_image = position.modality == CODES or position.forced or position.text == layout_.block.begin
      if position.document and (not kept or of_image):
        kept.append(position.replace(position=np.int32(len(kept))))
  document = jax.tree.map(lambda *a: np.stack(a), *kept)
  return null_hidden(definition)(params, layout.stack([document], 96), len(kept) - 1), out.tokens.codes[row, t]


@functools.cache
def null_hidden(definition):
  return jax.jit(lambda params, batch, last: definition.bind(params)(batch)[0, last])


@functools.cache
def null_head(definition):
  @jax.jit
  def logits(params, batch, last, codes):
    model = definition.bind(params)
    return model.code_logits(model(batch)[0, last], codes)

  return logits


def kept(logits: np.ndarray, control: sampling.Sampling) -> np.ndarray:
  """Temperature, top-k and top-p by sorting one row, as one would write it down; returns log-probabilities."""
  logits = logits.astype(np.float64) / control.temperature
  order = np.argsort(-logits, kind='stable')
  keep = order[:control.top_k or None]
  p = np.exp(logits[keep] - logits[keep].max())
  p /= p.sum()
  keep = keep[:int(np.searchsorted(np.cumsum(p), control.top_p - 1e-9) + 1)]
  out = np.full(len(logits), -np.inf)
  out[keep] = logits[keep] - np.log(np.exp(logits[keep] - logits[keep].max()).sum()) - logits[keep].max()
  return out


@pytest.mark.parametrize('name, config', [*(('flat', config) for config in CONFIGS), ('lined', 'guided'), ('lined', 'three')])
def test_log_prob_is_that_of_the_distribution_drawn_from(name, config):
  layout_, definition, params = setting(name)
  prompts, out = decoded(name, config)
  controls, block = CONFIGS[config], layout_.block
  model, room = definition.bind(params), prompts.text.shape[1]
  hidden = hidden_of(definition, params, join(prompts, out))
  words = np.asarray(model.text_logits(hidden))
  image_logits = jax.jit(model.code_logits)
  rows = 3  # each position of an image costs a forward of its null context
  for row in range(0, len(out.finish), len(out.finish) // rows):
    images = steps = 0
    said = set()
    for t in range(CONFIGS[config].max_positions):
      if out.tokens.modality[row, t] == PADDING or out.tokens.forced[row, t]:
        assert out.log_prob[row, t] == 0
      elif out.tokens.modality[row, t] == TEXT:
        logits = np.where(sampling.choosable(layout_, layout_.tokenizer.size), words[row, room + t - 1], -np.inf)
        if images == controls.max_images or t + 1 + len(block.template) > controls.max_positions:
          logits[block.begin] = -np.inf
        if steps < controls.min_steps:
          logits[layout_.special('</s>')] = -np.inf
        if steps == controls.max_steps > 0:
          logits[layout_.special('<think>')] = -np.inf
        for word in said:
          logits[word] = logits[word] / controls.text_repetition if logits[word] > 0 else logits[word] * controls.text_repetition
        chosen = int(out.tokens.text[row, t])
        images += int(chosen == block.begin)
        steps += int(chosen == layout_.special('<think>'))
        if chosen not in layout_.tokenizer.specials:
          said.add(chosen)
        check(logits, chosen, out.log_prob[row, t], controls.text)
      else:
        logits = np.asarray(image_logits(hidden[row, room + t - 1], out.tokens.codes[row, t]))
        if controls.image_guidance:
          null = np.asarray(null_logits(definition, params, layout_, out, row, t))
          pictures = np.asarray(image_logits(*image_context(definition, params, layout_, prompts, out, row, t)))
          logits = null + controls.image_guidance * (pictures - null) + controls.guidance * (logits - pictures)
        elif controls.guidance != 1:
          null = np.asarray(null_logits(definition, params, layout_, out, row, t))
          logits = null + controls.guidance * (logits - null)
        for number in range(block.depth):
          check(logits[number], out.tokens.codes[row, t, number], out.code_log_prob[row, t, number], controls.image)
        np.testing.assert_allclose(out.log_prob[row, t], out.code_log_prob[row, t].sum(), atol=1e-5)


def check(logits, chosen, log_prob, control):
  if control.temperature == 0:
    assert logits[chosen] >= logits.max() - 1e-4 and log_prob == 0
  else:
    np.testing.assert_allclose(log_prob, kept(logits, control)[chosen], atol=1e-4)


@pytest.mark.parametrize('name, config', [('flat', 'guided'), ('flat', 'truncated'), ('flat', 'three'), ('lined', 'guided'),
                                          ('lined', 'three'), ('flat', 'greedy'), ('flat', 'plain')])
def test_what_was_drawn_is_scored_again_from_the_tokens(name, config):
  layout_, definition, params = setting(name)
  prompts, out = decoded(name, config)

  def again(params, rows, chunk):
    return guidance.log_probs(definition.bind(params), rows, prompts.text.shape[1], layout_, CONFIGS[config], chunk)

  again = jax.jit(again, static_argnums=2)
  text, codes, entropy = again(params, join(prompts, out), 0)
  np.testing.assert_allclose(codes, out.code_log_prob, atol=1e-4)
  np.testing.assert_allclose(text + codes.sum(-1), out.log_prob, atol=1e-4)
  assert (np.asarray(entropy) >= -1e-5).all()
  for whole, part in zip((text, codes, entropy), again(params, join(prompts, out), 11), strict=True):
    np.testing.assert_allclose(whole, part, atol=5e-5)


@pytest.mark.parametrize('name', LAYOUTS)
def test_a_growing_cache_writes_the_same(name):
  """The cache of the chunked one has 4, 8, 16 and 30 places behind the prompts; the masked places of the other weigh 0."""
  _, whole = decoded(name, 'guided')
  _, grown = decoded(name, 'chunked')
  same_up_to_near_ties(whole, grown)


def same_up_to_near_ties(one, other):
  """Tokens are the same but for rare near-ties, and before the first difference log-probs agree."""
  same = np.concatenate([(one.tokens.text == other.tokens.text)[..., None], one.tokens.codes == other.tokens.codes], -1).all(-1)
  before = np.cumprod(same, axis=1) > 0
  assert same.all(1).mean() > 0.8, 'more than near-ties differ'
  for field in ('log_prob', 'plain_log_prob'):
    np.testing.assert_allclose(np.where(before, getattr(one, field), 0), np.where(before, getattr(other, field), 0), atol=1e-4)


@pytest.mark.parametrize('name, config', [('flat', 'plain'), ('lined', 'guided')])
def test_sharded_over_eight_devices_is_the_same(name, config):
  layout_, definition, params = setting(name)
  mesh = sharding.make_mesh({'fsdp': 2, 'tensor': 4})
  writer = Decoder(definition, layout_, mesh, CONFIGS[config])
  _, one = decoded(name, config)
  spread = jax.device_put(jax.device_get(params), definition.shardings(mesh))
  eight = writer.decode(spread, prompts_of(layout_), group=4)
  assert len(eight.log_prob.sharding.device_set) == 8
  eight = jax.device_get(eight)
  same_up_to_near_ties(one, eight)


@pytest.mark.parametrize('config', ['plain', 'guided'])
def test_a_row_does_not_depend_on_its_neighbours(config):
  layout_, _, params = setting('flat')
  writer = writer_of('flat', config)
  prompts = prompts_of(layout_)
  others = [prompts[0], prompts[2], prompts[1], prompts[3]]
  ids = np.arange(16)
  first = jax.device_get(writer.decode(params, prompts, group=4, request_ids=ids))
  second = jax.device_get(writer.decode(params, others, group=4, request_ids=np.r_[ids[:4], ids[4:12] + 100, ids[12:]]))
  for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
    np.testing.assert_array_equal(a[:4], b[:4])
    np.testing.assert_array_equal(a[12:], b[12:])
  assert (first.tokens.text[4:12] != second.tokens.text[4:12]).any()


def test_draws_follow_the_request_id_not_the_place_in_the_batch():
  layout_, _, params = setting('flat')
  writer, prompts, ids = writer_of('flat', 'plain'), prompts_of(layout_), np.arange(16).reshape(4, 4)
  straight = jax.device_get(writer.decode(params, prompts, group=4, request_ids=ids.ravel()))
  turned = jax.device_get(writer.decode(params, prompts[::-1], group=4, request_ids=ids[::-1].ravel()))
  for a, b in zip(jax.tree.leaves(straight), jax.tree.leaves(turned), strict=True):
    np.testing.assert_array_equal(a.reshape(4, 4, *a.shape[1:]), b.reshape(4, 4, *b.shape[1:])[::-1])
  again = jax.device_get(writer.decode(params, prompts, group=4, seed=1))
  assert (again.tokens.text != straight.tokens.text).any()


@pytest.mark.parametrize('config', ['plain', 'guided'])
def test_a_group_is_diverse_and_its_members_equal_single_requests(config):
  layout_, _, params = setting('flat')
  _, group = decoded('flat', config)
  repeated = [prompt for prompt in prompts_of(layout_) for _ in range(4)]
  single = jax.device_get(writer_of('flat', config).decode(params, repeated))
  np.testing.assert_array_equal(group.tokens.text, single.tokens.text)
  np.testing.assert_array_equal(group.tokens.codes, single.tokens.codes)
  for rows in group.tokens.text.reshape(4, 4, -1):
    assert len({row.tobytes() for row in rows}) == 4


@pytest.mark.parametrize('config', ['plain', 'guided'])
def test_a_group_holds_its_prompt_once(config):
  layout_, definition, params = setting('flat')
  mesh = sharding.make_mesh({'fsdp': 2, 'tensor': 4})
  writer = Decoder(definition, layout_, mesh, CONFIGS[config])
  prompts = writer.stack(prompts_of(layout_))
  start = lambda params, prompts, requests, group: writer.start(writer.bind(params), prompts, requests, group)
  held = lambda count, group: jax.eval_shape(
      functools.partial(start, group=group), params, jax.tree.map(lambda a: a[:count], prompts), np.arange(count * group)).cache
  width, length = len(CONFIGS[config].branches), prompts.text.shape[1]
  (layer, *_), (alone, *_), (odd, *_) = held(4, 4).layers, held(4, 1).layers, held(3, 4).layers
  assert layer.keys.shape[:1] + layer.keys.shape[2:3] == (16 * width, 0)
  assert layer.prompt.keys.shape[:2] + layer.prompt.keys.shape[3:4] == (4, width, length)
  assert alone.prompt is None and alone.keys.shape[2] == length
  # Three prompts do not divide between two devices: each of the twelve rows keeps its own where it is.
  assert odd.prompt is None and odd.keys.shape[:1] + odd.keys.shape[2:3] == (12 * width, length)


@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(seed=strategies.integers(0, 2**31 - 1), name=strategies.sampled_from(sorted(LAYOUTS)),
                  begin=strategies.floats(0, 12), end=strategies.floats(-4, 6))
def test_every_completion_parses_under_the_image_template(seed, name, begin, end):
  layout_, _, _ = setting(name)
  params = small_model.eager(base_params(name), layout_, begin, end)
  out = jax.device_get(writer_of(name, 'guided').decode(params, prompts_of(layout_), group=4, seed=seed))
  for row in range(16):
    assert in_template(out.tokens, row, layout_) <= CONFIGS['guided'].max_images
    length = (out.tokens.modality[row] != PADDING).sum()
    ends = out.tokens.text[row, length - 1] == layout_.special('</s>') and not out.tokens.forced[row, length - 1]
    assert out.finish[row] == (decoder.END if ends else decoder.LENGTH)
    assert ends or length == CONFIGS['guided'].max_positions


@functools.cache
def base_params(name):
  return setting(name)[1].init(jax.random.key(2), small_model.one_device())


def test_no_image_where_none_fits():
  layout_, definition, params = setting('flat')
  for positions, possible in ((5, False), (6, True)):
    writer = Decoder(definition, layout_, small_model.one_device(), dataclasses.replace(BASE, max_positions=positions))
    tokens = jax.device_get(writer.decode(params, prompts_of(layout_), group=4)).tokens
    assert (tokens.modality == CODES).any() == possible
    assert (tokens.text == layout_.block.begin).any() == possible


def test_stop_rules():
  layout_, definition, params = setting('flat')
  config = dataclasses.replace(BASE, max_images=1, stop_after_images=True, stop=('</s>', '<think>'))
  writer = Decoder(definition, layout_, small_model.one_device(), config)
  out = jax.device_get(writer.decode(params, prompts_of(layout_), group=4))
  assert {decoder.END, decoder.MAX_IMAGES} <= set(out.finish.tolist())
  for row, finish in enumerate(out.finish):
    length = int((out.tokens.modality[row] != PADDING).sum())
    last = out.tokens.text[row, length - 1]
    assert finish != decoder.MAX_IMAGES or (out.tokens.forced[row, length - 1] and last == layout_.block.template[-1])
    assert finish != decoder.END or last in (layout_.special('</s>'), layout_.special('<think>'))
    assert not (out.tokens.text[row, :length - 1] == layout_.special('<think>')).any()


def test_steps_are_bounded():
  layout_, _, params = setting('flat')
  think = layout_.special('<think>')
  keen = params | {'text_head': params['text_head'].at[0, think].set(4.0)}
  out = jax.device_get(writer_of('flat', 'controlled').decode(keen, prompts_of(layout_), group=4))
  free = jax.device_get(writer_of('flat', 'plain').decode(keen, prompts_of(layout_), group=4))
  steps, unbound = ((found.tokens.text == think).sum(1) for found in (out, free))
  assert steps.max() == 2 and unbound.max() > 2
  assert (steps >= 1)[out.finish == decoder.END].all() and (unbound == 0)[free.finish == decoder.END].any()


def test_completion_fields():
  prompts, out = decoded('flat', 'plain')
  real = out.tokens.modality != PADDING
  lengths = np.repeat((prompts.document > 0).sum(1), 4)
  expected = lengths[:, None] + np.arange(real.shape[1])
  np.testing.assert_array_equal(out.tokens.position, np.where(real, expected, 0))
  np.testing.assert_array_equal(out.tokens.document, real)
  np.testing.assert_array_equal(out.tokens.turn, np.where(real, np.repeat([0, 0, 0, 1], 4)[:, None], -1))
  np.testing.assert_array_equal(out.tokens.loss, real & ~out.tokens.forced)
  whole = join(prompts, out)
  assert whole.loss[:, :prompts.text.shape[1]].sum() == 0
  for row, (position, document) in enumerate(zip(np.asarray(whole.position), np.asarray(whole.document), strict=True)):
    np.testing.assert_array_equal(position[document > 0], np.arange((document > 0).sum()), err_msg=f'row {row}')


def test_rollout_inside_another_jit_and_idle_rows():
  layout_, definition, params = setting('flat')
  writer = Decoder(definition, layout_, small_model.one_device(), BASE)
  prompts = writer.stack(prompts_of(layout_))
  idle = jax.tree.map(lambda a: a.copy(), prompts)
  for field in dataclasses.fields(idle):
    getattr(idle, field.name)[1] = layout.FILL.get(field.name, 0)

  @jax.jit
  def mean_length(params, prompts, requests):
    out = writer.rollout(params, prompts, requests, 0, group=2)
    return jnp.sum(out.tokens.document, axis=1)

  full = mean_length(params, prompts, jnp.arange(8, dtype=jnp.uint32))
  some = mean_length(params, idle, jnp.arange(8, dtype=jnp.uint32))
  np.testing.assert_array_equal(some, np.where(np.arange(8) // 2 == 1, 0, full))


def test_bfloat16_stays_near_the_full_forward():
  layout_, definition, params = setting('flat', dtype='bfloat16')
  writer = Decoder(definition, layout_, small_model.one_device(), CONFIGS['guided'])
  prompts = prompts_of(layout_)
  out = jax.device_get(writer.decode(params, prompts, group=4))
  text, codes = scores_of(definition, params, join(writer.stack(prompts), out))
  room = text.shape[1] - BASE.max_positions
  scored = (out.tokens.modality != PADDING) & ~out.tokens.forced
  error = np.abs(out.plain_log_prob - (text + codes.sum(-1))[:, room:])[scored]
  # bfloat16 keeps 8 bits; the heads multiply the error of the hidden state by about 20 (small_model.eager).
  assert error.mean() < 0.1 and error.max() < 1.0, (error.mean(), error.max())


@pytest.mark.parametrize('field, value', [
    ('max_positions', 0), ('text_top_p', 0.0), ('image_temperature', -1.0), ('guidance', -2), ('text_repetition', 0),
    ('stop', ())])
def test_a_bad_setting_is_named(field, value):
  with pytest.raises(UserError, match=f'decode.{field}'):
    DecodeConfig(**{field: value})
  layout_, definition, _ = setting('flat')
  with pytest.raises(UserError, match='decode.stop: this tokenizer has no token <stop>'):
    Decoder(definition, layout_, small_model.one_device(), dataclasses.replace(BASE, stop=('<stop>',)))
