"""Answers with known scores, from Storyworld: what the judge learns from and what it is measured on (DESIGN 4).

Gold conversations on the topics of split 1 are damaged (texts, pixels, codes) or answered anew by an early policy; every
picture goes through the image tokenizer and back, and the ground-truth scorer reads what came out. Topics of the test rows
never occur in training, and some answer generators occur in the test rows only.

Labels follow what a view can know. IQ sees each picture alone, so the label of the whole is the mean over the pictures that
are there; that some are missing is told by ICC and ITS. Step labels stand where the view counts the step (see `views`).

Letters: N answers, T positions, S steps at most, P places, D codes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from intersyn_jax.data.storyworld import flaws, language, story
from intersyn_jax.data.storyworld.render import read, read_arrays
from intersyn_jax.data.storyworld.score import Item, score_answers
from intersyn_jax.data.storyworld.world import SHAPES, SIDE, SIZES
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import Layout, TokenBatch, answer_of, prompt, tokenise
from intersyn_jax.interleave.types import Conversation, Image, Segment, Text, Turn, images_of, steps_of, text_of
from intersyn_jax.judge.views import ICC, IQ, ITS, TCC

TRAIN, TEST = 'train', 'test'

UNSEEN = ('wrong_ground', 'blocks', 'shifted_codes')
"""Flaws that no training row has; test rows with them are counted apart."""

SEEN = tuple(kind for kind in flaws.COSTS if kind not in UNSEEN)


@dataclasses.dataclass(frozen=True)
class Generator:
  """A way to come by answers.

  Attributes:
    train, test: its share of the training and of the test rows.
    flaws: how many flaws of texts and pictures, drawn from.
    kinds: of these flaws.
    codes: which code damage the answer's pictures get, '' for none; each picture is hit with probability a half.
    share: of the places that random codes hit, drawn from between these.
    policy: answers come from this sampler instead.
  """

  train: float
  test: float
  flaws: tuple[int, ...] = (0,)
  kinds: tuple[str, ...] = SEEN
  codes: tuple[str, ...] = ()
  share: tuple[float, float] = (0.05, 0.4)
  policy: str = ''

  @property
  def held_out(self) -> bool:
    return not self.train


GENERATORS: dict[str, Generator] = {
    'gold': Generator(0.12, 0.1),
    'flaws': Generator(0.36, 0.15, flaws=(1, 1, 1, 2)),
    'codes': Generator(0.14, 0.1, flaws=(0, 0, 1), codes=('random_codes', 'half_object_codes')),
    'sampled': Generator(0.38, 0.15, policy='sampled'),
    'three_flaws': Generator(0.0, 0.15, flaws=(3,)),
    'codes_and_flaws': Generator(0.0, 0.1, flaws=(2,), codes=('random_codes',), share=(0.4, 0.6)),
    'later_policy': Generator(0.0, 0.15, policy='later_policy'),
    'unseen_flaws': Generator(0.0, 0.1, flaws=(1,), kinds=tuple(k for k in UNSEEN if k in flaws.COSTS),
                              codes=('', 'shifted_codes')),
}
"""Those with no training rows are the held-out generators. A generator whose policy is not at hand is left out."""

Sampler = Callable[[Sequence[Conversation]], Sequence[TokenBatch]]
"""Conversations in, their questions answered by a policy out: one document [T] each (padding allowed)."""


@dataclasses.dataclass
class Labelled:
  """N answers with labels.

  Attributes:
    ids, generators: of each row.
    documents: one token document [T] each.
    whole: float32[N,4], labels 0-5.
    steps: float32[N,S,4], labels where there is one, else NaN.
    places: float32[N,S,P,2], of the answer's pictures, what only training uses; NaN where unknown. First: 1 where the place
      shows another tile (size aside) than the gold answer's picture of that step, 0 where the same. Second: 1 where an
      object stands that the step's text names, else 0.
    asked_iq: float32[N], IQ of the whole as the scorer gives it: pictures that were asked for and are missing count as 0.
    questions: hash of each row's last question, and `pictures`, hashes of all pictures of its answer: for the leak check.
  """

  ids: list[str]
  generators: list[str]
  documents: list[TokenBatch]
  whole: np.ndarray
  steps: np.ndarray
  places: np.ndarray
  asked_iq: np.ndarray
  questions: list[str]
  pictures: list[tuple[str, ...]]

  def __len__(self) -> int:
    return len(self.ids)


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Where labelled answers come from: the world as `config.data` describes it, the tokenizer, and the policies.

  Attributes:
    layout: to write documents.
    encode, decode: pictures uint8[n,H,W,3] to codes int32[n,P,D] and back.
    samplers: by the name that `Generator.policy` uses.
    pixels, jitter, objects, steps, turns: see `storyworld.story.conversation`.
    seed: of everything.
    max_steps: S.
    held_out: share of the topics of split 1 that only test rows have.
    longest: positions of a document; longer ones are left out.
  """

  layout: Layout
  encode: Callable[[np.ndarray], np.ndarray]
  decode: Callable[[np.ndarray], np.ndarray]
  samplers: Mapping[str, Sampler]
  pixels: int = 32
  jitter: int = 0
  objects: int | Sequence[int] = 2
  steps: int | Sequence[int] = (1, 2, 2, 3)
  turns: int | Sequence[int] = 1
  seed: int = 0
  max_steps: int = 3
  held_out: float = 0.15
  longest: int = 320

  def build(self, side: str, count: int) -> Labelled:
    """About `count` rows of one side, TRAIN or TEST; deterministic, and the sides share no topic."""
    named = {name: g for name, g in GENERATORS.items()
             if getattr(g, side) and (not g.policy or g.policy in self.samplers)}
    shares = np.array([getattr(g, side) for g in named.values()])
    drafts = _drafts(self, side, count, list(named), shares / shares.sum())
    written = [d for d in drafts if not GENERATORS[d.generator].policy]
    _encode(self, drafts)
    for draft in written:
      _damage_codes(draft, self.layout.block.codebook)
      draft.document = tokenise(draft.conversation, self.layout)
    for policy in self.samplers:
      mine = [d for d in drafts if GENERATORS[d.generator].policy == policy]
      for draft, document in zip(mine, self.samplers[policy]([d.conversation for d in mine]) if mine else (), strict=True):
        _answered(draft, document, self.layout)
    return _label(self, [d for d in drafts if len(d.document.text) <= self.longest])


def check_leaks(train: Labelled, test: Labelled) -> None:
  """Raises UserError when an id, a question or a whole answer's pictures stand on both sides.

  A picture alone may: two scenes of one object are often equal. What must not recur is the set of an answer.
  """
  for what, ours, theirs in (('id', train.ids, test.ids), ('question', train.questions, test.questions),
                             ('answer', [f'{q}{p}' for q, p in zip(train.questions, train.pictures, strict=True)],
                              [f'{q}{p}' for q, p in zip(test.questions, test.pictures, strict=True)])):
    both = set(ours) & set(theirs)
    if both:
      record = test.ids[next(i for i, value in enumerate(theirs) if value in both)]
      raise UserError(f'judge: the {what} of test record {record} is also in the training rows ({len(both)} in all); '
                      'build the two sides from different topics')


# Building.


@dataclasses.dataclass
class _Draft:
  """One row while it is made."""

  conversation: Conversation
  generator: str
  rng: random.Random
  gold: tuple[Image, ...] = ()  # of each step of the gold answer
  document: TokenBatch | None = None
  in_steps: bool = True  # whether step labels can be put to the steps that the views count


def _side(topic: str, held_out: float) -> str:
  place = int.from_bytes(hashlib.blake2b(f'judge/{topic}'.encode(), digest_size=4).digest(), 'big') / 2**32
  return TEST if place < held_out else TRAIN


def _drafts(corpus: Corpus, side: str, count: int, names: Sequence[str], shares: np.ndarray) -> list[_Draft]:
  topics = [t for t in story.topics_of('roles') if _side(str(t), corpus.held_out) == side]
  if not topics:
    raise UserError(f'judge.held_out is {corpus.held_out}: it leaves no topic for the {side} rows; use about 0.15')
  drafts = []
  for index in range(count):
    rng = story.keyed(corpus.seed, index, 'judge', side)
    name = names[int(np.searchsorted(np.cumsum(shares), rng.random(), side='right').clip(max=len(names) - 1))]
    # A purpose of its own: the stories of the roles, which the writer learns from, have lower numbers.
    number = 50_000_000 + index + (10_000_000 if side == TEST else 0)
    generator = GENERATORS[name]
    conversation = story.conversation(
        corpus.seed, number, 'roles', pixels=corpus.pixels, jitter=corpus.jitter, steps=corpus.steps, objects=corpus.objects,
        turns=1 if generator.policy else corpus.turns, topic=rng.choice(topics))
    gold = tuple(images_of(conversation.turns[-1].answer))
    flawed = rng.choice(generator.flaws)
    if flawed:
      conversation, _ = flaws.inject(conversation, rng, generator.kinds, flawed, jitter=corpus.jitter)
    drafts.append(_Draft(_spoken(conversation, f'judge-{side}-{corpus.seed}-{index}'), name, rng, gold))
  return drafts


def _spoken(conversation: Conversation, name: str) -> Conversation:
  """Names it; texts without any picture between them are one text, since that is all that tokens can say."""
  last = conversation.turns[-1]
  answer = last.answer
  if answer and not images_of(answer):
    answer = (Text(text_of(answer)),)
  return dataclasses.replace(conversation, id=name, turns=(*conversation.turns[:-1], Turn(last.question, answer)))


def _map_images(conversation: Conversation, change: Callable[[Image], Image], *, answer_only: bool = False) -> Conversation:
  of = lambda segments: tuple(change(s) if isinstance(s, Image) else s for s in segments)
  turns = [Turn(of(t.question), of(t.answer)) for t in conversation.turns]
  if answer_only:
    turns = [*conversation.turns[:-1], Turn(conversation.turns[-1].question, turns[-1].answer)]
  return dataclasses.replace(conversation, turns=tuple(turns))


def _encode(corpus: Corpus, drafts: Sequence[_Draft]) -> None:
  """Gives every picture its codes, and drops the bytes: from here on only what the codes say counts."""
  found: dict[bytes, int] = {}
  for draft in drafts:
    for image in (*draft.gold, *(i for t in draft.conversation.turns for i in images_of((*t.question, *t.answer)))):
      found.setdefault(image.data, len(found))
  if not found:
    return
  codes = corpus.encode(np.stack([flaws.decode(data) for data in found]))
  for draft in drafts:
    draft.conversation = _map_images(draft.conversation, lambda image: Image(codes=codes[found[image.data]]))
    draft.gold = tuple(Image(codes=codes[found[image.data]]) for image in draft.gold)


def _damage_codes(draft: _Draft, codebook: int) -> None:
  generator, rng = GENERATORS[draft.generator], draft.rng
  if not generator.codes:
    return

  def damage(image: Image) -> Image:
    kind = rng.choice(generator.codes)
    if not kind or rng.random() < 0.5:
      return image
    options = {'share': rng.uniform(*generator.share)} if kind == 'random_codes' else {}
    return Image(codes=flaws.CODE_FLAWS[kind](image.codes, codebook, rng, **options))

  draft.conversation = _map_images(draft.conversation, damage, answer_only=True)


def _answered(draft: _Draft, document: TokenBatch, layout: Layout) -> None:
  """Takes a policy's answer: its tokens as they are, its segments for the scorer."""
  prompt_length = len(prompt(draft.conversation, layout).text)
  begin = int(np.argmax(document.modality > 0)) + prompt_length
  fields = (document.text, document.codes, document.modality)
  answer = answer_of(*(np.asarray(a)[begin:] for a in fields), layout, np.asarray(document.forced)[begin:])
  turns = draft.conversation.turns
  draft.conversation = dataclasses.replace(draft.conversation, turns=(*turns[:-1], Turn(turns[-1].question, answer)))
  draft.document = document
  # An answer that keeps the format is written as `tokenise` writes it; in any other, steps may be counted differently.
  again = tokenise(draft.conversation, layout).text
  draft.in_steps = np.array_equal(again, np.asarray(document.text)[np.asarray(document.modality) > 0])


def _label(corpus: Corpus, drafts: Sequence[_Draft]) -> Labelled:
  """Decodes all pictures, scores, and puts the labels where the views look for them."""
  shown = [image for d in drafts for images in (d.gold, *(images_of(t.answer) for t in d.conversation.turns))
           for image in images]
  pictures = corpus.decode(np.stack([image.codes for image in shown])) if shown else np.zeros((0, 1, 1, 3), np.uint8)
  of_image = {id(image): i for i, image in enumerate(shown)}
  items, in_answer = [], []
  for draft in drafts:
    turns = draft.conversation.turns
    earlier = [image for turn in turns[:-1] for image in images_of(turn.answer)]
    steps = [(text, None if image is None else pictures[of_image[id(image)]]) for text, image in steps_of(turns[-1].answer)]
    items.append(Item([text_of(t.question) for t in turns], steps, pictures[of_image[id(earlier[-1])]] if earlier else None))
    in_answer.append([of_image[id(image)] for image in images_of(turns[-1].answer)])
  scores = score_answers(items, jitter=corpus.jitter)
  quality = np.array([reading.quality for reading in read(pictures, corpus.jitter)]) if shown else np.zeros(0)
  tiles = _tiles(pictures, corpus.jitter, corpus.layout.block.places)
  hashes = [hashlib.blake2b(image.codes.tobytes(), digest_size=8).hexdigest() for image in shown]
  kept = [i for i, score in enumerate(scores) if score is not None]
  whole = np.array([scores[i].whole.values() for i in kept], np.float32).reshape(-1, 4)
  steps = np.full((len(kept), corpus.max_steps, 4), np.nan, np.float32)
  places = np.full((len(kept), corpus.max_steps, corpus.layout.block.places, 2), np.nan, np.float32)
  asked_iq = whole[:, IQ].copy()
  for row, i in enumerate(kept):
    mine = quality[in_answer[i]]
    whole[row, IQ] = mine.mean() if len(mine) else 0.0
    steps[row, :len(mine[:corpus.max_steps]), IQ] = mine[:corpus.max_steps]
    gold = [of_image[id(image)] for image in drafts[i].gold]
    shown_with = [(j, text) for j, (text, image) in enumerate(steps_of(drafts[i].conversation.turns[-1].answer))
                  if image is not None]
    for slot, ((j, text), picture) in enumerate(zip(shown_with[:corpus.max_steps], in_answer[i], strict=False)):
      if j < len(gold):
        places[row, slot, :, 0] = tiles[picture] != tiles[gold[j]]
      if text is not None:
        places[row, slot, :, 1] = np.isin(tiles[picture], _named(text))
    if drafts[i].in_steps:
      _step_labels(drafts[i].conversation.turns[-1].answer, scores[i].steps, steps[row])
  return Labelled(
      [drafts[i].conversation.id for i in kept], [drafts[i].generator for i in kept], [drafts[i].document for i in kept],
      whole, steps, places, asked_iq,
      [hashlib.blake2b(repr(items[i].questions).encode(), digest_size=8).hexdigest() for i in kept],
      [tuple(hashes[j] for j in in_answer[i]) for i in kept])


def _tiles(pictures: np.ndarray, jitter: int, places: int) -> np.ndarray:
  """What stands at each place, int[n,P]: 1 + colour * shapes + shape of the cell's object, or 1000 * (1 + ground) where none."""
  if not len(pictures):
    return np.zeros((0, places), int)
  ground, tile, _ = read_arrays(pictures, jitter)
  kind = np.where(tile > 0, 1 + (tile - 1) // len(SIZES), 1000 * (1 + ground[:, None]))
  side = int(round(places ** 0.5))
  at = np.arange(side) * SIDE // side
  return kind[:, (at[:, None] * SIDE + at[None, :]).reshape(-1)]


def _named(text: str) -> list[int]:
  """The objects that a text names, numbered as in `_tiles`; what is repainted or reshaped has its new name."""
  names = {item.name for item in language.items_in(language.normalise(text))}
  told = language.parse_telling(text)
  if told is not None and told.kind == 'recolour':
    names.add((told.facts['new'], told.facts['shape']))
  if told is not None and told.kind == 'reshape':
    names.add((told.facts['colour'], told.facts['new']))
  return [1 + colour * len(SHAPES) + shape for colour, shape in names]


def _step_labels(answer: Sequence[Segment], scores: Sequence, out: np.ndarray) -> None:
  """Writes TCC, ICC and ITS of the asked steps: TCC by number of the text, ICC by number of the picture, ITS by step."""
  texts = images = 0
  for step, (text, image) in enumerate(steps_of(answer)):
    if step < len(scores):
      for dimension, here, slot, value in (
          (TCC, text is not None, texts, scores[step].tcc), (ICC, image is not None, images, scores[step].icc),
          (ITS, text is not None and image is not None, step, scores[step].its)):
        if here and slot < len(out):
          out[slot, dimension] = value
    texts, images = texts + (text is not None), images + (image is not None)
