"""Labelled answers from people's scores: what `judge.source` names, as rows for training and for the test.

The label of an answer is the mean of its votes. Nobody scored the steps, so that step labels are only where they follow: of
an answer of one step. There the views have shown all of it by the end of the step, and the whole is what was scored. With
several steps an annotator's 3 may be two 3s or a 5 and a 1, and no step gets a label. IQ of such an answer is then learnt
from the answers of one picture, and measured on all.

The two sides share no question and no picture. Answers that have one in common, in whatever turn, hang together, directly or
through others, and stay together.

Letters: N answers, A annotators, T positions, S steps at most, H height, W width, P places, D codes.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from intersyn_jax.data import codes, manifest
from intersyn_jax.data.importers import judged, rows
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import Layout, TokenBatch, tokenise
from intersyn_jax.interleave.types import DIMENSIONS, Conversation, Image, Segment, Text, images_of, steps_of
from intersyn_jax.judge import annotators
from intersyn_jax.judge.labelled import MARKS, Labelled
from intersyn_jax.judge.views import ICC, IQ, ITS, TCC

Encode = Callable[[np.ndarray], np.ndarray]
"""Pictures uint8[n,H,W,3] to codes int32[n,P,D]."""


@dataclasses.dataclass(frozen=True)
class _Row:
  """One scored answer, ready but for its side."""

  conversation: Conversation  # with codes
  document: TokenBatch
  votes: np.ndarray  # int32[A,4]
  where: str


def read(path: str | os.PathLike[str], images: str | os.PathLike[str], layout: Layout, encode: Encode,
         reject: rows.Reject, *, pixels: int, longest: int, max_steps: int, held_out: float,
         held_out_generators: Sequence[str] = (), seed: int = 0, batch: int = 256) -> tuple[Labelled, Labelled]:
  """Training and test rows from scored answers (see `data.importers.judged` for the formats). Deterministic.

  Args:
    path: JSON or JSON Lines file, or a folder of shards (`judge.source`).
    images: folder of the pictures, '' where they lie beside the file (`judge.images`).
    layout: to write documents.
    encode: the image tokenizer.
    reject: takes every row that is left out, with its reason.
    pixels: side of the pictures that `encode` reads.
    longest: positions of a document; longer ones are left out.
    max_steps: S; answers of more pictures are left out, as the judge cannot see them whole.
    held_out: share of the answers that become test rows, or a little less: groups that hang together are not cut.
    held_out_generators: answer generators that only test rows may have; their answers to questions of the training side are
      left out.
    seed: of the split.
    batch: pictures that `encode` gets at once.

  Raises:
    UserError: the source cannot be read, or leaves one of the sides empty; a record's pictures or codes are not those of
      this tokenizer.
  """
  left_out: list[manifest.Rejected] = []

  def note(rejected: manifest.Rejected) -> None:
    left_out.append(rejected)
    reject(rejected)

  found = list(_rows(path, images, layout, encode, note, pixels=pixels, longest=longest, max_steps=max_steps, batch=batch))
  if not found:
    reason = f'{left_out[0].where}: {left_out[0].reason}' if left_out else 'it is empty'
    raise UserError(f'no scored answer in judge.source={path} could be used ({reason}); mend the rows, or name another file')
  generators = {row.conversation.generator for row in found}
  if unknown := sorted(set(held_out_generators) - generators):
    raise UserError(f'judge.held_out_generators names {unknown[0]!r}; the rows of {path} have '
                    f'{", ".join(sorted(generators))}')
  sides: tuple[list[_Row], list[_Row]] = ([], [])
  for row, test in zip(found, _split(found, held_out, seed), strict=True):
    generator = row.conversation.generator
    if generator in held_out_generators and not test:
      reject(manifest.Rejected(row.where, row.conversation.id, f'its generator {generator} is for test rows only '
                               '(judge.held_out_generators), its question or a picture belongs to training rows'))
    else:
      sides[int(test)].append(row)
  for side, name in zip(sides, ('training', 'test'), strict=True):
    if not side:
      raise UserError(f'judge.held_out={held_out} leaves no {name} rows of the {len(found)} scored answers in {path}: those '
                      'that share a question or a picture stay together; give rows of more questions, or another share')
  most = max(len(row.votes) for row in found)
  train, test = (_labelled(side, most, max_steps) for side in sides)
  return train, test


# Rows.


def _rows(path: str | os.PathLike[str], images: str | os.PathLike[str], layout: Layout, encode: Encode,
          reject: rows.Reject, *, pixels: int, longest: int, max_steps: int, batch: int) -> Iterator[_Row]:
  pending: collections.deque[judged.RatedRow] = collections.deque()

  def conversations() -> Iterator[Conversation]:
    for row in judged.rated(path, reject, pixels=pixels, folder=images or None):
      pending.append(row)
      yield row.conversation

  for conversation in codes.with_codes(conversations(), encode, batch):
    row = pending.popleft()
    pictures = len(images_of(conversation.turns[-1].answer))
    if pictures > max_steps:
      reject(manifest.Rejected(row.where, conversation.id, f'has {pictures} pictures in its answer; the judge sees at most '
                               f'judge.max_steps={max_steps}'))
      continue
    document = tokenise(conversation, layout)
    if len(document.text) > longest:
      reject(manifest.Rejected(row.where, conversation.id, f'has {len(document.text)} positions, more than {longest}'))
      continue
    yield _Row(_without_bytes(conversation), document, row.votes, row.where)


def _without_bytes(conversation: Conversation) -> Conversation:
  """From here on only the codes count, and the bytes of a whole data set need not be held."""
  of = lambda segments: tuple(Image(codes=s.codes) if isinstance(s, Image) else s for s in segments)
  turns = tuple(dataclasses.replace(t, question=of(t.question), answer=of(t.answer)) for t in conversation.turns)
  return dataclasses.replace(conversation, turns=turns)


def _labelled(side: Sequence[_Row], most: int, max_steps: int) -> Labelled:
  votes = np.full((len(side), most, len(DIMENSIONS)), np.nan, np.float32)
  for place, row in zip(votes, side, strict=True):
    place[:len(row.votes)] = row.votes
  whole = annotators.mean(votes)
  steps = np.full((len(side), max_steps, len(DIMENSIONS)), np.nan, np.float32)
  for place, row, label in zip(steps, side, whole, strict=True):
    place[0] = _only_step(row.conversation.turns[-1].answer, label)
  return Labelled(
      ids=[row.conversation.id for row in side], generators=[row.conversation.generator for row in side],
      documents=[row.document for row in side], whole=whole, steps=steps, asked_iq=whole[:, IQ].copy(), votes=votes,
      questions=[_questions(row.conversation)[-1] for row in side],
      pictures=[tuple(map(_picture, images_of(row.conversation.turns[-1].answer))) for row in side],
      expected=[np.full(np.shape(row.document.codes), -1, np.int32) for row in side],
      marks=[np.full((len(row.document.text), len(MARKS)), np.nan, np.float32) for row in side])


def _only_step(answer: Sequence[Segment], label: np.ndarray) -> np.ndarray:
  """Labels [4] of the only step, each where the view that it belongs to counts a step; NaN where there are more steps."""
  steps = steps_of(answer)
  if len(steps) != 1:
    return np.full_like(label, np.nan)
  text, image = (half is not None for half in steps[0])
  there = {TCC: text, ICC: image, IQ: image, ITS: text and image}
  return np.where([there[dimension] for dimension in range(len(DIMENSIONS))], label, np.nan)


# Sides.


def _split(found: Sequence[_Row], held_out: float, seed: int) -> np.ndarray:
  """bool[N], True for test rows: whole groups in an order drawn by hash, each that still has room in the share."""
  group = _groups([{*_questions(row.conversation), *_pictures(row.conversation)} for row in found])
  keys = [_hash(f'{seed}/{_questions(row.conversation)[-1]}') for row in found]
  members: dict[int, list[int]] = {}
  for row, number in enumerate(group.tolist()):
    members.setdefault(number, []).append(row)
  room = round(held_out * len(found))
  out = np.zeros(len(found), bool)
  for mine in sorted(members.values(), key=lambda mine: min(keys[row] for row in mine)):
    if len(mine) <= room:
      out[mine] = True
      room -= len(mine)
  return out


def _groups(shared: Sequence[set[str]]) -> np.ndarray:
  """Numbers [N] of the groups that hang together by what their members share."""
  numbers: dict[str, int] = {}
  edges = [(row, len(shared) + numbers.setdefault(key, len(numbers))) for row, keys in enumerate(shared) for key in keys]
  size = len(shared) + len(numbers)
  graph = scipy.sparse.coo_array((np.ones(len(edges), bool), tuple(np.array(edges).T)), shape=(size, size))
  return scipy.sparse.csgraph.connected_components(graph, directed=False)[1][:len(shared)]


def _questions(conversation: Conversation) -> list[str]:
  """A hash for each turn: of all questions up to there. "Go on" alone is no question that could leak."""
  said, out = [], []
  for turn in conversation.turns:
    said.append([' '.join(s.text.casefold().split()) if isinstance(s, Text) else _picture(s) for s in turn.question])
    out.append(_hash(repr(said)))
  return out


def _pictures(conversation: Conversation) -> list[str]:
  """Hashes of all pictures, those of questions and of earlier answers too."""
  return [_picture(s) for turn in conversation.turns for s in images_of((*turn.question, *turn.answer))]


def _picture(image: Image) -> str:
  """By its codes, which are what the judge sees: pictures that differ in bytes may be the same to it."""
  return _hash(np.ascontiguousarray(image.codes, '<i4').tobytes())


def _hash(content: str | bytes) -> str:
  return hashlib.blake2b(content.encode() if isinstance(content, str) else content, digest_size=8).hexdigest()
