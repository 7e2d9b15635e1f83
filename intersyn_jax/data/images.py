"""Picture bytes: checked, decoded, encoded, and read from a local folder without trusting what lies there."""

from __future__ import annotations

import io
import os
import pathlib

import numpy as np
import PIL.Image
import PIL.ImageOps

from intersyn_jax.errors import UserError

FORMATS = ('PNG', 'JPEG', 'WEBP')
MAX_PIXELS = 64_000_000
MAX_BYTES = 64 * 1024 * 1024

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
  except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
    raise UserError(f'{where}: the bytes are no PNG, JPEG or WebP picture ({_brief(error)}); '
                    'build or import this record again') from error


def png(array: np.ndarray) -> bytes:
  """Encodes uint8[H,W,3] as PNG; the same pixels always give the same bytes."""
  out = io.BytesIO()
  PIL.Image.fromarray(array).save(out, 'PNG', compress_level=1)
  return out.getvalue()


def load(name: str, root: str | os.PathLike[str], size: int, *, encoding: str = 'PNG') -> bytes:
  """Reads a local picture for import: turned upright, in RGB, resized and cropped at the centre to size x size.

  Args:
    name: path relative to `root`; a path that leads out of it (also through a link) and an address are refused.
    root: folder that holds the pictures.
    size: side of the result in pixels.
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
    with PIL.Image.open(path, formats=FORMATS) as image:
      _check_size(image)
      upright = PIL.ImageOps.exif_transpose(_rgb(image, keep_exif=True))
      fitted = PIL.ImageOps.fit(upright, (size, size), PIL.Image.Resampling.LANCZOS)
  except (OSError, SyntaxError, RuntimeError, PIL.Image.DecompressionBombError) as error:
    raise ValueError(f'image {name!r} is no PNG, JPEG or WebP picture ({_brief(error)})') from error
  out = io.BytesIO()
  fitted.info.clear()  # no profile, comment or position of the camera goes into the data
  fitted.save(out, encoding, **({'quality': 95} if encoding == 'JPEG' else {}))
  return out.getvalue()


def _check_size(image: PIL.Image.Image) -> None:
  if image.width * image.height > MAX_PIXELS:
    raise ValueError(f'picture of {image.width}x{image.height} pixels is larger than {MAX_PIXELS} pixels')


def _rgb(image: PIL.Image.Image, keep_exif: bool = False) -> PIL.Image.Image:
  """RGB picture; transparent places become white, 16-bit greys keep their range."""
  exif = image.getexif() if keep_exif else None
  if image.mode.startswith('I'):
    image = PIL.Image.fromarray((np.asarray(image, np.int64).clip(0, 65535) // 257).astype(np.uint8))
  if image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
    image = image.convert('RGBA')
    image = PIL.Image.alpha_composite(PIL.Image.new('RGBA', image.size, 'white'), image)
  image = image.convert('RGB')
  if exif:
    image.info['exif'] = exif.tobytes()
  return image


def _brief(error: Exception) -> str:
  """The message without the memory address that Pillow prints."""
  return str(error).split(' <_io')[0].split(' \'/')[0][:120] or type(error).__name__
