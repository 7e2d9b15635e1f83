"""Questions in, conversations out: the decoder for people and for stages.

Any number of prompts is written in batches of one size, prompts of like length together, and results come back in the
order of the requests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from intersyn_jax import sharding
from intersyn_jax.data import images
from intersyn_jax.decoding.decoder import Completions, DecodeConfig, Decoder
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.layout import FILL, Layout, TokenBatch
from intersyn_jax.interleave.types import Conversation, Image, Segment, Text, Turn
from intersyn_jax.models.definition import Definition, Params

ImageDecoder = Callable[[np.ndarray], np.ndarray]
"""Image codes int32[N,P,D] to pictures uint8[N,height,width,3]."""

Question = str | Sequence[Segment] | Conversation


class Generator:
  """Answers questions with a unified model.

      generator = Generator(definition, params, layout, image_decoder, mesh, DecodeConfig())
      (answers,) = generator.generate(['Draw a red circle, then move it.'], n=4)

  Args:
    definition: of the model; params: its parameters on the mesh.
    layout: the token layout it was trained with.
    image_decoder: turns codes into pictures; None leaves images with their codes alone.
    mesh: of the machine.
    config: `config.rows` completions are written at once.
  """

  def __init__(self, definition: Definition, params: Params, layout: Layout, image_decoder: ImageDecoder | None, mesh: Mesh,
               config: DecodeConfig):
    self.params = params
    self.layout = layout
    self.image_decoder = image_decoder
    self.config = config
    self.decoder = Decoder(definition, layout, mesh, config)
    # Every process needs the whole answer, and only a replicated array can be read whole.
    self._gather = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(mesh))

  def generate(self, questions: Sequence[Question] | Question, n: int = 1, seed: int = 0,
               name: str = 'decoder') -> list[list[Conversation]]:
    """Writes n answers to each question.

    Args:
      questions: texts, runs of segments, or conversations whose last turn is to be answered (its answer, if it has
        one, is replaced); images in them must carry codes. A single one is taken as a list of one.
      n: answers to each; the question is read once for all of them.
      seed: of all draws; answer g of question i depends on (seed, i, g) and on nothing else in the batch.
      name: what `Conversation.generator` of the answers says.

    Returns:
      for each question, n conversations with the answer in the last turn; images have codes and, with an image decoder,
      PNG bytes.
    """
    if isinstance(questions, str | Conversation):
      questions = [questions]
    asked = [_conversation(question, i) for i, question in enumerate(questions)]
    answers: list[list[Conversation]] = [[] for _ in asked]
    for which, completions in self.completions([layout.prompt(c, self.layout) for c in asked], n, seed):
      for row, segments in enumerate(self._answers(completions, len(which) * n)):
        number = which[row // n]
        *earlier, last = asked[number].turns
        turns = (*earlier, dataclasses.replace(last, answer=segments))
        answers[number].append(dataclasses.replace(asked[number], turns=turns, scores=(), generator=name, seed=seed))
    return answers

  def completions(self, prompts: Sequence[TokenBatch], n: int = 1, seed: int = 0) -> Iterator[tuple[list[int], Completions]]:
    """Writes n completions of each prompt, batch by batch.

    Yields:
      which prompts a batch holds, and its completions on the host: n rows for each of them in this order, then rows to
      be passed over. Prompts of like length come together, so the order is not that of the request.
    """
    each = max(1, self.config.rows // n)
    while each * n % sharding.row_multiple(self.decoder.mesh):
      each += 1
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].text))
    for start in range(0, len(order), each):
      which = order[start:start + each]
      filled = [prompts[i] for i in which] + [_nothing(prompts[which[0]])] * (each - len(which))
      requests = np.asarray([i * n + g for i in which for g in range(n)] + [0] * ((each - len(which)) * n))
      done = self.decoder.decode(self.params, filled, group=n, seed=seed, request_ids=requests)
      yield which, jax.tree.map(np.asarray, self._gather(done))

  def _answers(self, completions: Completions, rows: int) -> list[tuple[Segment, ...]]:
    """Segments of the first rows, pictures decoded in one call."""
    tokens = completions.tokens
    answers = [layout.answer_of(tokens.text[r], tokens.codes[r], tokens.modality[r], self.layout, tokens.forced[r])
               for r in range(rows)]
    if self.image_decoder is None:
      return answers
    found = [s.codes for answer in answers for s in answer if isinstance(s, Image)]
    if not found:
      return answers
    # Sizes are powers of two, so that few programs are compiled.
    padded = np.zeros((1 << (len(found) - 1).bit_length(), *found[0].shape), np.int32)
    padded[:len(found)] = found
    pictures = iter(np.asarray(self.image_decoder(padded))[:len(found)])
    draw = lambda s: dataclasses.replace(s, data=images.png(next(pictures))) if isinstance(s, Image) else s
    return [tuple(draw(s) for s in answer) for answer in answers]


def _conversation(question: Question, number: int) -> Conversation:
  if isinstance(question, Conversation):
    return question
  segments = (Text(question),) if isinstance(question, str) else tuple(question)
  return Conversation(id=str(number), topic='', turns=(Turn(segments),))


def _nothing(like: TokenBatch) -> TokenBatch:
  """A document of padding alone, whose rows the decoder leaves empty."""
  empty = {f.name: np.full_like(getattr(like, f.name), FILL.get(f.name, 0)) for f in dataclasses.fields(TokenBatch)}
  return TokenBatch(**empty)
