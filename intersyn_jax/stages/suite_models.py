"""What the stage `suite` builds from a work folder: a policy that answers questions, and SynJudge that scores answers."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites import written
from intersyn_jax.evaluation.suites.likelihood import Scorer
from intersyn_jax.evaluation.suites.suite import KEEP, Asked, Look, Suite, Verdict
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.types import DIMENSIONS, Conversation, Image, Segment, Turn, images_of
from intersyn_jax.judge.training import judge_all
from intersyn_jax.stages import converted
from intersyn_jax.stages.common import Run, barrier
from intersyn_jax.stages.evaluate import DECODINGS
from intersyn_jax.stages.notebook import Generator
from intersyn_jax.stages.parts import Parts, identity, policy_folder

TOO_LONG = 'question too long'
UNFIT = 'more than SynJudge can see, or empty'


def look_of(run: Run) -> Look:
  """How a model of our own reads pictures; KEEP for a family, which has its own way with every shape."""
  data = run.config.data
  return KEEP if converted.wanted(run.config) else Look(data.pixels, data.get('fit', 'crop'))


class Policy:
  """Answers the questions of a suite with a policy of the work folder; what it has written stays in a folder."""

  def __init__(self, run: Run, name: str, suite: Suite, folder: pathlib.Path):
    self._run, self._name, self._suite, self._folder = run, name, suite, folder
    family = bool(converted.wanted(run.config))
    if not family:
      run.require('tokenizer')
    greedy = _truth(run, 'greedy')
    self._seed = _whole(run, 'seed')
    if greedy and suite.pictures > 1:
      raise UserError('--greedy draws the same picture each time; leave it out, or set --pictures=1')
    self._parts = Parts(run)
    # A family is sampled as its authors do, which its configuration says.
    sampled = 'as its family' if family else 'sampled'
    self._decoding = 'by likelihood' if suite.likelihood else 'greedy' if greedy else sampled
    self._options = DECODINGS['greedy' if greedy else 'sampled'] if greedy or not family else {}
    self._instruction = run.options.get('instruction', '')

  def answers(self) -> written.Written:
    """Has everything answered that is not yet."""
    run, suite = self._run, self._suite
    facts = {'suite': suite.name, 'questions': suite.digest(), 'policy': self._name,
             'weights': identity(policy_folder(run.workdir, self._name)), 'decoding': self._decoding, 'seed': self._seed,
             'instruction': self._instruction, 'pictures': suite.pictures, 'window': self._window, **look_of(run)._asdict()}
    make = functools.partial(written.Written, self._folder, facts, active=run.active)
    kept = make()
    barrier('suite-opened')
    if kept.complete:
      run.say('answers: complete')
      suite.unusable = dict(kept.unusable)
      return kept
    ask = self._chooser() if suite.likelihood else self._writer()
    progress = run.progress('answer', len(suite.entries), unit='question')
    written.write(suite, kept, ask, self._refuse, look=look_of(run), window=self._window, seed=self._seed,
                  instruction=self._instruction, tick=progress.update)
    barrier('suite-answers')
    return make()

  @property
  def _window(self) -> int:
    """Questions that are written together: a few times what is at work at once, so that rows seldom idle."""
    return 4 * self._run.config.decode.rows

  def _writer(self) -> written.Ask:
    generator = Generator.of(self._parts, self._name, **self._options)
    return lambda group, seed: generator.generate(group, n=self._suite.pictures, seed=seed, name=self._name)

  def _chooser(self) -> written.Ask:
    parts, layout_, eyes = self._parts, self._parts.layout, self._parts.eyes()

    def features(conversation: Conversation) -> np.ndarray:
      found = [image.data for turn in conversation.turns for image in images_of(turn.question)]
      return np.concatenate(list(eyes.features(found))) if found else np.zeros((0, 0), np.float32)

    scorer = Scorer(parts.model, parts.policy(self._name), layout_, rows=self._run.config.decode.rows,
                    features=features if layout_.features else None)
    see = functools.partial(coded, read=eyes.codes, features=layout_.features)
    return lambda group, seed: [[answer] for answer in self._suite.choose(scorer, [see(c) for c in group])]

  def _refuse(self, conversation: Conversation) -> str:
    config, block = self._run.config, self._parts.layout.block
    longest = max(config[stage].row_length for stage in ('warmup', 'finetune')) - config.decode.max_positions
    nothing = lambda found: np.zeros((len(found), block.places, block.depth), np.int32)
    prompt = layout.prompt(coded(conversation, nothing, self._parts.layout.features), self._parts.layout)
    return TOO_LONG if len(prompt.text) > longest else ''


class SynJudged:
  """SynJudge of the work folder as the judge of a suite."""

  def __init__(self, run: Run):
    run.require('tokenizer', 'warmup', 'judge')
    self._parts, self._rows = Parts(run), run.config.judge.rows
    self._eyes = self._parts.eyes()

  @functools.cached_property
  def _judge(self) -> tuple[Any, Any]:
    return self._parts.judge()

  def judge(self, items: Sequence[Asked]) -> list[Verdict]:
    """Scores of answers whose pictures have codes, or bytes."""
    if not items:
      return []
    layout_ = self._parts.layout
    seen = [coded(item.conversation, self._eyes.codes, layout_.features) for item in items]
    scores = judge_all(*self._judge, [layout.tokenise(c, layout_) for c in seen], self._rows).whole
    return [Verdict(dict(zip(DIMENSIONS, map(float, row), strict=True))) if np.isfinite(row).all() else Verdict(None, UNFIT)
            for row in scores]


def coded(conversation: Conversation, read: Callable[[Sequence[bytes]], np.ndarray], features: bool = False) -> Conversation:
  """The conversation with codes in place of the bytes of every picture that has none yet.

  Args:
    read: codes of n pictures, int32[n,P,D].
    features: pictures in questions keep their bytes, as the layout reads those.
  """
  def see(segments: Sequence[Segment], keep: bool = False) -> tuple[Segment, ...]:
    return tuple(s if keep or not isinstance(s, Image) else
                 Image(codes=s.codes if s.codes is not None else read([s.data])[0]) for s in segments)

  turns = tuple(Turn(see(t.question, features), see(t.answer)) for t in conversation.turns)
  return dataclasses.replace(conversation, turns=turns)


def _whole(run: Run, name: str) -> int:
  text = run.options.get(name, '0')
  if not text.removeprefix('-').isdecimal():
    raise UserError(f'--{name}={text} is not a whole number')
  return int(text)


def _truth(run: Run, name: str) -> bool:
  text = run.options.get(name, 'false').lower()
  if text not in ('true', 'false', '1', '0'):
    raise UserError(f'--{name}={text}: write true or false')
  return text in ('true', '1')
