"""Image codes are added once per different picture, with one batch shape."""

import dataclasses

import numpy as np
import pytest

from intersyn_jax.data import codes, images, manifest, shards
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn, images_of
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
  made = (samples.interleaved(i % 6) for i in range(20))
  written = shards.write_split(tmp_path / 'in', 'train', made, records_per_shard=8)
  manifest.save(tmp_path / 'in', manifest.Manifest('test').with_split('train', manifest.Split(tuple(written))))
  return tmp_path / 'in'


def test_codes_are_those_of_the_pixels_and_every_picture_is_encoded_once(source, tmp_path):
  encoder = Encoder()
  written = codes.encode_folder(source, tmp_path / 'out', encoder, tokenizer='one', batch=4)
  assert encoder.pictures == 6 and set(encoder.shapes) == {(4, 8, 8, 3)}
  assert [shard.records for shard in written.splits['train'].shards] == [8, 8, 4]
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


class Killed(Exception):
  """Stands for the end of a process."""


def test_an_interrupted_split_goes_on_after_its_last_finished_shard(source, tmp_path):
  whole = codes.encode_folder(source, tmp_path / 'whole', Encoder(), tokenizer='one', batch=4)
  rejected = (manifest.Rejected('line 3', 'x', 'why'),)
  entry = dataclasses.replace(manifest.load(source).splits['train'], rejected=rejected, unlisted=2)
  manifest.save(source, manifest.Manifest('test').with_split('train', entry))

  def dies(label, done, total):
    if done == 20:
      raise Killed

  with pytest.raises(Killed):  # while the last shard is written
    codes.encode_folder(source, tmp_path / 'cut', Encoder(), tokenizer='one', batch=4, progress=dies)
  assert manifest.load(tmp_path / 'cut') is None and not shards.splits(tmp_path / 'cut')
  again = Encoder()
  done = codes.encode_folder(source, tmp_path / 'cut', again, tokenizer='one', batch=4).splits['train']
  assert again.pictures == 4, 'those of the last four records'
  assert done.shards == whole.splits['train'].shards
  assert done.rejected == rejected and done.left_out == 3


def pictured(name, *seeds):
  return Conversation(name, '', tuple(Turn((Image(samples.png(seed)),)) for seed in seeds))


def test_batches_are_full_and_conversations_keep_their_order():
  """Also those with more pictures than a batch, with none, and with pictures that are still on their way."""
  made = [pictured('a', 0, 1, 2), pictured('b', 1), pictured('c', *range(10, 21)),
          Conversation('d', '', (Turn((Text('x'),)),)), pictured('e', 2, 3), pictured('f', 10, 3, 30), pictured('g', 0)]
  encoder = Encoder()
  found = list(codes.with_codes(made, encoder, batch=4))
  assert [c.id for c in found] == list('abcdefg')
  for conversation in found:
    for turn in conversation.turns:
      for image in images_of(turn.question):
        np.testing.assert_array_equal(image.codes, Encoder.of(images.pixels(image.data)[None])[0])
  assert encoder.pictures == 16 and set(encoder.shapes) == {(4, 8, 8, 3)} and len(encoder.shapes) == 5  # 3, 4 + 4 + 3, 2


def test_little_is_read_ahead():
  """Constant memory: a few batches of pictures wait, whatever there is to read."""
  read = []
  stream = codes.with_codes((read.append(i) or pictured(str(i), i) for i in range(100)), Encoder(), batch=4)
  for number, conversation in enumerate(stream):
    assert conversation.id == str(number) and len(read) <= number + 4 * (codes.AHEAD + 1)
  assert len(read) == 100


def test_what_was_seen_long_ago_is_encoded_again(monkeypatch):
  monkeypatch.setattr(codes, 'REMEMBER', 6)
  monkeypatch.setattr(codes, 'CHUNK', 3)
  encoder = Encoder()
  made = [pictured(str(i), i % 12) for i in range(36)]
  for before, after in zip(made, codes.with_codes(made, encoder, batch=4), strict=True):
    image = after.turns[0].question[0]
    assert before.id == after.id
    np.testing.assert_array_equal(image.codes, Encoder.of(images.pixels(image.data)[None])[0])
  assert 12 < encoder.pictures <= 36
