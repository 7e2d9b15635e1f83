"""How a picture of any size becomes the square that a family's encoder reads. Each family did it in its own way.

A policy is a function of a picture (RGB) and the side in pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import PIL.Image
from PIL.Image import Resampling

Resize = Callable[[PIL.Image.Image, int], PIL.Image.Image]


def scale_then_crop(image: PIL.Image.Image, side: int, *, resampling: Resampling) -> PIL.Image.Image:
  """The shorter side becomes `side`, then the middle of the longer one is kept."""
  scale = side / min(image.size)
  scaled = image.resize((round(scale * image.width), round(scale * image.height)), resampling)
  left, top = (scaled.width - side) // 2, (scaled.height - side) // 2
  return scaled.crop((left, top, left + side, top + side))


def crop_then_scale(image: PIL.Image.Image, side: int, *, resampling: Resampling) -> PIL.Image.Image:
  """The middle of a wide picture or the top of a tall one is kept, then scaled."""
  shorter = min(image.size)
  left = round((image.width - shorter) / 2)
  return image.crop((left, 0, left + shorter, shorter)).resize((side, side), resampling)


def scale_then_pad(image: PIL.Image.Image, side: int, *, resampling: Resampling, colour: tuple[int, int, int],
                   smallest: int) -> PIL.Image.Image:
  """The longer side becomes `side`, and bands of a colour fill the rest; no side gets shorter than `smallest` pixels."""
  width, height = (max(int(n / max(image.size) * side), smallest) for n in image.size)
  whole = PIL.Image.new('RGB', (side, side), colour)
  whole.paste(image.resize((width, height), resampling), ((side - width) // 2, (side - height) // 2))
  return whole


CHAMELEON: Resize = functools.partial(scale_then_crop, resampling=Resampling.LANCZOS)
"""Of Chameleon's published image tokenizer; Anole and Liquid use the same."""

JANUS: Resize = functools.partial(scale_then_crop, resampling=Resampling.BICUBIC)
"""Of pictures to generate, as the Janus papers describe the training data; the code was not published."""

JANUS_QUESTION: Resize = functools.partial(scale_then_pad, resampling=Resampling.BICUBIC, colour=(127, 127, 127), smallest=14)
"""Of pictures to understand: Janus's image processor."""

EMU3: Resize = functools.partial(scale_then_crop, resampling=Resampling.BICUBIC)
"""Emu3 keeps the shape of a picture and scales its area (bicubic); an image block has one size here, so the rest is cropped."""

VILA_U: Resize = functools.partial(crop_then_scale, resampling=Resampling.BICUBIC)
"""Of pictures to generate. VILA-U squashes pictures to understand into the square instead; square pictures fare alike."""
