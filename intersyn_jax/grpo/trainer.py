"""One iteration of unified GRPO on one mesh: rollout, reward, advantage, update.

    for each iteration:
      answers  = G completions of each prompt by the policy
      rewards  = judge and format rule, per step
      advantage = return-to-go of what the group makes of them
      policy  <- clipped update, held near the frozen policy it started from

Letters: P prompts, G answers of each, R = P G, T positions of a whole row, M of a completion, S steps at most.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax.decoding.decoder import Completions, Decoder, join
from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.answers import host
from intersyn_jax.grpo import advantages
from intersyn_jax.grpo.loss import LossConfig, make_loss, units
from intersyn_jax.grpo.rewards import HostReward, Reward, Rewards, checked, hybrid
from intersyn_jax.interleave import grammar, layout
from intersyn_jax.interleave.layout import PADDING, TokenBatch
from intersyn_jax.interleave.types import Conversation
from intersyn_jax.judge.model import JudgeScores
from intersyn_jax.models import unified
from intersyn_jax.models.definition import Params
from intersyn_jax.training import loop
from intersyn_jax.training.optimizer import Optimizer

Score = Callable[[Params, TokenBatch], JudgeScores]
"""Jittable: the judge's parameters and whole rows [R,T] -> scores of steps and of the whole. `SynJudge.score` is one."""


@dataclasses.dataclass(frozen=True)
class GRPOConfig:
  """Fields of `config.grpo` that shape an iteration; see `LossConfig` for those of the loss.

  Attributes:
    group_size: G.
    weights: of the rewards `textual`, `visual`, `format`, and of each reward of one's own, `own`.
    process: rewards step by step; off: one advantage for the whole answer.
    process_normalise: over all steps of the group (`group`) or over the same step (`step`).
    advantage_scale: divide by the standard deviation of the `group`, of the `batch`, or by nothing (`none`).
    inner_epochs: passes over each batch of rollouts.
    minibatches: updates a pass.
    micro_batches: parts of each update whose gradients are added up.
    max_steps: S.
  """

  group_size: int
  weights: dict[str, float]
  process: bool = True
  process_normalise: str = 'group'
  advantage_scale: str = 'group'
  inner_epochs: int = 1
  minibatches: int = 1
  micro_batches: int = 1
  max_steps: int = 3

  def __post_init__(self):
    if self.group_size < 2:
      raise UserError(f'grpo.group_size is {self.group_size}; an advantage needs at least 2 answers to compare')
    for field, choices in (('process_normalise', ('group', 'step')), ('advantage_scale', ('group', 'batch', 'none'))):
      if getattr(self, field) not in choices:
        raise UserError(f'grpo.{field} is {getattr(self, field)!r}; use one of {", ".join(choices)}')


class Trainer:
  """Rollout, reward and update of one policy.

  Args:
    decoder: writes the answers; its `definition` is the policy's.
    score: the judge, and `judge` its parameters. optimizer: of the policy.
    reference: frozen parameters that the policy is held near.
    seed: of all draws.
    own: rewards of one's own, by name.
  """

  def __init__(self, decoder: Decoder, score: Score, judge: Params, optimizer: Optimizer, reference: Params,
               config: GRPOConfig, loss: LossConfig, seed: int, own: Mapping[str, Reward | HostReward] | None = None):
    self.decoder, self.judge, self.reference = decoder, judge, reference
    self.config, self.loss, self.seed = config, loss, seed
    self._score = score
    self._jitted = {name: reward for name, reward in (own or {}).items() if not isinstance(reward, HostReward)}
    self._hosted = {name: reward for name, reward in (own or {}).items() if isinstance(reward, HostReward)}
    objective, weights = make_loss(decoder.definition, loss)
    self._update = jax.jit(loop.make_step(objective, optimizer, weights=weights, micro_batches=config.micro_batches),
                           donate_argnums=0)
    self._assess = jax.jit(self.assess)
    self._reference = jax.jit(self._reference_units)

  def assess(self, judge: Params, tokens: TokenBatch, asked: jax.Array, start: jax.Array,
             hosted: Mapping[str, np.ndarray]) -> tuple[Rewards, jax.Array]:
    """Rewards and advantages [R,T] of whole rows whose answers begin at position `start`; `hosted` is what the host gave."""
    config = self.config
    answer = tokens.replace(modality=jnp.where(jnp.arange(tokens.text.shape[1]) >= start, tokens.modality, PADDING))
    parse = grammar.parse(answer, self.decoder.layout, config.max_steps)
    scores = self._score(judge, tokens)
    rewards = hybrid(scores.steps, scores.whole, scores.valid, parse, asked, self._own(tokens) | dict(hosted))
    length = tokens.text.shape[1]
    if config.process:
      last = jnp.max(jnp.where(answer.modality != PADDING, jnp.arange(length), 0), axis=1)
      advantage = advantages.process(rewards, parse, last, length, config.weights, config.group_size,
                                     config.advantage_scale, config.process_normalise == 'step')
    else:
      total = advantages.outcome(rewards, config.weights, config.group_size, config.advantage_scale)
      advantage = jnp.broadcast_to(total[:, None], tokens.text.shape)
    return rewards, advantage

  def _own(self, tokens: TokenBatch) -> dict[str, jax.Array]:
    """What the jittable rewards of one's own give."""
    found, shape = {}, (tokens.text.shape[0], self.config.max_steps)
    for name, reward in self._jitted.items():
      try:
        value = reward(tokens)
      except jax.errors.JAXTypeError as error:
        raise UserError(f'config.grpo.rewards: {name} cannot be compiled ({str(error).splitlines()[0]}); use jax.numpy '
                        'without Python decisions on values, or make it a HostReward') from error
      found[name] = checked(name, value, shape)
    return found

  def _host(self, prompts: TokenBatch, completions: Completions, requests: np.ndarray) -> tuple[dict[str, np.ndarray], dict]:
    """What the rewards on the host give, and the seconds that the transfer and they took."""
    if not self._hosted:
      return {}, {}
    began = time.monotonic()
    answers = conversations(prompts, completions, self.decoder.layout, requests)
    moved = time.monotonic()
    found = {name: checked(name, reward.score(answers), (len(answers), self.config.max_steps))
             for name, reward in self._hosted.items()}
    return found, {'seconds.host_transfer': moved - began, 'seconds.host_reward': time.monotonic() - moved}

  def _reference_units(self, params: Params, tokens: TokenBatch) -> jax.Array:
    model = self.decoder.definition.bind(params)
    text, codes, _ = unified.position_log_probs(model, model(tokens), tokens, chunk=self.loss.log_prob_chunk)
    return units(text, codes, self.loss.code_ratio)

  def old_units(self, completions: Completions, start: int) -> jax.Array:
    """Log-probs [R,T,U] that the decoder found while it wrote; 0 over the prompt."""
    codes = completions.plain_code_log_prob
    text = completions.plain_log_prob - jnp.sum(codes, axis=-1)
    return jnp.pad(units(text, codes, self.loss.code_ratio), ((0, 0), (start, 0), (0, 0)))

  def iteration(self, state: loop.State, number: int, prompts: TokenBatch,
                asked: np.ndarray) -> tuple[loop.State, dict[str, Any]]:
    """One iteration.

    Args:
      state: of the policy, donated.
      number: of the iteration, from 0; decides the draws.
      prompts: [P,T'] padded on the left.
      asked: int32[P], steps asked for.

    Returns:
      the new state and metrics.
    """
    config, clock = self.config, time.monotonic
    began = clock()
    rows = prompts.text.shape[0] * config.group_size
    requests = (np.arange(rows) + number * rows).astype(np.uint32)
    completions = self.decoder.rollout(state['params'], prompts, requests, self.seed, group=config.group_size)
    tokens = join(prompts, completions)
    start = prompts.text.shape[1]
    jax.block_until_ready(tokens.text)
    rolled = clock()

    hosted, host_seconds = self._host(prompts, completions, requests)
    rewards, advantage = self._assess(self.judge, tokens, jnp.repeat(jnp.asarray(asked), config.group_size), start, hosted)
    # An answer that the judge could not read is no evidence of anything.
    tokens = tokens.replace(loss=tokens.loss * rewards.valid[:, None])
    batch = {'tokens': tokens, 'old': self.old_units(completions, start), 'advantage': advantage,
             'reference': self._reference(self.reference, tokens)}
    jax.block_until_ready(batch)
    judged = clock()

    key = jax.random.fold_in(jax.random.key(self.seed), number)
    for epoch in range(config.inner_epochs):
      for part in range(config.minibatches):
        # Whole groups stay together only by chance of the cut; advantages are known already, so any cut is right.
        piece = jax.tree.map(lambda a, part=part: a[part::config.minibatches], batch)
        state, values = self._update(state, piece, key)
        if epoch == 0 and part == 0:
          first = values
    metrics = jax.device_get(first | self._summary(rewards, completions, tokens, start))
    # Later epochs are where ratios leave 1; the first update shows whether decoder and trainer agree.
    if config.inner_epochs * config.minibatches > 1:
      metrics |= {f'last.{name}': value for name, value in jax.device_get(values).items() if 'clipped' in name}
    metrics |= host_seconds | {'seconds.rollout': rolled - began, 'seconds.reward': judged - rolled,
                               'seconds.update': clock() - judged}
    return state, {name: float(value) for name, value in metrics.items()}

  def _summary(self, rewards: Rewards, completions: Completions, tokens: TokenBatch, start: int) -> dict[str, jax.Array]:
    valid = rewards.valid.astype(jnp.float32)
    mean = lambda a: jnp.sum(a * valid) / jnp.maximum(jnp.sum(valid), 1.0)
    textual, visual = (advantages.mean_of_steps(a, rewards.counts) for a in (rewards.textual, rewards.visual))
    own = {name: advantages.mean_of_steps(value, rewards.counts) for name, value in rewards.own.items()}
    weights = self.config.weights
    total = weights['textual'] * textual + weights['visual'] * visual + weights['format'] * rewards.structure
    for value in own.values():
      total = total + weights['own'] * value
    spread = jnp.std(total.reshape(-1, self.config.group_size), axis=1)
    length = jnp.sum(completions.tokens.modality != PADDING, axis=1)
    return {
        'reward': mean(total), 'reward.textual': mean(textual), 'reward.visual': mean(visual),
        'reward.format': mean(rewards.structure), 'reward.spread': jnp.mean(spread),
        'zero_spread': jnp.mean(spread < 1e-6), 'judge_failed': jnp.mean(1.0 - valid),
        'length': jnp.mean(length), 'unfinished': jnp.mean(completions.finish != 0),
        'images': jnp.mean(jnp.sum(tokens.text[:, start:] == self.decoder.layout.block.begin, axis=1)),
    } | {f'reward.own.{name}': mean(value) for name, value in own.items()}


def conversations(prompts: TokenBatch, completions: Completions, layout_: layout.Layout,
                  requests: np.ndarray) -> list[Conversation]:
  """Prompts [P,T] and their R completions read back on the host, the answer in the last turn; ids are the requests."""
  tokens = jax.tree.map(host, completions.tokens)
  asked = [layout.turns_of(jax.tree.map(lambda a, row=row: np.asarray(a)[row], prompts), layout_)
           for row in range(len(prompts.text))]
  group = len(tokens.text) // len(asked)
  found = []
  for row, request in enumerate(requests):
    *before, last = asked[row // group]
    answer = layout.answer_of(tokens.text[row], tokens.codes[row], tokens.modality[row], layout_, tokens.forced[row])
    found.append(Conversation(str(request), '', (*before, dataclasses.replace(last, answer=answer))))
  return found
