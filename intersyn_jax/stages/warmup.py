"""Stage `warmup`: supervised training on the hybrid mix.

Three policies come out: the student (`warmup`), the same gone on for as long as the later stages take (`warmup_long`,
the compute-matched control of DESIGN 4), and the writer of SEIR, which goes on from the student and learns the roles.
"""

from __future__ import annotations

from collections.abc import Mapping

from etils import epath

from intersyn_jax import sharding
from intersyn_jax.data.pipeline import Documents, Pipeline
from intersyn_jax.models.definition import Params
from intersyn_jax.stages.common import Run
from intersyn_jax.stages.parts import Parts
from intersyn_jax.training import loop
from intersyn_jax.training.optimizer import OptimizerConfig
from intersyn_jax.training.supervised import next_token_loss
from intersyn_jax.training.tuning import Tuned, TuningConfig


def run(run: Run) -> dict:
  run.require('tokenizer')
  parts = Parts(run)
  config = run.config
  student = train(run, parts, config.warmup, 'warmup', parts.policy_folder('warmup').parent, parts.start())
  found = {'student': student}
  # Own data has no use for the control, and no examples of the roles: 0 steps leave these policies out.
  if config.warmup.long_steps:
    found['long'] = train(run, parts, config.warmup, 'warmup_long', parts.policy_folder('warmup_long').parent,
                          parts.policy('warmup'), steps=config.warmup.long_steps)
  if config.writer.steps:
    found['writer'] = train(run, parts, config.writer, 'writer', parts.policy_folder('writer').parent,
                            parts.policy('warmup'))
  return {f'{name}.{key}': value for name, last in found.items() for key, value in last.items()}


def train(run: Run, parts: Parts, section: Mapping, label: str, folder: epath.Path, params: Params, *,
          steps: int | None = None, sources: Mapping | None = None) -> dict[str, float]:
  """Trains a policy on the mix of a config section, all of it or LoRA factors, and keeps it in `folder`/checkpoints.

  Args:
    section: `mix`, `steps`, `rows`, `row_length`, `question_weight`, `optimizer` and what else `config.warmup` has.
    label: for progress, and what the data order depends on.
    params: where it starts; they are used up.
    steps: instead of the section's.
    sources: conversations by split; the data set's where none are given.

  Returns:
    The last metrics.
  """
  steps = section.steps if steps is None else steps
  sharding.check_rows(parts.mesh, section.rows, f'{label.split("_")[0]}.rows')
  found = {split: sources[split] if sources and split in sources else parts.conversations(split)
           for split, weight in section.mix.items() if weight}
  for split in [split for split, conversations in found.items() if not len(conversations)]:
    run.say(f'{label}: split {split} is empty; the others of the mix take its place')
    del found[split]
  sources, mix = found, {split: section.mix[split] for split in found}
  documents = Documents(sources, parts.layout, length=section.row_length, null=section.null_prompt_rate > 0,
                        too_long='drop', question_weight=section.question_weight)
  rate = section.null_prompt_rate if documents.has_null else 0.0
  batches = iter(Pipeline(documents, rows=section.rows, length=section.row_length, seed=run.config.seed, weights=mix,
                          null_prompt_rate=rate, mine=sharding.process_rows(parts.mesh, section.rows)))
  tuned = Tuned(parts.model_config, TuningConfig.of(section), OptimizerConfig(**section.optimizer), steps, parts.mesh)
  loss = next_token_loss(tuned.definition, chunk=section.get('log_prob_chunk', 0))
  step = loop.make_step(loss, tuned.optimizer, micro_batches=section.micro_batches)
  state = tuned.begin(params, run.config.seed)
  del params
  place = str(folder.relative_to(run.workdir))
  identity = run.config_hash(place.split('/')[0])
  saved = tuned.checkpoints(state, folder, identity)
  state, last = loop.fit(
      step, state, batches, steps=steps, seed=run.config.seed, checkpoints=saved,
      metrics=run.metrics(place, saved.done), metrics_every=section.log_every,
      save_every=section.checkpoint_every, progress=run.progress(label, steps, max(saved.done, 0)),
      batch_sharding=sharding.rows(parts.mesh), counts=batches.counts, profile=run.profile(place))
  tuned.keep(state, folder, identity)
  del state
  if documents.dropped:
    run.say(f'{label}: {len(documents.dropped)} conversations longer than a row of {section.row_length} were left out')
  return last | {'documents': len(documents.lengths), 'too_long': len(documents.dropped)}
