"""Continuous batching: what comes out is what the rows would have written by themselves."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from intersyn_jax import sharding
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import END, GOING, LENGTH, Decoder
from intersyn_jax.decoding.serving import Server
from intersyn_jax.interleave import layout
from tests import small_model

CONFIG = DecodeConfig(max_positions=26, max_images=2, chunk=4, bucket=8)
QUESTIONS = ('a red circle at the top left', 'a', 'move the blue square', 'circle', 'a red', 'top', 'the blue square at the top')


@functools.cache
def setting(depth: int = 1):
  layout_ = small_model.plain(depth)
  definition = small_model.definition(layout_)
  params = small_model.eager(definition.init(jax.random.key(1), small_model.one_device()), layout_)
  prompts = [layout.prompt(small_model.question(q), layout_) for q in QUESTIONS]
  return layout_, definition, params, [*prompts, layout.prompt(small_model.conversation(layout_), layout_)]


def served(server, prompts, **options):
  """All columns of each completion, joined, and why it is over."""
  columns, finish = {}, {}
  for piece in server.stream(prompts, **options):
    assert piece.number not in finish, 'nothing may come after the end'
    columns.setdefault(piece.number, []).append(piece.columns)
    if piece.finish != GOING:
      finish[piece.number] = piece.finish
  return {number: jax.tree.map(lambda *parts: np.concatenate(parts), *pieces) for number, pieces in columns.items()}, finish


@pytest.mark.parametrize('depth, guidance, rows', [
    (1, 1.0, 3), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((4, 2.5, 5), (1, 2.5, 64)))])
def test_the_same_as_all_at_once(depth, guidance, rows):
  layout_, definition, params, prompts = setting(depth)
  decoder = Decoder(definition, layout_, small_model.one_device(), dataclasses.replace(CONFIG, guidance=guidance))
  whole = jax.device_get(decoder.decode(params, prompts, group=3, seed=4))
  server = Server(decoder, params, rows)
  found, finish = served(server, prompts, group=3, seed=4)
  assert sorted(found) == list(range(24)) and set(finish.values()) == {END, LENGTH}
  same = []
  for number, columns in found.items():
    length = int((whole.tokens.modality[number] > 0).sum())
    same.append(len(columns.text) == length and np.array_equal(columns.text, whole.tokens.text[number, :length])
                and np.array_equal(columns.codes, whole.tokens.codes[number, :length]))
    if same[-1]:
      assert finish[number] == whole.finish[number]
      for name in ('log_prob', 'plain_log_prob', 'code_log_prob', 'plain_code_log_prob'):
        np.testing.assert_allclose(getattr(columns, name), getattr(whole, name)[number, :length], atol=1e-4)
  assert np.mean(same) > 0.85, 'more than near-ties differ'
  assert 0.2 < server.filled <= 1


def test_rows_are_refilled_and_the_mesh_is_respected():
  layout_, definition, params, prompts = setting()
  mesh = sharding.make_mesh({'fsdp': 2, 'tensor': 4})
  decoder = Decoder(definition, layout_, mesh, CONFIG)
  server = Server(decoder, jax.device_put(jax.device_get(params), definition.shardings(mesh)), 3)
  assert server.rows == 4
  found, _ = served(server, prompts, group=2)
  one, _ = served(Server(Decoder(definition, layout_, small_model.one_device(), CONFIG), params, 4), prompts, group=2)
  assert sorted(found) == list(range(16))
  assert np.mean([np.array_equal(found[i].text, one[i].text) for i in found]) > 0.8
  assert server.filled > 0.7, 'short completions should have made room for others'


def test_every_completion_keeps_the_template():
  layout_, definition, params, prompts = setting()
  found, finish = served(Server(Decoder(definition, layout_, small_model.one_device(), CONFIG), params, 2), prompts, seed=9)
  forbidden = set(layout_.structure.tolist())
  for number, columns in found.items():
    chosen = columns.text[(columns.modality == layout.TEXT) & ~columns.forced]
    assert not forbidden & set(chosen.tolist())
    blocks = (chosen == layout_.block.begin).sum()
    assert (columns.modality == layout.CODES).sum() == blocks * layout_.block.places
    assert (chosen[-1] == layout_.special('</s>')) == (finish[number] == END)


def test_no_request_and_too_few_ids():
  layout_, definition, params, prompts = setting()
  server = Server(Decoder(definition, layout_, small_model.one_device(), CONFIG), params, 2)
  assert list(server.stream([])) == []
  with pytest.raises(ValueError, match='3 request ids for 8 prompts of 1'):
    next(server.stream(prompts, request_ids=[1, 2, 3]))
