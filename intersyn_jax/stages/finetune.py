"""Stage `finetune`: the student learns from the synthesised shards (InterSyn, section 4)."""

from __future__ import annotations

from etils import epath

from intersyn_jax.data import shards
from intersyn_jax.stages.common import Run
from intersyn_jax.stages.parts import Parts
from intersyn_jax.stages.warmup import train


def run(run: Run) -> dict:
  run.require('warmup', 'synthesize')
  parts = Parts(run)
  folder = run.workdir / 'synthesize' / 'data'
  synthesized = shards.open_split(folder, 'refined') if 'refined' in shards.splits(folder) else ()
  return finetune(run, parts, synthesized, 'finetune', run.directory('finetune'))


def finetune(run: Run, parts: Parts, conversations, label: str, folder: epath.Path) -> dict[str, float]:
  """Trains the warm-up policy on these conversations in place of the synthesised ones; the controls of DESIGN 4 do too."""
  return train(run, parts, run.config.finetune, label, folder, parts.policy('warmup'),
               sources={'synthesized': conversations})
