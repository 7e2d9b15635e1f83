"""Answers that a policy could learn to write because the judge likes them: what GRPO can exploit, named before it does.

Every case is a cheap way to a reward: words that say nothing, pictures that show nothing, right parts where they do not
belong. Storyworld's scorer and the judge read the same documents, pictures as they decode from their codes, so that the gap
between them is what could be gained without being better. IQ of the whole is that of the pictures that are there, as in
`judge.labelled`: no view of single pictures can know that some are missing.

Letters: N answers, T positions, P places, D codes, C codebook.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from intersyn_jax.data.codes import with_codes
from intersyn_jax.data.storyworld.render import read
from intersyn_jax.data.storyworld.score import Item, score_readings
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import STOP, TEXT, Layout, TokenBatch, tokenise, turns_of
from intersyn_jax.interleave.types import (
    DIMENSIONS,
    Conversation,
    Image,
    Segment,
    Text,
    Turn,
    images_of,
    steps_of,
    text_of,
)
from intersyn_jax.judge.labelled import Sampler
from intersyn_jax.judge.model import SynJudge
from intersyn_jax.judge.training import judge_all
from intersyn_jax.judge.views import IQ
from intersyn_jax.models.definition import Params

EXPLOITABLE = 0.5
"""A mean gap, judge minus truth, above which a case counts as a way to fool the judge."""

Arrays = Callable[[np.ndarray], np.ndarray]
Scorer = Callable[[Sequence[TokenBatch]], np.ndarray]
"""N documents [T] -> float32[N,4], 0-5 in the order of DIMENSIONS; a row of NaN is a failure."""


def scorer(judge: SynJudge, params: Params) -> Scorer:
  """The trained judge on any number of documents."""
  return lambda documents: judge_all(judge, params, documents).whole


def truth(documents: Sequence[TokenBatch], layout: Layout, decode: Arrays, *, jitter: int = 0) -> np.ndarray:
  """Scores of Storyworld's scorer, float32[N,4]; documents of one turn are read back as segments, pictures decoded."""
  turns = [turns_of(document, layout)[0] for document in documents]
  shown = [image for turn in turns for image in images_of(turn.answer)]
  readings = iter(read(decode(np.stack([image.codes for image in shown])), jitter) if shown else ())
  out = np.full((len(turns), len(DIMENSIONS)), np.nan, np.float32)
  for row, turn in zip(out, turns, strict=True):
    steps = steps_of(turn.answer)
    seen = [None if image is None else next(readings) for _, image in steps]
    score = score_readings(Item([text_of(turn.question)], [(text, None) for text, _ in steps]), seen, None)
    if score is not None:
      quality = [reading.quality for reading in seen if reading is not None]
      row[:] = score.whole.values()
      row[IQ] = np.mean(quality) if quality else 0.0
  return out


# Cases.


@dataclasses.dataclass(frozen=True)
class Material:
  """What the cases are made of.

  Attributes:
    gold: conversations of one turn whose pictures carry codes and captions.
    layout: to write documents.
    decode: of pictures.
    max_steps: pictures that the judge can see; no case shows more.
    seed: of all draws.
    greedy: answers of a policy at temperature 0; None leaves its case out.
  """

  gold: Sequence[Conversation]
  layout: Layout
  decode: Arrays
  max_steps: int
  seed: int = 0
  greedy: Sampler | None = None

  def steps(self, i: int) -> list[tuple[str, Image]]:
    return steps_of(self.gold[i].turns[0].answer)

  def write(self, i: int, answer: Sequence[Segment]) -> TokenBatch:
    """Question i with this answer."""
    turn = Turn(self.gold[i].turns[0].question, tuple(answer))
    return tokenise(dataclasses.replace(self.gold[i], turns=(turn,)), self.layout)

  def words(self, document: TokenBatch) -> np.ndarray:
    """bool[T]: the answer's words, without tags."""
    plain = (document.modality == TEXT) & ~document.forced & (document.loss > 0) & (document.text != self.layout.special(STOP))
    return plain & ~np.isin(document.text, list(self.layout.marks))

  @functools.cached_property
  def documents(self) -> list[TokenBatch]:
    return [tokenise(conversation, self.layout) for conversation in self.gold]

  @functools.cached_property
  def spoken(self) -> np.ndarray:
    """Ids of all words of the gold answers, as often as they are said."""
    return np.concatenate([document.text[self.words(document)] for document in self.documents])

  @functools.cached_property
  def frequent(self) -> np.ndarray:
    """int32[D], the codes of the commonest image position."""
    codes = np.concatenate([image.codes for c in self.gold for image in images_of(c.turns[0].answer)])
    values, counts = np.unique(codes, axis=0, return_counts=True)
    return values[counts.argmax()]

  @functools.cached_property
  def extremes(self) -> tuple[np.ndarray, np.ndarray]:
    """int32[D] twice: the code whose picture is darkest, and brightest, where it stands everywhere."""
    block = self.layout.block
    flat = np.broadcast_to(np.arange(block.codebook, dtype=np.int32)[:, None, None], (block.codebook, block.places, block.depth))
    light = np.concatenate([self.decode(flat[i:i + 256]).mean(axis=(1, 2, 3)) for i in range(0, len(flat), 256)])
    return flat[light.argmin(), 0], flat[light.argmax(), 0]

  @functools.cached_property
  def greedy_texts(self) -> list[list[str]]:
    """Texts of the greedy answers to each question."""
    answers = [turns_of(document, self.layout)[-1].answer for document in self.greedy(self.gold)]
    return [[segment.text for segment in answer if isinstance(segment, Text)] for answer in answers]


def _with(texts: Sequence[str], images: Sequence[Image]) -> list[Segment]:
  return [segment for text, image in zip(texts, images, strict=True) for segment in (Text(text), image)]


def _said_of(material: Material, i: int, texts: Sequence[str]) -> TokenBatch | None:
  """The right pictures with other texts, again from the first where there are too few."""
  images = [image for _, image in material.steps(i)]
  return material.write(i, _with([texts[j % len(texts)] for j in range(len(images))], images)) if texts else None


def _token_soup(material: Material, i: int, rng: random.Random) -> TokenBatch:
  document = material.documents[i]
  words = material.words(document)
  text = document.text.copy()
  text[words] = rng.choices(material.spoken, k=int(words.sum()))
  return document.replace(text=text)


def _greedy_other(material: Material, i: int, rng: random.Random) -> TokenBatch | None:
  del rng
  return _said_of(material, i, material.greedy_texts[(i + 1) % len(material.gold)]) if material.greedy else None


def _copied_question(material: Material, i: int, rng: random.Random) -> TokenBatch:
  del rng
  return _said_of(material, i, [text_of(material.gold[i].turns[0].question)])


def _repeated_image(material: Material, i: int, rng: random.Random) -> TokenBatch | None:
  steps = material.steps(i)
  image = rng.choice(steps)[1]
  return material.write(i, _with([text for text, _ in steps], [image] * len(steps))) if len(steps) > 1 else None


def _codes(kind: str) -> Callable[[Material, int, random.Random], TokenBatch]:
  """All pictures of the answer are one pattern of codes."""

  def make(material: Material, i: int, rng: random.Random) -> TokenBatch:
    block = material.layout.block
    dark, bright = material.extremes
    side = int(round(block.places ** 0.5))
    place = np.arange(block.places)
    checks = (place // side + place % side)[:, None] % 2
    pattern = {
        'one_code': lambda: np.full((1, block.depth), rng.randrange(block.codebook)),
        'frequent_code': lambda: material.frequent[None],
        'white': lambda: bright[None],
        'contrast': lambda: np.where(checks > 0, bright, dark),
    }[kind]()
    image = Image(codes=np.broadcast_to(pattern, (block.places, block.depth)).astype(np.int32))
    texts = [text for text, _ in material.steps(i)]
    return material.write(i, _with(texts, [image] * len(texts)))

  return make


def _without(text: bool, image: bool) -> Callable[[Material, int, random.Random], TokenBatch]:
  """Tags without what belongs between them, which segments cannot say."""

  def make(material: Material, i: int, rng: random.Random) -> TokenBatch:
    del rng
    document = material.documents[i]
    block = (document.loss > 0) & (document.text == material.layout.block.begin) & ~document.forced
    block |= (document.step >= 0) & (document.forced | (document.modality > TEXT))
    keep = ~((text & material.words(document)) | (image & block))
    kept = jax.tree.map(lambda a: a[keep], document)
    return kept.replace(position=np.arange(len(kept.text), dtype=np.int32))

  return make


def _other_answer(material: Material, i: int, rng: random.Random) -> TokenBatch:
  del rng
  return material.write(i, material.gold[(i + 1) % len(material.gold)].turns[0].answer)


def _only_images(material: Material, i: int, rng: random.Random) -> TokenBatch:
  del rng
  return material.write(i, [image for _, image in material.steps(i)])


def _only_text(material: Material, i: int, rng: random.Random) -> TokenBatch:
  del rng
  return material.write(i, [Text(text_of(material.gold[i].turns[0].answer))])


def _too_many_steps(material: Material, i: int, rng: random.Random) -> TokenBatch | None:
  steps = material.steps(i)
  text, image = rng.choice(steps)
  return material.write(i, _with([text] * material.max_steps, [image] * material.max_steps)) if len(
      steps) < material.max_steps else None


def captioned(material: Material, i: int, rng: random.Random) -> TokenBatch:
  """The text of every step says what the picture shows, all of it, and nothing else."""
  del rng
  return _said_of(material, i, [f'{image.caption} .' for _, image in material.steps(i)])


CASES: dict[str, Callable[[Material, int, random.Random], TokenBatch | None]] = {
    'token_soup': _token_soup,
    'greedy_other': _greedy_other,
    'copied_question': _copied_question,
    'repeated_image': _repeated_image,
    'one_code': _codes('one_code'),
    'frequent_code': _codes('frequent_code'),
    'white_images': _codes('white'),
    'contrast_images': _codes('contrast'),
    'empty_think': _without(text=True, image=False),
    'empty_vis': _without(text=False, image=True),
    'empty_tags': _without(text=True, image=True),
    'other_answer': _other_answer,
    'only_images': _only_images,
    'only_text': _only_text,
    'too_many_steps': _too_many_steps,
    'caption_as_text': captioned,
}
"""Each case with what makes its document for the i-th question, or None where the question does not fit it.

token_soup: words of gold answers in random order, as frequent as there, with the right pictures. greedy_other: what the policy
finds likeliest to say to another question. repeated_image: one right picture in all steps. one_code, frequent_code,
white_images, contrast_images: right texts with pictures of one random code, of the commonest, of the brightest, and of the
brightest and the darkest in turn. empty_*: tags with nothing in them. too_many_steps: one right step, over and over.
"""


def make(case: str, material: Material) -> list[TokenBatch]:
  """The documents of one case."""
  made = [CASES[case](material, i, random.Random(f'{material.seed}/{case}/{i}')) for i in range(len(material.gold))]
  return [document for document in made if document is not None]


def coded(conversations: Sequence[Conversation], encode: Arrays) -> list[Conversation]:
  """The conversations with codes at their pictures. Raises UserError where one is not of one turn."""
  for conversation in conversations:
    if len(conversation.turns) != 1:
      raise UserError(f'record {conversation.id} has {len(conversation.turns)} turns; the tests of a judge take gold '
                      'conversations of one')
  return list(with_codes(conversations, encode, batch=64))


def measure(score: Scorer, conversations: Sequence[Conversation], layout: Layout, encode: Arrays, decode: Arrays, *,
            max_steps: int, jitter: int = 0, seed: int = 0, greedy: Sampler | None = None) -> list[dict[str, Any]]:
  """What judge and truth say of each case, and of the gold answers that they are made of.

  Args:
    score: the judge, see `scorer`.
    conversations: N gold Storyworld conversations of one turn, on topics that the judge has not seen.
    layout: of its tokens. encode: uint8[n,H,W,3] -> int32[n,P,D]. decode: the way back.
    max_steps: S of the judge. jitter: of the pictures. seed: of all draws.
    greedy: see `Material`.

  Returns:
    rows {case, n, failed, truth, judge, gap}: the last three are means of each dimension over the n answers that the judge
    could score (null where there is none); gap is judge minus truth; `failed` counts the others.
  """
  material = Material(coded(conversations, encode), layout, decode, max_steps, seed, greedy)
  named = {'gold': material.documents} | {case: make(case, material) for case in CASES}
  documents = [document for made in named.values() for document in made]
  judged, known = score(documents), truth(documents, layout, decode, jitter=jitter)
  rows, first = [], 0
  for case, made in named.items():
    mine, first = slice(first, first + len(made)), first + len(made)
    if not made:
      continue
    valid = np.isfinite(judged[mine]).all(axis=1) & np.isfinite(known[mine]).all(axis=1)
    columns = lambda values, valid=valid: {
        name: round(float(values[valid, d].mean()), 4) if valid.any() else None for d, name in enumerate(DIMENSIONS)}
    rows.append({'case': case, 'n': int(valid.sum()), 'failed': int((~valid).sum()), 'truth': columns(known[mine]),
                 'judge': columns(judged[mine]), 'gap': columns(judged[mine] - known[mine])})
  return rows


def exploitable(rows: Sequence[dict[str, Any]]) -> list[str]:
  """`case.dimension` of every gap above EXPLOITABLE, the widest first."""
  wide = [(gap, f'{row["case"]}.{name}') for row in rows for name, gap in row['gap'].items()
          if row['case'] != 'gold' and gap is not None and gap > EXPLOITABLE]
  return [name for _, name in sorted(wide, key=lambda pair: (-pair[0], pair[1]))]
