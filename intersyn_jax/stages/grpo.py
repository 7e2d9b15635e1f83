"""Stage `grpo`: unified GRPO from the policy that `grpo.init` names; that policy, frozen, is the reference."""

from __future__ import annotations

import jax
import numpy as np

from intersyn_jax.errors import UserError
from intersyn_jax.grpo.loss import LossConfig
from intersyn_jax.grpo.rewards import HostReward, Reward, asked_steps
from intersyn_jax.grpo.trainer import GRPOConfig, Trainer
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.types import Turn, text_of
from intersyn_jax.stages import imports
from intersyn_jax.stages.common import Run
from intersyn_jax.stages.parts import Parts, policy_folder
from intersyn_jax.training import checkpoints, loop
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer


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
  parts = Parts(run)
  config, grpo = run.config, run.config.grpo
  run.require('judge', policy_folder(run.workdir, grpo.init).relative_to(run.workdir).parts[0])
  own = own_rewards(parts)
  reference = parts.policy(grpo.init)
  decoder = parts.decoder(max_positions=grpo.max_positions, text_temperature=1.0, text_top_k=0, text_top_p=1.0,
                          image_temperature=1.0, image_top_k=0, image_top_p=1.0, guidance=1.0)
  optimizer = make_optimizer(OptimizerConfig(**grpo.optimizer), grpo.steps * grpo.inner_epochs * grpo.minibatches)
  settings = GRPOConfig(
      grpo.group_size, grpo.reward.to_dict(), grpo.process, grpo.process_normalise, grpo.advantage_scale,
      grpo.inner_epochs, grpo.minibatches, grpo.micro_batches, config.judge.max_steps)
  losses = LossConfig(grpo.clip_low, grpo.clip_high, grpo.kl, grpo.kl_estimator, grpo.aggregation, grpo.code_ratio,
                      grpo.log_prob_chunk)
  judge, judge_params = parts.judge()
  narrow = judge.within(grpo.max_prompt, grpo.max_positions)
  trainer = Trainer(decoder, narrow.score, judge_params, optimizer, reference, settings, losses, config.seed, own)
  prompts = Prompts(parts, grpo.questions, grpo.max_prompt, config.seed)

  state = loop.init_state(parts.policy(grpo.init), optimizer)
  saved = checkpoints.Checkpoints(parts.policy_folder('grpo'), identity=run.config_hash('grpo'))
  done, last = 0, {}
  if saved.latest() is not None:
    state, meta = saved.restore(state)
    done, last = meta['iteration'], meta['metrics']
  metrics, progress = run.metrics('grpo', done), run.progress('grpo', grpo.steps, done)
  for number in range(done, grpo.steps):
    rows, asked = prompts.batch(number, grpo.prompts)
    state, last = trainer.iteration(state, number, jax.tree.map(np.asarray, rows), asked)
    done = number + 1
    metrics.write(done, last)
    progress(done, grpo.steps, 0.0, 0.0, last)
    if done % grpo.checkpoint_every == 0 or done == grpo.steps:
      saved.save(state, iteration=done, metrics=last)
  return {name: value for name, value in last.items() if not name.startswith('seconds.')} | {
      'questions': len(prompts.documents)}
