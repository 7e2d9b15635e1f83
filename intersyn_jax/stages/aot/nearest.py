"""The nearest setting under which a stage fits a pod: changes from the least harmful on, each tried by compiling."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import ml_collections

from intersyn_jax.errors import UserError
from intersyn_jax.stages import settings
from intersyn_jax.stages.aot import report
from intersyn_jax.stages.aot.chips import Pod


def changed(config: ml_collections.ConfigDict, change: list[str]) -> ml_collections.ConfigDict:
  """A copy with some fields changed, written `--config.FIELD=VALUE`."""
  copy = config.copy_and_resolve_references().unlock()
  for one in change:
    field, _, value = one.removeprefix('--config.').partition('=')
    settings.set_field(copy, field, value)
  return copy.lock()


def setting(config: ml_collections.ConfigDict, pod: Pod, stage: str, say: Callable[[str], None]) -> list[str]:
  """Flags that make the stage fit; none where nothing that is tried does."""
  for change in _changes(config, pod, stage):
    say(f'  trying {" ".join(change)}')
    try:
      if all(one.fits for one in report.stage(changed(config, change), pod, stage)):
        return change
    except (UserError, jax.errors.JaxRuntimeError):
      continue  # rows that do not divide, say
  return []


def _changes(config: ml_collections.ConfigDict, pod: Pod, stage: str) -> Iterator[list[str]]:
  """Ever more changes: activations not kept, fewer rows at a time, more devices for each row."""
  section = config[stage]
  kept = [] if config.model.remat == 'full' or stage in ('decode', 'judge') else ['--config.model.remat=full']
  if kept:
    yield kept
  if stage in ('warmup', 'grpo'):
    chunk = section.log_prob_chunk
    chunked = [f'--config.{stage}.log_prob_chunk={max(chunk // 4, 1) if chunk else 128}']
    yield kept + chunked
    rows = section.rows if stage == 'warmup' else section.prompts * section.group_size // section.minibatches
    for parts in (2, 4, 8, 16):
      if section.micro_batches < parts <= rows:
        yield kept + chunked + [f'--config.{stage}.micro_batches={parts}']
  else:
    chunked = []
    if section.rows > 1:
      yield [f'--config.{stage}.rows={section.rows // 2}']
  for tensor in (4, 8, 16):
    if tensor > config.mesh.tensor and pod.chips % tensor == 0:
      yield kept + chunked + [f'--config.mesh.tensor={tensor}', '--config.mesh.fsdp=-1', '--config.mesh.replica=1']
