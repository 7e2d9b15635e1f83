"""The peers of benchmark `grpo`, each in a process of its own: TRL's GRPOTrainer and tunix's GRPOLearner.

    python -m intersyn_jax.benchmarks.grpo_peers trl FOLDER

FOLDER holds the model as transformers reads it. The first line on the standard input is a `Job`; for every further line the
process makes one iteration, by the training loop of its library, and answers with a line of JSON: the seconds of each phase, and
how many tokens were written. Needs the extra `peers`.

Both are set up as their documentation says for speed without a server for inference: no recomputation of activations, the
largest batch while writing, no logs. Ends, where a token could end an answer, are made impossible, so that all write the same
number of tokens. The reward costs nothing.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

PHASES = ('rollout', 'reference', 'update')


class Job(NamedTuple):
  """One iteration.

  Attributes:
    prompts: P prompts as ids, all of one length.
    group: G. new: tokens of each answer. vocabulary: V.
    kl: weight of the divergence from the reference.
    micro_batch: answers whose gradient is taken at once.
  """

  prompts: list[list[int]]
  group: int
  new: int
  vocabulary: int
  kl: float
  micro_batch: int = 1

  @property
  def rows(self) -> int:
    return len(self.prompts) * self.group


class Peer:
  """A peer that waits for its turn."""

  def __init__(self, name: str, folder: pathlib.Path, job: Job):
    self._errors = folder / f'{name}.log'
    with open(self._errors, 'w') as errors:
      self._process = subprocess.Popen(
          [sys.executable, '-m', __spec__.name, name, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
          text=True)
    self._job = job
    self._say(json.dumps(job._asdict()))

  def _say(self, line: str) -> None:
    assert self._process.stdin
    self._process.stdin.write(line + '\n')
    self._process.stdin.flush()

  def __call__(self) -> dict[str, float]:
    """One iteration: seconds by phase. Raises RuntimeError where it fails or writes another number of tokens."""
    assert self._process.stdout
    try:
      self._say('go')
      found = json.loads(self._process.stdout.readline())
    except (BrokenPipeError, ValueError):
      self._process.wait()
      raise RuntimeError(f'the peer has ended: {self._errors.read_text()[-2000:]}') from None
    if found.pop('tokens') != self._job.rows * self._job.new:
      raise RuntimeError(f'the peer has not written {self._job.new} tokens in each answer')
    return found

  def close(self) -> None:
    self._process.kill()
    self._process.wait()


# In the process of a peer.


class Turns:
  """Waits for a line, and answers with what was measured since."""

  def __init__(self, out: IO[str]):
    self._out, self._began = out, 0.0
    self._seconds, self.tokens = dict.fromkeys(PHASES, 0.0), 0

  def begin(self) -> bool:
    """Whether another iteration is wanted."""
    if not sys.stdin.readline():
      return False
    self._seconds, self.tokens = dict.fromkeys(PHASES, 0.0), 0
    self._began = time.perf_counter()
    return True

  def end(self) -> None:
    """The update is what the other phases leave of the iteration."""
    self._seconds['update'] = time.perf_counter() - self._began - sum(self._seconds.values())
    print(json.dumps(self._seconds | {'tokens': self.tokens}), file=self._out, flush=True)

  def timed(self, phase: str, function: Callable[..., Any], wait: Callable[[Any], Any] = lambda x: x) -> Callable[..., Any]:
    """The function, with its seconds counted as those of a phase."""

    @functools.wraps(function)
    def measured(*arguments: Any, **named: Any) -> Any:
      began = time.perf_counter()
      found = wait(function(*arguments, **named))
      self._seconds[phase] += time.perf_counter() - began
      return found

    return measured


def words(ids: Sequence[int]) -> str:
  """Prompts reach both libraries as text: every id is a word."""
  return ' '.join(map(str, ids))


def trl(folder: pathlib.Path, job: Job, turns: Turns) -> None:
  """TRL without checkpointing of activations; loss, estimator of divergence and clip are as ours."""
  import datasets
  import tokenizers
  import torch
  import transformers
  from trl import GRPOConfig, GRPOTrainer

  torch.set_num_threads(os.cpu_count() or 1)
  # The last two words are the end and the padding; the model has no such tokens.
  vocabulary = {str(i): i for i in range(job.vocabulary + 2)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, str(job.vocabulary)))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  processing = transformers.PreTrainedTokenizerFast(
      tokenizer_object=tokenizer, eos_token=str(job.vocabulary), pad_token=str(job.vocabulary + 1), padding_side='left')

  class Trainer(GRPOTrainer):
    def _generate_single_turn(self, *arguments: Any, **named: Any) -> Any:
      found = turns.timed('rollout', super()._generate_single_turn)(*arguments, **named)
      turns.tokens += sum(map(len, found[0]))
      return found

    def _get_per_token_logps_and_entropies(self, model: Any, *arguments: Any, **named: Any) -> Any:
      score = super()._get_per_token_logps_and_entropies
      return (turns.timed('reference', score) if model is self.ref_model else score)(model, *arguments, **named)

  class Turn(transformers.TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
      if not turns.begin():
        sys.exit()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
      turns.end()

  trainer = Trainer(
      transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
      reward_funcs=lambda completion_ids, **_: [float(ids[0] % 7) for ids in completion_ids],
      args=GRPOConfig(
          str(folder / 'trl'), use_cpu=True, bf16=False, gradient_checkpointing=False, num_generations=job.group,
          max_completion_length=job.new, per_device_train_batch_size=job.micro_batch,
          gradient_accumulation_steps=job.rows // job.micro_batch, beta=job.kl, use_bias_correction_kl=False, loss_type='grpo',
          learning_rate=1e-6, max_steps=10**6, report_to='none', logging_steps=10**6, save_strategy='no', disable_tqdm=True,
          dataloader_pin_memory=False),
      train_dataset=datasets.Dataset.from_dict({'prompt': [words(ids) for ids in job.prompts]}),
      processing_class=processing, callbacks=[Turn()])
  trainer.train()


class Words:
  """A tokenizer as tunix asks for one."""

  def __init__(self, job: Job):
    self._job = job

  def encode(self, text: str) -> list[int]:
    return [int(word) for word in text.split()]

  def decode(self, ids: Sequence[int]) -> str:
    return words(ids)

  def bos_id(self) -> int:
    return 0  # none is put in front

  def eos_id(self) -> int:
    return self._job.vocabulary

  def pad_id(self) -> int:
    return self._job.vocabulary + 1


def tunix(folder: pathlib.Path, job: Job, turns: Turns) -> None:
  """tunix with its own sampler, all roles on one mesh; the cache has just the places that are needed."""
  import jax
  import optax
  from tunix.models.llama3 import model as llama
  from tunix.models.llama3 import params
  from tunix.rl import rl_cluster
  from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
  from tunix.rl.rollout.base_rollout import RolloutConfig

  config = json.loads((folder / 'config.json').read_text())
  shape = llama.ModelConfig(
      num_layers=config['num_hidden_layers'], vocab_size=job.vocabulary, embed_dim=config['hidden_size'],
      hidden_dim=config['intermediate_size'], num_heads=config['num_attention_heads'], head_dim=config['head_dim'],
      num_kv_heads=config['num_key_value_heads'], rope_theta=int(config['rope_theta']), norm_eps=config['rms_norm_eps'])
  mesh = jax.sharding.Mesh([jax.devices()[:1]], ('fsdp', 'tp'))
  load = lambda: params.create_model_from_safe_tensors(str(folder), shape, mesh, jax.numpy.float32)
  length = len(job.prompts[0])
  roles = rl_cluster.Role
  cluster = rl_cluster.RLCluster(
      actor=load(), reference=load(), tokenizer=Words(job), cluster_config=rl_cluster.ClusterConfig(
          role_to_mesh=dict.fromkeys((roles.ACTOR, roles.REFERENCE, roles.ROLLOUT), mesh),
          training_config=rl_cluster.RLTrainingConfig(
              actor_optimizer=optax.adamw(1e-6), eval_every_n_steps=10**6, max_steps=10**6, mini_batch_size=len(job.prompts),
              train_micro_batch_size=max(1, job.micro_batch // job.group), rollout_micro_batch_size=len(job.prompts),
              compute_logps_micro_batch_size=max(1, job.micro_batch // job.group)),
          rollout_config=RolloutConfig(max_tokens_to_generate=job.new, max_prompt_length=length, kv_cache_size=length + job.new,
                                       temperature=1.0, top_p=1.0, top_k=-1)))

  def generate(*arguments: Any, **named: Any) -> Any:
    found = write(*arguments, **named)
    turns.tokens += sum(map(len, found.tokens))
    return found

  write, cluster.generate = turns.timed('rollout', cluster.generate), generate
  cluster.get_ref_per_token_logps = turns.timed('reference', cluster.get_ref_per_token_logps, jax.block_until_ready)

  def batches() -> Iterator[dict[str, list[str]]]:
    """The next batch is asked for when an iteration is complete."""
    while turns.begin():
      yield {'prompts': [words(ids) for ids in job.prompts]}
      turns.end()

  reward = lambda prompts, completions, **_: [float(len(text) % 7) for text in completions]
  GRPOLearner(cluster, GRPOConfig(num_generations=job.group, beta=job.kl, kl_loss_mode='low_var_kl'), reward).train(batches())


def main(name: str, folder: str) -> None:
  # What libraries print goes to the standard error; the answers have the standard output for themselves.
  out, sys.stdout = sys.stdout, sys.stderr
  job = Job(**json.loads(sys.stdin.readline()))
  {'trl': trl, 'tunix': tunix}[name](pathlib.Path(folder), job, Turns(out))


if __name__ == '__main__':
  main(*sys.argv[1:])
