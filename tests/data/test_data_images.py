"""Pictures: read only from inside a folder, upright, square, RGB; what is no picture is told."""

import io

import numpy as np
import PIL.Image
import pytest

from intersyn_jax.data import images
from intersyn_jax.errors import UserError
from tests.data import samples


def encoded(encoding: str, mode: str = 'RGB', size=(20, 10), **options) -> bytes:
  out = io.BytesIO()
  PIL.Image.new(mode, size, options.pop('colour', None) or 0).save(out, encoding, **options)
  return out.getvalue()


@pytest.mark.parametrize('encoding', ['PNG', 'JPEG', 'WEBP'])
def test_formats(encoding):
  data = encoded(encoding, colour=(255, 0, 0))
  assert images.sniff(data) == encoding
  assert images.pixels(data).shape == (10, 20, 3)
  assert images.pixels(data)[..., 0].min() > 240


def test_png_is_lossless():
  array = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
  np.testing.assert_array_equal(images.pixels(images.png(array)), array)


@pytest.mark.parametrize('data', [b'', b'text', samples.png()[:40], encoded('GIF', 'P'),
                                  samples.png()[:50] + samples.png()[-12:]])
def test_what_is_no_picture(data):
  with pytest.raises(UserError, match='record x: the bytes are no PNG'):
    images.pixels(data, 'record x')


def test_a_picture_that_unfolds_too_far_is_refused(monkeypatch, tmp_path):
  monkeypatch.setattr(images, 'MAX_PIXELS', 100)
  with pytest.raises(UserError, match='20x10'):
    images.pixels(encoded('PNG'))
  (tmp_path / 'a.png').write_bytes(encoded('PNG'))
  with pytest.raises(ValueError, match='20x10'):
    images.load('a.png', tmp_path, 8)


def test_import_turns_crops_and_resizes(tmp_path):
  array = np.zeros((10, 30, 3), np.uint8)
  array[:, 9:21] = (0, 0, 255)  # about the middle third is all that a square crop keeps
  picture = PIL.Image.fromarray(array)
  exif = PIL.Image.Exif()
  exif[0x0112] = 6  # to be turned by 90 degrees
  exif[0x010F] = 'maker'
  picture.save(tmp_path / 'a.png', exif=exif)
  data = images.load('a.png', tmp_path, 16)
  pixels = images.pixels(data)
  assert pixels.shape == (16, 16, 3) and b'maker' not in data
  np.testing.assert_allclose(pixels, np.broadcast_to([0, 0, 255], pixels.shape), atol=8)
  tall = np.zeros((30, 30, 3), np.uint8)
  tall[:15] = (255, 0, 0)
  PIL.Image.fromarray(tall).save(tmp_path / 'b.png', exif=exif)
  turned = images.pixels(images.load('b.png', tmp_path, 16))
  assert turned[8, -2, 0] > 200 and turned[8, 2, 0] < 50  # the top is on the right now


@pytest.mark.parametrize(('mode', 'colour', 'wanted'), [
    ('L', 100, 100), ('LA', (0, 0), 255), ('RGBA', (0, 0, 0, 0), 255), ('P', 0, 0), ('I;16', 65535, 255), ('1', 1, 255)])
def test_modes_become_rgb(tmp_path, mode, colour, wanted):
  PIL.Image.new(mode, (8, 8), colour).save(tmp_path / 'a.png')
  pixels = images.pixels(images.load('a.png', tmp_path, 8))
  assert pixels.shape == (8, 8, 3) and (pixels == wanted).all()


@pytest.mark.parametrize('name', ['../secret.png', 'sub/../../secret.png', '{absolute}', 'link.png', 'https://example.org/a.png',
                                  'missing.png', 'folder', 'text.png', 'a\0b'])
def test_nothing_else_is_read(tmp_path, name):
  root = tmp_path / 'root'
  (root / 'folder').mkdir(parents=True)
  (tmp_path / 'secret.png').write_bytes(samples.png())
  (root / 'link.png').symlink_to(tmp_path / 'secret.png')
  (root / 'text.png').write_text('no picture')
  with pytest.raises(ValueError, match='image'):
    images.load(name.format(absolute=tmp_path / 'secret.png'), root, 8)
