"""Drawing and reading."""

import io
import random

import numpy as np
import PIL.Image
import pytest

from intersyn_jax.data.storyworld import render as renderer
from intersyn_jax.data.storyworld import story
from intersyn_jax.data.storyworld.world import CELLS, COLOURS, GROUNDS, SHAPES, SIZES, Object, scene

KINDS = [(32, 0), (64, 1)]


@pytest.mark.parametrize(('pixels', 'jitter'), KINDS)
def test_every_tile_reads_back_on_every_ground(pixels, jitter):
  views = [scene(ground, [Object(colour, shape, size, (colour + shape + size) % CELLS)])
           for ground in range(len(GROUNDS)) for colour in range(len(COLOURS)) for shape in range(len(SHAPES))
           for size in range(len(SIZES))]
  pictures = np.stack([renderer.render(view, pixels, jitter, salt) for salt, view in enumerate(views)])
  for view, reading in zip(views, renderer.read(pictures, jitter), strict=True):
    assert reading.scene == view
    assert reading.quality == 5


@pytest.mark.parametrize(('pixels', 'jitter'), KINDS)
@pytest.mark.parametrize('kind', renderer.DEGRADATIONS)
def test_damaged_pictures_read_but_look_worse(pixels, jitter, kind):
  rng = random.Random(0)
  views = [story.random_scene(rng, 2) for _ in range(200)]
  clean = [renderer.render(view, pixels, jitter, salt) for salt, view in enumerate(views)]
  pictures = np.stack([renderer.degrade(picture, kind, rng) for picture in clean])
  readings = renderer.read(pictures, jitter)
  right = np.mean([reading.scene == view for reading, view in zip(readings, views, strict=True)])
  quality = np.array([reading.quality for reading in readings])
  assert right > 0.93
  assert quality.mean() < 4.2
  assert quality.std() > 0.2


def test_noise_alone_shows_little_quality():
  pictures = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
  assert max(reading.quality for reading in renderer.read(pictures)) == 1


def test_jitter_stays_with_an_object_and_differs_between_salts():
  view = scene(0, [Object(0, 0, 1, 5)])
  assert np.array_equal(renderer.render(view, 64, 1, 3), renderer.render(view, 64, 1, 3))
  assert len({renderer.render(view, 64, 1, salt).tobytes() for salt in range(60)}) == 9


def test_png_is_what_pillow_reads():
  picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
  data = renderer.encode_png(picture)
  image = PIL.Image.open(io.BytesIO(data))
  assert image.format == 'PNG'
  assert np.array_equal(np.asarray(image), picture)
  assert np.array_equal(renderer.decode(data), picture)


def test_wrong_pictures_are_refused():
  with pytest.raises(ValueError, match='uint8'):
    renderer.read(np.zeros((1, 32, 32, 3), np.float32))
  with pytest.raises(ValueError, match='multiple'):
    renderer.render(scene(0, [Object(0, 0, 1, 5)]), 30)
  assert renderer.read(np.zeros((0, 32, 32, 3), np.uint8)) == []
