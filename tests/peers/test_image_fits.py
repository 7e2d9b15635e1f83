"""How pictures become square, against the image processors of transformers.

What differs: their resizing and cropping are two steps that round in between, ours is one. Where a side has no whole number of
pixels, Chameleon's of transformers rounds it down, Meta's code and ours to the nearest; Janus's the other way round (nearest,
its authors' code and ours down). That is a shift of up to one pixel, so that shapes are compared where both agree. Emu3's keeps
the shape of a picture and bounds its area; a block has one square here, so that square pictures are compared.
"""

import numpy as np
import PIL.Image
import pytest
import transformers

from intersyn_jax.data import images

SIDE = 64


def picture(width: int, height: int) -> PIL.Image.Image:
  """Smooth colours with edges in them."""
  small = np.random.default_rng(0).integers(0, 256, (height // 20, width // 20, 3)).astype(np.uint8)
  return PIL.Image.fromarray(small).resize((width, height), PIL.Image.Resampling.NEAREST)


def grey_levels(values, mean, deviation, scale: float) -> np.ndarray:
  """Pixels [H,W,3] as they were before a processor normalised them."""
  return (np.moveaxis(np.asarray(values), 0, -1) * np.asarray(deviation) + np.asarray(mean)) / scale


def chameleon(image):
  # Its rescale factor is 0.0078, not 1 / 127.5; the scale is no part of the fit.
  made = transformers.ChameleonImageProcessor(size={'shortest_edge': SIDE}, crop_size={'height': SIDE, 'width': SIDE})
  return grey_levels(made(image, return_tensors='np')['pixel_values'][0], [1.0] * 3, [1.0] * 3, 0.0078)


def emu3(image):
  made = transformers.Emu3ImageProcessor(min_pixels=SIDE ** 2, max_pixels=SIDE ** 2)
  found = made(image, return_tensors='np')
  return grey_levels(found['pixel_values'][0], made.image_mean, made.image_std, 1 / 255)


def janus(image):
  half = [0.5] * 3  # as preprocessor_config.json of the published folders has it
  made = transformers.JanusImageProcessor(size={'height': SIDE, 'width': SIDE}, image_mean=half, image_std=half)
  return grey_levels(made(image, return_tensors='np')['pixel_values'][0], half, half, 1 / 255)


@pytest.mark.parametrize(('processor', 'fit', 'shapes'), [
    (chameleon, 'crop', [(640, 480), (480, 640), (300, 300), (1000, 250), (60, 48)]),
    (emu3, 'crop_bicubic', [(300, 300), (64, 64), (40, 40)]),
    (janus, 'pad_bicubic', [(640, 480), (480, 640), (300, 300), (1280, 160)]),
])
def test_parity(processor, fit, shapes):
  for shape in shapes:
    image = picture(*shape)
    ours, theirs = np.asarray(images.FITS[fit](image, SIDE), np.float64), processor(image)
    assert ours.shape == theirs.shape == (SIDE, SIDE, 3)
    apart = np.abs(ours - theirs)
    assert apart.mean() < 0.2 and apart.max() < 3, (shape, apart.mean(), apart.max())
    # Any other way to make a tall picture square is far from this.
    others = [np.abs(np.asarray(other(image, SIDE), np.float64) - theirs).mean() for name, other in images.FITS.items()
              if name.split('_')[0] != fit.split('_')[0]]
    assert shape[0] >= shape[1] or min(others) > 2, (shape, others)
