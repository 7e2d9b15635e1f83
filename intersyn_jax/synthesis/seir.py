"""SEIR for one conversation: question, answer and image refinement with self-evaluation (InterSyn paper, section 3).

`converse` is a generator of plain code: it yields requests, is given their results, and returns what came of it. It holds no
random state: topic, templates and the number of turns follow from the seed and the index of the conversation, and
every draw of a model from its address.

The general operator of the paper is `_refine`: s_k = evaluate(x_k-1), x_k = revise(x_k-1, s_k), until the evaluator has no
suggestion or k = K. Question, answer and image refinement are three uses of it. Which version wins, `accept` says; and where
the judge finds a version poor that the critic has nothing to say of, a new first version is drawn in its place.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from intersyn_jax.data import roles
from intersyn_jax.data.roles import AnswerStep, Critique
from intersyn_jax.interleave.types import DIMENSIONS, Conversation, Image, Score, Segment, Text, Turn
from intersyn_jax.synthesis.interfaces import Address, Draw, Look, Rate, Rating, Reply, Request, Result, Write

T = TypeVar('T')
Steps = Generator[Request, Result, T]
"""Plain code that waits for results now and then, and gives a T in the end."""

GENERATOR = 'seir'

ALWAYS, GATED, BEST = 'always', 'gated', 'best'
"""Which version wins: the last one, as in the paper; a revision only where the judge does not score it lower than what it came
from, which else is revised again; of all versions the one that the judge scores highest."""
ACCEPT = (ALWAYS, GATED, BEST)


@dataclasses.dataclass(frozen=True)
class Rounds:
  """K of question, answer and image refinement; 0 leaves the first version as it is."""

  question: int = 3
  answer: int = 3
  image: int = 3


@dataclasses.dataclass(frozen=True)
class Method:
  """How conversations are made.

  Attributes:
    seed: of the run.
    topics: one is drawn for each conversation; prompts name what follows the last `/`.
    templates, later_templates: one is drawn for the first turn, and one for each turn after it.
    turns: numbers of turns to draw from.
    rounds: K of each stage.
    accept: which version wins, one of ACCEPT; all but ALWAYS need a judge.
    enough: with a judge, the score that each of a version's must reach for a critic's "nothing to mend" to be believed; of a
      poorer one a new first version is drawn. 0 leaves it to the critic alone.
    suggestions: False draws a new first version instead of revising one, so that nothing the critic said is used: the control
      of DESIGN 4. When to go on is still for critic and judge to say.
    pictures: later turns see the last picture itself (its codes) and not its caption alone.
    retries: how often a completion that cannot be read is asked for again, with a new draw.
    question_words, caption_words: most words; longer ones count as unreadable.
    max_steps: most steps of an answer.
    draw: prompt of the image generator, with the slot `{caption}`.
  """

  seed: int
  topics: Sequence[str]
  templates: Sequence[str]
  later_templates: Sequence[str]
  turns: Sequence[int] = (1,)
  rounds: Rounds = Rounds()
  accept: str = ALWAYS
  enough: float = 0.0
  suggestions: bool = True
  pictures: bool = False
  retries: int = 2
  question_words: int = roles.QUESTION_WORDS
  caption_words: int = roles.CAPTION_WORDS
  max_steps: int = 4
  draw: str = 'draw {caption} .'

  def unrefined(self) -> Method:
    """The same conversations without refinement: their topics, templates and draws are the same."""
    return dataclasses.replace(self, rounds=Rounds(0, 0, 0), accept=ALWAYS)


@dataclasses.dataclass(frozen=True)
class Job:
  """What is settled before the first word: id, topic, and one template a turn; or one question a turn, which then is not
  written and refined but taken as it is."""

  id: str
  topic: str
  templates: tuple[str, ...] = ()
  questions: tuple[str, ...] = ()


def plan(method: Method, index: int) -> Job:
  """The job of conversation `index`: topic once, template for each turn (section 1.1)."""
  rng = random.Random(f'seir/{method.seed}/{index}')
  topic = rng.choice(method.topics)
  turns = rng.choice(list(method.turns))
  templates = [rng.choice(method.templates)] + [rng.choice(method.later_templates) for _ in range(turns - 1)]
  return Job(f'{GENERATOR}-{method.seed}-{index:08d}', topic, tuple(templates))


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture and the caption that it was drawn from."""

  caption: str
  image: Image


@dataclasses.dataclass
class Round:
  """One version in the trace.

  Attributes:
    version: a question, the steps of an answer, or a picture.
    critique: what was said of it, None where nobody was asked.
    decision: `revise` (it was sent to be revised), `again` (the critic had nothing to say, but the judge found it poor: another
      one was drawn), `stop` (nothing to mend), `last` (rounds used up), `rollback` (worse than a version before it, taken back),
      `failed` (its critique or its revision could not be read). The last version that was not taken back is the one that stands.
    scores: of the judge, where asked: TCC, ICC, IQ, ITS of an answer with its pictures, ICC, IQ, ITS of a picture's step.
  """

  version: str | Sequence[AnswerStep] | Picture
  critique: Critique | None = None
  decision: str = 'last'
  scores: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Call:
  """One completion: who was asked what, what came, and why it could not be read (''; it could)."""

  address: Address
  prompt: str
  output: str
  problem: str


@dataclasses.dataclass
class TurnTrace:
  """All rounds and calls of a turn; `failure` is why it was dropped."""

  template: str
  questions: list[Round] = dataclasses.field(default_factory=list)
  answers: list[Round] = dataclasses.field(default_factory=list)
  images: list[list[Round]] = dataclasses.field(default_factory=list)
  calls: list[Call] = dataclasses.field(default_factory=list)
  failure: str = ''


@dataclasses.dataclass(frozen=True)
class Product:
  """What came of a job.

  Attributes:
    conversation: None where not even the first turn succeeded.
    turns: traces, one for each turn begun.
    reason: why the conversation was rejected, or why a later turn was dropped; '' where all went well.
  """

  job: Job
  conversation: Conversation | None
  turns: tuple[TurnTrace, ...]
  reason: str


class Failed(Exception):
  """A completion could not be read in all its tries; the message says which and why."""


def converse(job: Job, method: Method) -> Steps[Product]:
  """Makes one conversation. A turn that fails is dropped with all after it; without a first turn it is rejected."""
  turns: list[Turn] = []
  traces: list[TurnTrace] = []
  history: list[roles.Shown] = []
  reason = ''
  for number in range(len(job.questions or job.templates)):
    desk = _Desk(job, number, method, TurnTrace('' if job.questions else job.templates[number]), tuple(turns))
    traces.append(desk.trace)
    try:
      question = yield from _refine_question(desk, history)
      steps = yield from _refine_answer(desk, question, history)
      pictures: list[Picture] = []
      for step in steps:
        pictures.append((yield from _refine_picture(desk, question, steps, pictures, step)))
    except Failed as failure:
      reason = desk.trace.failure = str(failure)
      break
    turn = Turn((Text(question),), _answer(steps, pictures))
    turns.append(turn)
    history.append(roles.Shown(question, pictures[-1].caption, pictures[-1].image if method.pictures else None))
  if not turns:
    return Product(job, None, tuple(traces), reason)
  made = Conversation(job.id, job.topic, tuple(turns), (), GENERATOR, method.seed, trace=job.id)
  return Product(job, made, tuple(traces), reason)


def ask(job: Job, method: Method) -> Steps[TurnTrace]:
  """Question refinement alone: the trace of a first turn that ends with its question."""
  desk = _Desk(job, 0, method, TurnTrace(job.templates[0]), ())
  try:
    yield from _refine_question(desk, ())
  except Failed as failure:
    desk.trace.failure = str(failure)
  return desk.trace


def _refine_question(desk: _Desk, history: roles.History) -> Steps[str]:
  """QR: q = Phi(q0 | topic, history). No judge scores questions, so that the last version wins always."""
  if desk.job.questions:
    desk.trace.questions.append(Round(desk.job.questions[desk.turn]))
    return desk.job.questions[desk.turn]
  subject = desk.job.topic.rsplit('/', 1)[-1]

  def evaluate(question: str, k: int) -> Steps[Critique]:
    return desk.write('question_critique', roles.question_critique(subject, question, history), roles.parse_critique, k)

  def write(k: int = 0) -> Steps[str]:
    return desk.write('question_write', roles.question_write(subject, desk.trace.template, history), desk.question, k)

  def revise(question: str, suggestion: str, k: int) -> Steps[str]:
    if not desk.method.suggestions:
      return write(k)
    return desk.write('question_revise', roles.question_revise(question, suggestion), desk.question, k)

  return (yield from _refine((yield from write()), desk.method.rounds.question, desk.trace.questions, evaluate, revise))


def _refine_answer(desk: _Desk, question: str, history: roles.History) -> Steps[list[AnswerStep]]:
  """AR: texts and captions together, (a, c) = Phi((a0, c0) | question, history); the captions seed IR."""

  def evaluate(steps: list[AnswerStep], k: int) -> Steps[Critique]:
    return desk.write('answer_critique', roles.answer_critique(question, steps, history), roles.parse_critique, k)

  def write(k: int = 0) -> Steps[list[AnswerStep]]:
    return desk.write('answer_write', roles.answer_write(question, history), desk.answer, k)

  def revise(steps: list[AnswerStep], suggestion: str, k: int) -> Steps[list[AnswerStep]]:
    if not (desk.method.suggestions and suggestion):
      return write(k)
    return desk.write('answer_revise', roles.answer_revise(question, steps, suggestion), desk.answer, k)

  def measure(steps: list[AnswerStep]) -> Steps[tuple[float, ...] | None]:
    """All scores of the answer, its captions drawn: a caption that does not do what its text says shows in nothing else."""
    pictures = []
    for number, step in enumerate(steps):
      pictures.append((yield from _drawn(desk, step.caption, number, 0)))
    rating: Rating | None = yield desk.rate(Turn((Text(question),), _answer(steps, pictures)))
    return None if rating is None else rating.whole

  return (yield from _refine((yield from write()), desk.method.rounds.answer, desk.trace.answers, evaluate, revise, measure,
                             desk.method))


def _refine_picture(desk: _Desk, question: str, steps: Sequence[AnswerStep], before: Sequence[Picture],
                    step: AnswerStep) -> Steps[Picture]:
  """IR: I_k = G(c_k); the critic sees the picture with the caption it was drawn from; only the caption is revised."""
  number = len(before)

  def draw(caption: str, k: int) -> Steps[Picture]:
    return _drawn(desk, caption, number, k)

  def evaluate(picture: Picture, k: int) -> Steps[Critique]:
    prompt = roles.image_critique(question, step.text, picture.caption, picture.image)
    return desk.look('image_critique', prompt, roles.parse_critique, number, k)

  def revise(picture: Picture, suggestion: str, k: int) -> Steps[Picture]:
    if not (desk.method.suggestions and suggestion):
      return (yield from draw(picture.caption, k))
    caption = yield from desk.write('caption_revise', roles.caption_revise(picture.caption, suggestion), desk.caption, k,
                                    number)
    return (yield from draw(caption, k))

  def measure(picture: Picture) -> Steps[tuple[float, ...] | None]:
    """ICC, IQ and ITS of this step, given the steps before."""
    rating: Rating | None = yield desk.rate(Turn((Text(question),), _answer(steps, [*before, picture])))
    return None if rating is None else rating.steps[number][1:]

  rounds: list[Round] = []
  desk.trace.images.append(rounds)
  return (yield from _refine((yield from draw(step.caption, 0)), desk.method.rounds.image, rounds, evaluate, revise, measure,
                             desk.method))


def _drawn(desk: _Desk, caption: str, step: int, k: int) -> Steps[Picture]:
  """The picture of a step that is drawn from its caption in round k."""
  image = yield from desk.draw(caption, step, k)
  return Picture(caption, dataclasses.replace(image, caption=caption))


def _refine(first: T, limit: int, trace: list[Round], evaluate: Callable[[T, int], Steps[Critique]],
            revise: Callable[[T, str, int], Steps[T]],
            measure: Callable[[T], Steps[tuple[float, ...] | None]] | None = None, method: Method | None = None) -> Steps[T]:
  """x_k = revise(x_k-1, s_k) with s_k = evaluate(x_k-1), until there is nothing to mend or k = `limit`.

  Args:
    first: x_0.
    limit: K.
    trace: gets one Round for every version.
    evaluate, revise: given the version and k (and the suggestion, '' to draw a new first version).
    measure: scores of a version; their sum is compared, and none of them may be poor.
    method: its `accept` says which version wins, its `enough` what is poor. Without measure and method, or where `accept` is
      ALWAYS, the critic alone says when to stop, and the last version wins.
  """
  best = current = Round(first)
  trace.append(current)
  judged = method is not None and method.accept != ALWAYS
  try:
    for k in range(1, limit + 1):
      if current.critique is None:  # after a rollback what was said of the version still holds
        current.critique = yield from evaluate(current.version, k)
      current.decision = 'revise'
      if current.critique.stop:
        if judged and method.enough and current.scores is None:
          current.scores = yield from measure(current.version)
        current.decision = 'again' if judged and _poor(current.scores, method.enough) else 'stop'
      if current.decision == 'stop':
        break
      revised = Round((yield from revise(current.version, current.critique.suggestion, k)))
      trace.append(revised)
      if judged:
        for entry in (best, revised):
          if entry.scores is None:
            entry.scores = yield from measure(entry.version)
        if _lower(revised.scores, best.scores):
          if method.accept == GATED:
            revised.decision = 'rollback'
          else:
            current = revised
          continue
      best = current = revised
  except Failed:
    current.decision = 'failed'
  place = next(place for place, entry in enumerate(trace) if entry is best)
  for worse in trace[place + 1:]:
    worse.decision = 'rollback'
  return best.version


def _poor(scores: tuple[float, ...] | None, enough: float) -> bool:
  """Whether a score is lower than it must be. A judge that failed has no say."""
  return scores is not None and min(scores) < enough


def _lower(new: tuple[float, ...] | None, old: tuple[float, ...] | None) -> bool:
  """Whether the scores fell. A judge that failed on either has no say."""
  return new is not None and old is not None and sum(new) < sum(old)


class _Desk:
  """Where the requests of one turn are written: addresses, retries, and the trace."""

  def __init__(self, job: Job, turn: int, method: Method, trace: TurnTrace, before: tuple[Turn, ...]):
    self.job, self.turn, self.method, self.trace, self._before = job, turn, method, trace, before
    self._drawn: dict[tuple[str, int, int], Image] = {}

  def write(self, role: str, prompt: tuple[Segment, ...], parse: Callable[[str], T], round: int = 0,
            step: int = -1) -> Steps[T]:
    """Text of the language model, parsed."""
    return self._text(Write, role, prompt, parse, step, round)

  def look(self, role: str, prompt: tuple[Segment, ...], parse: Callable[[str], T], step: int, round: int) -> Steps[T]:
    """Text of the vision critic, parsed."""
    return self._text(Look, role, prompt, parse, step, round)

  def _text(self, kind: type[Write] | type[Look], role: str, prompt: tuple[Segment, ...], parse: Callable[[str], T], step: int,
            round: int) -> Steps[T]:
    problem = ''
    for retry in range(self.method.retries + 1):
      address = Address(self.job.id, self.turn, role, step, round, retry)
      reply: Reply = yield kind(address, prompt)
      value, problem = None, reply.problem
      if not problem:
        try:
          value = parse(reply.text)
        except ValueError as error:
          problem = str(error)
      self._note(address, prompt, reply.text, problem)
      if not problem:
        return value
    raise Failed(f'{role}: {problem}')

  def draw(self, caption: str, step: int, round: int) -> Steps[Image]:
    """The picture of a caption; one that was drawn for the judge already is not drawn again."""
    if (caption, step, round) in self._drawn:
      return self._drawn[caption, step, round]
    prompt = (Text(self.method.draw.format(caption=caption)),)
    for retry in range(self.method.retries + 1):
      address = Address(self.job.id, self.turn, 'draw', step, round, retry)
      image: Image | None = yield Draw(address, prompt)
      self._note(address, prompt, '', '' if image is not None else 'no picture')
      if image is not None:
        self._drawn[caption, step, round] = image
        return image
    raise Failed('draw: no picture')

  def rate(self, turn: Turn) -> Rate:
    """Asks the judge about a turn after the turns before it."""
    return Rate(Conversation(self.job.id, self.job.topic, (*self._before, turn)))

  def _note(self, address: Address, prompt: tuple[Segment, ...], output: str, problem: str) -> None:
    told = ' '.join(s.text if isinstance(s, Text) else '<image>' for s in prompt)
    self.trace.calls.append(Call(address, told, output, problem))

  # Parsers with the limits of the configuration; a ValueError says what is wrong.

  def question(self, text: str) -> str:
    return _limited(roles.parse_question(text), self.method.question_words, 'question')

  def caption(self, text: str) -> str:
    return _limited(roles.parse_caption(text), self.method.caption_words, 'caption')

  def answer(self, text: str) -> list[AnswerStep]:
    steps = roles.parse_answer(text)
    if len(steps) > self.method.max_steps:
      raise ValueError(f'answer has too many steps; at most {self.method.max_steps}')
    for step in steps:
      _limited(step.caption, self.method.caption_words, 'caption')
    return steps


def _limited(text: str, most: int, what: str) -> str:
  if len(text.split()) > most:
    raise ValueError(f'{what} has too many words; at most {most}')
  return text


def _answer(steps: Sequence[AnswerStep], pictures: Sequence[Picture]) -> tuple[Segment, ...]:
  """The steps whose picture is there, as segments."""
  segments: list[Segment] = []
  for step, picture in zip(steps, pictures, strict=False):
    segments += (Text(step.text), picture.image)
  return tuple(segments)


def rate(conversation: Conversation, turn: int) -> Steps[tuple[Score, ...]]:
  """The judge's scores of a finished answer and its steps; none where the judge failed."""
  rating: Rating | None = yield Rate(Conversation(conversation.id, conversation.topic, conversation.turns[:turn + 1]))
  if rating is None:
    return ()
  return tuple(Score(turn, step, *values) for step, values in enumerate((rating.whole, *rating.steps), start=-1))


def counts_of(product: Product) -> dict[str, tuple[float, int]]:
  """Sums and counts of one product, by name, for rates and means: add them up over products and divide.

  `<stage>_stop_<k>`: the critic stopped at round k; `<stage>_again`: it had nothing to say, but that was not the end;
  `<stage>_accept`: a revision was kept; `<stage>_<score>_<k>`: scores of version k; `retry_<role>`: a completion could not be
  read.
  """
  sums: dict[str, list[float]] = {}

  def add(name: str, value: Any) -> None:
    entry = sums.setdefault(name, [0.0, 0])
    entry[0] += float(value)
    entry[1] += 1

  for turn in product.turns:
    stages = [('question', turn.questions, ()), ('answer', turn.answers, DIMENSIONS)]
    stages += [('image', rounds, DIMENSIONS[1:]) for rounds in turn.images]
    for stage, rounds, names in stages:
      for k, entry in enumerate(rounds):
        if entry.critique is not None:
          believed = entry is rounds[-1] and entry.decision != 'failed'
          add(f'{stage}_stop_{k + 1}', entry.critique.stop and believed)
          if entry.critique.stop:
            add(f'{stage}_again', not believed)
        if k:
          add(f'{stage}_accept', entry.decision != 'rollback')
        for name, value in zip(names, entry.scores or (), strict=False):
          add(f'{stage}_{name}_{k}', value)
    for call in turn.calls:
      add(f'retry_{call.address.role}', bool(call.problem))
  return {name: (value, int(count)) for name, (value, count) in sums.items()}
