"""A real unified model, tiny and untrained, in all three jobs; and SynJudge as a worker."""

import copy
import dataclasses
import functools

import jax
import numpy as np
import pytest

from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import Decoder
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn
from intersyn_jax.judge import model as judge_model
from intersyn_jax.judge.views import Widths
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.unified import ModelConfig
from intersyn_jax.synthesis import engine, seir
from intersyn_jax.synthesis.interfaces import Address, Crew, Draw, Look, Rate, Reply, Write
from intersyn_jax.synthesis.judging import JudgeWorker
from intersyn_jax.synthesis.unified import Rooms, UnifiedWorker
from tests import small_model
from tests.synthesis import fake

ROOMS = Rooms(prompts=(128,), short=8, long=8, critic=8)
LAYOUT = small_model.plain()
PLAIN = (Text('a'),)
DEFINITION = small_model.definition(LAYOUT, layers=1)


@functools.cache
def decoder(**fields) -> Decoder:
  """Compiled once for all tests."""
  return Decoder(DEFINITION, LAYOUT, small_model.one_device(), dataclasses.replace(DecodeConfig(), **fields))


@functools.cache
def fresh():
  return DEFINITION.init(jax.random.key(1), small_model.one_device())


@functools.cache
def writer(end: float = 8.0, begin: float = 0.0) -> UnifiedWorker:
  """Writes short nonsense, or mostly pictures with `begin` above `end`."""
  params = small_model.eager(copy.deepcopy(fresh()), LAYOUT, begin=begin, end=end)
  return UnifiedWorker(decoder, params, LAYOUT, seed=0, rooms=ROOMS, rows=4)


def answer(worker, requests):
  """Answers of some requests in batches by lane, in their order."""
  out = {}
  tickets = {i: worker.prepare(request) for i, request in enumerate(requests)}
  for lane in {ticket.lane for ticket in tickets.values()}:
    mine = [i for i, ticket in tickets.items() if ticket.lane == lane]
    for start in range(0, len(mine), worker.rows):
      part = mine[start:start + worker.rows]
      size = max(tickets[i].size for i in part)
      out.update(zip(part, worker.run(lane, size, [tickets[i] for i in part]), strict=True))
  return [out[i] for i in range(len(requests))]


def text(words: str):
  return (Text(words),)


def test_garbage_is_rejected_with_its_reason_and_nothing_crashes():
  """Untrained words: unreadable, or cut; every conversation has its reason, and each call its problem."""
  method = fake.method(retries=1, rounds=seir.Rounds(1, 1, 1))
  crew = Crew(writer(), writer(), writer())
  made = engine.advance(crew, {i: seir.converse(seir.plan(method, i), method) for i in range(6)})
  for product in made.values():
    assert product.conversation is None
    role, problem = product.reason.split(': ', 1)
    assert role in ('question_write', 'answer_write') and problem
  again = engine.advance(crew, {i: seir.converse(seir.plan(method, i), method) for i in range(6)})
  assert [p.turns for p in again.values()] == [p.turns for p in made.values()]
  calls = [call for product in made.values() for turn in product.turns for call in turn.calls]
  assert any(call.output for call in calls) and {call.address.retry for call in calls} == {0, 1}


def test_an_answer_depends_on_its_address_alone_and_not_on_its_batch():
  requests = [Write(Address('c', i, 'question_write'), text('a red circle')) for i in range(4)]
  requests += [Draw(Address('c', i, 'draw'), text('draw the blue square')) for i in range(4)]
  worker = writer(end=3.5, begin=4.0)
  together = answer(worker, requests)
  alone = [answer(worker, [request])[0] for request in requests]
  assert together == alone
  assert len({reply.text for reply in together[:4]}) > 1  # the address decides, not the prompt
  other = answer(worker, [dataclasses.replace(r, address=dataclasses.replace(r.address, retry=1)) for r in requests])
  assert other != together


def test_pictures_have_the_codes_of_the_layout_and_a_missing_one_is_none():
  found = answer(writer(end=-30.0, begin=30.0), [Draw(Address('c', i, 'draw'), text('draw it')) for i in range(4)])
  for image in found:
    assert image.codes.shape == (LAYOUT.block.places, LAYOUT.block.depth) and image.data == b''
  assert answer(writer(end=30.0, begin=-30.0), [Draw(Address('c', 0, 'draw'), text('draw it'))]) == [None]


def test_a_cut_completion_and_a_prompt_that_fits_nowhere_are_problems():
  long = text('a red circle ' * 100)
  found = answer(writer(end=-30.0), [Write(Address('c', 0, 'question_write'), text('a')),
                                     Write(Address('c', 0, 'question_write'), long), Draw(Address('c', 0, 'draw'), long)])
  assert found[0].problem == 'cut at 8 positions'
  assert found[1] == Reply('', 'the prompt has more than 128 positions') and found[2] is None


def test_lanes():
  """Critics take the likeliest word, and draw only after a completion that could not be read; pictures are looked at."""
  worker = writer()
  lane = lambda kind, role, retry=0, prompt=PLAIN: worker.prepare(kind(Address('c', 0, role, retry=retry), prompt)).lane
  assert lane(Write, 'question_write') == lane(Write, 'caption_revise') == 'short'
  assert lane(Write, 'answer_write') == lane(Write, 'answer_revise') == 'long'
  assert lane(Write, 'question_critique') == lane(Write, 'answer_critique') == 'critic'
  picture = (Text('look'), small_model.image(LAYOUT))
  assert lane(Look, 'image_critique', prompt=picture) == 'critic' and lane(Look, 'image_critique', 1, picture) == 'short'
  critique = [Look(Address('c', 0, 'image_critique', round=k), picture) for k in range(3)]
  assert len(set(answer(writer(end=3.5), critique))) == 1
  seen = [Look(Address('c', 0, 'image_critique', retry=1), (Text('look'), small_model.image(LAYOUT, k))) for k in range(4)]
  assert len({reply.text for reply in answer(writer(end=0.0), seen)}) > 1  # what the picture holds matters


# SynJudge.


@functools.cache
def judge(its: int = 64) -> JudgeWorker:
  block = LAYOUT.block
  trunk = TrunkConfig(width=32, layers=1, heads=4, kv_heads=2, head_width=8, mlp_width=64)
  config = ModelConfig(trunk, LAYOUT.tokenizer.size, block.places, block.depth, block.codebook, mix=4)
  definition = judge_model.define(config, 1, 1)
  params = definition.init(jax.random.key(2), small_model.one_device())
  params['score_head'] = params['score_head'] * 50
  bound = judge_model.SynJudge(definition, LAYOUT, Widths(48, 48, its), 3)
  return JudgeWorker(bound, params, rows=4)


def rated(*segments) -> Rate:
  return Rate(Conversation('c', 't', (Turn(text('move the red circle'), segments),)))


def test_ratings_have_the_whole_and_each_step():
  one, two = small_model.image(LAYOUT, 0), small_model.image(LAYOUT, 1)
  short, long = answer(judge(), [rated(Text('a red'), one), rated(Text('a red'), one, Text('the blue'), two)])
  assert len(short.steps) == 1 and len(long.steps) == 2
  np.testing.assert_allclose(short.steps[0], long.steps[0], atol=1e-5)  # a step is scored given the steps before it
  assert all(0 < value < 5 for value in (*long.whole, *long.steps[1]))


def test_an_answer_that_cannot_be_judged_has_no_rating():
  long = rated(Text('a red circle ' * 60), small_model.image(LAYOUT))
  four = rated(*[part for i in range(4) for part in (Text('a'), small_model.image(LAYOUT, i))])
  assert answer(judge(), [long, four]) == [None, None]


def test_images_without_codes_are_refused_by_name():
  with pytest.raises(UserError, match='codes'):
    writer().prepare(Look(Address('c', 0, 'image_critique'), (Image(b'\x89PNG'),)))
