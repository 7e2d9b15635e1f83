"""Stage `data`: builds or imports the ArrayRecord shards that everything else reads."""

from __future__ import annotations

from intersyn_jax.data import builders
from intersyn_jax.stages import imports
from intersyn_jax.stages.common import Run


def run(run: Run) -> dict:
  data = run.config.data
  named = data.to_dict() | {'source': imports.resolve(data.source, 'data.source')}
  manifest = builders.build(named, run.directory('data'), run.reporter('data', 'record'), seed=data.seed)
  records = {f'records.{name}': split.records for name, split in manifest.splits.items()}
  rejected = {f'rejected.{name}': len(split.rejected) for name, split in manifest.splits.items()}
  return records | rejected
