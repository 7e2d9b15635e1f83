"""What a user can do about errors of the machine: a full or read-only disk, a device without memory left."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from intersyn_jax.errors import UserError

_DISK = {
    errno.ENOSPC: 'the disk is full: free some space',
    errno.EDQUOT: 'the disk quota is used up: free some space',
    errno.EFBIG: 'a file would be larger than this system lets it be: raise the limit',
    errno.EROFS: 'the disk can only be read: make it writable, or name another --workdir',
    errno.EACCES: 'this user has no right to it: change the rights, or name another --workdir',
    errno.EIO: 'the disk fails: look at the machine, or name another --workdir',
}
_SAID = {'No space left on device': errno.ENOSPC, 'Disk quota exceeded': errno.EDQUOT, 'File too large': errno.EFBIG,
         'Read-only file system': errno.EROFS, 'Permission denied': errno.EACCES, 'Input/output error': errno.EIO}
"""How libraries in C++ tell the same, in the text of errors of their own."""

_LESS = {
    'tokenizer': 'lower image.batch (image.rows for a public family)',
    'warmup': 'raise warmup.micro_batches (writer.micro_batches) or lower rows, set model.remat to full, log_prob_chunk to 128',
    'finetune': 'raise finetune.micro_batches or lower finetune.rows, set model.remat to full, log_prob_chunk to 128',
    'judge': 'lower judge.rows, or set model.remat to full',
    'synthesize': 'lower synthesize.rows',
    'grpo': 'raise grpo.micro_batches, set model.remat to full and grpo.log_prob_chunk to 128, or lower grpo.prompts',
    'evaluate': 'lower decode.rows',
    'sample': 'lower decode.rows and decode.max_positions',
}


@contextlib.contextmanager
def advised(stage: str) -> Iterator[None]:
  """Turns errors of the machine into `UserError`; all others pass."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    if line := advice(error, stage):
      raise UserError(line) from error
    raise


def advice(error: BaseException, stage: str) -> str | None:
  """One line for an error of the machine that ended a stage, or for what caused that error; None for any other error."""
  seen: set[int] = set()
  cause: BaseException | None = error
  while cause is not None and id(cause) not in seen:
    seen.add(id(cause))
    if line := _of(cause, stage):
      return line
    cause = cause.__cause__ or cause.__context__
  return None


def _of(error: BaseException, stage: str) -> str | None:
  said = str(error)
  number = error.errno if isinstance(error, OSError) else None
  if number is None and not isinstance(error, OSError):
    number = next((number for text, number in _SAID.items() if text in said), None)
  if number in _DISK:
    place = f'{error.filename}: ' if getattr(error, 'filename', None) else ''
    return f'{place}{_DISK[number]}; nothing is lost, the same command then goes on from the last checkpoint'
  if 'RESOURCE_EXHAUSTED' in said or isinstance(error, MemoryError):
    short = said.splitlines()[0][:160] if said else 'out of memory'
    less = _LESS.get(stage, 'ask for less at once')
    return (f'stage {stage} needs more memory than there is ({short}): {less}; or give config.mesh more devices '
            '(the stage compile tells what fits)')
  return None
