"""Runs many conversations at once: collects what they wait for and answers it in full batches.

Always the fullest batch there can be is run next: a lane with `rows` requests or more before any that has fewer. What
runs together follows from the conversations alone, never from time, so that a window that is run again gives the same
results to the bit.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

from intersyn_jax.interleave.types import Score
from intersyn_jax.synthesis.interfaces import Crew, Request, Result, Ticket, Worker
from intersyn_jax.synthesis.seir import Product, Steps, rate

K = TypeVar('K', bound=Hashable)
T = TypeVar('T')


@dataclasses.dataclass
class Load:
  """How full the batches of a lane were, and what they cost."""

  batches: int = 0
  requests: int = 0
  rows: int = 0
  seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class _Waiting:
  """A request with its ticket, and who waits for the result."""

  request: Request
  worker: Worker
  ticket: Ticket
  order: int
  samples: list[Hashable]


def advance(crew: Crew, samples: Mapping[K, Steps[T]], *, in_flight: int = 0, on_batch: Callable[[int], None] | None = None,
            loads: dict[str, Load] | None = None, known: dict[Request, Result] | None = None) -> dict[K, T]:
  """Runs generators to their ends, side by side.

  Equal requests (same address, same prompt) are answered once, so that a conversation and its unrefined twin share what
  they have in common.

  Args:
    crew: who answers.
    samples: generators of requests by name; they are begun in this order. Long ones first keeps the last batches full.
    in_flight: how many run at once at most; the next begins when one ends. 0 runs all at once.
    on_batch: called after each batch with the number of samples that have ended.
    loads: is added to, by lane.
    known: results that are there already; is added to.

  Returns:
    what each generator returned.
  """
  known = {} if known is None else known
  waiting: dict[Request, _Waiting] = {}
  ended: dict[K, T] = {}
  order = 0

  def step(name: K, result: Result) -> None:
    """Sends a result and goes on until the sample has to wait or ends."""
    nonlocal order
    while True:
      try:
        request = samples[name].send(result)
      except StopIteration as stop:
        ended[name] = stop.value
        return
      if request in known:
        result = known[request]
        continue
      if request not in waiting:
        worker = crew.worker(request)
        waiting[request] = _Waiting(request, worker, worker.prepare(request), order, [])
        order += 1
      waiting[request].samples.append(name)
      return

  def begin() -> None:
    """Begins as many as may run beside those that have not ended."""
    nonlocal begun
    while begun < len(names) and begun - len(ended) < (in_flight or len(names)):
      begun += 1
      step(names[begun - 1], None)

  names, begun = list(samples), 0
  begin()
  while waiting:
    batch = fullest(waiting.values())
    worker, lane, size = batch[0].worker, batch[0].ticket.lane, batch[0].ticket.size
    start = time.monotonic()
    results = worker.run(lane, size, [entry.ticket for entry in batch])
    if loads is not None:
      load = loads.setdefault(lane, Load())
      load.batches, load.requests, load.rows = load.batches + 1, load.requests + len(batch), load.rows + worker.rows
      load.seconds += time.monotonic() - start
    for entry, result in zip(batch, results, strict=True):
      known[entry.request] = result
      del waiting[entry.request]
    for entry in batch:
      for name in entry.samples:
        step(name, known[entry.request])
    begin()
    if on_batch is not None:
      on_batch(len(ended))
  return {name: ended[name] for name in samples}


def fullest(waiting) -> list[_Waiting]:
  """The next batch: of the lane with most requests, at most `rows`, largest first; the first is as large as any."""
  lanes: dict[tuple[int, str], list[_Waiting]] = {}
  for entry in waiting:
    lanes.setdefault((id(entry.worker), entry.ticket.lane), []).append(entry)
  # Entries come in the order in which they were asked for; so do lanes, and the first of equally full ones is taken.
  best = max(lanes.values(), key=lambda entries: min(len(entries), entries[0].worker.rows) / entries[0].worker.rows)
  best.sort(key=lambda entry: (-entry.ticket.size, entry.order))
  return best[:best[0].worker.rows]


def rate_finished(crew: Crew, made: Mapping[K, Product], **options) -> dict[K, Product]:
  """The products with the judge's scores of all their answers, rated together at the end; options as for `advance`."""
  places = [(name, turn) for name, product in made.items() if product.conversation is not None
            for turn in range(len(product.conversation.turns))]
  found = advance(crew, {(name, turn): rate(made[name].conversation, turn) for name, turn in places}, **options)
  scores: dict[K, list[Score]] = {}
  for name, turn in places:
    scores.setdefault(name, []).extend(found[name, turn])
  return {name: product if name not in scores else dataclasses.replace(
      product, conversation=dataclasses.replace(product.conversation, scores=tuple(scores[name])))
          for name, product in made.items()}
