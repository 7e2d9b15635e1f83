"""Image codes are added once per different picture, with one batch shape."""

import numpy as np
import pytest

from intersyn_jax.data import codes, images, manifest, shards
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Image, Turn, images_of
from tests.data import samples


class Encoder:
  """Codes that follow from the pixels; counts what it is given."""

  def __init__(self):
    self.shapes, self.pictures = [], 0

  def __call__(self, pictures):
    self.shapes.append(pictures.shape)
    self.pictures += int((pictures.reshape(len(pictures), -1).max(1) > 0).sum())
    return self.of(pictures)

  @staticmethod
  def of(pictures):
    return (pictures[:, ::4, ::4, 0].reshape(len(pictures), -1, 1) % samples.CODEBOOK).astype(np.int32)


@pytest.fixture
def source(tmp_path):
  written = shards.write_split(tmp_path / 'in', 'train', (samples.interleaved(i % 6) for i in range(20)))
  manifest.save(tmp_path / 'in', manifest.Manifest('test').with_split('train', manifest.Split(tuple(written))))
  return tmp_path / 'in'


def test_codes_are_those_of_the_pixels_and_every_picture_is_encoded_once(source, tmp_path):
  encoder = Encoder()
  codes.encode_folder(source, tmp_path / 'out', encoder, tokenizer='one', batch=4)
  assert encoder.pictures == 6 and set(encoder.shapes) == {(4, 8, 8, 3)}
  for before, after in zip(shards.open_split(source, 'train'), shards.open_split(tmp_path / 'out', 'train'), strict=True):
    assert before.id == after.id and before.scores == after.scores
    for image in images_of(after.turns[0].answer):
      np.testing.assert_array_equal(image.codes, Encoder.of(images.pixels(image.data)[None])[0])


def test_complete_splits_are_kept_until_the_tokenizer_changes(source, tmp_path):
  first = codes.encode_folder(source, tmp_path / 'out', Encoder(), tokenizer='one')
  idle = Encoder()
  assert codes.encode_folder(source, tmp_path / 'out', idle, tokenizer='one') == first and not idle.shapes
  codes.encode_folder(source, tmp_path / 'out', idle, tokenizer='two')
  assert idle.shapes


def test_codes_without_bytes_stay(source):
  conversation = Conversation('c', '', (Turn((Image(codes=samples.codes(3)),)),))
  assert list(codes.with_codes([conversation], Encoder())) == [conversation]


@pytest.mark.parametrize(('second', 'words'), [
    (samples.png(size=12), '12x12'), (samples.png()[:60] + samples.png()[-12:], 'field image')])
def test_a_picture_of_another_size_or_broken_inside_names_its_record(second, words):
  turns = [Conversation(name, '', (Turn((Image(data),)),)) for name, data in (('good', samples.png(1)), ('bad', second))]
  with pytest.raises(UserError) as error:
    list(codes.with_codes(turns, Encoder()))
  assert 'record bad' in samples.message(error) and words in samples.message(error)
