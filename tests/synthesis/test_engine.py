"""The engine: full batches of mixed roles, and results that do not depend on them."""

from intersyn_jax.synthesis import engine, seir
from intersyn_jax.synthesis.interfaces import Draw, Look, Rate
from tests.synthesis import fake


def run(count, rows=8, answer=fake.usual, **fields):
  method, actor, loads = fake.method(turns=(1, 2), **fields), fake.Actor(answer, rows), {}
  samples = {i: seir.converse(seir.plan(method, i), method) for i in range(count)}
  return engine.advance(fake.crew(actor), samples, loads=loads), actor, loads


def test_results_do_not_depend_on_the_batches():
  made = {rows: run(20, rows)[0] for rows in (1, 7, 64)}
  for other in (7, 64):
    assert [p.conversation for p in made[1].values()] == [p.conversation for p in made[other].values()]
    assert [p.turns for p in made[1].values()] == [p.turns for p in made[other].values()]


def test_the_same_window_always_makes_the_same_batches():
  one, two = (run(20)[1].batches for _ in range(2))
  assert [[r.address for r in batch] for batch in one] == [[r.address for r in batch] for batch in two]


def test_batches_are_full_and_mix_roles():
  made, actor, loads = run(64, rows=16)
  assert sum(load.requests for load in loads.values()) == len(actor.requests)
  fill = len(actor.requests) / sum(load.rows for load in loads.values())
  assert fill >= 0.85
  assert any(len({request.address.role for request in batch}) > 1 for batch in actor.batches)
  assert len(made) == 64 and list(made) == list(range(64))


def test_one_worker_in_two_jobs_shares_batches():
  method = fake.method()
  actor = fake.Actor(rows=64, lane=lambda r: 'draw' if isinstance(r, Draw) else 'rate' if isinstance(r, Rate) else 'text')
  # One conversation is behind by an unreadable question, so that the others look while it writes.
  samples = {i: seir.converse(seir.plan(method, i), fake.method(rounds=seir.Rounds(i % 3, 1, 2))) for i in range(24)}
  engine.advance(fake.crew(actor), samples)
  kinds = [{type(request) for request in batch} for batch in actor.batches]
  assert any(Look in kind and len(kind) > 1 for kind in kinds)


def test_a_small_request_rides_in_a_larger_batch_of_its_lane():
  sizes = []

  class Sized(fake.Actor):
    def run(self, lane, size, tickets):
      sizes.append({ticket.size for ticket in tickets})
      assert size == max(sizes[-1])
      return super().run(lane, size, tickets)

  method, actor = fake.method(), Sized(rows=32, lane=lambda request: 'all')
  engine.advance(fake.crew(actor), {i: seir.converse(seir.plan(method, i), method) for i in range(16)})
  assert any(len(group) > 1 for group in sizes)


def test_equal_requests_are_answered_once():
  method, actor = fake.method(), fake.Actor()
  made = engine.advance(fake.crew(actor), {name: seir.converse(seir.plan(method, 5), method) for name in 'ab'})
  assert made['a'].conversation == made['b'].conversation
  assert len(actor.requests) == len({request.address for request in actor.requests})


def test_no_more_run_at_once_than_may_and_results_are_the_same():
  method, actor = fake.method(turns=(1, 2)), fake.Actor(rows=8)
  running, most = set(), []

  def watched(i):
    running.add(i)
    most.append(len(running))
    made = yield from seir.converse(seir.plan(method, i), method)
    running.remove(i)
    return made

  made = engine.advance(fake.crew(actor), {i: watched(i) for i in range(40)}, in_flight=10)
  assert max(most) == 10 and list(made) == list(range(40))
  assert [p.conversation for p in made.values()] == [p.conversation for p in run(40)[0].values()]


def test_batches_stay_full_with_64_conversations_in_flight():
  """The goal of the data engine: 85 % at least."""
  method, actor, loads = fake.method(turns=(1, 2)), fake.Actor(rows=16), {}
  samples = {i: seir.converse(seir.plan(method, i), method) for i in range(256)}
  engine.advance(fake.crew(actor), samples, in_flight=64, loads=loads)
  assert sum(load.requests for load in loads.values()) / sum(load.rows for load in loads.values()) >= 0.85


def test_what_is_known_already_needs_no_batch_however_many_there_are():
  method, actor, known = fake.method(), fake.Actor(rows=64), {}
  job = seir.plan(method, 0)
  engine.advance(fake.crew(actor), {0: seir.converse(job, method)}, known=known)
  asked = len(actor.requests)
  made = engine.advance(fake.crew(actor), {i: seir.converse(job, method) for i in range(3000)}, in_flight=4, known=known)
  assert len(made) == 3000 and len(actor.requests) == asked
