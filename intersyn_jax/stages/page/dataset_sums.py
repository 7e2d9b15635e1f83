"""What the page of a data set tells, summed up one conversation at a time: what the shards hold, what the traces say.

Only sums, counts and a few samples are kept, whatever the number of conversations. An item is a question, an answer, or the
picture of a step; its rounds are as `synthesis.record` writes them.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import scipy.stats

from intersyn_jax.data import roles
from intersyn_jax.interleave.types import Conversation, images_of, steps_of, text_of
from intersyn_jax.synthesis import duplicates

STAGES = {'question': 'question_rounds', 'answer': 'answer_rounds', 'image': 'image_rounds'}
"""Stages of SEIR and where a trace has their rounds."""
CHANGES = ('before', 'after', 'change', 'standing')
LENGTHS = ('words of a question', 'words of an answer', 'words of a caption', 'words of a text (one step)',
           'steps of an answer', 'turns of a conversation')
KINDS = 1000
"""Most different reasons that are told apart; they may hold words of a model."""
NAME, LETTERS, COMPLETION = 120, 700, 240
"""Most letters shown of a name or reason, of a text, and of a completion that could not be read."""
MANY_ROUNDS = 3
"""Of so many samples, one is chosen for its many rounds, the others by chance."""


class Mean:
  """A running mean with its 95 % interval.

  Items of one conversation are not independent, so the interval is that of a ratio of sums over conversations (clusters),
  with Student's t for few of them.
  """

  def __init__(self):
    self.total, self.count, self._clusters = 0.0, 0, 0
    self._squares = self._products = self._sizes = 0.0

  def add(self, values: Sequence[float]) -> None:
    """Adds all items of one conversation."""
    if values:
      total, count = sum(values), len(values)
      self.total, self.count, self._clusters = self.total + total, self.count + count, self._clusters + 1
      self._squares += total * total
      self._products += total * count
      self._sizes += count * count

  def read(self) -> dict[str, Any] | None:
    """{value, low, high, n}; the interval is None for one conversation alone. None where nothing was added."""
    if not self.count:
      return None
    mean, low, high = self.total / self.count, None, None
    if self._clusters > 1:
      spread = max(0.0, self._squares - 2 * mean * self._products + mean * mean * self._sizes)
      error = math.sqrt(spread * self._clusters / (self._clusters - 1)) / self.count
      half = error * float(scipy.stats.t.ppf(0.975, self._clusters - 1))
      low, high = mean - half, mean + half
    return {'value': mean, 'low': low, 'high': high, 'n': self.count}


class Content:
  """What the conversations of the data set hold."""

  def __init__(self):
    self.topics: collections.Counter[str] = collections.Counter()
    self.sums: collections.Counter[str] = collections.Counter()
    self.lengths: dict[str, collections.Counter[int]] = {name: collections.Counter() for name in LENGTHS}
    self.across, self.apart = Mean(), Mean()
    self._before: frozenset[str] | None = None

  def add(self, conversation: Conversation) -> None:
    count = lambda name, value: self.lengths[name].update((value,))
    self.topics[conversation.topic] += 1
    count('turns of a conversation', len(conversation.turns))
    for turn in conversation.turns:
      steps, pictures = steps_of(turn.answer), images_of(turn.answer)
      texts = [_words(text) for text, _ in steps if text is not None]
      captions = [_words(picture.caption) for picture in pictures]
      count('words of a question', _words(text_of(turn.question)))
      count('words of an answer', sum(texts))
      count('steps of an answer', len(steps))
      self.lengths['words of a text (one step)'].update(texts)
      self.lengths['words of a caption'].update(captions)
      self.sums.update(turns=1, steps=len(steps), pictures=len(pictures), captions=sum(captions),
                       questions=_words(text_of(turn.question)), answers=sum(texts))
    asked = [duplicates.triples(duplicates.normalise(text_of(turn.question))) for turn in conversation.turns]
    self.across.add([duplicates.similarity(one, other) for one, other in itertools.pairwise(asked)])
    if self._before is not None:
      self.apart.add([duplicates.similarity(self._before, asked[0])])
    self._before = asked[0]


@dataclasses.dataclass
class Refinement:
  """What came of the rounds of a stage: outcomes by (round, outcome), scores by (round, score, one of CHANGES)."""

  outcomes: collections.Counter[tuple[int, str]] = dataclasses.field(default_factory=collections.Counter)
  scores: dict[tuple[int, str, str], Mean] = dataclasses.field(default_factory=dict)


class Process:
  """How the conversations came about: rounds, rejections, retries, and the samples.

  Args:
    repeats: near-duplicates by id, with the id that they repeat.
    samples: how many are kept.
    pairs: of how many near-duplicates the questions are kept.
  """

  def __init__(self, repeats: Mapping[str, str], samples: int, pairs: int):
    self.made = self.rejected = self.repeated = self.later = 0
    self.topics: collections.Counter[str] = collections.Counter()
    self.stages = {name: Refinement() for name in STAGES}
    self.reasons: dict[str, dict[str, Any]] = {}
    self.problems: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    self.pairs = sorted(repeats.items(), key=lambda pair: _lot(pair[0]))[:pairs]
    self.questions = dict.fromkeys(itertools.chain.from_iterable(self.pairs), '')
    self._repeats = repeats
    self._most = (samples - samples // MANY_ROUNDS, samples // MANY_ROUNDS)
    self._chosen: tuple[list, list] = ([], [])

  def add(self, row: Mapping[str, Any]) -> None:
    self.made += 1
    self.topics[row['topic']] += 1
    scores: dict[tuple[str, int, str, str], list[float]] = {}
    for turn in row['turns']:
      for stage, rounds in _items(turn):
        for found in outcomes(rounds):
          self.stages[stage].outcomes[found] += 1
        for (k, name, kind), value in changes(rounds):
          scores.setdefault((stage, k, name, kind), []).append(value)
      for call in turn['calls']:
        if call['problem']:
          self.problems[call['role']][_kind(call['problem'], self.problems[call['role']])] += 1
    for (stage, *key), values in scores.items():
      self.stages[stage].scores.setdefault(tuple(key), Mean()).add(values)
    if row['reason']:
      self._note(row)
    if row['id'] in self.questions:
      self.questions[row['id']] = row['turns'][0]['question_rounds'][kept(row['turns'][0]['question_rounds'])]['text']
    if not row['accepted']:
      self.rejected += 1
    elif row['id'] not in self._repeats:
      made = [turn for turn in row['turns'] if not turn['failure']]
      self.repeated += sum(turn['repeats'] for turn in made)
      self.later += len(made) - 1
      rounds = sum(len(rounds) for turn in row['turns'] for _, rounds in _items(turn))
      for best, most, key in zip(self._chosen, self._most, ((_lot(row['id']),), (-rounds, _lot(row['id']))), strict=True):
        # As many of both kinds as are shown in all, since one of most rounds may be among those chosen by chance.
        if most and (len(best) < sum(self._most) or key < best[-1][0]):
          best.append((key, row))
          best.sort(key=lambda entry: entry[0])
          del best[sum(self._most):]

  def samples(self) -> list[tuple[Mapping[str, Any], str]]:
    """The conversations to show, and why each was chosen."""
    chance = [row for _, row in self._chosen[0][:self._most[0]]]
    names = {row['id'] for row in chance}
    many = [row for _, row in self._chosen[1] if row['id'] not in names][:self._most[1]]
    return [(row, 'among those with most rounds') for row in many] + [(row, 'chosen by chance') for row in chance]

  def _note(self, row: Mapping[str, Any]) -> None:
    """Counts a rejection or a dropped turn under its reason; the first of each is the example."""
    kind = _kind(row['reason'], self.reasons)
    if kind not in self.reasons:
      said = [call['output'] for turn in row['turns'] for call in turn['calls'] if call['problem']]
      self.reasons[kind] = {'rejected': 0, 'dropped': 0, 'id': shown(row['id']),
                            'said': shown(said[-1] if said else '', COMPLETION)}
    self.reasons[kind]['dropped' if row['accepted'] else 'rejected'] += 1


# Rounds of one item: a question, an answer, or the picture of a step.


def _items(turn: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[Mapping[str, Any]]]]:
  """Stage and rounds of every item of a turn that has a first version."""
  for stage, key in STAGES.items():
    for rounds in turn[key] if stage == 'image' else [turn[key]]:
      if rounds:
        yield stage, rounds


def kept(rounds: Sequence[Mapping[str, Any]]) -> int:
  """Number of the version that stood in the end: the last one that was not rolled back."""
  return max(k for k, entry in enumerate(rounds) if entry['decision'] != 'rollback')


def outcomes(rounds: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, str]]:
  """What each round came to: (0, `first`), then (k, `kept`), (k, `rollback`), (k, `stop`) or (k, `failed`).

  (k, `critique`) is there as well where one was given in round k; where the gate rolls back, the one before still holds.
  """
  for k, entry in enumerate(rounds):
    yield k, 'first' if not k else 'rollback' if entry['decision'] == 'rollback' else 'kept'
    if entry['critique']:
      yield k + 1, 'critique'
  # The round in which no version came. A version that was taken back later may have lost its `stop` or `failed`; what an earlier
  # one was spoken well of, the judge did not believe.
  if any(entry['decision'] == 'failed' for entry in rounds):
    yield len(rounds), 'failed'
  elif rounds[-1]['critique']:
    yield len(rounds), 'stop' if rounds[-1]['critique'] == roles.STOP else 'failed'


def changes(rounds: Sequence[Mapping[str, Any]]) -> Iterator[tuple[tuple[int, str, str], float]]:
  """Scores of every revised version against those of the version it was made from, where both have some.

  Yields ((k, score, kind), value); the kinds are CHANGES: the score before and after, the change, and what it changed of the
  version that stands, which a version of a lower sum does not replace.
  """
  source = best = rounds[0]
  for k, entry in enumerate(rounds[1:], start=1):
    lower = entry['scores'] and best['scores'] and sum(entry['scores'].values()) < sum(best['scores'].values())
    after = best if lower else entry
    old, new, stood, stands = (_with_mean(each['scores']) for each in (source, entry, best, after))
    for name in sorted(old.keys() & new.keys() & stood.keys()):
      yield from (((k, name, kind), value) for kind, value in
                  zip(CHANGES, (old[name], new[name], new[name] - old[name], stands[name] - stood[name]), strict=True))
    # The next version is made from the last one of which a critique was given.
    source, best = entry if entry['critique'] else source, after


def _with_mean(scores: Mapping[str, float]) -> dict[str, float]:
  return dict(scores) | ({'mean': sum(scores.values()) / len(scores)} if len(scores) > 1 else {})


# Text.


def _words(text: str) -> int:
  return len(text.split())


def shown(value: Any, most: int = NAME) -> str:
  """Text cut to `most` letters; half characters, which no file can hold, become question marks."""
  text = str(value)
  return (text if len(text) <= most else text[:most] + ' …').encode('utf-8', 'replace').decode()


def _kind(reason: str, known: Mapping[str, Any]) -> str:
  """A reason with its numbers taken out, so that equal ones are counted together."""
  kind = re.sub(r'\d+', 'N', shown(reason))
  return kind if kind in known or len(known) < KINDS else 'other reasons'


def _lot(name: str) -> bytes:
  """A random order of ids that is the same on every machine."""
  return hashlib.blake2b(name.encode('utf-8', 'replace'), digest_size=8).digest()
