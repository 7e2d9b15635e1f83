"""Stage `data`: builds or imports the ArrayRecord shards that everything else reads."""

from __future__ import annotations

from intersyn_jax.data import builders, manifest
from intersyn_jax.stages import imports
from intersyn_jax.stages.common import Run, barrier


def run(run: Run) -> dict:
  data = run.config.data
  named = data.to_dict() | {'source': imports.resolve(data.source, 'data.source')}
  folder = run.directory('data')
  if run.active:  # the others wait: `data.workers` shares the work out, and shards have one writer
    builders.build(named, folder, run.reporter('data', 'record'), seed=data.seed)
  barrier('data-built')
  splits = manifest.load(folder).splits
  records = {f'records.{name}': split.records for name, split in splits.items()}
  rejected = {f'rejected.{name}': split.left_out for name, split in splits.items()}
  return records | rejected
