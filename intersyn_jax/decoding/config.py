"""How completions are written: limits, stop rules, sampling controls and guidance, one frozen record."""

from __future__ import annotations

import dataclasses

from intersyn_jax.decoding.sampling import Sampling
from intersyn_jax.errors import UserError

FULL, IMAGES, NULL = 'full', 'images', 'null'
"""What a branch of the cache has read: everything; images alone; the null prompt and the image begun last."""


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
  """The config section `decode`; every field is part of the compiled program.

  Attributes:
    max_positions: M, room of a completion, `</s>` included.
    max_images: image blocks a completion may open.
    min_steps: `</s>` cannot be chosen before so many steps were opened (by `<think>`).
    max_steps: no further step can be opened after so many; 0 sets no limit.
    stop: names of tokens that end a completion.
    stop_after_images: a completion is over as soon as `max_images` blocks are complete.
    text_temperature, text_top_k, text_top_p: of text ids, see `sampling.Sampling`.
    text_repetition: divides positive and multiplies negative logits of words that the completion has written already
      (Keskar et al. 2019); tags and other special tokens are free. 1 is off.
    image_temperature, image_top_k, image_top_p: of image codes.
    guidance: scale s of u + s (c - u) on the logits of image codes; 1 is off and costs nothing.
    image_guidance: scale s' of the three-branch form of Chameleon and Anole, u + s' (i - u) + s (c - i), where i has read
      images alone; 0 leaves that branch out. Logits or log-softmax makes no difference: what is added to a branch as a
      whole is the same for every code, so that the distribution stays.
    chunk: positions that are written before finished rows are looked at and the cache grows; 0 writes all in one go
      into a cache of full size.
    bucket: prompts are padded to a multiple of this many positions, so that few programs are compiled.
    rows: completions written at once by `Generator`.
  """

  max_positions: int = 128
  max_images: int = 4
  min_steps: int = 0
  max_steps: int = 0
  stop: tuple[str, ...] = ('</s>',)
  stop_after_images: bool = False
  text_temperature: float = 1.0
  text_top_k: int = 0
  text_top_p: float = 1.0
  text_repetition: float = 1.0
  image_temperature: float = 1.0
  image_top_k: int = 0
  image_top_p: float = 1.0
  guidance: float = 1.0
  image_guidance: float = 0.0
  chunk: int = 0
  bucket: int = 16
  rows: int = 64

  def __post_init__(self):
    object.__setattr__(self, 'stop', tuple(self.stop))
    for field in ('max_positions', 'bucket', 'rows'):
      if getattr(self, field) < 1:
        raise UserError(f'decode.{field} is {getattr(self, field)}; make it at least 1')
    for field in ('max_images', 'min_steps', 'max_steps', 'text_temperature', 'text_top_k', 'image_temperature', 'image_top_k',
                  'guidance', 'image_guidance', 'chunk'):
      if getattr(self, field) < 0:
        raise UserError(f'decode.{field} is {getattr(self, field)}; it cannot be negative')
    for field in ('text_top_p', 'image_top_p'):
      if not 0 < getattr(self, field) <= 1:
        raise UserError(f'decode.{field} is {getattr(self, field)}; use a share above 0 and at most 1')
    if self.text_repetition <= 0:
      raise UserError(f'decode.text_repetition is {self.text_repetition}; use a number above 0, 1 for none')
    if 0 < self.max_steps < self.min_steps:
      raise UserError(f'decode.min_steps is {self.min_steps}, above decode.max_steps {self.max_steps}')
    if not self.stop:
      raise UserError("decode.stop is empty; name at least one token, usually '</s>'")

  @property
  def text(self) -> Sampling:
    return Sampling(self.text_temperature, self.text_top_k, self.text_top_p)

  @property
  def image(self) -> Sampling:
    return Sampling(self.image_temperature, self.image_top_k, self.image_top_p)

  @property
  def branches(self) -> tuple[str, ...]:
    """The W rows of the cache that one completion needs."""
    if self.image_guidance:
      return (FULL, IMAGES, NULL)
    return (FULL,) if self.guidance == 1.0 else (FULL, NULL)
