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


def square(fit, width, height, side=48):
  """What becomes of a picture whose left third (or top third) is red, the middle green and the rest blue."""
  array = np.zeros((height, width, 3), np.uint8)
  third = max(width, height) // 3
  for k in range(3):
    part = slice(k * third, (k + 1) * third if k < 2 else None)
    array[(slice(None), part) if width > height else part][..., k] = 255
  data = images.square(images.png(array), side, fit=fit)
  pixels = images.pixels(data)
  assert pixels.shape == (side, side, 3)
  return pixels.astype(int)


RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (127, 127, 127)


@pytest.mark.parametrize(('fit', 'wide', 'tall'), [
    ('crop', [GREEN] * 3, [GREEN] * 3),
    ('crop_bicubic', [GREEN] * 3, [GREEN] * 3),
    ('top_bicubic', [GREEN] * 3, [RED] * 3),  # the middle of a wide picture, the top of a tall one
    ('stretch_bicubic', [RED, GREEN, BLUE], [RED, GREEN, BLUE]),
    ('pad_bicubic', [GREY, GREEN, GREY], [GREY, GREEN, GREY]),
    ('pad_lanczos', [(122, 116, 104), GREEN, (122, 116, 104)], [(122, 116, 104), GREEN, (122, 116, 104)]),
])
def test_ways_to_make_a_picture_square(fit, wide, tall):
  """Three points: along the picture's longer side, or across it where bands fill the square."""
  across = fit.startswith('pad')
  points = (4, 24, 43)
  found = square(fit, 90, 30)
  np.testing.assert_allclose([found[p, 24] if across else found[24, p] for p in points], wide, atol=12)
  found = square(fit, 30, 90)
  np.testing.assert_allclose([found[24, p] if across else found[p, 24] for p in points], tall, atol=12)


def test_every_way_leaves_a_square_of_its_size_alone():
  array = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
  for fit in images.FITS:
    np.testing.assert_array_equal(images.pixels(images.square(images.png(array), 16, fit=fit)), array)


def test_crop_scales_only_what_it_keeps():
  """As if the whole were scaled and then cut, but a thread of pixels needs no memory for what is cut away."""
  array = np.random.default_rng(0).integers(0, 256, (40, 61, 3)).astype(np.uint8)
  picture = PIL.Image.fromarray(array)
  whole = np.asarray(picture.resize((round(61 * 16 / 40), 16), PIL.Image.Resampling.LANCZOS), np.int64)
  left = (whole.shape[1] - 16) // 2
  ours = np.asarray(images.FITS['crop'](picture, 16), np.int64)
  assert np.abs(ours - whole[:, left:left + 16]).mean() < 0.1
  thread = PIL.Image.new('RGB', (images.MAX_SIDE, 1), (10, 20, 30))
  assert (np.asarray(images.FITS['crop'](thread, 512)) == (10, 20, 30)).all()


def test_bytes_that_a_row_holds_are_read_as_a_file_is(tmp_path):
  data = encoded('JPEG', size=(40, 20), colour=(200, 30, 60))
  (tmp_path / 'a.jpg').write_bytes(data)
  assert images.load('a.jpg', tmp_path, 8, encoding='JPEG') == images.square(data, 8, encoding='JPEG')
  with pytest.raises(ValueError, match='turn 2 is no PNG'):
    images.square(data[:40], 8, where='turn 2')
  with pytest.raises(KeyError):  # a mistake in code or configuration, and no fault of the picture
    images.square(data, 8, fit='squeeze')


def test_a_side_that_no_filter_has_room_for_is_refused():
  with pytest.raises(ValueError, match='side of more than 65535'):
    images.square(images.png(np.zeros((1, images.MAX_SIDE + 1, 3), np.uint8)), 8)


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_damaged_notes_of_a_camera_cost_no_picture_and_no_traceback():
  """Every byte of the EXIF block is spoilt in turn; the picture is then read as if it were upright."""
  exif = PIL.Image.Exif()
  exif[0x0112], exif[0x010F] = 6, 'maker'
  out = io.BytesIO()
  PIL.Image.new('RGB', (20, 10), (9, 9, 9)).save(out, 'JPEG', exif=exif)
  data = out.getvalue()
  start, size = data.index(b'Exif'), len(exif.tobytes())
  for place in range(start + 6, start + size):
    for value in (0, 255):
      spoilt = data[:place] + bytes([value]) + data[place + 1:]
      assert images.pixels(images.square(spoilt, 8)).shape == (8, 8, 3)


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_bytes_at_random_end_in_one_line_or_a_picture():
  random = np.random.default_rng(1)
  kinds = {'PNG': ('RGB', 'P', 'LA', 'I;16'), 'JPEG': ('RGB', 'L', 'CMYK'), 'WEBP': ('RGB',)}
  seeds = [encoded(kind, mode, size=(24, 12)) for kind, modes in kinds.items() for mode in modes]
  refused = 0
  for number in range(400):
    data = bytearray(seeds[number % len(seeds)])
    for place in random.integers(0, len(data), random.integers(1, 6)):
      data[place] = random.integers(0, 256)
    data = bytes(data[:random.integers(1, len(data) + 1)] if number % 3 == 0 else data)
    for read, kind in ((images.pixels, UserError), (lambda data: images.square(data, 8), ValueError)):
      try:
        read(data)
      except kind as error:
        refused += 1
        assert '\n' not in str(error) and len(str(error)) < 300
  assert 100 < refused < 800
