"""A judge that asks a general vision model on a server, with the rubric as its prompt: the second backend beside SynJudge.

Each answer is judged several times with different seeds and the valid replies are averaged. Where fewer than a majority
is valid the judgement has failed: a state with a reason, and never a number. Scores are of the whole answer; steps are not
asked for.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from intersyn_jax.data import images
from intersyn_jax.endpoint import CUT, EMPTY, Endpoint, EndpointConfig, EndpointError, one_object
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import Layout, turns_of
from intersyn_jax.interleave.types import Conversation, Image, Turn
from intersyn_jax.judge import rubric
from intersyn_jax.judge.labelled import Labelled

TOKENS = 256
"""Room for a reply: the object takes about 40."""


@dataclasses.dataclass(frozen=True)
class Judgement:
  """Of one answer.

  Attributes:
    scores: one of each dimension of the rubric (tcc, icc, iq, its, each 0-5), means over the valid samples; None where the
      judgement failed.
    spread: standard deviation of each over the valid samples (of the population); None where the judgement failed.
    reason: why it failed, '' where it did not.
  """

  scores: tuple[float, ...] | None
  spread: tuple[float, ...] | None
  reason: str = ''


@dataclasses.dataclass(frozen=True)
class _Question:
  """What is asked about one answer; `problem` where it cannot be asked."""

  dimensions: tuple[str, ...]
  messages: list[dict[str, Any]]
  name: str  # hash of all that decides the reply, but for the sample
  problem: str = ''


class Rubric(Protocol):
  """What a judge is asked, and how its replies are read: the module `judge.rubric`, or that of a benchmark.

  Attributes:
    DIMENSIONS: what is scored.
    ABSENT: the score of a dimension that is not asked for.
  """

  DIMENSIONS: tuple[str, ...]
  ABSENT: float

  def asked(self, item: Any) -> tuple[str, ...]:
    """The dimensions to ask for."""

  def messages(self, item: Any, dimensions: Sequence[str], smallest_side: int) -> list[dict[str, Any]]:
    """The chat that asks. Raises ValueError with the reason why it cannot be asked."""

  def schema(self, dimensions: Sequence[str]) -> dict[str, Any]:
    """JSON schema of a reply."""

  def scores_in(self, found: Mapping[str, Any], dimensions: Sequence[str]) -> dict[str, int]:
    """The scores in a reply. Raises ValueError with a reason of a few words."""

  def kept(self, scores: Mapping[str, Any]) -> dict[str, int]:
    """Scores as the log has them, checked as a reply is. Raises ValueError."""


class ServedJudge:
  """Judges answers by asking a server.

  Args:
    endpoint: to ask.
    samples: replies about each answer.
    bad_replies: how often a reply that cannot be read or has wrong scores is asked for again, with another seed.
    temperature: of the replies; above 0, or the samples are all the same.
    smallest_side: pixels; smaller pictures are enlarged for the server.
    seed: of the replies.
    log: JSON Lines file in which valid replies are kept; what is in it is not asked again. None keeps nothing.
    rules: the rubric; SynJudge's if None.

  Raises:
    UserError: the file is no such log.
  """

  def __init__(self, endpoint: Endpoint, *, samples: int = 3, bad_replies: int = 2, temperature: float = 0.7,
               smallest_side: int = 224, seed: int = 0, log: epath.PathLike | None = None, rules: Rubric | None = None):
    field = endpoint.config.field
    for name, value, least in (('samples', samples, 1), ('bad_replies', bad_replies, 0), ('temperature', temperature, 0),
                               ('smallest_side', smallest_side, 1)):
      if not value >= least:
        raise UserError(f'{field}.{name} is {value}; make it at least {least}')
    self.endpoint, self.samples, self.bad_replies = endpoint, samples, bad_replies
    self.temperature, self.smallest_side, self.seed = temperature, smallest_side, seed
    self._rules: Rubric = rules if rules is not None else rubric
    self._log = _Log(log, self._rules) if log is not None else None
    self._known: dict[str, dict[str, int]] = self._log.read() if self._log else {}
    self._lock = threading.Lock()
    self._judged = self._from_log = 0
    self._reasons: collections.Counter[str] = collections.Counter()
    self._bad: collections.Counter[str] = collections.Counter()

  @classmethod
  def of(cls, section: Mapping[str, Any], *, field: str, seed: int = 0, log: epath.PathLike | None = None,
         rules: Rubric | None = None) -> ServedJudge:
    """From a section of a configuration whose dotted name is `field`: fields of EndpointConfig and of this class."""
    own = ('samples', 'bad_replies', 'temperature', 'smallest_side')
    endpoint = Endpoint(EndpointConfig.of(section, field), seed=seed)
    return cls(endpoint, seed=seed, log=log, rules=rules, **{n: section[n] for n in own if n in section})

  def judge(self, conversations: Sequence[Conversation],
            tick: Callable[[int], None] | None = None) -> tuple[np.ndarray, list[str]]:
    """Scores float32[N,4] of the last answers, NaN where the judgement failed, and the reasons ('' where it did not)."""
    found = self.judgements(conversations, tick)
    width = len(self._rules.DIMENSIONS)
    scores = [j.scores if j.scores is not None else (np.nan,) * width for j in found]
    return np.array(scores, np.float32).reshape(-1, width), [j.reason for j in found]

  def judgements(self, conversations: Sequence[Any], tick: Callable[[int], None] | None = None) -> list[Judgement]:
    """Judges the last answer of each conversation, in their order.

    Args:
      conversations: with pictures as bytes (see `pictured`); earlier turns are context. Another rubric may take other items.
      tick: called with how many replies are there, of those that had to be asked for.

    Raises:
      UserError: see `Endpoint.chat`. What was judged until then is in the log.
    """
    questions = [self._question(c) for c in conversations]
    # Equal answers are asked about once; what the log has is not asked again.
    wanted = {f'{q.name}.{sample}': (q, sample) for q in questions if q.messages for sample in range(self.samples)}
    todo = [key for key, (question, _) in wanted.items() if self._scores(key, question) is None]
    self._from_log += len(wanted) - len(todo)
    done = 0

    def ask(key: str) -> str:
      nonlocal done
      reason = self._ask(key, *wanted[key])
      with self._lock:
        done += 1
        if tick is not None:
          tick(done)
      return reason

    failed = dict(zip(todo, self.endpoint.each(ask, todo), strict=True))
    judgements = [self._judgement(q, failed) for q in questions]
    self._judged += len(judgements)
    self._reasons.update(j.reason for j in judgements if j.reason)
    return judgements

  def summary(self) -> dict[str, Any]:
    """Counts over all calls: judged, failed (with reasons), replies that were no good (with reasons), those that came
    from the log, and what the endpoint counts (requests, retries, tokens, cost)."""
    counters = self.endpoint.counters()
    return {'judged': self._judged, 'failed': self._reasons.total(), 'reasons': dict(sorted(self._reasons.items())),
            'bad_replies': dict(sorted(self._bad.items())), 'from_log': self._from_log,
            'log_ignored': self._log.ignored if self._log else 0,
            'requests_failed': counters.pop('failures')} | counters

  def _question(self, item: Any) -> _Question:
    dimensions = self._rules.asked(item)
    if not dimensions:
      return _Question((), [], '')
    try:
      messages = self._rules.messages(item, dimensions, self.smallest_side)
    except ValueError as error:
      return _Question(dimensions, [], '', str(error))
    decides = [self.endpoint.config.model, messages, self._rules.schema(dimensions), self.temperature, TOKENS, self.seed]
    return _Question(dimensions, messages, hashlib.sha256(json.dumps(decides).encode()).hexdigest())

  def _scores(self, key: str, question: _Question) -> dict[str, int] | None:
    """A valid reply, where there is one. The log may hold anything under a key, so that the names are compared."""
    scores = self._known.get(key, {})
    return scores if scores.keys() == set(question.dimensions) else None

  def _ask(self, key: str, question: _Question, sample: int) -> str:
    """Asks for one sample and keeps it where it is valid. Gives the reason where it is not, else ''."""
    reason = ''
    for attempt in range(self.bad_replies + 1):
      # Seeds are whole numbers of 31 bits, which every server takes.
      digest = hashlib.sha256(f'{self.seed}/{sample}/{attempt}'.encode()).digest()
      try:
        reply = self.endpoint.chat(question.messages, schema=self._rules.schema(question.dimensions), max_tokens=TOKENS,
                                   temperature=self.temperature, seed=int.from_bytes(digest[:4], 'big') >> 1)
      except EndpointError as error:
        reason = error.reason
        if reason not in (CUT, EMPTY):
          break
      else:
        try:
          scores = self._rules.scores_in(one_object(reply.text), question.dimensions)
        except EndpointError as error:
          reason = error.reason
        except ValueError as error:
          reason = str(error)
        else:
          with self._lock:
            self._known[key] = scores
            if self._log:
              self._log.write(key, scores, self.endpoint.config.model)
          return ''
      with self._lock:
        self._bad[reason] += 1
    return reason

  def _judgement(self, question: _Question, failed: Mapping[str, str]) -> Judgement:
    if question.problem:
      return Judgement(None, None, question.problem)
    everything, absent = self._rules.DIMENSIONS, self._rules.ABSENT
    if not question.dimensions:
      return Judgement((absent,) * len(everything), (0.0,) * len(everything))
    keys = [f'{question.name}.{sample}' for sample in range(self.samples)]
    valid = [scores for key in keys if (scores := self._scores(key, question)) is not None]
    if 2 * len(valid) <= self.samples:
      reasons = collections.Counter(failed[key] for key in keys if failed.get(key))
      return Judgement(None, None, reasons.most_common(1)[0][0])
    values = np.array([[scores.get(d, absent) for d in everything] for scores in valid], np.float64)
    return Judgement(tuple(values.mean(axis=0).tolist()), tuple(values.std(axis=0).tolist()))


class _Log:
  """Valid replies as JSON Lines `{"key", "model", "scores"}`. Each line is checked as a reply from the server is.

  Attributes:
    ignored: lines that are none of ours; a last line that was cut by a killed process is among them.
  """

  def __init__(self, path: epath.PathLike, rules: Rubric):
    self.path, self._rules = epath.Path(path), rules
    self.ignored = 0
    self._begun = False

  def read(self) -> dict[str, dict[str, int]]:
    if not self.path.exists():
      return {}
    found: dict[str, dict[str, int]] = {}
    content = self.path.read_bytes()
    for line in content.splitlines():
      entry = _entry(line, self._rules)
      if entry is None:
        self.ignored += 1
      else:
        found.setdefault(*entry)
    if b'\n' in content and not found:
      raise UserError(f'{self.path}: holds no judgements; remove the file, or name another one')
    return found

  def write(self, key: str, scores: Mapping[str, int], model: str) -> None:
    line = json.dumps({'key': key, 'model': model, 'scores': scores}).encode() + b'\n'
    if not self._begun:  # what a killed process left may lack its end of line
      self._begun = True
      self.path.parent.mkdir(parents=True, exist_ok=True)
      if self.path.exists() and not self.path.read_bytes().endswith(b'\n'):
        line = b'\n' + line
    with self.path.open('ab') as file:
      file.write(line)


def _entry(line: bytes, rules: Rubric) -> tuple[str, dict[str, int]] | None:
  """(key, scores) of a line of the log, None where it is not valid."""
  try:
    row = json.loads(line)
    key, found = row['key'], row['scores']
    name, sample = key.split('.')
    scores = rules.kept(found)
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
    return None
  return (key, scores) if len(name) == 64 and sample.isdecimal() and scores else None


def pictured(conversations: Sequence[Conversation], decode: Callable[[np.ndarray], np.ndarray]) -> list[Conversation]:
  """The conversations with PNG bytes in every picture that has codes alone.

  Args:
    decode: codes int32[n,P,D] to pictures uint8[n,H,W,3]; called once.
  """
  segments = lambda c: (s for turn in c.turns for s in (*turn.question, *turn.answer))
  bare = [s for c in conversations for s in segments(c) if isinstance(s, Image) and not s.data and s.codes is not None]
  shown = {id(image): images.png(array) for image, array in
           zip(bare, decode(np.stack([image.codes for image in bare])) if bare else (), strict=True)}

  def drawn(run: tuple) -> tuple:
    return tuple(dataclasses.replace(s, data=shown[id(s)]) if id(s) in shown else s for s in run)

  return [dataclasses.replace(c, turns=tuple(Turn(drawn(t.question), drawn(t.answer)) for t in c.turns))
          for c in conversations]


def conversations_of(labelled: Labelled, layout: Layout, decode: Callable[[np.ndarray], np.ndarray]) -> list[Conversation]:
  """Labelled answers as this judge reads them: documents read back, pictures decoded (see `pictured`)."""
  rows = zip(labelled.ids, labelled.documents, labelled.generators, strict=True)
  return pictured([Conversation(name, '', turns_of(document, layout), generator=generator)
                   for name, document, generator in rows], decode)
