"""Draws scenes from pre-rendered tiles, and reads scenes back from any picture of the right size.

A cell's picture is `ground + mask * (colour - ground)`, linear in the mask, so comparing a cell with every possible tile
needs only the products of the cell with a few masks. That makes the reader exact and fast, jitter or not, and it reads
faded and blurred objects by direction; how good they look is the distance to the tile itself.
"""

from __future__ import annotations

import functools
import io
import random
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageFilter

from intersyn_jax.data.storyworld.world import CELLS, COLOURS, GROUNDS, SHAPES, SIDE, SIZES, Object, Scene, scene

GROUND_RGB = np.array([(200, 164, 116), (126, 194, 238), (30, 30, 62), (158, 198, 112)], np.float32)
COLOUR_RGB = np.array([(214, 32, 32), (28, 84, 236), (8, 136, 60), (254, 226, 30), (254, 254, 254), (168, 44, 204)],
                      np.float32)
_SUPERSAMPLE = 8
_RADIUS = (0.7, 0.97)
"""Half extent of a small and a large object, in half cells."""
OBJECT_GAIN = 0.003
"""Mean squared error (0-1 units) that an object must explain away before a cell counts as occupied: noise never does."""
FAINTEST = 0.35
"""A cell that goes less than this share of the way from its ground to a tile does not show that object."""
FADE_COST = 0.35
"""What a tile's fading costs against its mismatch when the reader chooses a tile."""
_CHUNK = 64
"""Pictures read at once: keeps the distance table of a chunk inside the processor's cache."""

# IQ on the papers' 0-5 rubric: root mean squared distance of the cells to their nearest tiles (0-1 units) to a score.
_IQ_ERROR = np.array([0.015, 0.04, 0.075, 0.12, 0.2])
_IQ_SCORE = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
_EMPTY_WEIGHT = 0.2
"""Weight of an empty cell in IQ, against 1 for a cell with an object: a viewer looks at the objects."""

DEGRADATIONS = ('blur', 'noise', 'low_contrast', 'blocks')
"""What `degrade` can do to a picture."""


class Reading(NamedTuple):
  """What the reader saw in one picture: the scene, the error of each cell (mean squared, 0-1 units), and IQ 0-5."""

  scene: Scene
  errors: np.ndarray
  quality: float


def _mask(shape: int, size: int, cell: int, jitter: int, shift: tuple[int, int]) -> np.ndarray:
  """Coverage 0-1 of an object over its cell, float32[cell, cell], antialiased."""
  fine = (np.arange(cell * _SUPERSAMPLE) + 0.5) / _SUPERSAMPLE - cell / 2
  y, x = np.meshgrid(fine - shift[0], fine - shift[1], indexing='ij')
  radius = _RADIUS[size] * (cell / 2 - jitter)
  distance = np.hypot(x, y)
  inside = {
      'circle': distance <= radius,
      'square': np.maximum(abs(x), abs(y)) <= radius,
      'triangle': (abs(y) <= radius) & (abs(x) <= (y + radius) / 2 + 0.05 * radius),
      'cross': (np.minimum(abs(x), abs(y)) <= radius * 0.3) & (np.maximum(abs(x), abs(y)) <= radius),
      'ring': (distance <= radius) & (distance >= radius * 0.55),
  }[SHAPES[shape]]
  blocks = inside.reshape(cell, _SUPERSAMPLE, cell, _SUPERSAMPLE)
  return blocks.mean((1, 3)).astype(np.float32)


def _shifts(jitter: int) -> list[tuple[int, int]]:
  return [(dy, dx) for dy in range(-jitter, jitter + 1) for dx in range(-jitter, jitter + 1)]


@functools.lru_cache(maxsize=8)
def _masks(pixels: int, jitter: int) -> np.ndarray:
  """All masks, float32[shapes, sizes, shifts, cell, cell]."""
  if pixels % SIDE or pixels < 8 * SIDE:
    raise ValueError(f'pixels={pixels}: a picture side must be a multiple of {SIDE} and at least {8 * SIDE}')
  cell = pixels // SIDE
  return np.array([[[_mask(shape, size, cell, jitter, shift) for shift in _shifts(jitter)]
                    for size in range(len(SIZES))] for shape in range(len(SHAPES))])


@functools.lru_cache(maxsize=8)
def _tiles(pixels: int, jitter: int) -> tuple[np.ndarray, np.ndarray]:
  """Grounds uint8[ground, H, W, 3] and tiles uint8[ground, colour, shape, size, shift, cell, cell, 3]."""
  masks = _masks(pixels, jitter)[None, None, ..., None]
  ground = GROUND_RGB[:, None, None, None, None, None, None]
  colour = COLOUR_RGB[None, :, None, None, None, None, None]
  tiles = np.rint(ground + masks * (colour - ground)).astype(np.uint8)
  grounds = np.broadcast_to(GROUND_RGB[:, None, None].astype(np.uint8), (len(GROUNDS), pixels, pixels, 3)).copy()
  return grounds, tiles


def render(view: Scene, pixels: int = 32, jitter: int = 0, salt: int = 0) -> np.ndarray:
  """Draws a full scene, uint8[pixels, pixels, 3]. With jitter, `salt` and the object fix its shift inside the cell."""
  grounds, tiles = _tiles(pixels, jitter)
  cell = pixels // SIDE
  picture = grounds[view.ground].copy()
  shift = 0
  for item in view.objects:
    if jitter:
      mixed = (salt * 2654435761 + item.colour * 97 + item.shape * 31 + item.cell * 7919) & 0xFFFFFFFF
      shift = (mixed * 2246822519 >> 13) % (2 * jitter + 1) ** 2
    row, column = divmod(item.cell, SIDE)
    picture[row * cell:(row + 1) * cell, column * cell:(column + 1) * cell] = (
        tiles[view.ground, item.colour, item.shape, item.size, shift])
  return picture


@functools.lru_cache(maxsize=8)
def _reader_tables(pixels: int, jitter: int) -> tuple[np.ndarray, ...]:
  """Masks and colour differences, both scaled to unit length, and what belongs to them.

  Returns masks [area, mask], differences [3, ground * colour], the offset [mask, ground * colour] of a product for
  taking the ground away, the length of each tile's difference to its ground [mask, ground * colour], grounds [ground, 3].
  """
  masks = _masks(pixels, jitter).reshape(-1, (pixels // SIDE) ** 2)
  ground, colour = GROUND_RGB / 255, COLOUR_RGB / 255
  difference = colour[None] - ground[:, None]  # [ground, colour, 3]
  far = np.sqrt((difference ** 2).sum(-1, keepdims=True))
  long = np.sqrt((masks ** 2).sum(1, keepdims=True))
  masks, difference = masks / long, difference / far
  towards = (difference * ground[:, None]).sum(-1).reshape(-1)
  offset = masks.sum(1)[:, None] * towards
  return masks.T.copy(), difference.reshape(-1, 3).T.copy(), offset, long * far.reshape(-1), ground


def _read_chunk(pictures: np.ndarray, jitter: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  pixels = pictures.shape[1]
  cell = pixels // SIDE
  area = cell * cell
  masks, differences, offset, length, ground = _reader_tables(pixels, jitter)
  count = len(pictures) * CELLS
  cells = pictures.reshape(-1, SIDE, cell, SIDE, cell, 3).transpose(0, 1, 3, 5, 2, 4).reshape(count, 3, area)
  cells = cells.astype(np.float32) / 255
  energy = np.einsum('nkp,nkp->n', cells, cells)
  empty = energy[:, None] - 2 * cells.sum(-1) @ ground.T + area * (ground ** 2).sum(-1)  # [n, ground]
  products = (cells.reshape(-1, area) @ masks).reshape(count, 3, -1).transpose(0, 2, 1)  # [n, mask, 3]
  # How far the cell goes from the ground towards each tile.
  along = (products.reshape(-1, 3) @ differences).reshape(count, -1, len(GROUNDS), len(COLOURS))
  along -= offset.reshape(along.shape[1:])
  along = along.transpose(0, 2, 3, 1).reshape(count, len(GROUNDS), -1)  # [n, ground, colour * shape * size * shift]
  length = length.reshape(-1, len(GROUNDS), len(COLOURS)).transpose(1, 2, 0).reshape(len(GROUNDS), -1)
  # Squared error of a tile faded to strength s, plus FADE_COST * length^2 * (1 - s)^2, at its best s: a faded object is
  # read as such, yet a ring whose hole is blurred stays a ring.
  gain = (np.maximum(along, 0) + FADE_COST * length) ** 2
  gain -= FADE_COST * (1 + FADE_COST) * length ** 2
  best = gain.argmax(-1)
  reach = np.maximum(np.take_along_axis(along, best[..., None], -1)[..., 0], 0)
  full = np.take_along_axis(length, best.T, -1).T
  occupied = (reach ** 2 > OBJECT_GAIN * area * 3) & (reach > FAINTEST * full)
  fit = (empty - np.where(occupied, reach ** 2, 0)).reshape(-1, CELLS, len(GROUNDS))
  pick = fit.sum(1).argmin(-1)
  error = np.maximum(empty + np.where(occupied, full * (full - 2 * reach), 0), 0) / (area * 3)
  kinds = np.where(occupied, 1 + best // (2 * jitter + 1) ** 2, 0)

  def picked(values: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values.reshape(fit.shape), pick[:, None, None], -1)[..., 0]

  return pick, picked(kinds), picked(error)


def read_arrays(pictures: np.ndarray, jitter: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Reads pictures uint8[n, H, W, 3].

  Returns ground int[n], tile int[n, cells] (0 for an empty cell, else 1 + (colour * shapes + shape) * sizes + size)
  and the mean squared error float[n, cells] of each cell to its tile, in 0-1 units.
  """
  if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[1] != pictures.shape[2] or (
      pictures.shape[3] != 3):
    raise ValueError(f'pictures must be uint8[n, side, side, 3], not {pictures.dtype}{list(pictures.shape)}')
  parts = [_read_chunk(pictures[i:i + _CHUNK], jitter) for i in range(0, len(pictures), _CHUNK)]
  if not parts:
    return np.zeros(0, int), np.zeros((0, CELLS), int), np.zeros((0, CELLS), np.float32)
  return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def read(pictures: np.ndarray, jitter: int = 0) -> list[Reading]:
  """Reads pictures uint8[n, H, W, 3] as scenes. A picture of several equal objects keeps them all."""
  grounds, tiles, errors = read_arrays(pictures, jitter)
  weights = np.where(tiles > 0, 1.0, _EMPTY_WEIGHT)
  error = np.sqrt((errors * weights).sum(1) / weights.sum(1)) if len(tiles) else np.zeros(0)
  quality = np.interp(error, _IQ_ERROR, _IQ_SCORE)
  result = []
  for i, ground in enumerate(grounds.tolist()):
    objects = []
    for cell in np.nonzero(tiles[i])[0].tolist():
      rest, size = divmod(int(tiles[i, cell]) - 1, len(SIZES))
      colour, shape = divmod(rest, len(SHAPES))
      objects.append(Object(colour, shape, size, cell))
    result.append(Reading(scene(ground, objects), errors[i], float(quality[i])))
  return result


def encode_png(picture: np.ndarray) -> bytes:
  """uint8[H, W, 3] as PNG bytes, lightly compressed: several times faster than a general encoder at this size."""
  height, width, _ = picture.shape
  rows = np.zeros((height, 1 + width * 3), np.uint8)
  rows[:, 1:] = picture.reshape(height, -1)

  def chunk(tag: bytes, body: bytes) -> bytes:
    return struct.pack('>I', len(body)) + tag + body + struct.pack('>I', zlib.crc32(tag + body))

  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows.tobytes(), 1)) +
          chunk(b'IEND', b''))


def degrade(picture: np.ndarray, kind: str, rng: random.Random) -> np.ndarray:
  """Damages pixels uint8[H, W, 3] so that objects mostly stay readable: blur, noise, low_contrast or blocks."""
  unit = picture.shape[0] // 32
  strength = rng.random()
  if kind == 'blur':
    image = PIL.Image.fromarray(picture).filter(PIL.ImageFilter.GaussianBlur((0.6 + 0.3 * strength) * (unit + 1) / 2))
    return np.asarray(image)
  values = picture.astype(np.float32)
  if kind == 'noise':
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 18 + 20 * strength, picture.shape)
    values += noise
  elif kind == 'low_contrast':
    # The objects fade towards the commonest colour, the ground, which itself stays.
    ground = np.median(values.reshape(-1, 3), axis=0)
    values = ground + (0.7 - 0.25 * strength) * (values - ground)
  elif kind == 'blocks':
    side = 2 * unit
    coarse = values.reshape(-1, side, values.shape[1] // side, side, 3).mean((1, 3))
    mixed = 0.45 + 0.2 * strength
    values = mixed * coarse.repeat(side, 0).repeat(side, 1) + (1 - mixed) * values
  else:
    raise ValueError(f'unknown degradation {kind!r}; there are {", ".join(DEGRADATIONS)}')
  return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def decode(data: bytes) -> np.ndarray:
  """Encoded image bytes as uint8[H, W, 3]."""
  return np.asarray(PIL.Image.open(io.BytesIO(data)).convert('RGB'))


def contact_sheet(pictures: Sequence[np.ndarray], columns: int = 8, zoom: int = 6, gap: int = 4) -> np.ndarray:
  """Pictures of one size side by side and enlarged, uint8[H, W, 3], for a person to look at."""
  side = pictures[0].shape[0] * zoom
  rows = -(-len(pictures) // columns)
  sheet = np.full((rows * (side + gap) + gap, columns * (side + gap) + gap, 3), 128, np.uint8)
  for i, picture in enumerate(pictures):
    y, x = gap + i // columns * (side + gap), gap + i % columns * (side + gap)
    sheet[y:y + side, x:x + side] = picture.repeat(zoom, 0).repeat(zoom, 1)
  return sheet
