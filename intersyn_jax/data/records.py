"""The flat record: one conversation as a `tf.train.Example`, the same for TFDS and for our own shards (DESIGN 5).

TFDS without TensorFlow writes no nested sequences, so a conversation is stored as parallel sequences with one entry a
segment (`turn, role, kind, text, image, caption, codes, depth`), parallel sequences with one entry a score
(`score_turn, score_step, tcc, icc, iq, its`) and single values (`id, topic, generator, seed, trace`). The types of
`interleave.types` rebuild the nesting. Scores are kept to six decimals, as Example holds float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from intersyn_jax.data import images
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import DIMENSIONS, Conversation, Image, Score, Segment, Text, Turn

USER, MODEL = 'user', 'model'
TEXT, IMAGE = 'text', 'image'

_INT, _FLOAT, _BYTES = 'int64_list', 'float_list', 'bytes_list'
_SEGMENT = {'turn': _INT, 'role': _BYTES, 'kind': _BYTES, 'text': _BYTES, 'image': _BYTES, 'caption': _BYTES,
            'codes': _BYTES, 'depth': _INT}
_SCORE = {'score_turn': _INT, 'score_step': _INT} | dict.fromkeys(DIMENSIONS, _FLOAT)
_SINGLE = {'id': _BYTES, 'topic': _BYTES, 'generator': _BYTES, 'seed': _INT, 'trace': _BYTES}
_FIELDS = _SEGMENT | _SCORE | _SINGLE


def _features() -> tfds.features.FeaturesDict:
  """Pictures and codes are plain bytes: TFDS's Image feature cannot read the empty entry of a text segment."""
  raw, number, text = tfds.features.Scalar(np.object_), tfds.features.Scalar(np.int32), tfds.features.Text()
  fields = {'turn': number, 'role': text, 'kind': text, 'text': text, 'image': raw, 'caption': text, 'codes': raw,
            'depth': number, 'score_turn': number, 'score_step': number}
  fields |= dict.fromkeys(DIMENSIONS, tfds.features.Scalar(np.float32))
  return tfds.features.FeaturesDict(
      {name: tfds.features.Sequence(feature) for name, feature in fields.items()}
      | {'id': text, 'topic': text, 'generator': text, 'seed': tfds.features.Scalar(np.int64), 'trace': text})


FEATURES = _features()
"""The record as TFDS features; `codes` holds little-endian int32[P,D] with D in `depth`, or nothing."""


def example(conversation: Conversation) -> dict:
  """The flat fields of a conversation, as a TFDS builder yields them.

  Raises:
    UserError: no turns, a turn without segments, text that is no Unicode, a picture without bytes and codes or with
      bytes that are no picture.
  """
  name = conversation.id
  if not conversation.turns:
    raise UserError(f'record {name}: field turns is empty; give the conversation at least one question and answer')
  rows = [(number, role, segment)
          for number, turn in enumerate(conversation.turns)
          for role, segments in ((USER, turn.question), (MODEL, turn.answer))
          for segment in segments]
  if len({number for number, _, _ in rows}) < len(conversation.turns):
    raise UserError(f'record {name}: field turns holds a turn with neither question nor answer; leave that turn out')
  fields: dict[str, list] = {key: [] for key in _SEGMENT | _SCORE}
  for place, (number, role, segment) in enumerate(rows):
    fields['turn'].append(number)
    fields['role'].append(role)
    is_text = isinstance(segment, Text)
    fields['kind'].append(TEXT if is_text else IMAGE)
    fields['text'].append(segment.text if is_text else '')
    fields['image'].append(b'' if is_text else segment.data)
    fields['caption'].append('' if is_text else segment.caption)
    codes = None if is_text else segment.codes
    if codes is not None and (codes.ndim != 2 or not codes.size):
      raise UserError(f'record {name}: field codes of segment {place} has shape {codes.shape}; it must be [places, D]')
    fields['codes'].append(b'' if codes is None else np.ascontiguousarray(codes, '<i4').tobytes())
    fields['depth'].append(0 if codes is None else codes.shape[1])
    if not is_text:
      _check_picture(segment.data, codes is not None, name, place)
  for score in conversation.scores:
    fields['score_turn'].append(score.turn)
    fields['score_step'].append(score.step)
    for dimension in DIMENSIONS:
      fields[dimension].append(getattr(score, dimension))
  return fields | {key: getattr(conversation, key) for key in _SINGLE}


def encode(conversation: Conversation) -> bytes:
  """A conversation as Example bytes; equal conversations give equal bytes. Errors: see `example`."""
  message = tf_example_pb2.Example()
  feature = message.features.feature
  for key, value in example(conversation).items():
    kind = _FIELDS[key]
    values = [value] if key in _SINGLE else value
    if kind == _BYTES:
      try:
        values = [v.encode() if isinstance(v, str) else v for v in values]
      except UnicodeEncodeError as error:
        raise UserError(f'record {conversation.id!a}: field {key} holds half a Unicode character; '
                        'mend the text of this record') from error
    holder = getattr(feature[key], kind)
    holder.SetInParent()  # an empty sequence is stored, not left out, as TFDS does
    holder.value.extend(values)
  return message.SerializeToString(deterministic=True)


def decode(data: bytes, where: str = 'record') -> Conversation:
  """Example bytes as a conversation; the inverse of `encode`.

  Args:
    data: what `encode` or a TFDS builder wrote.
    where: names the record in an error as long as its id cannot be read (shard and number).

  Raises:
    UserError: anything that is no valid record, with its id and the field.
  """
  try:
    feature = tf_example_pb2.Example.FromString(data).features.feature
  except DecodeError as error:
    raise UserError(f'{where} is no tf.train.Example; {_MEND}') from error
  columns: dict[str, list] = {}
  for key, kind in _FIELDS.items():
    if key not in feature:
      raise UserError(f'{where}: field {key} is missing; {_MEND}')
    columns[key] = list(getattr(feature[key], kind).value)
  for key in _SINGLE:
    if len(columns[key]) != 1:
      raise UserError(f'{where}: field {key} holds {len(columns[key])} values instead of 1; {_MEND}')
  name = _text(columns['id'][0], where, 'id')
  where = f'record {name}'
  _same_length(columns, tuple(_SEGMENT), where)
  _same_length(columns, tuple(_SCORE), where)
  return Conversation(
      id=name, topic=_text(columns['topic'][0], where, 'topic'), turns=_turns(columns, name),
      scores=tuple(
          Score(turn, step, *(round(v, 6) for v in values))
          for turn, step, *values in zip(*(columns[key] for key in _SCORE), strict=True)),
      generator=_text(columns['generator'][0], where, 'generator'), seed=columns['seed'][0],
      trace=_text(columns['trace'][0], where, 'trace'))


_MEND = 'delete the folder and run the data stage again'


def _turns(columns: dict[str, list], name: str) -> tuple[Turn, ...]:
  if not columns['turn']:
    raise UserError(f'record {name}: field turn is empty, a record needs at least one turn; {_MEND}')
  turns: list[tuple[list[Segment], list[Segment]]] = []
  answered = False
  for place, (turn, role, kind) in enumerate(zip(columns['turn'], columns['role'], columns['kind'], strict=True)):
    if role not in (b'user', b'model'):
      raise UserError(f'record {name}: field role of segment {place} is {role!r}, neither user nor model; {_MEND}')
    if turn == len(turns):
      turns.append(([], []))
      answered = False
    elif turn != len(turns) - 1:
      raise UserError(f'record {name}: field turn goes to {turn} at segment {place} after turn {len(turns) - 1}; '
                      f'turns count up from 0 without a gap; {_MEND}')
    if role == b'model':
      answered = True
    elif answered:
      raise UserError(f'record {name}: field role has a question after the answer in turn {turn}; {_MEND}')
    if kind == b'text':
      segment: Segment = Text(_text(columns['text'][place], f'record {name}', 'text'))
    elif kind == b'image':
      segment = _image(columns, place, name)
    else:
      raise UserError(f'record {name}: field kind of segment {place} is {kind!r}, neither text nor image; {_MEND}')
    turns[-1][answered].append(segment)
  return tuple(Turn(tuple(question), tuple(answer)) for question, answer in turns)


def _image(columns: dict[str, list], place: int, name: str) -> Image:
  data, raw, depth = columns['image'][place], columns['codes'][place], columns['depth'][place]
  codes = None
  if raw or depth:
    if depth < 1 or not raw or len(raw) % (4 * depth):
      raise UserError(f'record {name}: field codes of segment {place} has {len(raw)} bytes, which is no int32[places, '
                      f'{depth}]; {_MEND}')
    codes = np.frombuffer(raw, '<i4').reshape(-1, depth).astype(np.int32, copy=False)
  _check_picture(data, codes is not None, name, place)
  return Image(data, codes, _text(columns['caption'][place], f'record {name}', 'caption'))


def _check_picture(data: bytes, has_codes: bool, name: str, place: int) -> None:
  if data and not images.sniff(data):
    raise UserError(f'record {name}: field image of segment {place} holds {len(data)} bytes that are no complete PNG, '
                    'JPEG or WebP picture; mend or leave out this record')
  if not data and not has_codes:
    raise UserError(f'record {name}: field image of segment {place} has neither bytes nor codes; '
                    'mend or leave out this record')


def _text(data: bytes, where: str, field: str) -> str:
  try:
    return data.decode()
  except UnicodeDecodeError as error:
    raise UserError(f'{where}: field {field} is no UTF-8 text; {_MEND}') from error


def _same_length(columns: dict[str, list], keys: Sequence[str], where: str) -> None:
  if len({len(columns[key]) for key in keys}) == 1:
    return
  for one, other in itertools.pairwise(keys):
    if len(columns[one]) != len(columns[other]):
      raise UserError(f'{where}: field {other} has {len(columns[other])} entries, field {one} has '
                      f'{len(columns[one])}; {_MEND}')
