"""The text tokenizer of a public checkpoint, read from its own files, with ids in the index space of text alone.

A checkpoint may keep images in the same vocabulary; here their ids are taken out and later ones move down. The BPE is
rebuilt without all that text must never become: marks (special tokens, and whatever is spelled like one, `<...>`) are
no part of it and are looked up by name. So text, however hostile, encodes to words only, also where the files say otherwise.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from etils import epath

from intersyn_jax.errors import UserError
from intersyn_jax.interleave import sentencepiece

_BYTE = re.compile('<0x[0-9A-F]{2}>')
_ROLES = ('bos_token', 'eos_token', 'pad_token', 'unk_token')


class CheckpointTokenizer:
  """Turns text into ids and back, as `text.TextTokenizer`.

  Attributes:
    size: V, rows of the text tables, appended ones included.
    specials: ids that no text encodes to; rows without a token too.
    spare: rows of the checkpoint without a token, in order.
    appended: names of the rows added behind the checkpoint's, each with the ids of the words that it means: a converter
      fills the row with the mean of theirs.
    spaced: whether every text encoded gets a space before its first word, which decoding takes away (Llama).
    chat_template: the checkpoint's own, '' where it has none.
    roles: spellings of `bos_token` and such, as its configuration gives them.
  """

  def __init__(self, definition: Mapping[str, Any], *, rows: int, images: Sequence[int] = (),
               appended: Mapping[str, Sequence[int]] | None = None, chat_template: str = '',
               roles: Mapping[str, str] | None = None):
    """Builds it from a `tokenizers` definition (tokenizer.json as a dictionary).

    Args:
      rows: of the checkpoint's vocabulary, images included.
      images: their ids in it.

    Raises:
      ValueError: the definition is no BPE that can write every text, or does not fit the rows.
    """
    self._definition, self._rows, self._images = definition, rows, tuple(int(i) for i in images)
    self.appended = {name: tuple(ids) for name, ids in (appended or {}).items()}
    self.chat_template, self.roles = chat_template, dict(roles or {})
    model = definition['model']
    if model.get('type') != 'BPE' or model.get('continuing_subword_prefix') or model.get('end_of_word_suffix'):
      raise ValueError(f'its model is {model.get("type")!r}; only plain BPE can be read')
    added = {token['content']: token for token in definition.get('added_tokens') or []}
    ids = dict(model['vocab']) | {name: token['id'] for name, token in added.items()}
    if ids and max(ids.values()) >= rows:
      name = max(ids, key=ids.get)
      raise ValueError(f'token {name!r} has id {ids[name]}, the checkpoint has {rows} rows')

    merges = [tuple(merge.split(' ')) if isinstance(merge, str) else tuple(merge) for merge in model['merges']]
    made = {left + right for left, right in merges}
    if lost := {part for merge in merges for part in merge if part not in ids}:
      raise ValueError(f'a merge of it names {min(lost)!r}, which is no token')
    marks = {name for name, token in added.items() if token.get('special') or _looks_like_a_mark(name)}
    marks |= {name for name in model['vocab'] if not (name in made or len(name) == 1 or _BYTE.fullmatch(name))}
    hidden = frozenset(self._images)
    closed = {ids[name] for name in marks} | hidden
    words = {name: i for name, i in model['vocab'].items() if i not in closed and name not in marks}
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    bytes_ = [f'<0x{b:02X}>' for b in range(256)] if model.get('byte_fallback') else alphabet
    unknown = model.get('unk_token') if set(bytes_) - words.keys() else None
    if set(bytes_) - words.keys() and unknown not in ids:
      raise ValueError('it has neither a token for each byte nor one for unknown text')
    self._unknown = None if unknown is None else ids[unknown]
    kept = [list(m) for m in merges if m[0] in words and m[1] in words and m[0] + m[1] in words]
    plain = {**definition, 'added_tokens': [], 'post_processor': None, 'truncation': None, 'padding': None,
             'model': {**model, 'vocab': words | ({} if unknown is None else {unknown: self._unknown}), 'merges': kept,
                       'unk_token': unknown, 'dropout': None}}
    try:
      self._bpe = tokenizers.Tokenizer.from_str(json.dumps(plain))
    except Exception as error:  # tokenizers raises bare Exception for a definition it cannot read
      raise ValueError(str(error)) from error

    self._theirs = np.delete(np.arange(rows), self._images)  # by our id
    self._ours = np.cumsum(np.isin(np.arange(rows), self._theirs)) - 1  # by theirs, where it is no image's
    self.size = len(self._theirs) + len(self.appended)
    self._ids = {name: int(self._ours[i]) for name, i in ids.items() if i not in hidden}
    self._ids |= {name: self.size - len(self.appended) + n for n, name in enumerate(self.appended)}
    self.specials = frozenset(range(self.size)) - {int(self._ours[i]) for i in words.values()}
    taken = set(self._ids.values())
    self.spare = tuple(i for i in range(self.size) if i not in taken)
    self._marks = sorted((name for name, i in self._ids.items() if i in self.specials and name), key=len, reverse=True)
    self.spaced = self._bpe.encode('a').tokens[0].startswith(sentencepiece.SPACE)

  def encode(self, text: str) -> list[int]:
    """Ids of the text; never of a mark. Raises UserError where a vocabulary of few letters has none for it."""
    return self.encode_all([text])[0]

  def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of each text, several at a time where the machine has cores for it."""
    found = [one.ids for one in self._bpe.encode_batch_fast(list(texts), add_special_tokens=False)]
    for text, ids in zip(texts, found, strict=True):
      if self._unknown is not None and self._unknown in ids:
        raise UserError(f'the tokenizer of this checkpoint has no letters for all of {text[:60]!r}; leave them out')
    return [self._ours[ids].tolist() for ids in found]

  def decode(self, ids: Sequence[int]) -> str:
    """Text of the ids; marks are passed over. Bytes that are no UTF-8 come out as U+FFFD."""
    words = [int(i) for i in ids if int(i) not in self.specials]
    return self._bpe.decode(self._theirs[words].tolist(), skip_special_tokens=False)

  def special(self, name: str) -> int:
    """Id of the token of this name. Raises ValueError where there is none."""
    if name not in self._ids:
      raise ValueError(f'this tokenizer has no token {name}')
    return self._ids[name]

  def __contains__(self, name: str) -> bool:
    return name in self._ids

  def spell(self, text: str) -> list[int]:
    """Ids of a piece of a conversation template, in which marks stand for themselves. Never for a user's text."""
    ids: list[int] = []
    parts = re.split(f'({"|".join(map(re.escape, self._marks))})', text) if self._marks else [text]
    for number, part in enumerate(parts):
      if number % 2:
        ids.append(self._ids[part])
      elif self.spaced and part == ' ':
        ids.append(self._ids[sentencepiece.SPACE])
      else:
        ids += self.encode(part.removeprefix(' ') if self.spaced else part)
    return ids

  def with_rows(self, names: Iterable[str]) -> CheckpointTokenizer:
    """The same tokenizer with a row behind the others for each name, which means the words inside its brackets."""
    meant = {name: self.encode(name.strip('<>')) for name in names}
    return CheckpointTokenizer(self._definition, rows=self._rows, images=self._images, appended=self.appended | meant,
                               chat_template=self.chat_template, roles=self.roles)

  # Files.

  def dumps(self) -> str:
    """The tokenizer as JSON, for `load`."""
    return json.dumps({
        'definition': self._definition, 'rows': self._rows, 'images': self._images, 'appended': self.appended,
        'chat_template': self.chat_template, 'roles': self.roles})

  def save(self, path: epath.PathLike) -> None:
    epath.Path(path).write_text(self.dumps())

  @classmethod
  def load(cls, path: epath.PathLike) -> CheckpointTokenizer:
    """Reads what `save` wrote. Raises UserError where there is no such file."""
    path = epath.Path(path)
    if not path.exists():
      raise UserError(f'{path}: no text tokenizer here; run the convert stage first')
    try:
      return cls(**json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
      raise UserError(f'{path}: not a tokenizer file ({error}); delete its folder and run the convert stage') from error

  @classmethod
  def read(cls, folder: epath.PathLike, *, rows: int, images: Sequence[int] = ()) -> CheckpointTokenizer:
    """Reads a downloaded folder: `tokenizer.json`, or else `tokenizer.model` (sentencepiece).

    Args:
      rows, images: as above.

    Raises:
      UserError: neither is there, or it cannot be read; names the file.
    """
    folder = epath.Path(folder)
    config = _json(folder / 'tokenizer_config.json')
    path = folder / 'tokenizer.json'
    try:
      if path.exists():
        definition = json.loads(path.read_text())
      elif (path := folder / 'tokenizer.model').exists():
        definition = sentencepiece.definition_of(path.read_bytes())
        definition['added_tokens'] = _added(definition, config, _json(folder / 'added_tokens.json'))
      else:
        raise UserError(f'{folder} has no tokenizer.json and no tokenizer.model; download the tokenizer files of the checkpoint '
                        'into it')
      return cls(definition, rows=rows, images=images, chat_template=_chat_template(folder, config), roles=_roles(config))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, RecursionError, struct.error) as error:
      raise UserError(f'{path}: not a tokenizer that can be read here ({error}); download the file again') from error


def _looks_like_a_mark(name: str) -> bool:
  return name.startswith('<') and name.endswith('>') and len(name) > 2


def _json(path: epath.Path) -> dict[str, Any]:
  """An object in a file that may be missing."""
  if not path.exists():
    return {}
  try:
    value = json.loads(path.read_text())
  except (ValueError, OSError, RecursionError) as error:
    raise UserError(f'{path}: no JSON ({error}); download the file again') from error
  if not isinstance(value, dict):
    raise UserError(f'{path}: no JSON object; download the file again')
  return value


def _added(definition: Mapping[str, Any], config: Mapping[str, Any], added: Mapping[str, int]) -> list[dict[str, Any]]:
  """Tokens beside a sentencepiece model: from added_tokens.json, and from tokenizer_config.json."""
  names = {token['content']: int(i) for i, token in config.get('added_tokens_decoder', {}).items()} | dict(added)
  return [{'id': i, 'content': name, 'special': True} for name, i in names.items()
          if name not in definition['model']['vocab'] or _looks_like_a_mark(name)]


def _roles(config: Mapping[str, Any]) -> dict[str, str]:
  """Spellings, which are strings or objects with `content`."""
  values = {role: config.get(role) for role in _ROLES}
  values = {role: value.get('content') if isinstance(value, dict) else value for role, value in values.items()}
  return {role: value for role, value in values.items() if isinstance(value, str)}


def _chat_template(folder: epath.Path, config: Mapping[str, Any]) -> str:
  """From chat_template.jinja, chat_template.json or tokenizer_config.json; of several, the one called default."""
  if (path := folder / 'chat_template.jinja').exists():
    return path.read_text()
  found = _json(folder / 'chat_template.json').get('chat_template') or config.get('chat_template') or ''
  if isinstance(found, list):
    found = {entry['name']: entry['template'] for entry in found}.get('default', '')
  if not isinstance(found, str):
    raise UserError(f'{folder / "tokenizer_config.json"}: chat_template is no text; download the file again')
  return found
