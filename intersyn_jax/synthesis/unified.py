"""The unified model in all three jobs of SEIR: language model, vision critic and image generator (DESIGN 7).

Few programs are compiled: one for each pair of lane and prompt size. Lanes differ in what may be written (length, text or
one picture) and how (critics take the likeliest word, all else is drawn). Every batch has the same number of rows;
rows that nobody needs stay empty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from intersyn_jax.decoding.decoder import END, Completions, Decoder
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.layout import Layout
from intersyn_jax.interleave.types import Conversation, Image, Turn, images_of, text_of
from intersyn_jax.models.definition import Params
from intersyn_jax.synthesis.interfaces import Draw, Look, Reply, Ticket, Write
from intersyn_jax.synthesis.judging import empty_rows

SHORT, LONG, CRITIC, PICTURE, REFUSED = 'short', 'long', 'critic', 'picture', 'refused'
"""Lanes: a question or caption, a whole answer, a critique, a picture; and prompts that fit nowhere."""

ANSWERS = ('answer_write', 'answer_revise')
CRITICS = ('question_critique', 'answer_critique', 'image_critique')


@dataclasses.dataclass(frozen=True)
class Rooms:
  """Room for prompts and completions, in positions; the config section `synthesize.rooms`.

  Attributes:
    prompts: sizes that prompts are padded to, rising; each costs a program in every lane that uses it.
    short, long, critic: completions of the text lanes, `</s>` included.
    judged: lengths of conversations that get judge programs of their own, see `judging.JudgeWorker`.
  """

  prompts: tuple[int, ...] = (64, 96, 160, 256, 384)
  short: int = 80
  long: int = 192
  critic: int = 32
  judged: tuple[int, ...] = ()


class UnifiedWorker:
  """Answers Write, Look and Draw with one model.

  Args:
    decoder: makes a decoder whose config has these fields changed.
    params: of the model.
    layout_: its token layout.
    seed: of all draws, with the address of each request.
    rooms: see Rooms.
    rows: completions written at once.
  """

  def __init__(self, decoder: Callable[..., Decoder], params: Params, layout_: Layout, *, seed: int,
               rooms: Rooms = Rooms(), rows: int = 128):
    self.rows = rows
    self._params, self._layout, self._seed, self._rooms = params, layout_, seed, rooms
    one_picture = len(layout_.block.template) + 2  # the begin token, the block, `</s>`
    self._decoders = {
        SHORT: decoder(max_positions=rooms.short, max_images=0),
        LONG: decoder(max_positions=rooms.long, max_images=0),
        CRITIC: decoder(max_positions=rooms.critic, max_images=0, text_temperature=0.0),
        PICTURE: decoder(max_positions=one_picture, max_images=1),
    }

  def prepare(self, request: Write | Look | Draw) -> Ticket:
    """Tokenises the prompt and chooses lane and size. A critic that could not be read is drawn at the next try."""
    address = request.address
    document = layout.prompt(Conversation(address.conversation, '', (Turn(request.prompt),)), self._layout)
    size = next((room for room in self._rooms.prompts if len(document.text) <= room), None)
    if size is None:
      return Ticket(REFUSED, 0, isinstance(request, Draw))
    if isinstance(request, Draw):
      lane = PICTURE
    elif address.role in ANSWERS:
      lane = LONG
    else:
      lane = CRITIC if address.role in CRITICS and not address.retry else SHORT
    return Ticket(lane, size, (document, address.number()))

  def run(self, lane: str, size: int, tickets: Sequence[Ticket]) -> list[Reply | Image | None]:
    if lane == REFUSED:
      return [None if ticket.payload else Reply('', f'the prompt has more than {self._rooms.prompts[-1]} positions')
              for ticket in tickets]
    documents, numbers = zip(*(ticket.payload for ticket in tickets), strict=True)
    prompts = empty_rows(layout.stack(documents, size, left=True), self.rows)
    requests = np.zeros(self.rows, np.uint32)
    requests[:len(numbers)] = numbers
    done: Completions = jax.device_get(self._decoders[lane].rollout(self._params, prompts, requests, self._seed, group=1))
    return [self._read(lane, done, row) for row in range(len(tickets))]

  def _read(self, lane: str, done: Completions, row: int) -> Reply | Image | None:
    tokens = done.tokens
    segments = layout.answer_of(tokens.text[row], tokens.codes[row], tokens.modality[row], self._layout, tokens.forced[row])
    if lane == PICTURE:
      return next(iter(images_of(segments)), None)
    ended = done.finish[row] == END
    return Reply(text_of(segments), '' if ended else f'cut at {self._decoders[lane].config.max_positions} positions')
