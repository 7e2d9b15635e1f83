"""Stage `synthesize`: SEIR. Topics and templates in, conversations out (DESIGN 7).

Files in WORKDIR/synthesize: `data/` (splits `refined` and `unrefined` with their manifest), `windows/` (what each window of ids
gave, with the whole trace), `traces.jsonl` (a few conversations round by round, for the report).
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

from etils import epath

from intersyn_jax.data import manifest
from intersyn_jax.data.importers import rows
from intersyn_jax.data.storyworld import language, topics
from intersyn_jax.errors import UserError
from intersyn_jax.stages import imports
from intersyn_jax.stages.common import Run, barrier
from intersyn_jax.stages.parts import Parts
from intersyn_jax.synthesis import engine, record, seir
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
  done = [number for number in range(len(windows)) if record.window_folder(folder, number).exists()]
  if len(done) < len(windows):
    parts = Parts(run)
    crew = crew_of(run, parts, method)
    progress = run.progress(STAGE, config.conversations, sum(len(windows[number]) for number in done), 'conversation')
    for number, window in enumerate(windows):
      if number in done:
        continue
      begun = progress.done
      products, twins, loads = make(crew, method, window, rate_finished=config.rate_finished,
                                    on_batch=lambda ended, begun=begun: progress.update(begun + ended // 2))
      if run.active:
        record.write_window(folder, number, products, twins, loads, parts.decode, similarity=config.duplicate_similarity)
      barrier(f'{STAGE}-{number}')
      progress.update(begun + len(window))
    progress.close()
  if run.active:
    records = record.assemble(folder, len(windows), directory / 'data', similarity=config.duplicate_similarity,
                              shard_records=config.shard_records,
                              settings={'seed': method.seed, 'config': run.config_hash(STAGE)})
    if not records:
      run.say(f'{STAGE}: every conversation was rejected; {directory / "data" / "manifest.json"} lists the reasons')
    _write_examples(run, folder, len(windows))
  barrier(f'{STAGE}-data')
  metrics = record.metrics(folder, len(windows), directory / 'data')
  _write_curve(run, folder, len(windows), config.window)
  return metrics


def make(crew: Crew, method: seir.Method, window: Iterable[int], *, rate_finished: bool,
         on_batch: Callable[[int], None] | None = None):
  """Makes the conversations of a window, and side by side the same ones without refinement.

  Returns:
    products, unrefined products, how full the batches of each lane were.
  """
  samples = {(twin, i): seir.converse(seir.plan(m, i), m)
             for i in window for twin, m in enumerate((method, method.unrefined()))}
  loads: dict[str, engine.Load] = {}
  known: dict = {}
  made = engine.advance(crew, samples, loads=loads, known=known, on_batch=on_batch)
  if rate_finished:
    made = engine.rate_finished(crew, made, loads=loads, known=known)
  return [made[0, i] for i in window], [made[1, i] for i in window], loads


def method_of(run: Run) -> tuple[seir.Method, list[manifest.Rejected]]:
  """The method that the configuration describes, and the topics and templates that were dropped."""
  config, data = run.config.synthesize, run.config.data
  if config.accept not in ('always', 'gated'):
    raise UserError(f'config.synthesize.accept is {config.accept!r}; use always (as the paper) or gated')
  for field in ('conversations', 'window', 'shard_records'):
    if config[field] < 1:
      raise UserError(f'config.synthesize.{field} is {config[field]}; make it at least 1')
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
      rounds=seir.Rounds(**config.rounds), gated=config.accept == 'gated', retries=config.retries,
      question_words=config.word_limits.question, caption_words=config.word_limits.caption,
      max_steps=run.config.decode.max_images, draw=language.DRAW)
  return method, dropped


def crew_of(run: Run, parts: Parts, method: seir.Method) -> Crew:
  """The writer in all three jobs, or a vision critic of one's own, and SynJudge where the method asks for it."""
  config = run.config.synthesize
  judged = method.gated or config.rate_finished
  run.require('warmup', *(['judge'] if judged else []))
  critic = own_critic(parts)
  rooms = Rooms(**config.rooms)
  decoder = functools.partial(parts.decoder, text_temperature=config.text_temperature, text_top_p=config.text_top_p,
                              image_temperature=config.image_temperature)
  writer = UnifiedWorker(decoder, parts.policy('writer'), parts.layout, seed=method.seed, rooms=rooms, rows=config.rows)
  judge = JudgeWorker(*parts.judge(), rows=config.rows, sizes=rooms.judged) if judged else None
  return Crew(writer, critic or writer, writer, judge)


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
