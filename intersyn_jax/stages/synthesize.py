"""Stage `synthesize`: SEIR. Topics and templates in, conversations out (DESIGN 7).

Files in WORKDIR/synthesize: `data/` (splits `refined` and `unrefined` with their manifest), `windows/` (what each window of ids
gave, with the whole trace), `traces.jsonl` (a few conversations round by round, for the report), `dataset.html` (the page of the
data set).

Each process of a job makes windows of its own with its own devices, so that what a window holds does not depend on how many
processes there are, nor on which of them made it.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from etils import epath

from intersyn_jax import bucket, sharding
from intersyn_jax.data import manifest
from intersyn_jax.data.importers import rows
from intersyn_jax.data.storyworld import language, topics
from intersyn_jax.errors import UserError
from intersyn_jax.stages import imports
from intersyn_jax.stages.common import Run, barrier, leaves
from intersyn_jax.stages.page import dataset
from intersyn_jax.stages.parts import Parts
from intersyn_jax.synthesis import engine, record, seir, served
from intersyn_jax.synthesis.interfaces import Crew, OwnCritic
from intersyn_jax.synthesis.judging import JudgeWorker
from intersyn_jax.synthesis.unified import Rooms, UnifiedWorker
from intersyn_jax.training.metrics import replace_text

STAGE = 'synthesize'


def run(run: Run) -> dict[str, Any]:
  config, directory = run.config.synthesize, run.directory(STAGE)
  method, dropped = method_of(run)
  for row in dropped:
    run.say(f'{STAGE}: {row.where} {row.reason}')
  windows = [range(start, min(start + config.window, config.conversations))
             for start in range(0, config.conversations, config.window)]
  folder = directory / 'windows'
  left = [number for number in range(len(windows)) if not record.is_complete(folder, number)]
  barrier(f'{STAGE}-begin')  # all count the same windows before the first new one is there
  mine = left[jax.process_index()::jax.process_count()]
  if left:
    parts = Parts(run, jax.local_devices())
    crew = crew_of(run, parts, method)
    total = sum(map(len, windows))
    progress = run.progress(STAGE, total, total - sum(len(windows[number]) for number in left), 'conversation')
    for number in mine:
      begun = progress.done
      made, twins, loads = make(crew, method, windows[number], config,
                                on_batch=lambda share, begun=begun, number=number: progress.update(
                                    begun + int(share * len(windows[number]))))
      record.write_window(folder, number, made, twins, loads, parts.decode, similarity=config.duplicate_similarity)
      bucket.push()
      progress.update(begun + len(windows[number]))
    progress.close()
  barrier(f'{STAGE}-windows')
  if run.active:
    records = record.assemble(folder, len(windows), directory / 'data', similarity=config.duplicate_similarity,
                              shard_records=config.shard_records,
                              settings={'seed': method.seed, 'config': run.config_hash(STAGE)})
    if not records:
      run.say(f'{STAGE}: every conversation was rejected; {directory / "data" / "manifest.json"} lists the reasons')
    _write_examples(run, folder, len(windows))
    dataset.write(folder, len(windows), directory / 'data', directory / 'dataset.html')
  barrier(f'{STAGE}-data')
  metrics = record.metrics(folder, len(windows), directory / 'data') | (counters(crew) if left else {})
  _write_curve(run, folder, len(windows), config.window)
  return metrics


def make(crew: Crew, method: seir.Method, window: Iterable[int], config: Mapping[str, Any], *,
         on_batch: Callable[[float], None] | None = None):
  """Makes the conversations of a window, and beside them the same ones without refinement where `config.unrefined` says so.

  Args:
    on_batch: called after each batch with the share of the window that is done.

  Returns:
    products, unrefined products (none where they are not asked for), how full the batches of each lane were.
  """
  methods = [method, *([method.unrefined()] if config.unrefined else [])]
  # Long conversations first, unrefined ones last: so the last batches stay full for longest.
  jobs = [(twin, i, seir.plan(m, i)) for twin, m in enumerate(methods) for i in window]
  jobs.sort(key=lambda job: (job[0], -len(job[2].templates)))
  samples = {(twin, i): seir.converse(job, methods[twin]) for twin, i, job in jobs}
  loads: dict[str, engine.Load] = {}
  known: dict = {}
  made = engine.advance(crew, samples, in_flight=config.in_flight, loads=loads, known=known,
                        on_batch=on_batch and (lambda ended: on_batch(ended / len(samples))))
  if config.rate_finished:
    made = engine.rate_finished(crew, made, loads=loads, known=known)
  of = lambda twin: [made[twin, i] for i in window if (twin, i) in made]
  return of(0), of(1), loads


def method_of(run: Run) -> tuple[seir.Method, list[manifest.Rejected]]:
  """The method that the configuration describes, and the topics and templates that were dropped."""
  config, data = run.config.synthesize, run.config.data
  if config.accept not in seir.ACCEPT:
    raise UserError(f'config.synthesize.accept is {config.accept!r}; use always (as the paper), gated or best')
  for field in ('conversations', 'window', 'in_flight', 'shard_records'):
    if config[field] < 1:
      raise UserError(f'config.synthesize.{field} is {config[field]}; make it at least 1')
  if not 0 <= config.enough <= 5:
    raise UserError(f'config.synthesize.enough is {config.enough}; scores go from 0 to 5')
  dropped = []
  if config.topics:
    subjects, dropped = rows.load_topics(config.topics)
  else:
    subjects = [str(topic) for topic in topics.topics_of('policy')]
  if config.templates:
    first, more = rows.load_templates(config.templates)
    later, dropped = first, dropped + more
  else:
    first, later = (language.templates(is_first, tuple(data.steps)) for is_first in (True, False))
  method = seir.Method(
      seed=run.config.seed, topics=subjects, templates=first, later_templates=later, turns=tuple(config.turns),
      rounds=seir.Rounds(**config.rounds), accept=config.accept, enough=config.enough, pictures=config.history_pictures,
      retries=config.retries, question_words=config.word_limits.question, caption_words=config.word_limits.caption,
      max_steps=run.config.decode.max_images, draw=served.DRAW if config.endpoints.images.url else language.DRAW)
  return method, dropped


def crew_of(run: Run, parts: Parts, method: seir.Method) -> Crew:
  """The writer in all three jobs, but for those that a server or a critic of one's own does; and SynJudge where the method asks
  for it."""
  config = run.config.synthesize
  judged = method.accept != seir.ALWAYS or config.rate_finished
  run.require('tokenizer', *(['judge'] if judged else []))
  hired = served.served(config.endpoints, method, seed=method.seed, decode=parts.decode, encode=parts.encode,
                        pixels=run.config.data.pixels)
  language, critic, pictures = hired.language, hired.critic or own_critic(parts), hired.images
  rooms = Rooms(**config.rooms)
  if None in (language, critic, pictures):
    run.require('warmup')
    sharding.check_rows(parts.mesh, config.rows, 'synthesize.rows')
    decoder = functools.partial(parts.decoder, text_temperature=config.text_temperature, text_top_p=config.text_top_p,
                                image_temperature=config.image_temperature)
    writer = UnifiedWorker(decoder, parts.policy('writer'), parts.layout, seed=method.seed, rooms=rooms, rows=config.rows)
    language, critic, pictures = language or writer, critic or writer, pictures or writer
  judge = JudgeWorker(*parts.judge(), rows=config.rows, sizes=rooms.judged) if judged else None
  return Crew(language, critic, pictures, judge)


def counters(crew: Crew) -> dict[str, Any]:
  """What the servers were asked in this start, and what it cost, by job."""
  found = {job: getattr(crew, job).counters() for job in ('language', 'critic', 'images')
           if isinstance(getattr(crew, job), served.ServedChat | served.ServedImages)}
  return {f'endpoints.{name}': value for name, value in leaves(found) if not isinstance(value, dict)}


def own_critic(parts: Parts) -> OwnCritic | None:
  """The critic that `synthesize.critic` names, None where it names none; its constructor is given the parts."""
  value = parts.config.synthesize.critic
  if not value:
    return None
  critic = imports.construct(value, 'synthesize.critic', 'a critic', parts)
  if not isinstance(critic, OwnCritic):
    raise UserError(f'config.synthesize.critic: {imports.name_of(value)} constructs a {type(critic).__name__}; it must be an '
                    'OwnCritic (intersyn_jax.synthesis.interfaces)')
  return critic


def _write_examples(run: Run, folder: epath.Path, windows: int) -> None:
  """The conversations with most rounds, for the report."""
  rounds = lambda row: sum(len(group) for turn in row['turns']
                           for group in (turn['question_rounds'], turn['answer_rounds'], *turn['image_rounds']))
  traces = itertools.islice((row for row in record.read_traces(folder, windows) if row['accepted']), 200)
  chosen = sorted(traces, key=lambda row: (-rounds(row), row['id']))[:run.config.report.conversations]
  replace_text(run.directory(STAGE) / 'traces.jsonl', ''.join(json.dumps(row) + '\n' for row in chosen))


def _write_curve(run: Run, folder: epath.Path, windows: int, size: int) -> None:
  """One row of metrics a window; all are written again, as windows never change."""
  with run.metrics(STAGE) as writer:
    for number in range(windows):
      writer.write((number + 1) * size, record.window_metrics(record.read_window(folder, number)))
