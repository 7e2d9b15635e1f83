"""intersyn_jax: one JAX model that reads and writes text and images in one token stream.

    from intersyn_jax import Generator
    (answers,) = Generator.from_workdir('runs/tiny').generate('show a red circle top left on sand .', n=4)
"""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
  from intersyn_jax.stages.notebook import Generator

__all__ = ['Generator']
__version__ = '0.1.0'


def __getattr__(name: str) -> typing.Any:
  """`Generator` is imported when it is first asked for: the command line must be able to name devices before jax starts."""
  if name == 'Generator':
    from intersyn_jax.stages.notebook import Generator
    return Generator
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
