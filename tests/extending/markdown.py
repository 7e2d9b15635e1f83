"""A data source: each Markdown file of a folder is a conversation. Its first line is the question; the rest is the answer,
lines of text and pictures `![caption](file)`."""

import hashlib
import pathlib
import re

from intersyn_jax.data import images
from intersyn_jax.data.builders import ConversationBuilder
from intersyn_jax.data.manifest import Rejected
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn

PICTURE = re.compile(r'!\[(.*)\]\((.+)\)')


class Markdown(ConversationBuilder, skip_registration=True):

  description = 'Markdown files with pictures.'

  def __init__(self, *, path, pixels, **kwargs):  # fields of the config section `data`, by name
    self._files = sorted(pathlib.Path(path).glob('*.md'))
    self._pixels = pixels
    if not path or not self._files:
      raise UserError(f'data.path {path!r} is no folder with Markdown files')
    super().__init__(**kwargs)

  def sizes(self):
    """The splits, and how many records each will have where that is known."""
    return {'interleaved': None}

  def settings(self, split):
    """What the content depends on: shards that were made with the same settings are not made again."""
    content = b''.join(file.read_bytes() for file in self._files)
    return {'sha256': hashlib.sha256(content).hexdigest(), 'pixels': self._pixels}

  def conversations(self, split):
    for file in self._files:
      question, *lines = filter(None, map(str.strip, file.read_text().splitlines()))
      try:
        answer = tuple(self._segment(line, file.parent) for line in lines)
      except ValueError as error:  # a picture that cannot be read: the record is left out, and the manifest says why
        self.rejected[split].append(Rejected(file.name, file.stem, str(error)))
        continue
      yield Conversation(file.stem, 'stories', (Turn((Text(question),), answer),), generator='markdown')

  def _segment(self, line, folder):
    picture = PICTURE.fullmatch(line)
    if picture is None:
      return Text(line)
    return Image(images.load(picture[2], folder, self._pixels), caption=picture[1])
