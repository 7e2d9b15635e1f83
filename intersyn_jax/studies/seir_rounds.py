"""Study `seir_rounds`: what each round of refinement is worth, against the known world (InterSyn paper, section 3).

Each seed has its own work folder WORKDIR/seed<k> with the stages that SEIR needs: `data`, `tokenizer`, `warmup` (with the
writer) and `judge`. The writer then answers the same questions of the test split under every setting:

- `both,K=0` to `both,K=5`: answer and image refinement of K rounds each, the last version always kept, as in the paper;
  `ar,K=..` and `ir,K=..` one of them alone. K=0 is the same for all three.
- `random_critic,K=3`: critics say something that was right elsewhere, as often as not.
- `resample,K=3`: the critics say when to go on, and a new first version is drawn instead of a revision.
- `gated,K=1` to `gated,K=5`: the judge has a say in which version is kept, and in when to stop (`synthesize.enough`); at K=3 also
  answer or image refinement alone (`gated_ar`, `gated_ir`), with the same random critics (`gated_random_critic`), without
  suggestions (`gated_resample`), and with the highest score instead of the gate (`best`).

All settings run side by side and equal requests are answered once, so that what two settings have in common is the same draw.
Question refinement has a table of its own (question scores 0-10 of K = 0 to 5, read from one trace: version k is what K = k
ends with). Last, each critic and reviser is tried on examples of its role on test topics.

Rows: `{setting, seed, n, tcc, tcc.ci95, ..., mean, mean.ci95, differences: {other: {dimension: {difference, ci95}}}}`; of
questions `{setting: 'question,K=..', seed, n, score, score.ci95, change, change.ci95}`, the change from K = 0; of roles
`{setting: 'role,NAME', seed, flaw, n, flagged, right}`.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from intersyn_jax.data import codes, roles
from intersyn_jax.data.storyworld import language, role_examples, score, topics
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation import statistics
from intersyn_jax.evaluation.answers import first_turn
from intersyn_jax.evaluation.truth import truth
from intersyn_jax.interleave.types import text_of
from intersyn_jax.stages import synthesize
from intersyn_jax.stages.common import Run, read_json
from intersyn_jax.stages.parts import Parts, identity
from intersyn_jax.studies import table
from intersyn_jax.studies.seeds import run_stages, seeded, study
from intersyn_jax.synthesis import engine, seir
from intersyn_jax.synthesis.interfaces import Address, Crew, Look, Reply, Request, Result, Ticket, Worker, Write
from intersyn_jax.synthesis.seir import Job, Method, Rounds
from intersyn_jax.training.metrics import replace_text
from intersyn_jax.training.progress import duration

STAGES = ('data', 'tokenizer', 'warmup', 'judge')
MOST, CLAIMED = 5, 3
"""K of the longest setting, and the K that claims are about."""

QUESTIONS = 500
"""Test questions that a setting answers (fewer where the split has fewer), and questions written for question refinement."""

EXAMPLES = 200
"""Examples of each role."""

SECONDS = {'data': 60, 'tokenizer': 60, 'warmup': 800, 'judge': 1000, 'rounds': 600}
"""What stages of `tiny` take on 2 CPU cores, and what this study does on its own; roughly."""

Row = Mapping[str, Any]

FIRST, LONGEST = 'both,K=0', f'both,K={MOST}'
BOTH, AR, IR, RESAMPLE, RANDOM = (f'{name},K={CLAIMED}' for name in ('both', 'ar', 'ir', 'resample', 'random_critic'))
GATED, GATED_AR, GATED_IR, GATED_RESAMPLE, GATED_RANDOM, BEST = (
    f'{name},K={CLAIMED}' for name in ('gated', 'gated_ar', 'gated_ir', 'gated_resample', 'gated_random_critic', 'best'))
LONGEST_GATED = f'gated,K={MOST}'
CLAIMS = (
    (FIRST, BOTH, 'is above', ('icc', 'its')),
    (RANDOM, BOTH, 'is above', ('icc', 'its')),
    (RESAMPLE, BOTH, 'is above', ('icc', 'its')),
    (FIRST, AR, 'is above', ('tcc', 'icc', 'its')),
    (FIRST, IR, 'is above', ('icc', 'its')),
    (FIRST, GATED, 'is above', ('icc', 'its')),
    (GATED_RANDOM, GATED, 'is above', ('icc', 'its')),
    (GATED_RESAMPLE, GATED, 'is above', ('icc', 'its')),
    (FIRST, GATED_AR, 'is above', ('tcc', 'icc', 'its')),
    (FIRST, GATED_IR, 'is above', ('icc', 'its')),
    (BOTH, GATED, 'is not below', ('tcc', 'icc', 'iq', 'its')),
)
"""(a, b, words, dimensions): what is claimed of b and a."""

PAIRS = (*((a, b) for a, b, *_ in CLAIMS), (BOTH, BEST), (FIRST, BEST), (BOTH, LONGEST), (GATED, LONGEST_GATED))
"""(a, b) whose difference b - a is told."""


def settings(method: Method) -> dict[str, Method]:
  """Every setting that the usual critics serve."""
  with_rounds = lambda answer, image, **fields: dataclasses.replace(method, rounds=Rounds(0, answer, image), **fields)
  found = {f'both,K={k}': with_rounds(k, k) for k in range(MOST + 1)}
  found |= {f'ar,K={k}': with_rounds(k, 0) for k in range(1, MOST + 1)}
  found |= {f'ir,K={k}': with_rounds(0, k) for k in range(1, MOST + 1)}
  gated = lambda k, answer=True, image=True, **fields: with_rounds(k * answer, k * image, **{'accept': seir.GATED} | fields)
  found |= {f'gated,K={k}': gated(k) for k in range(1, MOST + 1)}
  return found | {
      RESAMPLE: with_rounds(CLAIMED, CLAIMED, suggestions=False), GATED_AR: gated(CLAIMED, image=False),
      GATED_IR: gated(CLAIMED, answer=False), GATED_RESAMPLE: gated(CLAIMED, suggestions=False),
      BEST: gated(CLAIMED, accept=seir.BEST)}


def run(config: ml_collections.ConfigDict, workdir: str, seeds: Sequence[int], command: str) -> list[dict[str, Any]]:
  """Runs the study and gives its rows, which are also in WORKDIR/seir_rounds.json (with seir_rounds.md beside it)."""
  if config.data.source != 'storyworld':
    raise UserError('seir_rounds compares with the known world: give a config whose data.source is storyworld')
  folder = epath.Path(workdir)
  runs = {seed: Run(of_seed(config, seed), folder / f'seed{seed}') for seed in seeds}
  for one in runs.values():
    one.check_config('judge')
  first = next(iter(runs.values()))
  left = sum(SECONDS[stage] for one in runs.values() for stage in STAGES if not one.complete(stage))
  left += sum(SECONDS['rounds'] for one in runs.values() if not (one.workdir / 'rounds.json').exists())
  first.say(f'seir_rounds, {len(runs)} seeds: about {duration(left)} left (size tiny on 2 CPU cores)')

  def make(one: Run, seed: int) -> list[dict[str, Any]]:
    run_stages(one, STAGES, runs.values())
    return rows_of(one, seed)

  return study('seir_rounds', folder, runs, make, lambda rows, done: page(rows, first, command), verdicts)


def of_seed(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
  """The configuration of one seed."""
  return seeded(config, seed).lock()


def rows_of(run: Run, seed: int) -> list[dict[str, Any]]:
  """All rows of one seed; kept in WORKDIR/seed<k>/rounds.json."""
  parts = Parts(run)
  weights = f'{identity(parts.policy_folder("writer"))} {identity(run.workdir / "judge" / "checkpoints")}'
  path = run.workdir / 'rounds.json'
  kept = read_json(path) if path.exists() else {}
  if kept.get('weights') == weights:
    return kept['rows']
  method = dataclasses.replace(synthesize.method_of(run)[0], accept=seir.BEST)  # the crew needs its judge
  crew = synthesize.crew_of(run, parts, method)
  method = dataclasses.replace(method, accept=seir.ALWAYS)
  rows = [*answer_rows(run, parts, crew, method, seed), *question_rows(run, crew, method, seed),
          *role_rows(run, parts, crew, seed)]
  if run.active:
    replace_text(path, json.dumps({'weights': weights, 'rows': rows}, allow_nan=False))
  return rows


# Answers.


def answer_rows(run: Run, parts: Parts, crew: Crew, method: Method, seed: int) -> Iterator[dict[str, Any]]:
  """Scores of every setting on the same test questions."""
  split = parts.conversations('test')
  cut = [first_turn(split[i]) for i in range(min(QUESTIONS, len(split)))]
  jobs = [Job(f'test-{i}', c.topic, questions=(text_of(c.turns[0].question),)) for i, c in enumerate(cut)]
  known: dict[Request, Result] = {}
  scores = {}
  report = run.reporter('seir_rounds', 'answer')
  for done, (name, one) in enumerate(settings(method).items(), start=1):
    scores[name] = scored(run, parts, crew, one, jobs, known)
    report(name, done * len(jobs), None)
  # What is no critique is the same under random critics.
  shared = {request: result for request, result in known.items() if not _is_critique(request)}
  wild = RandomCritics(crew.language, suggestions(run.config, EXAMPLES))
  wild = dataclasses.replace(crew, language=wild, critic=wild)
  for name, usual in ((RANDOM, BOTH), (GATED_RANDOM, GATED)):
    scores[name] = scored(run, parts, wild, settings(method)[usual], jobs, shared)
  weights = statistics.draws(len(jobs), run.config.evaluate.bootstrap, 0)
  for name, values in scores.items():
    found = statistics.describe(values, weights)
    yield {'setting': name, 'seed': seed, 'n': found['mean']['n'] if found else 0,
           **{d: v['mean'] for d, v in found.items()}, **{f'{d}.ci95': v['ci95'] for d, v in found.items()},
           'differences': {a: statistics.paired(scores[a], scores[b], weights) for a, b in PAIRS if b == name}}


def scored(run: Run, parts: Parts, crew: Crew, method: Method, jobs: Sequence[Job], known: dict[Request, Result]) -> np.ndarray:
  """Ground-truth scores float32[N,4] of the jobs' answers, NaN where there is none."""
  made = engine.advance(crew, {i: seir.converse(job, method) for i, job in enumerate(jobs)},
                        in_flight=run.config.synthesize.in_flight, known=known)
  there = [i for i in made if made[i].conversation is not None]
  scores = np.full((len(jobs), 4), np.nan, np.float32)
  if there:
    scores[there] = truth([jobs[i].questions[0] for i in there], [made[i].conversation.turns[0].answer for i in there],
                          parts.decode, jitter=run.config.data.jitter)
  return scores


def _is_critique(request: Request) -> bool:
  return isinstance(request, Write | Look) and request.address.role.endswith('_critique')


class RandomCritics:
  """Says, instead of the critics, nothing (half of the time) or what was right about another answer or picture.

  Args:
    language: answers all else.
    suggestions: of each critic's role.
  """

  def __init__(self, language: Worker, suggestions: Mapping[str, Sequence[str]]):
    self.rows = language.rows
    self._language, self._suggestions = language, suggestions

  def prepare(self, request: Write | Look) -> Ticket:
    if _is_critique(request):
      return Ticket('random', 0, request.address)
    return self._language.prepare(request)

  def run(self, lane: str, size: int, tickets: Sequence[Ticket]) -> list[Any]:
    if lane == 'random':
      return [Reply(self._say(ticket.payload)) for ticket in tickets]
    return self._language.run(lane, size, tickets)

  def _say(self, address: Address) -> str:
    rng = random.Random(address.number())
    return roles.STOP if rng.random() < role_examples.CLEAN else rng.choice(self._suggestions[address.role])


def suggestions(config: ml_collections.ConfigDict, count: int) -> dict[str, list[str]]:
  """What critics would rightly say of flawed examples, by role."""
  found = {}
  for role in (name for name in roles.TAGS if name.endswith('_critique')):
    said = (text_of(example.turns[0].answer) for example in _examples(config, role, 4 * count, 'roles'))
    found[role] = [text for text in said if text != roles.STOP][:count]
  return found


# Questions.


def question_rows(run: Run, crew: Crew, method: Method, seed: int) -> Iterator[dict[str, Any]]:
  """Question scores of K = 0 to MOST, on test topics. Version k is what K = k ends with, since the last one is always kept."""
  method = dataclasses.replace(method, topics=[str(t) for t in topics.topics_of('test')], rounds=Rounds(MOST, 0, 0))
  jobs = [seir.plan(method, i) for i in range(QUESTIONS)]
  made = engine.advance(crew, {i: seir.ask(job, method) for i, job in enumerate(jobs)}, in_flight=run.config.synthesize.in_flight)
  versions = {job: [entry.version for entry in made[i].questions] for i, job in enumerate(jobs) if made[i].questions}
  if not versions:  # a toy writer may write none that can be read
    return
  values = np.array([[score.score_question(said[min(k, len(said) - 1)], job.topic) for k in range(MOST + 1)]
                     for job, said in versions.items()])
  weights = statistics.draws(len(values), run.config.evaluate.bootstrap, 0)
  low, high = statistics.interval(values, weights)
  change_low, change_high = statistics.interval(values - values[:, :1], weights)
  for k in range(MOST + 1):
    yield {'setting': f'question,K={k}', 'seed': seed, 'n': len(values),
           'score': float(values[:, k].mean()), 'score.ci95': [float(low[k]), float(high[k])],
           'change': float((values[:, k] - values[:, 0]).mean()), 'change.ci95': [float(change_low[k]), float(change_high[k])]}


# Roles.


def _examples(config: ml_collections.ConfigDict, role: str, count: int, split: str):
  data = config.data
  return [role_examples.role_example(8_000_000 + config.seed, i, split, pixels=data.pixels, jitter=data.jitter, steps=data.steps,
                                     objects=data.objects, names=[role]) for i in range(count)]


def role_rows(run: Run, parts: Parts, crew: Crew, seed: int) -> Iterator[dict[str, Any]]:
  """Critics and revisers on examples of test topics, by flaw ('' for none).

  `flagged`: share that a critic asks to be revised: recall where there is a flaw, and what precision is made of where there is
  none. `right`: of what it asked for the share that is just the right suggestion; of a reviser the share mended just as wanted.
  """
  for role in (name for name in roles.TAGS if not name.endswith('_write')):
    examples = list(codes.with_codes(_examples(run.config, role, EXAMPLES, 'test'), parts.encode))
    kind = Look if role == 'image_critique' else Write
    requests = {i: kind(Address(f'{role}-{i}', 0, role), e.turns[0].question) for i, e in enumerate(examples)}
    said = engine.advance(crew, {i: _one(request) for i, request in requests.items()})
    by_flaw: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    for i, example in enumerate(examples):
      wanted = text_of(example.turns[0].answer)
      flaw = example.trace.partition('/')[2]
      if role.endswith('_critique'):
        critique = roles.parse_critique(said[i].text)
        right = float(critique.suggestion == wanted) if flaw and not critique.stop else np.nan
        by_flaw[flaw].append((float(not critique.stop), right))
      else:
        by_flaw[flaw].append((np.nan, float(language.normalise(said[i].text) == language.normalise(wanted))))
    for flaw, pairs in sorted(by_flaw.items()):
      flagged, right = (_mean([pair[column] for pair in pairs]) for column in (0, 1))
      yield {'setting': f'role,{role}', 'seed': seed, 'flaw': flaw, 'n': len(pairs), 'flagged': flagged, 'right': right}


def _one(request: Request) -> seir.Steps[Reply]:
  return (yield request)


def _mean(values: Sequence[float]) -> float | None:
  known = [value for value in values if np.isfinite(value)]
  return float(np.mean(known)) if known else None


# The page.


def verdicts(rows: Sequence[Row]) -> list[str]:
  """A line for each claim: whether it holds in every seed, with the figures."""
  found = {(row['setting'], row['seed']): row for row in rows}
  seeds = list(dict.fromkeys(row['seed'] for row in rows))
  good = {'is above': lambda d: d['ci95'][0] > 0, 'is not below': lambda d: d['ci95'][1] >= 0}
  lines = []
  for a, b, words, dimensions in CLAIMS:
    for dimension in dimensions:
      values = {seed: found[b, seed]['differences'][a].get(dimension) for seed in seeds}
      holds = all(value is not None and good[words](value) for value in values.values())
      lines.append(_verdict(holds, f'{b} {words} {a}, {dimension.upper()}', values))
  rows_of_questions = {seed: found.get((f'question,K={CLAIMED}', seed)) for seed in seeds}
  changes = {seed: row and {'difference': row['change'], 'ci95': row['change.ci95']} for seed, row in rows_of_questions.items()}
  words = f'question refinement lifts the question score, K={CLAIMED}'
  return [*lines, _verdict(all(value is not None and good['is above'](value) for value in changes.values()), words, changes)]


def _verdict(holds: bool, words: str, values: Mapping[Any, Mapping[str, Any] | None]) -> str:
  figures = ', '.join(f'seed {seed} {table.signed(value) if value else "-"}' for seed, value in values.items())
  return f'{"holds" if holds else "DOES NOT HOLD"}: {words}: {figures}'


def page(rows: Sequence[Row], run: Run, command: str) -> str:
  """The Markdown page."""
  last = run.summary('judge')
  line = lambda cells: '| ' + ' | '.join(map(str, cells)) + ' |'
  with_interval = lambda row, name: (f'{row[name]:.2f} ±{(row[f"{name}.ci95"][1] - row[f"{name}.ci95"][0]) / 2:.2f}'
                                     if row.get(name) is not None else '-')
  parts = ['# Rounds of refinement', '', f'    {command}', '',
           f'Machine: {last["devices"]}; {last["versions"]}. Scores 0-5 by the known world of the answers to the same test '
           'questions; 95 % bootstrap intervals over questions, differences are paired.', '',
           '## What holds', '', *(f'- {text}' for text in verdicts(rows)), '', '## Answers', '']
  head = ['setting', 'seed', 'n', *statistics.ALL_DIMENSIONS]
  answers = [row for row in rows if 'mean' in row]
  order = list(dict.fromkeys(row['setting'] for row in answers))
  parts += [line(head), line(['---'] * len(head))]
  parts += [line([row['setting'], row['seed'], row['n'], *(with_interval(row, d) for d in statistics.ALL_DIMENSIONS)])
            for row in sorted(answers, key=lambda row: order.index(row['setting']))]
  parts += ['', '## Questions (0-10)', '', line(['setting', 'seed', 'n', 'score']), line(['---'] * 4)]
  parts += [line([row['setting'], row['seed'], row['n'], with_interval(row, 'score')]) for row in rows if 'score' in row]
  parts += ['', '## Critics and revisers on test topics', '',
            'Flagged: share that the critic asks to be revised (without a flaw it should not); right: share of these with just '
            'the right suggestion, of a reviser the share mended just as wanted.', '',
            line(['role', 'flaw', 'seed', 'n', 'flagged', 'right']), line(['---'] * 6)]
  percent = lambda value: '-' if value is None else f'{value:.0%}'
  parts += [line([row['setting'].removeprefix('role,'), row['flaw'] or '(none)', row['seed'], row['n'], percent(row['flagged']),
                  percent(row['right'])]) for row in rows if 'flaw' in row]
  return '\n'.join([*parts, ''])
