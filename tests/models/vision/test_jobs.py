"""Pictures of any size to codes: each family's way to a square, bytes that are no picture, batches."""

import numpy as np
import PIL.Image
import pytest

from intersyn_jax import sharding
from intersyn_jax.data import images
from intersyn_jax.errors import UserError
from intersyn_jax.models.vision import codec, jobs, resize
from tests.models.vision import tiny

POLICIES = {'chameleon': resize.CHAMELEON, 'janus': resize.JANUS, 'question': resize.JANUS_QUESTION, 'emu3': resize.EMU3,
            'vila_u': resize.VILA_U}
RED, GREEN, BLUE = (200, 10, 10), (10, 200, 10), (10, 10, 200)


def stripes(width: int, height: int) -> PIL.Image.Image:
  """Three bands, red, green and blue, along the longer side."""
  bands = np.repeat(np.array([RED, GREEN, BLUE], np.uint8), max(width, height) // 3, axis=0)
  wide = np.tile(bands[None], (min(width, height), 1, 1))
  return PIL.Image.fromarray(wide if width > height else np.ascontiguousarray(wide.swapaxes(0, 1)))


@pytest.mark.parametrize('size', [(96, 32), (32, 96)])
@pytest.mark.parametrize('name', POLICIES)
def test_the_way_to_a_square(name, size):
  found = np.asarray(POLICIES[name](stripes(*size), 48)).astype(int)
  assert found.shape == (48, 48, 3)
  if name == 'question':  # nothing is lost: grey bands on both sides of the longer one
    whole = found if size[0] > size[1] else found.swapaxes(0, 1)
    assert (whole[:16] == 127).all() and (whole[-16:] == 127).all()
    assert [tuple(whole[24, x]) for x in (5, 24, 43)] == [RED, GREEN, BLUE]
  else:  # the middle third, but the top one of a tall picture for VILA-U
    colour = RED if name == 'vila_u' and size[1] > size[0] else GREEN
    assert np.abs(found[8:-8, 8:-8] - colour).max() <= 1


def test_a_square_picture_of_the_right_size_is_itself():
  picture = tiny.pictures(48)[0]
  for policy in POLICIES.values():
    np.testing.assert_array_equal(np.asarray(policy(PIL.Image.fromarray(picture), 48)), picture)


class Toy(codec.Codec):
  """A codec whose one code of a picture is its first byte."""

  def encode(self, params, pictures):
    return pictures[:, 0, 0, :1].astype('int32')[:, None]


@pytest.fixture(scope='module')
def toy():
  features = codec.janus_features(tiny.JANUS)
  fields = {name: getattr(features, name) for name in ('pixels', 'places', 'definition', 'entries', 'prefix', 'resize')}
  return Toy(name='toy', depth=1, codebook=256, **fields), tiny.params_of(
      features, {n: tiny.values(n, shape) for n, shape in tiny.shapes_of(features).items()})


def test_any_number_of_pictures_keeps_its_order(toy):
  vision, params = toy
  encode = jobs.runner(vision, params, sharding.make_mesh({'fsdp': -1}), vision.encode, rows=1)
  for count in (3, 9, 1):
    found = [images.png(np.full((16, 16, 3), 10 + i, np.uint8)) for i in range(count)]
    codes = encode(np.stack([jobs.pixels(vision, data, 'a picture') for data in found]))
    assert codes[:, 0, 0].tolist() == list(range(10, 10 + count))


def test_what_is_no_picture_is_named(toy):
  good, long = (images.png(np.zeros(shape, np.uint8)) for shape in ((16, 16, 3), (1, 101, 3)))
  for bad, told in ((good[:50], 'record b, field image'), (b'', 'record b, field image'), (long, 'record b, field image.*101x1')):
    with pytest.raises(UserError, match=told):
      jobs.pixels(toy[0], bad, 'record b, field image')
