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
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from intersyn_jax import sharding
from intersyn_jax.decoding.decoder import Completions, Decoder, join
from intersyn_jax.errors import UserError
from intersyn_jax.grpo import advantages, scoring
from intersyn_jax.grpo.advantages import AdvantageConfig
from intersyn_jax.grpo.loss import MODALITIES, LossConfig, make_loss, penalty_to_go, unit_mask, units
from intersyn_jax.grpo.rewards import HostReward, Reward, Rewards, checked, hybrid
from intersyn_jax.interleave import grammar, layout
from intersyn_jax.interleave.layout import PADDING, TokenBatch
from intersyn_jax.interleave.types import Conversation
from intersyn_jax.judge.model import JudgeScores
from intersyn_jax.models.definition import Params
from intersyn_jax.training import loop
from intersyn_jax.training.optimizer import Optimizer
from intersyn_jax.training.times import Times

Score = Callable[[Params, TokenBatch], JudgeScores]
"""Jittable: the judge's parameters and whole rows [R,T] -> scores of steps and of the whole. `SynJudge.score` is one."""

Draw = Callable[[int], tuple[TokenBatch, np.ndarray]]
"""The number of a batch of prompts -> prompts [P,T'], padded on the left, and int32[P], the steps they ask for."""

NO_SPREAD = 1e-6
"""Groups whose rewards spread less teach nothing."""


@dataclasses.dataclass(frozen=True)
class GRPOConfig:
  """Fields of `config.grpo` that shape an iteration; `AdvantageConfig` and `LossConfig` have the others.

  Attributes:
    max_prompt: T'.
    max_steps: S.
    inner_epochs: passes over each batch of rollouts.
    minibatches: updates a pass.
    micro_batches: parts of each update whose gradients are added up.
    scored: log-probs of which kind make the ratios, `plain` or `drawn`; see `grpo.scoring`.
    log_prob_chunk: positions of every row whose logits are built at a time; 0 all at once.
    filter_groups: groups without spread take no part in the update (DAPO).
    refills: then up to so many further batches of prompts are answered until P groups have spread.
    entropy: nats that the entropy of `text` and of `image` positions is steered to, 0 for no steering. By `rate` an iteration the
      weight of a bonus on it rises while it is lower and falls, not below 0, while it is higher (ReasonGen-R1).
  """

  max_prompt: int
  max_steps: int = 3
  inner_epochs: int = 1
  minibatches: int = 1
  micro_batches: int = 1
  scored: str = 'plain'
  log_prob_chunk: int = 0
  filter_groups: bool = False
  refills: int = 0
  entropy: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for field in ('inner_epochs', 'minibatches', 'micro_batches'):
      if getattr(self, field) < 1:
        raise UserError(f'grpo.{field} is {getattr(self, field)}; make it at least 1')
    if self.refills and not self.filter_groups:
      raise UserError(f'grpo.refills is {self.refills}, but no group is ever dropped; set grpo.filter_groups, or 0 refills')


@dataclasses.dataclass(frozen=True)
class Sample:
  """P groups of answers, ready for the update.

  Attributes:
    batch: what the loss reads, first axis R.
    spread: float32[P], of the rewards in each group.
    metrics: about these answers, on device.
  """

  batch: dict[str, Any]
  spread: jax.Array
  metrics: dict[str, jax.Array]


class Trainer:
  """Rollout, reward and update of one policy.

  Args:
    decoder: writes the answers; its `definition` is the policy's.
    score: the judge, and `judge` its parameters. optimizer: of the policy.
    reference: what trains of a state, frozen, for the policy that the trained one is held near (`Tuned.reference`); None where
      `loss.kl_estimator` is `none`.
    seed: of all draws.
    own: rewards of one's own, by name.

  Attributes:
    memory: what an iteration leaves to the next beside the state, as JSON: how many batches of prompts were `drawn`, and the
      weight of the bonus on the `entropy` of each modality. Keep it with the state.
    times: where the time goes; `rollout`, `reward` (in it `host_transfer` and `host_reward`) and `update` are counted here.
  """

  def __init__(self, decoder: Decoder, score: Score, judge: Params, optimizer: Optimizer, reference: Params | None,
               config: GRPOConfig, advantage: AdvantageConfig, loss: LossConfig, seed: int,
               own: Mapping[str, Reward | HostReward] | None = None):
    self.decoder, self.judge, self.reference = decoder, judge, reference if loss.has_reference else None
    self.config, self.advantage, self.loss, self.seed = config, advantage, loss, seed
    self.memory: dict[str, Any] = {'drawn': 0, 'entropy': [0.0] * len(MODALITIES)}
    self.times = Times()
    self._judge = score
    self._jitted = {name: reward for name, reward in (own or {}).items() if not isinstance(reward, HostReward)}
    self._hosted = {name: reward for name, reward in (own or {}).items() if isinstance(reward, HostReward)}
    self._log_probs = scoring.scorer(decoder, config.scored, config.max_prompt, config.log_prob_chunk)
    _, weights = make_loss(self._log_probs, loss)
    step = loop.make_step(self._objective, optimizer, weights=weights, micro_batches=config.micro_batches)
    self._update = jax.jit(loop.guarded(step), donate_argnums=0)
    self._finish = jax.jit(self._finished)
    self._reference = jax.jit(self._reference_units)
    self._choose = jax.jit(self._chosen)

  def iteration(self, state: loop.State, draw: Draw) -> tuple[loop.State, dict[str, float]]:
    """One iteration: the new state (the one given is used up) and metrics."""
    config, number = self.config, self.memory['drawn']
    samples = []
    for _ in range(1 + config.refills):
      samples.append(self._sample(state, draw))
      useful = [np.flatnonzero(sharding.host(sample.spread) >= NO_SPREAD) for sample in samples]
      if not config.filter_groups or sum(map(len, useful)) >= len(samples[0].spread):
        break
    batch = samples[0].batch
    if config.filter_groups:
      batch = self._choose([sample.batch for sample in samples], *self._rows(useful, len(samples[0].spread)))
    batch['entropy_weight'] = np.tile(np.asarray(self.memory['entropy'], np.float32), (len(batch['old']), 1))
    with self.times.of('update'):
      state, first, values = self._updates(state, self._in_sets(batch), jax.random.fold_in(jax.random.key(self.seed), number))
    metrics = first | _means(jax.device_get([sample.metrics for sample in samples]))
    metrics |= {name: values[name] for name in ('skipped', 'skipped_in_a_row')}
    # Later epochs are where ratios leave 1; the first update shows whether decoder and trainer agree.
    if config.inner_epochs * config.minibatches > 1:
      metrics |= {f'last.{name}': value for name, value in values.items() if name.startswith(('clipped', 'ratio'))}
    self._steer_entropy(metrics)
    groups = sum(len(sample.spread) for sample in samples)
    metrics |= {'rollouts': groups * self.advantage.group_size, 'zero_spread': 1.0 - sum(map(len, useful)) / groups}
    return state, {name: float(value) for name, value in metrics.items()}

  def _updates(self, state: loop.State, batch: Any, key: jax.Array) -> tuple[loop.State, dict[str, Any], dict[str, Any]]:
    """All updates on one batch of sets: the new state and the metrics of the first and of the last of them."""
    config, found = self.config, []
    for _ in range(config.inner_epochs):
      for part in range(config.minibatches):
        # Advantages are known already, so any cut is right.
        piece = jax.tree.map(lambda a, part=part: a[part::config.minibatches], batch)
        state, values = self._update(state, piece, key)
        found.append(values)
    return state, *jax.device_get((found[0], found[-1]))

  def _sample(self, state: loop.State, draw: Draw) -> Sample:
    """Answers to the next batch of prompts, with rewards and advantages."""
    group, number = self.advantage.group_size, self.memory['drawn']
    with self.times.of('data'):
      prompts, asked = draw(number)
    self.memory['drawn'] = number + 1
    rows = prompts.text.shape[0] * group
    requests = (np.arange(rows) + number * rows).astype(np.uint32)
    with self.times.of('rollout'):
      completions = self.decoder.rollout(loop.whole(state), prompts, requests, self.seed, group=group)
      jax.block_until_ready(completions.tokens.text)
    with self.times.of('reward'):
      return self._rewarded(state, prompts, asked, completions, requests)

  def _rewarded(self, state: loop.State, prompts: TokenBatch, asked: np.ndarray, completions: Completions,
                requests: np.ndarray) -> Sample:
    """What the update needs of some answers."""
    hosted = self._host(prompts, completions, requests)
    tokens = join(prompts, completions)
    reference = None
    if self.reference is not None:  # what stands still is shared with the policy
      reference = self._reference(loop.whole(state | {'params': self.reference}), self._in_sets(tokens))
    asked = np.repeat(np.asarray(asked), self.advantage.group_size)
    sample = Sample(*self._finish(self.judge, tokens, completions, asked, hosted, reference))
    jax.block_until_ready(sample.batch)
    return sample

  def _finished(self, judge: Params, tokens: TokenBatch, completions: Completions, asked: jax.Array,
                hosted: Mapping[str, np.ndarray], reference: jax.Array | None) -> tuple[dict[str, Any], jax.Array, dict]:
    """The fields of a `Sample` from whole rows; `hosted` is what the host gave, `reference` units [R,T,U]."""
    config, loss = self.advantage, self.loss
    length, start = tokens.text.shape[1], self.config.max_prompt
    answer = tokens.replace(modality=jnp.where(jnp.arange(length) >= start, tokens.modality, PADDING))
    parse = grammar.parse(answer, self.decoder.layout, self.config.max_steps)
    scores = self._judge(judge, tokens)
    rewards = hybrid(scores.steps, scores.whole, scores.valid, parse, asked, self._own(tokens) | dict(hosted))
    if config.process:
      last = jnp.max(jnp.where(answer.modality != PADDING, jnp.arange(length), 0), axis=1)
      advantage = advantages.process(rewards, parse, last, length, config)
    else:
      advantage = jnp.broadcast_to(advantages.outcome(rewards, config)[:, None], tokens.text.shape)
    # An answer that the judge could not read is no evidence of anything.
    tokens = tokens.replace(loss=tokens.loss * rewards.valid[:, None])
    text, codes = scoring.written(completions, self.config.scored)
    old = jnp.pad(units(text, codes, loss.code_ratio), ((0, 0), (start, 0), (0, 0)))
    batch = {'tokens': tokens, 'old': old, 'advantage': advantage}
    if reference is not None:
      batch['reference'] = reference
      if loss.kl_place == 'reward':
        cost = penalty_to_go(old, reference, unit_mask(tokens, loss.code_ratio), loss.kl_estimator)
        batch['advantage'] = advantage - loss.kl * cost
    spread = advantages.spread(rewards, config)
    return batch, spread, self._metrics(rewards, parse, completions, tokens, spread, advantage)

  @staticmethod
  def _rows(useful: Sequence[np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which groups of the samples, laid end to end, fill an update of `count`: int[count], and whether each counts."""
    found = np.concatenate([groups + count * number for number, groups in enumerate(useful)])[:count]
    fill = np.zeros(count - len(found), int)
    return np.concatenate([found, fill]), np.arange(count) < len(found)

  def _chosen(self, batches: Sequence[dict[str, Any]], groups: jax.Array, counts: jax.Array) -> dict[str, Any]:
    """The rows of some groups; those that do not count have no loss weight."""
    size = self.advantage.group_size
    rows = (groups[:, None] * size + jnp.arange(size)).reshape(-1)
    batch = jax.tree.map(lambda *parts: jnp.concatenate(parts)[rows], *batches)
    tokens = batch['tokens']
    return batch | {'tokens': tokens.replace(loss=tokens.loss * jnp.repeat(counts, size)[:, None])}

  def _steer_entropy(self, metrics: Mapping[str, Any]) -> None:
    for column, name in enumerate(MODALITIES):
      if target := self.config.entropy.get(name, 0.0):
        step = self.config.entropy['rate'] * (1 if metrics[f'entropy.{name}'] < target else -1)
        self.memory['entropy'][column] = max(0.0, self.memory['entropy'][column] + step)

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

  def _host(self, prompts: TokenBatch, completions: Completions, requests: np.ndarray) -> dict[str, np.ndarray]:
    """What the rewards on the host give."""
    if not self._hosted:
      return {}
    with self.times.of('host_transfer'):
      answers = conversations(prompts, completions, self.decoder.layout, requests)
    with self.times.of('host_reward'):
      return {name: checked(name, reward.score(answers), (len(answers), self.config.max_steps))
              for name, reward in self._hosted.items()}

  def _in_sets(self, rows: Any) -> Any:
    """Rows [R,...] as sets of neighbours [U,S,...] that stay together in every update and on one device, so that their prompt is
    read once: whole groups or, where parts are smaller, as much of a group as fits."""
    parts = self.config.minibatches * self.config.micro_batches * sharding.row_multiple(self.decoder.mesh)
    size = math.gcd(self.advantage.group_size, max(1, len(jax.tree.leaves(rows)[0]) // parts))
    return jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), rows)

  def _objective(self, params: Params, batch: dict[str, Any], key: jax.Array) -> Mapping:
    """The loss of sets [U,S,...]."""
    score = functools.partial(self._log_probs, share=batch['old'].shape[1])
    return make_loss(score, self.loss)[0](params, jax.tree.map(_joined, batch), key)

  def _reference_units(self, params: Params, tokens: TokenBatch) -> jax.Array:
    """Units [R,T,U] of sets [U,S,T], as many at a time as an update has."""
    count, share = self.config.micro_batches, tokens.text.shape[1]

    def score(part: TokenBatch) -> jax.Array:
      text, codes, _ = self._log_probs(params, jax.tree.map(_joined, part), share)
      return units(text, codes, self.loss.code_ratio)

    if count == 1:
      return score(tokens)
    # As `loop.gradients_of` cuts them.
    found = jax.lax.map(score, jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, count, *a.shape[1:]), 1, 0), tokens))
    return jnp.moveaxis(found.reshape(count, -1, share, *found.shape[2:]), 0, 1).reshape(-1, *found.shape[2:])

  def _metrics(self, rewards: Rewards, parse: grammar.Parse, completions: Completions, tokens: TokenBatch, spread: jax.Array,
               advantage: jax.Array) -> dict[str, jax.Array]:
    """What is told of one sample."""
    valid = rewards.valid.astype(jnp.float32)
    mean = lambda a: jnp.sum(a * valid) / jnp.maximum(jnp.sum(valid), 1.0)
    of_steps = lambda value: mean(advantages.mean_of_steps(value, rewards.counts))
    length = jnp.sum(completions.tokens.modality != PADDING, axis=1)
    opened = tokens.text[:, self.config.max_prompt:] == self.decoder.layout.block.begin
    return {
        'reward': mean(advantages.total(rewards, self.advantage)),
        'reward.textual': of_steps(rewards.textual), 'reward.visual': of_steps(rewards.visual),
        'reward.format': mean(rewards.structure), 'reward.spread': jnp.mean(spread),
        'advantage.spread': jnp.sqrt(jnp.sum(advantage ** 2 * tokens.loss) / jnp.maximum(jnp.sum(tokens.loss), 1.0)),
        'judge_failed': jnp.mean(1.0 - valid), 'malformed': jnp.mean(1.0 - parse.well_formed),
        'length': jnp.mean(length), 'unfinished': jnp.mean(completions.finish != 0), 'steps': jnp.mean(parse.steps),
        'images': jnp.mean(jnp.sum(opened, axis=1)),
    } | {f'reward.own.{name}': of_steps(value) for name, value in rewards.own.items()}


def _joined(sets: jax.Array) -> jax.Array:
  """[U,S,...] as [U S,...]."""
  return sets.reshape(-1, *sets.shape[2:])


def _means(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def conversations(prompts: TokenBatch, completions: Completions, layout_: layout.Layout,
                  requests: np.ndarray) -> list[Conversation]:
  """Prompts [P,T] and their R completions read back on the host, the answer in the last turn; ids are the requests."""
  tokens = sharding.host(completions.tokens)
  asked = [layout.turns_of(jax.tree.map(lambda a, row=row: np.asarray(a)[row], prompts), layout_)
           for row in range(len(prompts.text))]
  group = len(tokens.text) // len(asked)
  found = []
  for row, request in enumerate(requests):
    *before, last = asked[row // group]
    answer = layout.answer_of(tokens.text[row], tokens.codes[row], tokens.modality[row], layout_, tokens.forced[row])
    found.append(Conversation(str(request), '', (*before, dataclasses.replace(last, answer=answer))))
  return found
