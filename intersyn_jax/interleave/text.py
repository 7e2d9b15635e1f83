"""Text tokenizer: byte-level BPE whose special tokens lie outside its own vocabulary.

Ids 0..len(SPECIALS)-1 are the special tokens, the BPE's ids follow. So no text, however hostile, can spell a special
token, and every text comes back from its ids exactly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import tokenizers
from etils import epath

from intersyn_jax.errors import UserError

SPECIALS = ('<pad>', '<s>', '</s>', '<user>', '<model>', '<image>', '</image>', '<think>', '</think>', '<vis>', '</vis>')


class TextTokenizer:
  """Turns text into ids and back; `size` counts the special tokens too, whose ids are `specials`."""

  specials = range(len(SPECIALS))

  def __init__(self, bpe: tokenizers.Tokenizer):
    self._bpe = bpe
    self.size = bpe.get_vocab_size() + len(SPECIALS)

  @classmethod
  def train(cls, texts: Iterable[str], size: int) -> TextTokenizer:
    """Learns merges from `texts` until the vocabulary, special tokens included, has `size` entries."""
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + len(SPECIALS)
    if size < least:
      raise UserError(f'text.size is {size}; every byte and special token needs one entry: make it at least {least}')
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size - len(SPECIALS), initial_alphabet=sorted(alphabet), show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    return cls(bpe)

  def encode(self, text: str) -> list[int]:
    """Ids of the text; never a special token."""
    return self.encode_all([text])[0]

  def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, several at a time where the machine has cores for it."""
    found = self._bpe.encode_batch_fast(list(texts), add_special_tokens=False)
    return [[i + len(SPECIALS) for i in one.ids] for one in found]

  def decode(self, ids: Sequence[int]) -> str:
    """Text of the ids; special tokens are passed over. Bytes that are no UTF-8 come out as U+FFFD."""
    plain = [int(i) - len(SPECIALS) for i in ids if int(i) >= len(SPECIALS)]
    return self._bpe.decode(plain, skip_special_tokens=False)

  def ends(self, text: str, ids: Sequence[int]) -> list[int] | None:
    """Where in the text each id's characters end; None where the ids are not the ones that `encode` gives."""
    found = self._bpe.encode(text, add_special_tokens=False)
    return [end for _, end in found.offsets] if [i + len(SPECIALS) for i in found.ids] == list(map(int, ids)) else None

  def special(self, name: str) -> int:
    """Id of a special token, for example `<think>`."""
    return SPECIALS.index(name)

  def dumps(self) -> str:
    """The tokenizer as JSON, for `load`."""
    return self._bpe.to_str()

  def save(self, path: epath.PathLike) -> None:
    epath.Path(path).write_text(self.dumps())

  @classmethod
  def load(cls, path: epath.PathLike) -> TextTokenizer:
    path = epath.Path(path)
    if not path.exists():
      raise UserError(f'{path}: no text tokenizer here; run the tokenizer stage first')
    text = path.read_text()
    try:
      json.loads(text)
      return cls(tokenizers.Tokenizer.from_str(text))
    except Exception as error:  # tokenizers raises bare Exception for a file it cannot read
      raise UserError(f'{path}: not a tokenizer file ({error}); delete its folder and run the tokenizer stage') from error
