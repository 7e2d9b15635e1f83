"""Stage `data`: builds or imports the ArrayRecord shards that everything else reads."""

from __future__ import annotations

from intersyn_jax.data import builders
from intersyn_jax.stages.common import Run


def run(run: Run) -> dict:
  config = run.config
  line = None

  def progress(label: str, done: int, total: int | None) -> None:
    nonlocal line
    if line is None or line[0] != label:
      line = (label, run.progress('data', total or 0, unit='record', label=label))
    line[1].update(done)

  manifest = builders.build(config.data, run.directory('data'), progress, seed=config.data.seed)
  records = {f'records.{name}': split.records for name, split in manifest.splits.items()}
  rejected = {f'rejected.{name}': len(split.rejected) for name, split in manifest.splits.items()}
  return records | rejected
