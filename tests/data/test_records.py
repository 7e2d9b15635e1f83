"""The flat record: exact round trips, the same to TFDS, and one clear line for everything that is no record."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2

from intersyn_jax.data import records
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Image, Score, Text, Turn
from tests.data import samples

TEXTS = st.text(max_size=40)
CODES = st.one_of(st.none(), st.tuples(st.integers(1, 9), st.integers(1, 4)).map(
    lambda shape: np.arange(np.prod(shape), dtype=np.int32).reshape(shape)))
IMAGES = st.builds(lambda codes, caption: Image(samples.png(), codes, caption), CODES, TEXTS)
SEGMENTS = st.lists(st.one_of(st.builds(Text, TEXTS), IMAGES), max_size=4).map(tuple)
TURNS = st.lists(st.builds(Turn, SEGMENTS, SEGMENTS).filter(lambda turn: turn.question or turn.answer), min_size=1, max_size=4)
VALUES = st.integers(0, 5000).map(lambda v: v / 1000)
SCORES = st.lists(st.builds(Score, st.integers(0, 3), st.integers(-1, 2), VALUES, VALUES, VALUES, VALUES), max_size=3)
CONVERSATIONS = st.builds(Conversation, TEXTS, TEXTS, TURNS.map(tuple), SCORES.map(tuple), TEXTS, st.integers(-1, 2**62), TEXTS)


@settings(deadline=None, max_examples=60)
@given(CONVERSATIONS)
def test_round_trip_is_exact_and_the_same_for_tfds(conversation):
  data = records.encode(conversation)
  assert records.decode(data) == conversation
  assert records.encode(records.decode(data)) == data
  theirs = records.FEATURES.serialize_example(records.FEATURES.encode_example(records.example(conversation)))
  assert tf_example_pb2.Example.FromString(theirs) == tf_example_pb2.Example.FromString(data)
  assert records.decode(theirs) == conversation


def test_tfds_parses_our_bytes():
  conversation = samples.interleaved(3)
  fields = records.FEATURES.deserialize_example_np(records.encode(conversation))
  assert fields['id'] == b'i3' and fields['seed'] == 3
  assert [bytes(data) for data in fields['image'] if data] == [samples.png(3)] * fields['kind'].count(b'image')
  np.testing.assert_allclose(fields['tcc'], [4.2], rtol=1e-6)


def damaged(change) -> bytes:
  message = tf_example_pb2.Example.FromString(records.encode(samples.interleaved(1)))
  change(message.features.feature)
  return message.SerializeToString()


@pytest.mark.parametrize(('change', 'words'), [
    (lambda f: [f[k].Clear() or f[k].int64_list.SetInParent() for k in ('turn', 'depth')]
     + [f[k].Clear() or f[k].bytes_list.SetInParent() for k in ('role', 'kind', 'text', 'image', 'caption', 'codes')],
     ('i1', 'field turn', 'at least one turn')),
    (lambda f: f['turn'].int64_list.value.__setitem__(0, 1), ('i1', 'field turn', 'goes to 1')),
    (lambda f: f['turn'].int64_list.value.__setitem__(slice(None), [0, 2, 2, 2, 2]), ('i1', 'field turn', 'goes to 2')),
    (lambda f: f['role'].bytes_list.value.__setitem__(0, b'judge'), ('i1', 'field role', 'judge')),
    (lambda f: f['role'].bytes_list.value.__setitem__(2, b'user'), ('i1', 'field role', 'question after the answer')),
    (lambda f: f['kind'].bytes_list.value.__setitem__(1, b'video'), ('i1', 'field kind', 'video')),
    (lambda f: f['image'].bytes_list.value.__setitem__(2, b'this is no picture'), ('i1', 'field image', 'no complete PNG')),
    (lambda f: f['image'].bytes_list.value.__setitem__(2, samples.png()[:-5]), ('i1', 'field image', 'no complete PNG')),
    (lambda f: f['codes'].bytes_list.value.__setitem__(2, b'abc'), ('i1', 'field codes', '3 bytes')),
    (lambda f: f['depth'].int64_list.value.__setitem__(2, 3), ('i1', 'field codes')),
    (lambda f: f['text'].bytes_list.value.pop(), ('i1', 'field text', 'entries')),
    (lambda f: f['text'].bytes_list.value.__setitem__(0, b'\xff\xfe'), ('i1', 'field text', 'UTF-8')),
    (lambda f: f.pop('caption'), ('shard 7', 'field caption', 'missing')),
    (lambda f: f['id'].bytes_list.value.append(b'two'), ('shard 7', 'field id', '2 values')),
])
def test_what_is_no_record_is_one_line_with_record_and_field(change, words):
  with pytest.raises(UserError) as error:
    records.decode(damaged(change), 'shard 7')
  for word in words:
    assert word in samples.message(error)


def test_bytes_that_are_no_example():
  with pytest.raises(UserError, match=r'shard 7 is no tf.train.Example'):
    records.decode(b'\xff\xff\xff nothing', 'shard 7')


@pytest.mark.parametrize(('conversation', 'words'), [
    (Conversation('c', '', ()), 'field turns is empty'),
    (Conversation('c', '', (Turn((), ()),)), 'neither question nor answer'),
    (Conversation('c', '', (Turn((Image(),)),)), 'neither bytes nor codes'),
    (Conversation('c', '', (Turn((Image(b'GIF89a'),)),)), 'no complete PNG'),
    (Conversation('c', '', (Turn((Image(codes=np.arange(3)),)),)), 'shape (3,)'),
    (Conversation('c', '', (Turn((Text('\ud800'),)),)), 'half a Unicode character'),
])
def test_what_cannot_be_written(conversation, words):
  with pytest.raises(UserError) as error:
    records.encode(conversation)
  assert words in samples.message(error) and 'c' in samples.message(error)
