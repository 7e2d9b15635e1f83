"""Stage `suite`: answers of a policy, or of another model, scored on a public benchmark (docs/suites.md).

    python -m intersyn_jax suite --config=... --workdir=... --suite=mmie --questions=FILE --policy=grpo --judge=endpoint

    --suite=NAME         mmie, interleaved_bench, opening, synjudge, pope, seed_bench, mm_vet or geneval
    --questions=FILE     the benchmark's own file; a folder with all three for pope
    --images=FOLDER      its pictures, where they are not beside it
    --policy=NAME        have this policy of the work folder answer
    --greedy             at temperature 0
    --seed=0             of all draws
    --instruction=TEXT   said after every question
    --pictures=4         of each prompt (geneval)
    --answers=FOLDER     read another model's answers, in the benchmark's layout, instead
    --judge=WHO          synjudge: of the work folder; endpoint: the server of config.evaluate.endpoint; or a file of scores
    --against=FOLDER     opening: another model's answers; the server says which of two is better
    --people=FILE        opening: battles that people have judged, to see how far the judge agrees
    --out=FOLDER         where everything is written; WORKDIR/suites/NAME/WHO if it is left out

OUT holds `answers/` (of a policy; a killed job goes on there), the submission in the benchmark's layout,
`judgements.jsonl`, and `summary.json`, flat and written last.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from intersyn_jax.data import manifest
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation import suites
from intersyn_jax.evaluation.suites import arena, rubric, tables
from intersyn_jax.evaluation.suites import suite as suite_lib
from intersyn_jax.evaluation.suites.suite import ENDPOINT, FILE, KEEP, SYNJUDGE, Answers, Asked, Look, Suite, Verdict
from intersyn_jax.judge.served import ServedJudge
from intersyn_jax.stages.common import Run, barrier, leaves
from intersyn_jax.stages.suite_models import Policy, SynJudged, look_of
from intersyn_jax.training.metrics import replace_text

SHOWN = 40
"""Scores that the terminal is told."""
WINDOW = 32
"""Answers that are judged at a time: their pictures are in memory."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """The flags, checked.

  Attributes:
    judge: SYNJUDGE, ENDPOINT, FILE or '' for nobody; scores: the file of FILE.
    who: whose answers they are.
  """

  suite: type[Suite]
  questions: str
  images: str
  policy: str
  answers: str
  judge: str
  scores: str
  against: str
  people: str
  who: str
  out: pathlib.Path


def run(run: Run) -> pathlib.Path:
  """Answers, judges and scores, and gives the folder of the results."""
  plan = planned(run)
  suite = suites.opened(plan.suite.name, plan.questions, plan.images)
  suite.pictures = _number(run, 'pictures', suite.pictures)
  run.say(f'suite {suite.name}: {len(suite.entries)} questions')
  if suite.rejected:
    run.say(f'{len(suite.rejected)} rows left out, the first {suite.rejected[0].where}: {suite.rejected[0].reason}')
  # Mistakes about the judge are told before a policy answers for hours.
  server = _server(run, plan, suite) if plan.judge == ENDPOINT and run.active else None
  synjudge = SynJudged(run) if plan.judge == SYNJUDGE else None
  answers = _answers(run, plan, suite)
  boot = tables.Bootstrap(run.config.evaluate.bootstrap, run.config.seed)
  found = _scores(run, plan, suite, answers, server, synjudge, boot)
  if run.active:
    plan.out.mkdir(parents=True, exist_ok=True)
    facts = {'suite': suite.name, 'questions_file': str(suite.path), 'questions_digest': suite.digest(),
             'answers_of': plan.who, 'judge': plan.scores or plan.judge or 'nobody', 'rejected': len(suite.rejected),
             'unusable': len(suite.unusable)}
    asked = {f'endpoint.{k}': v for k, v in leaves(server.summary()) if not isinstance(v, dict)} if server else {}
    unusable = [manifest.Rejected(suite.entries[name].where, name, reason) for name, reason in suite.unusable.items()]
    left_out = [dataclasses.asdict(row) for row in (*suite.rejected, *unusable)]
    replace_text(plan.out / 'rejected.json', json.dumps(left_out, indent=1))
    replace_text(plan.out / 'summary.json', json.dumps(facts | found | asked, indent=1, allow_nan=False))
    _show(run, found)
    run.say(f'files: {plan.out}')
  barrier('suite-written')
  return plan.out


# Flags.


def planned(run: Run) -> Plan:
  """Reads the flags. Raises UserError where they do not go together."""
  options = run.options
  if not options.get('suite'):
    raise UserError(f'--suite is missing; there are {", ".join(suites.SUITES)}')
  suite = suites.named(options['suite'])
  if not options.get('questions'):
    raise UserError(f'--questions is missing; name the file of {suite.name} (docs/suites.md)')
  said = options.get('judge', '')
  judge = said if said in (SYNJUDGE, ENDPOINT, '') else FILE
  policy, answers, against = (options.get(name, '') for name in ('policy', 'answers', 'against'))
  pairwise = suite.name == 'opening'
  if judge and judge not in suite.judges:
    takes = f'takes {", ".join(suite.judges)}' if suite.judges else 'needs no judge'
    raise UserError(f'--judge={said} does not go with {suite.name}, which {takes}; leave it out or change it')
  if judge == FILE and not pathlib.Path(said).is_file():
    raise UserError(f'--judge={said} is neither synjudge nor endpoint, nor a file of scores')
  if policy and answers:
    raise UserError('--policy and --answers are both given: score one of them at a time')
  if not suite.answered and (policy or answers):
    raise UserError(f'{suite.name} holds the answers itself; leave --policy and --answers out')
  if not suite.answered and not judge:
    raise UserError(f'--judge is missing: {suite.name} tests a judge; name one of {", ".join(suite.judges)}')
  if suite.answered and not policy and not answers and judge != FILE:
    raise UserError('--policy or --answers is missing: name who answers, or give a file of scores with --judge')
  if against and not (pairwise and judge == ENDPOINT):
    raise UserError('--against needs --suite=opening and --judge=endpoint')
  if options.get('people') and not pairwise:
    raise UserError('--people needs --suite=opening')
  if 'pictures' in options and suite.pictures == 1:
    raise UserError(f'--pictures is for geneval; {suite.name} has one answer to a question')
  for name in ('greedy', 'seed', 'instruction', 'pictures'):
    if name in options and not policy and (name, suite.name) != ('pictures', 'geneval'):
      raise UserError(f'--{name} says how a policy answers; name one with --policy, or leave it out')
  who = policy or (pathlib.Path(answers).resolve().name if answers else pathlib.Path(said).stem if judge == FILE else judge)
  out = pathlib.Path(options.get('out') or run.workdir / 'suites' / suite.name / who)
  return Plan(suite, options['questions'], options.get('images', ''), policy, answers, judge, said if judge == FILE else '',
              against, options.get('people', ''), who, out)


def _number(run: Run, name: str, default: int) -> int:
  text = run.options.get(name, str(default))
  if not text.isdecimal() or not int(text):
    raise UserError(f'--{name}={text} is not a whole number above 0')
  return int(text)


# Answers.


def _answers(run: Run, plan: Plan, suite: Suite) -> Answers | None:
  """Who answers, with the submission written; None where nobody has to."""
  if plan.answers:
    return suite.submission(plan.answers, look_of(run) if plan.judge == SYNJUDGE else KEEP)
  if not plan.policy:
    return None
  written = Policy(run, plan.policy, suite, plan.out / 'answers').answers()
  barrier('suite-answered')
  folder = plan.out / suite.folder(plan.policy)
  if run.active and not folder.exists():
    part = plan.out / f'.{folder.name}.part'
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    suite.submit(part, plan.policy, written)
    part.rename(folder)
  return written


# Judgements and scores.


def _server(run: Run, plan: Plan, suite: Suite) -> ServedJudge:
  section = run.config.evaluate.endpoint
  if not section.url:
    raise UserError('--judge=endpoint asks the server of config.evaluate.endpoint.url, which is empty; set it '
                    '(docs/endpoints.md)')
  from intersyn_jax.evaluation.suites import opening
  rules = opening.PairRubric() if plan.against else None if plan.suite.name == SYNJUDGE else suite.rubric()
  log = plan.out / ('battles.log.jsonl' if plan.against else 'replies.log.jsonl')
  return ServedJudge.of(section, field='config.evaluate.endpoint', seed=run.config.seed, log=log, rules=rules)


def _scores(run: Run, plan: Plan, suite: Suite, answers: Answers | None, server: ServedJudge | None,
            synjudge: SynJudged | None, boot: tables.Bootstrap) -> dict[str, Any]:
  if plan.judge == FILE and plan.suite.name == 'opening' and answers is None:
    return _of_models(run, plan, suite, boot)
  if plan.against:
    return _battles(run, plan, suite, answers, server, boot) if run.active else {}
  own = suite.summary
  if plan.judge == FILE:
    verdicts = suite.verdicts_in(plan.scores)
  elif plan.judge == ENDPOINT:
    if not run.active:
      return {}
    verdicts = _asked_server(run, suite, answers, server)
  elif synjudge is not None:
    verdicts = _windows(run, suite, answers, synjudge.judge, look_of(run))
    own = own if plan.suite.name == SYNJUDGE else lambda found, boot: suite_lib.synjudge_summary(suite, found, boot)
  else:
    verdicts = suite_lib.score_all(suite, answers)
    own = None if suite.judges else own
  _keep(run, plan, suite, verdicts)
  if own is None:
    run.say('nobody judges: the answers are written, and --judge scores them')
    return {'answered' if k == 'judged' else k: v for k, v in tables.counts(verdicts.values()).items()}
  return tables.counts(verdicts.values()) | own(verdicts, boot)


def _windows(run: Run, suite: Suite, answers: Answers | None, judge: Callable[[list[Asked]], list[Verdict]],
             look: Look) -> dict[str, Verdict]:
  progress = run.progress('judge', len(suite.entries), unit='answer')
  return suite_lib.judge_all(suite, answers, judge, look=look, window=WINDOW, tick=progress.update)


def _asked_server(run: Run, suite: Suite, answers: Answers | None, server: ServedJudge) -> dict[str, Verdict]:
  if suite.name == SYNJUDGE:  # SynJudge's own rubric takes conversations
    def judge(items: list[Asked]) -> list[Verdict]:
      found = server.judgements([item.conversation for item in items])
      return [Verdict(None, j.reason) if j.scores is None else Verdict(dict(zip(suite.dimensions, j.scores, strict=True)))
              for j in found]
  else:
    rules = suite.rubric()
    judge = lambda items: rubric.ask(server, rules, items)
  return _windows(run, suite, answers, judge, KEEP)


def _keep(run: Run, plan: Plan, suite: Suite, verdicts: Mapping[str, Verdict]) -> None:
  if run.active:
    plan.out.mkdir(parents=True, exist_ok=True)
    entry = lambda name: suite.entries.get(name) or suite.entries[name.split('/')[0]]  # one of several pictures of a prompt
    lines = ({'id': name, 'category': entry(name).category, 'scores': v.scores, 'reason': v.reason, 'missing': v.missing}
             for name, v in verdicts.items())
    replace_text(plan.out / 'judgements.jsonl', ''.join(json.dumps(line) + '\n' for line in lines))


# OpenING: models of a file, and battles.


def _of_models(run: Run, plan: Plan, suite: Any, boot: tables.Bootstrap) -> dict[str, Any]:
  """Every model in a file of battles, or of scores."""
  if arena.is_file_of_battles(plan.scores):
    return _told(run, plan, arena.read(plan.scores), boot)
  found: dict[str, Any] = {}
  for model, verdicts in suite.by_model(plan.scores).items():
    prefix = f'{tables.slug(model)}.' if model else ''
    each = tables.counts(verdicts.values()) | suite.scores(verdicts, boot)
    found |= {f'{prefix}{k}': v for k, v in each.items()}
  return found


def _battles(run: Run, plan: Plan, suite: Suite, answers: Answers, server: ServedJudge,
             boot: tables.Bootstrap) -> dict[str, Any]:
  """Has the server say which of two answers is better."""
  from intersyn_jax.evaluation.suites.opening import PairRubric
  rules = PairRubric()
  models = plan.who, pathlib.Path(plan.against).resolve().name
  if models[0] == models[1]:
    raise UserError(f'--against={plan.against} has the name of the answers that it is compared with; rename one folder')
  others, seed = suite.submission(plan.against), run.config.seed

  def judge(items: list[Asked]) -> list[Verdict]:
    pairs, places, found = [], [], [Verdict(None)] * len(items)
    for place, item in enumerate(items):
      name = item.entry.id
      try:
        pair = item.conversation.turns[-1].answer, others.get(name)
      except (suite_lib.Missing, suite_lib.Unreadable) as error:
        found[place] = Verdict(None, f'other model: {error}', isinstance(error, suite_lib.Missing))
        continue
      pairs.append(arena.Pair(item, *(reversed(pair) if arena.swapped(name, seed) else pair)))
      places.append(place)
    for place, verdict in zip(places, rubric.ask(server, rules, pairs), strict=True):
      found[place] = verdict
    return found

  verdicts = _windows(run, suite, answers, judge, KEEP)
  _keep(run, plan, suite, verdicts)
  battles = [arena.battle_of(name, models, v, arena.swapped(name, seed)) for name, v in verdicts.items() if not v.missing]
  replace_text(plan.out / 'battles.json', json.dumps(arena.rows_of(battles), indent=1))
  return tables.counts(verdicts.values()) | _told(run, plan, battles, boot)


def _told(run: Run, plan: Plan, battles: Sequence[arena.Battle], boot: tables.Bootstrap) -> dict[str, Any]:
  found = {'battles': len(battles), 'battles.failed': sum(not b.winner for b in battles)} | arena.win_rates(battles, boot)
  if plan.people:
    found |= arena.agreement(battles, arena.read(plan.people, '--people'), boot)
  return found


def _show(run: Run, found: Mapping[str, Any]) -> None:
  """The first scores in the terminal."""
  scores = [name for name, value in found.items()
            if isinstance(value, float | None) and not name.endswith(('.low', '.high'))]
  for name in scores[:SHOWN]:
    value, low, high = found[name], found.get(f'{name}.low'), found.get(f'{name}.high')
    told = 'none' if value is None else f'{value:.4g}' + (f'  [{low:.4g}, {high:.4g}]' if low is not None else '')
    run.say(f'{name} = {told}' + (f'  n {found[f"{name}.n"]}' if f'{name}.n' in found else ''))
  if len(scores) > SHOWN:
    run.say(f'and {len(scores) - SHOWN} more in summary.json')
  told = [f'{found[name]} {name}' for name in ('questions', 'answered', 'judged', 'failed', 'missing') if name in found]
  if told:
    run.say(', '.join(told))
