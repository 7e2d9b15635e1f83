"""A sentencepiece model file (`tokenizer.model`) as a definition of the `tokenizers` library.

The file is a protocol buffer of few fields: pieces with scores, and how text is normalised. A BPE model joins, again and again,
the two neighbours whose union has the highest score; that is a list of merges in the order of the scores. (Format:
sentencepiece_model.proto of the sentencepiece project.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

_NORMAL, _BYTE, _BPE = 1, 6, 2
SPACE = '▁'
"""What stands for a space inside pieces."""


def definition_of(data: bytes) -> dict[str, Any]:
  """The JSON definition of the same tokenizer.

  Raises:
    ValueError: no such file, or a model of another kind than BPE without character mapping.
  """
  pieces: list[tuple[str, float, int]] = []
  model_type, charsmap, prefix = 1, b'', True
  for number, value in _fields(data):
    if number == 1:
      fields = dict(_fields(value))
      pieces.append((fields[1].decode(), struct.unpack('<f', fields[2])[0] if 2 in fields else 0.0, fields.get(3, _NORMAL)))
    elif number == 2:
      model_type = dict(_fields(value)).get(3, 1)
    elif number == 3:
      normaliser = dict(_fields(value))
      charsmap, prefix = normaliser.get(2, b''), bool(normaliser.get(3, 1))
  if not pieces:
    raise ValueError('no pieces in it')
  if model_type != _BPE or charsmap:
    raise ValueError('only BPE models that take text as it is can be read')

  scores = {piece: score for piece, score, kind in pieces if kind == _NORMAL}
  merges = [(-score, piece[:cut], piece[cut:]) for piece, score in scores.items() for cut in range(1, len(piece))
            if piece[:cut] in scores and piece[cut:] in scores]
  spaces = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': SPACE}
  back = {'type': 'Replace', 'pattern': {'String': SPACE}, 'content': ' '}
  strip = [{'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}] if prefix else []
  prepend = [{'type': 'Prepend', 'prepend': SPACE}] if prefix else []
  return {
      'version': '1.0', 'added_tokens': [],
      'normalizer': {'type': 'Sequence', 'normalizers': [*prepend, spaces]},
      'pre_tokenizer': None,
      'decoder': {'type': 'Sequence', 'decoders': [back, {'type': 'ByteFallback'}, {'type': 'Fuse'}, *strip]},
      'model': {'type': 'BPE', 'fuse_unk': True, 'byte_fallback': any(kind == _BYTE for *_, kind in pieces),
                'vocab': {piece: i for i, (piece, *_) in enumerate(pieces)},
                'merges': [[left, right] for _, left, right in sorted(merges, key=lambda merge: merge[0])]}}


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
  """Numbers and values of a message: int, or bytes of fixed or stated length."""
  place = 0

  def varint() -> int:
    nonlocal place
    value = shift = 0
    while True:
      if place >= len(data) or shift > 63:
        raise ValueError('cut short')
      byte = data[place]
      place += 1
      value |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        return value

  while place < len(data):
    key = varint()
    kind = key & 7
    if kind == 0:
      yield key >> 3, varint()
      continue
    if kind not in (1, 2, 5):
      raise ValueError('no protocol buffer')
    size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
    if place + size > len(data):
      raise ValueError('cut short')
    yield key >> 3, data[place:place + size]
    place += size
