"""Completions of many prompts, as arrays that are kept on disk and read back as segments.

All policies answer the same prompts with the same request keys, in batches of one static shape, so that one compiled
program a decoding serves them all.

Letters: N answers, R rows of a device batch, T prompt positions, M completion positions, D codes per image position.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import random
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from etils import epath

from intersyn_jax import sharding
from intersyn_jax.decoding.decoder import Decoder
from intersyn_jax.errors import UserError
from intersyn_jax.interleave import grammar, layout
from intersyn_jax.interleave.layout import Layout, TokenBatch
from intersyn_jax.interleave.types import Conversation, Image, Segment, Turn, images_of
from intersyn_jax.models.definition import Params

Pictures = Callable[[np.ndarray], np.ndarray]
"""int32[n,P,D] -> uint8[n,H,W,3]."""


@dataclasses.dataclass(frozen=True)
class Answers:
  """N completions without their prompts.

  Attributes:
    text: int32[N,M]. codes: int32[N,M,D]. modality: int8[N,M]. forced: bool[N,M]; see `TokenBatch`.
    step: int32[N,M], answer step of each position.
    steps: int32[N], how many steps the answer opens.
    well_formed: bool[N], keeps the format to its `</s>` (see `grammar.parse`).
  """

  text: np.ndarray
  codes: np.ndarray
  modality: np.ndarray
  forced: np.ndarray
  step: np.ndarray
  steps: np.ndarray
  well_formed: np.ndarray

  def __len__(self) -> int:
    return len(self.text)

  def segments(self, layout_: Layout) -> list[tuple[Segment, ...]]:
    """The answers as a person reads them; images hold codes only."""
    return [layout.answer_of(t, c, m, layout_, f)
            for t, c, m, f in zip(self.text, self.codes, self.modality, self.forced)]

  def conversations(self, questions: Sequence[Conversation], layout_: Layout) -> list[Conversation]:
    """The questions with these answers in their last turn."""
    return [dataclasses.replace(q, turns=(*q.turns[:-1], Turn(q.turns[-1].question, answer)))
            for q, answer in zip(questions, self.segments(layout_), strict=True)]

  def arrays(self) -> dict[str, np.ndarray]:
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


def first_turn(conversation: Conversation) -> Conversation:
  """The conversation cut after its first turn."""
  return dataclasses.replace(conversation, turns=conversation.turns[:1])


def room(prompts: Sequence[TokenBatch], bucket: int) -> int:
  """T, positions that hold each of the prompts: a multiple of `bucket`."""
  return -(-max(len(p.text) for p in prompts) // bucket) * bucket


def write(decoder: Decoder, params: Params, prompts: Sequence[TokenBatch], requests: Sequence[int], *, length: int,
          seed: int, tick: Callable[[int], None] | None = None) -> Answers:
  """Writes one completion of each prompt.

  Args:
    decoder: its `config.rows` is R; the last batch is filled up with empty rows.
    params: of the policy.
    prompts: N documents from `layout.prompt`.
    requests: N numbers; with the seed they decide the draws, whatever the policy.
    length: T of every batch.
    seed: of all draws.
    tick: called after each batch with how many answers are written.

  Raises:
    UserError: a prompt is longer than `length`.
  """
  rows = decoder.config.rows
  parse = _parser(decoder.layout)
  parts = []
  for start in range(0, len(prompts), rows):
    chunk = prompts[start:start + rows]
    batch = layout.stack(chunk, length, left=True)
    fill = rows - len(chunk)
    batch = jax.tree.map(lambda a, fill=fill: np.concatenate([a, np.zeros((fill, *a.shape[1:]), a.dtype)]), batch)
    keys = np.concatenate([np.asarray(requests[start:start + rows]), np.zeros(fill)]).astype(np.uint32)
    tokens = decoder.rollout(params, batch, keys, seed, group=1).tokens
    parsed = parse(tokens)
    answers = Answers(tokens.text, tokens.codes, tokens.modality, tokens.forced, parsed.step, parsed.steps,
                      parsed.well_formed)
    parts.append({name: array[:len(chunk)] for name, array in sharding.host(answers.arrays()).items()})
    if tick is not None:
      tick(start + len(chunk))
  return Answers(**{name: np.concatenate([p[name] for p in parts]) for name in parts[0]})


@functools.lru_cache(maxsize=4)
def _parser(layout_: Layout) -> Callable[[TokenBatch], grammar.Parse]:
  """`grammar.parse`, compiled once a shape."""
  return jax.jit(lambda tokens: grammar.parse(tokens, layout_, 1))


def of_documents(documents: Sequence[TokenBatch], layout_: Layout, positions: int) -> Answers:
  """Answers that stand in whole documents of one turn each.

  Raises:
    UserError: an answer is longer than `positions`.
  """
  tails = []
  for document in documents:
    start = layout.answer_begins(document, 0)
    tails.append(jax.tree.map(lambda a, start=start: a[start:], document))
  batch = layout.stack(tails, positions)
  parsed = jax.device_get(_parser(layout_)(batch))
  return Answers(batch.text, batch.codes, batch.modality, batch.forced, parsed.step, parsed.steps, parsed.well_formed)


def joined(prompts: Sequence[TokenBatch], answers: Answers, length: int) -> TokenBatch:
  """Prompts with their answers as rows [N,T+M], as a judge reads them.

  Args:
    prompts: N documents. answers: to them. length: T.
  """
  before = layout.stack(prompts, length, left=True)
  real = answers.modality != layout.PADDING
  places = np.array([len(p.text) for p in prompts])[:, None] + np.arange(real.shape[1])
  after = TokenBatch(
      text=answers.text, codes=answers.codes, modality=answers.modality, loss=(real & ~answers.forced).astype(np.float32),
      forced=answers.forced, document=real.astype(np.int32), position=np.where(real, places, 0).astype(np.int32),
      turn=np.where(real, before.turn[:, -1:], -1).astype(np.int32), step=answers.step)
  return jax.tree.map(lambda a, b: np.concatenate([a, b], axis=1), before, after)


def chance(conversations: Sequence[Conversation], layout_: Layout, count: int, positions: int, seed: int) -> Answers:
  """What a policy without any skill would say: the gold answers of randomly drawn training questions.

  Args:
    conversations: training conversations with codes; first turns count.
    count: N. positions: M; longer answers are passed over. seed: of the draws.
  """
  rng = random.Random(f'{seed}/chance')
  documents: list[TokenBatch] = []
  for _ in range(20 * count):
    if len(documents) == count:
      break
    drawn = first_turn(conversations[rng.randrange(len(conversations))])
    document = layout.tokenise(drawn, layout_)
    if len(document.text) - len(layout.prompt(drawn, layout_).text) <= positions:
      documents.append(document)
  else:
    raise UserError(f'decode.max_positions is {positions}, too short for the answers in the data; make it larger')
  return of_documents(documents, layout_, positions)


def with_pictures(answers: Sequence[Sequence[Segment]], decode: Pictures) -> list[list[np.ndarray]]:
  """The pictures uint8[H,W,3] of each answer, decoded from codes, all in one go."""
  images: list[Image] = [image for answer in answers for image in images_of(answer)]
  if not images:
    return [[] for _ in answers]
  queue = iter(decode(np.stack([image.codes for image in images])))
  return [[next(queue) for _ in images_of(answer)] for answer in answers]


# Files.


def save(path: epath.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays as one npz file that is whole or not there."""
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  part = path.parent / f'.{path.name}.part'
  part.write_bytes(buffer.getvalue())
  part.replace(path)


def load(path: epath.PathLike) -> dict[str, np.ndarray]:
  """Reads what `save` wrote. Raises UserError on a damaged file."""
  path = epath.Path(path)
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
      return {name: file[name] for name in file.files}
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
    raise UserError(f'{path}: cannot be read ({error}); remove the file and run evaluate again') from error


def split(arrays: Mapping[str, np.ndarray]) -> tuple[Answers, dict[str, np.ndarray]]:
  """The answers in a file of `save`, and the other arrays."""
  names = [f.name for f in dataclasses.fields(Answers)]
  return Answers(**{n: arrays[n] for n in names}), {n: a for n, a in arrays.items() if n not in names}
