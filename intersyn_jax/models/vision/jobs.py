"""Codecs at work on the host's side: encoded pictures in, codes out, and codes back to pictures.

A device batch has one static size and its rows are spread over the mesh. `runner` makes the functions that stages and
`data.codes.encode_folder` call; `pixels` makes a picture of any size what a codec reads.

Letters: n pictures of a call, H W pixels, P places of a picture, D codes per place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np
import PIL.Image
from jax.sharding import Mesh

from intersyn_jax import sharding
from intersyn_jax.data import images
from intersyn_jax.errors import UserError
from intersyn_jax.models.definition import Params
from intersyn_jax.models.image_tokenizer import in_chunks
from intersyn_jax.models.vision.codec import Vision

ROWS = 8
"""Pictures per device and call."""

LONGEST = 100
"""Times the shorter side of a picture: scaled to a family's shorter side, a thread of pixels would not fit into memory."""


def runner(vision: Vision, params: Params, mesh: Mesh, function: Callable[[Params, jax.Array], jax.Array],
           rows: int = ROWS) -> Callable[[np.ndarray], np.ndarray]:
  """One of `vision`'s functions, compiled for a mesh, on any number of rows of the host.

  Args:
    vision: whose parameters these are.
    params: in any type and place; they are copied to every device once.
    mesh: over which the rows of a batch are spread.
    function: `encode` or `decode` of `vision`.
    rows: a device works on at once; it bounds memory, not n.

  Returns:
    uint8[n,H,W,3] -> int32[n,P,D] for `encode` of a codec, and so on, for n of at least 1.
  """
  places = vision.definition.shardings(mesh)
  # Several processes all have the whole batch, which jit takes from the host only without a sharding of its own.
  spread = lambda params, batch: function(params, jax.lax.with_sharding_constraint(batch, sharding.rows(mesh)))
  compiled = jax.jit(spread, out_shardings=sharding.rows(mesh))
  run = functools.partial(compiled, jax.jit(lambda tree: tree, out_shardings=places)(params))
  return lambda whole: in_chunks(run, whole, rows * sharding.row_multiple(mesh))


def pixels(vision: Vision, data: bytes, where: str) -> np.ndarray:
  """The picture in PNG, JPEG or WebP bytes as `vision` wants it, uint8[H,W,3].

  Raises:
    UserError: the bytes are no picture, or of a very long one; `where` (record id and field, or file) is named.
  """
  image = PIL.Image.fromarray(images.pixels(data, where))
  if max(image.size) > LONGEST * min(image.size):
    raise UserError(f'{where}: a picture of {image.width}x{image.height} pixels is too long (at most {LONGEST} times its '
                    'shorter side); crop it')
  return np.asarray(vision.resize(image, vision.pixels))
