"""What studies of several seeds share: a stage made once for all of them, and the size that a command line names."""

from __future__ import annotations

from collections.abc import Sequence

from etils import epath

from intersyn_jax.stages.common import Run, barrier


def adopt(run: Run, stage: str, others: Sequence[Run]) -> bool:
  """Copies a stage that another seed has made with the very same values; whole or not at all."""
  if run.complete(stage):
    return False
  source = next((o for o in others if o.complete(stage) and o.config_hash(stage) == run.config_hash(stage)), None)
  if source is None:
    return False
  run.say(f'{stage}: the same as in {source.workdir}, copied')
  if run.active:
    target = run.workdir / stage
    part = run.workdir / f'.{stage}.part'
    for old in (part, target):
      if old.exists():
        old.rmtree()
    _copy(source.workdir / stage, part)
    part.rename(target)
  barrier(f'adopt-{stage}')
  return True


def _copy(source: epath.Path, target: epath.Path) -> None:
  target.mkdir(parents=True)
  for path in source.iterdir():
    if path.is_dir():
      _copy(path, target / path.name)
    else:
      path.copy(target / path.name)


def size_of(command: str) -> str:
  """The size in `--config=FILE.py:SIZE` of a command line, '' where none is named."""
  return next((word.rsplit(':', 1)[-1] for word in command.split() if '.py:' in word and '--config' in word), '')
