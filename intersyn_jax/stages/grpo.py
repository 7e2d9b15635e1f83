"""Stage `grpo`: unified GRPO from the policy that `grpo.init` names; that policy, frozen, is the reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_collections
import numpy as np

from intersyn_jax.errors import UserError
from intersyn_jax.grpo.advantages import AdvantageConfig
from intersyn_jax.grpo.loss import LossConfig
from intersyn_jax.grpo.rewards import HostReward, Reward, asked_steps
from intersyn_jax.grpo.trainer import GRPOConfig, Trainer
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.types import Turn, text_of
from intersyn_jax.stages import imports
from intersyn_jax.stages.common import Run
from intersyn_jax.stages.parts import Parts, policy_folder
from intersyn_jax.stages.watch import Watch
from intersyn_jax.training import loop, stopping
from intersyn_jax.training.optimizer import OptimizerConfig
from intersyn_jax.training.times import device_memory
from intersyn_jax.training.tuning import Tuned, TuningConfig


class Prompts:
  """Questions without their answers, in an order that seed and iteration decide."""

  def __init__(self, parts: Parts, split: str, longest: int, seed: int):
    self._seed = seed
    self.documents, self.asked = [], []
    for conversation in parts.conversations(split):
      question = Turn(conversation.turns[0].question)
      document = layout.prompt(type(conversation)(conversation.id, conversation.topic, (question,)), parts.layout)
      if len(document.text) <= longest:
        self.documents.append(document)
        self.asked.append(asked_steps(text_of(question.question)))
    if not self.documents:
      raise UserError(f'no question of split {split} has at most {longest} positions; raise grpo.max_prompt')
    self._longest = longest

  def batch(self, number: int, count: int) -> tuple[layout.TokenBatch, np.ndarray]:
    """Prompts [count, T] and the steps they ask for, of one iteration."""
    picks = []
    for place in range(number * count, (number + 1) * count):
      epoch, place = divmod(place, len(self.documents))
      order = np.random.Generator(np.random.Philox(key=[self._seed, epoch])).permutation(len(self.documents))
      picks.append(order[place])
    rows = layout.stack([self.documents[i] for i in picks], self._longest, left=True)
    return rows, np.asarray([self.asked[i] for i in picks], np.int32)


def own_rewards(parts: Parts) -> dict[str, Reward | HostReward]:
  """The rewards that `grpo.rewards` names, by the last part of their names; each constructor is given the parts."""
  made: dict[str, Reward | HostReward] = {}
  for value in parts.config.grpo.rewards:
    name, reward = imports.name_of(value), imports.construct(value, 'grpo.rewards', 'rewards', parts)
    if name in made:
      raise UserError(f'config.grpo.rewards names {name} twice; the metrics need a name for each')
    if not isinstance(reward, HostReward) and not callable(reward):
      raise UserError(f'config.grpo.rewards: {name} constructs a {type(reward).__name__}; it must construct a function of '
                      'TokenBatch, or a HostReward')
    made[name] = reward
  return made


def run(run: Run) -> dict:
  return train(run, 'grpo')


def train(run: Run, policy: str) -> dict:
  """Trains a policy under `config.grpo` and keeps it where policies of that name lie. Returns the last metrics."""
  parts = Parts(run)
  config, grpo = run.config, run.config.grpo
  run.require('judge', policy_folder(run.workdir, grpo.init).relative_to(run.workdir).parts[0])
  folder = parts.policy_folder(policy).parent
  label = str(folder.relative_to(run.workdir))
  own = own_rewards(parts)
  judge, judge_params = parts.judge()
  losses = _fields(LossConfig, grpo)
  updates = grpo.steps * grpo.inner_epochs * grpo.minibatches
  tuned = Tuned(parts.model_config, TuningConfig.of(grpo), OptimizerConfig(**grpo.optimizer), updates, parts.mesh)
  state = tuned.begin(parts.policy(grpo.init), config.seed)
  trainer = Trainer(
      parts.decoder(tuned.definition, max_positions=grpo.max_positions, **grpo.sampling),
      judge.within(grpo.max_prompt, grpo.max_positions).score, judge_params, tuned.optimizer,
      tuned.reference(state) if losses.has_reference else None, _fields(GRPOConfig, grpo, max_steps=config.judge.max_steps),
      _fields(AdvantageConfig, grpo, weights=grpo.reward.to_dict()), losses, config.seed, own)
  prompts = Prompts(parts, grpo.questions, grpo.max_prompt, config.seed)
  watch = Watch(parts, grpo.watch, (judge, judge_params))

  identity = run.config_hash('grpo')
  saved = tuned.checkpoints(state, folder, identity)
  done, last = 0, {}
  if saved.latest() is not None:
    state, meta = saved.restore(state)
    done, last, trainer.memory, watch.history = meta['iteration'], meta['metrics'], meta['memory'], meta['watch']
  metrics, watched, progress = run.metrics(label, done), None, run.progress(policy, grpo.steps, done)
  if watch.every:
    watched = run.metrics(f'{label}/watch', done or -1)

  def look() -> None:
    if watch.due(done, grpo.steps):
      with trainer.times.of('watch'):
        row = watch.look(done, tuned.kept(state))
      watched.write(done, {name: value for name, value in row.items() if name != 'step'})

  times, profile = trainer.times, run.profile(label)
  with stopping.held():
    look()
    while done < grpo.steps and not watch.diverged:
      with profile.step(done + 1, state):
        state, last = trainer.iteration(state, lambda number: prompts.batch(number, grpo.prompts))
      done += 1
      loop.check_skipped(last, saved)
      look()
      metrics.write(done, last | times.take() | device_memory())
      progress.update(done, reward=last['reward'])
      stops = stopping.wanted()
      if done % grpo.checkpoint_every == 0 or done == grpo.steps or watch.diverged or stops:
        with times.of('checkpoint'):
          saved.begin_save(state, iteration=done, metrics=last, memory=trainer.memory, watch=watch.history)
      if stops:
        break
    profile.close(state)
    saved.finish()
    if done < grpo.steps and not watch.diverged:
      raise stopping.Stopped
  progress.close()
  tuned.keep(state, folder, identity)
  if watch.diverged:
    run.say(f'{policy}: ended after {done} of {grpo.steps} iterations, judge and known world drift apart on the validation split '
            f'(grpo.watch.divergence {grpo.watch.divergence})')
  seen = {f'watch.{name}': value for name, value in (watch.history[-1] if watch.history else {}).items() if name != 'step'}
  return last | seen | {'iterations': done, 'questions': len(prompts.documents)}


def _fields(kind: type, section: ml_collections.ConfigDict, **given: Any) -> Any:
  """A record of the fields that a config section has for it."""
  found = {field.name: section[field.name] for field in dataclasses.fields(kind) if field.name in section}
  return kind(**(found | given))
