"""Picture bytes: checked, decoded, made square, encoded, and read from a local folder without trusting what lies there."""

from __future__ import annotations

import functools
import io
import os
import pathlib
from collections.abc import Callable

import numpy as np
import PIL.Image
from PIL.Image import Resampling, Transpose

from intersyn_jax.errors import UserError

FORMATS = ('PNG', 'JPEG', 'WEBP')
MAX_PIXELS = 64_000_000
MAX_SIDE = 65_535
"""Longest side, as in JPEG: filters take 48 bytes a pixel of it."""
MAX_BYTES = 64 * 1024 * 1024
LONGEST = 1024
"""Pixels of the longer side of a picture whose shape is kept."""

_PNG = b'\x89PNG\r\n\x1a\n'


def sniff(data: bytes) -> str:
  """Names the format of encoded image bytes by their first and last bytes, '' when they are no complete picture.

  It costs a microsecond, so that every record can be looked at; `pixels` is the full check.
  """
  if data[:8] == _PNG and data[12:16] == b'IHDR' and data[-8:-4] == b'IEND':
    return 'PNG'
  if data[:3] == b'\xff\xd8\xff' and len(data) > 100:
    return 'JPEG'
  if data[:4] == b'RIFF' and data[8:12] == b'WEBP' and int.from_bytes(data[4:8], 'little') + 8 <= len(data):
    return 'WEBP'
  return ''


def pixels(data: bytes, where: str = 'image') -> np.ndarray:
  """Decodes PNG, JPEG or WebP bytes.

  Args:
    data: encoded image.
    where: how to name it in an error (record id and field).

  Returns:
    uint8[H,W,3].

  Raises:
    UserError: the bytes are no picture, or are cut short, or unfold to more than MAX_PIXELS.
  """
  try:
    with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
      _check_size(image)
      return np.asarray(_rgb(image))
  except Exception as error:  # on bytes that somebody made up, Pillow raises what it likes
    raise UserError(f'{where}: the bytes are no PNG, JPEG or WebP picture ({_brief(error)}); '
                    'build or import this record again') from error


def png(array: np.ndarray) -> bytes:
  """Encodes uint8[H,W,3] as PNG; the same pixels always give the same bytes."""
  out = io.BytesIO()
  PIL.Image.fromarray(array).save(out, 'PNG', compress_level=1)
  return out.getvalue()


def load(name: str, root: str | os.PathLike[str], size: int, *, fit: str = 'crop', encoding: str = 'PNG') -> bytes:
  """Reads a local picture for import: turned upright, in RGB, made size x size.

  Args:
    name: path relative to `root`; a path that leads out of it (also through a link) and an address are refused.
    root: folder that holds the pictures.
    size: side of the result in pixels; 0 keeps the shape of the picture (see `keep`).
    fit: how it becomes square, a name in FITS.
    encoding: 'PNG' or 'JPEG'.

  Returns:
    The encoded picture.

  Raises:
    ValueError: with the reason, written for the list of rejected rows.
  """
  if '://' in name:
    raise ValueError(f'image {name!r} is an address; only local files are read')
  if '\0' in name:
    raise ValueError(f'image name {name!r} holds a zero byte')
  base = pathlib.Path(root).resolve()
  try:
    path = (base / name).resolve()
    if not path.is_relative_to(base):
      raise ValueError(f'image {name!r} lies outside the folder of the data')
    if not path.is_file():
      raise ValueError(f'image {name!r} is missing')
    if path.stat().st_size > MAX_BYTES:
      raise ValueError(f'image {name!r} is larger than {MAX_BYTES >> 20} MiB')
    data = path.read_bytes()
  except (OSError, RuntimeError) as error:  # a name that is too long, a file that may not be read, a ring of links
    raise ValueError(f'image {name!r} cannot be read ({_brief(error)})') from error
  return square(data, size, fit=fit, encoding=encoding, where=f'image {name!r}')


def square(data: bytes, size: int, *, fit: str = 'crop', encoding: str = 'PNG', where: str = 'image') -> bytes:
  """The same for a picture that a row holds itself; `where` names it in the reason of a ValueError."""
  if len(data) > MAX_BYTES:
    raise ValueError(f'{where} is larger than {MAX_BYTES >> 20} MiB')
  resize = FITS[fit] if size else keep
  try:
    with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
      _check_size(image)
      fitted = resize(_upright(_rgb(image), _orientation(image)), size)
  except Exception as error:  # as in `pixels`
    raise ValueError(f'{where} is no PNG, JPEG or WebP picture ({_brief(error)})') from error
  out = io.BytesIO()
  fitted.info.clear()  # no profile, comment or position of the camera goes into the data
  fitted.save(out, encoding, **({'quality': 95} if encoding == 'JPEG' else {}))
  return out.getvalue()


def _check_size(image: PIL.Image.Image) -> None:
  if image.width * image.height > MAX_PIXELS:
    raise ValueError(f'picture of {image.width}x{image.height} pixels is larger than {MAX_PIXELS} pixels')
  if max(image.size) > MAX_SIDE:
    raise ValueError(f'picture of {image.width}x{image.height} pixels has a side of more than {MAX_SIDE} pixels')


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
  """RGB picture; transparent places become white, 16-bit greys keep their range."""
  if image.mode.startswith('I'):
    image = PIL.Image.fromarray((np.asarray(image, np.int64).clip(0, 65535) // 257).astype(np.uint8))
  if image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
    image = image.convert('RGBA')
    image = PIL.Image.alpha_composite(PIL.Image.new('RGBA', image.size, 'white'), image)
  return image if image.mode == 'RGB' else image.convert('RGB')


_ORIENTATION = 0x0112
_TURNS = {2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
          6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90}
"""What makes a picture upright, by its orientation in EXIF."""


def _orientation(image: PIL.Image.Image) -> int:
  """As the camera noted it; 1, upright, where the notes cannot be read."""
  try:
    return int(image.getexif().get(_ORIENTATION, 1))
  except Exception:  # the notes may be damaged in any way; the picture is none the worse for it
    return 1


def _upright(image: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
  return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _brief(error: Exception) -> str:
  """The message in one line, without the memory address that Pillow prints."""
  return ' '.join(str(error).split()).split(' <_io')[0].split(' \'/')[0][:120] or type(error).__name__


# How a picture of any shape becomes a square.

Fit = Callable[[PIL.Image.Image, int], PIL.Image.Image]
"""From a picture (RGB) and the side in pixels."""


def crop(image: PIL.Image.Image, side: int, *, resampling: Resampling) -> PIL.Image.Image:
  """The shorter side becomes `side`, then the middle of the longer one is kept."""
  scale = side / min(image.size)
  scaled = [round(scale * n) for n in image.size]
  # Only the part that is kept is scaled: the whole of a thread of pixels would not fit into memory.
  box = [start * n / m for start, n, m in zip([(m - side) // 2 for m in scaled], image.size, scaled, strict=True)]
  box += [min(start + side * n / m, n) for start, n, m in zip(box, image.size, scaled, strict=True)]
  return image.resize((side, side), resampling, box=tuple(box))


def top(image: PIL.Image.Image, side: int, *, resampling: Resampling) -> PIL.Image.Image:
  """The middle of a wide picture or the top of a tall one is kept, then scaled."""
  shorter = min(image.size)
  left = round((image.width - shorter) / 2)
  return image.crop((left, 0, left + shorter, shorter)).resize((side, side), resampling)


def pad(image: PIL.Image.Image, side: int, *, resampling: Resampling, colour: tuple[int, int, int]) -> PIL.Image.Image:
  """The longer side becomes `side`, and bands of a colour fill the rest; no side gets shorter than 14 pixels."""
  width, height = (max(int(n / max(image.size) * side), min(14, side)) for n in image.size)
  whole = PIL.Image.new('RGB', (side, side), colour)
  whole.paste(image.resize((width, height), resampling), ((side - width) // 2, (side - height) // 2))
  return whole


def stretch(image: PIL.Image.Image, side: int, *, resampling: Resampling) -> PIL.Image.Image:
  """Both sides become `side`."""
  return image.resize((side, side), resampling)


def keep(image: PIL.Image.Image, side: int) -> PIL.Image.Image:
  """The shape stays, and so does the size unless a side is longer than LONGEST."""
  del side
  scale = min(1.0, LONGEST / max(image.size))
  return image if scale == 1.0 else image.resize([max(1, round(scale * n)) for n in image.size], Resampling.LANCZOS)


FITS: dict[str, Fit] = {
    'crop': functools.partial(crop, resampling=Resampling.LANCZOS),
    'crop_bicubic': functools.partial(crop, resampling=Resampling.BICUBIC),
    'top_bicubic': functools.partial(top, resampling=Resampling.BICUBIC),
    'stretch_bicubic': functools.partial(stretch, resampling=Resampling.BICUBIC),
    'pad_bicubic': functools.partial(pad, resampling=Resampling.BICUBIC, colour=(127, 127, 127)),
    'pad_lanczos': functools.partial(pad, resampling=Resampling.LANCZOS, colour=(122, 116, 104)),
}
"""What `data.fit` may be; docs/data.md says which family does what."""
