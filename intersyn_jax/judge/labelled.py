"""Answers with known scores, from Storyworld: what the judge learns from and what it is measured on (DESIGN 4).

Gold conversations on the topics of split 1 are damaged (texts, pixels, codes) or answered anew by an early policy; every
picture goes through the image tokenizer and back, and the ground-truth scorer reads what came out. Topics of the test rows
never occur in training, and some answer generators occur in the test rows only.

The judge learns from the votes of annotators who are made up around the scores (`annotators.simulate`), and is measured
against the scores. Labels follow what a view can know. IQ sees each picture alone, so the label of the whole is the mean
over the pictures that are there; that some are missing is told by ICC and ITS. Step labels stand where the view counts the
step (see `views`).

Letters: N answers, T positions, S steps at most, D codes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
import types
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from intersyn_jax.data.storyworld import flaws, language, marks, score, story
from intersyn_jax.data.storyworld.render import Reading, read
from intersyn_jax.data.storyworld.score import AnswerScore, Asked, Item
from intersyn_jax.data.storyworld.topics import Topic
from intersyn_jax.data.storyworld.world import CELLS, SHAPES, SIDE, Scene
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import (
    CODES,
    STOP,
    TEXT,
    Layout,
    TokenBatch,
    answer_begins,
    answer_of,
    prompt,
    tokenise,
)
from intersyn_jax.interleave.types import (
    DIMENSIONS,
    Conversation,
    Image,
    Score,
    Segment,
    Text,
    Turn,
    images_of,
    steps_of,
    text_of,
)
from intersyn_jax.judge import annotators
from intersyn_jax.judge.views import ICC, IQ, ITS, TCC

TRAIN, TEST = 'train', 'test'

MARKS = {'told': (TCC,), 'claimed': (TCC, ITS), 'denied': (ITS,), 'shown': (ICC, ITS), 'filled': (ICC, ITS)}
"""What is marked in answers, and the views that can know it.

Texts, where the words of a fact end: `told`, the fact is not what the question asks for; `claimed`, the picture should show
it, and `denied`, it does not. Places of pictures: `shown`, another tile than the scorer's goal for that step has there (which
follows the answer's earlier pictures, and its own where the question leaves a place open); `filled`, an object.
"""

_TEST_ROWS = 1_000_000
"""Where the numbers of test rows begin: annotators err anew on each."""

UNSEEN = ('wrong_ground', 'blocks', 'shifted_codes')
"""Flaws that no training row has; test rows with them are counted apart."""

SEEN = tuple(kind for kind in flaws.COSTS if kind not in UNSEEN)

TEXTUAL = tuple(kind for kind in SEEN if 'tcc' in flaws.COSTS[kind])


@dataclasses.dataclass(frozen=True)
class Generator:
  """A way to come by answers.

  Attributes:
    train, test: its share of the training and of the test rows.
    flaws: how many flaws of texts and pictures, drawn from.
    kinds: of these flaws.
    codes: which code damage the answer's pictures get, '' for none; each picture is hit with probability a half.
    share: of the places that random codes hit, drawn from between these.
    foreign: the answer is that of another question.
    policy: answers come from this sampler instead.
    teaches: the dimensions that training rows have labels of.
  """

  train: float
  test: float
  flaws: tuple[int, ...] = (0,)
  kinds: tuple[str, ...] = SEEN
  codes: tuple[str, ...] = ()
  share: tuple[float, float] = (0.05, 0.4)
  foreign: bool = False
  policy: str = ''
  teaches: tuple[int, ...] = (TCC, ICC, IQ, ITS)

  @property
  def held_out(self) -> bool:
    return not self.train


GENERATORS: dict[str, Generator] = {
    'gold': Generator(0.06, 0.1),
    'flaws': Generator(0.18, 0.15, flaws=(1, 1, 1, 2)),
    'codes': Generator(0.09, 0.1, flaws=(0, 0, 1), codes=('random_codes', 'half_object_codes')),
    'sampled': Generator(0.33, 0.15, policy='sampled'),
    'texts': Generator(0.26, 0.0, flaws=(0, 1, 1, 2), kinds=TEXTUAL, teaches=(TCC,)),
    'foreign': Generator(0.08, 0.0, foreign=True, teaches=(TCC,)),
    'three_flaws': Generator(0.0, 0.15, flaws=(3,)),
    'codes_and_flaws': Generator(0.0, 0.1, flaws=(2,), codes=('random_codes',), share=(0.4, 0.6)),
    'later_policy': Generator(0.0, 0.15, policy='later_policy'),
    'unseen_flaws': Generator(0.0, 0.1, flaws=(1,), kinds=tuple(k for k in UNSEEN if k in flaws.COSTS),
                              codes=('', 'shifted_codes')),
}
"""Those with no training rows are the held-out generators. A generator whose policy is not at hand is left out.

Policies err in pictures far more than in texts: what an answer's texts can lack is taught by rows of its own, and by these alone,
so that they take nothing from the other dimensions."""

RETOLD = 'retold'
"""The generator of rows that teach ITS alone: one picture and a text that was told anew about it, with no question. What an early
policy says and what it draws go wrong together; a judge that has not seen the one without the other need not compare them. It
takes many of them to bring words and codes together, and they cost next to nothing."""

Sampler = Callable[[Sequence[Conversation]], Sequence[TokenBatch]]
"""Conversations in, their questions answered by a policy out: one document [T] each (padding allowed)."""


@dataclasses.dataclass
class Labelled:
  """N answers with labels.

  Attributes:
    ids, generators: of each row.
    documents: one token document [T] each.
    whole: float32[N,4], scores 0-5: in Storyworld the scorer's (NaN of what a row does not teach), of rated rows the mean of the
      votes.
    votes: float32[N,A,4], what each of A annotators says of the whole, NaN for none.
    steps: float32[N,S,4], labels where there is one, else NaN.
    marks: float32[T,M] of each document in the order of MARKS, what only training uses: 1 where it is so, 0 where not, NaN
      where nobody says.
    expected: int32[T,D] of each document: at the places of the answer's pictures the codes of the gold answer's picture of that
      step, else -1. What should have stood there; only training uses it.
    asked_iq: float32[N], IQ of the whole as the scorer gives it: pictures that were asked for and are missing count as 0.
    questions: hash of each row's last question, and `pictures`, hashes of all pictures of its answer that it can teach something
      of: for the leak check.
  """

  ids: list[str]
  generators: list[str]
  documents: list[TokenBatch]
  whole: np.ndarray
  votes: np.ndarray
  steps: np.ndarray
  marks: list[np.ndarray]
  expected: list[np.ndarray]
  asked_iq: np.ndarray
  questions: list[str]
  pictures: list[tuple[str, ...]]

  def __len__(self) -> int:
    return len(self.ids)

  def take(self, rows: Sequence[int]) -> Labelled:
    """These rows alone, in this order."""
    pick = lambda value: value[np.asarray(rows, int)] if isinstance(value, np.ndarray) else [value[i] for i in rows]
    return Labelled(**{field.name: pick(getattr(self, field.name)) for field in dataclasses.fields(self)})


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
    annotators, disagreement: how many made-up annotators vote on each answer, and the standard deviation of their errors
      (`annotators.simulate`).
    retold: how many texts are told anew about each picture of a training row (`RETOLD`).
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
  annotators: int = 3
  disagreement: float = 0.3
  retold: int = 4

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
    readings = _readings(self, drafts)
    if side == TRAIN:
      told = [row for d in drafts for row in _retold(self, d, readings)]
      readings = _readings(self, told, readings)
      drafts += told
    fitting = [d for d in drafts if len(d.document.text) <= self.longest]
    return _label(self, fitting, readings, side)


def taught(rows: Labelled, retold: float = 0.0) -> list[int]:
  """Which rows are answers to a question, and this share of the texts told anew."""
  kept, seen = [], 0
  for row, generator in enumerate(rows.generators):
    seen += generator == RETOLD
    if generator != RETOLD or int(seen * retold) > int((seen - 1) * retold):
      kept.append(row)
  return kept


def answers(rows: Labelled) -> Labelled:
  """The rows that are answers to a question."""
  return rows.take(taught(rows))


def unseen(test: Labelled, train: Labelled) -> Labelled:
  """The test rows none of whose pictures stands in a training row: few objects make equal scenes under different topics."""
  known = {picture for row in train.pictures for picture in row}
  return test.take([i for i, row in enumerate(test.pictures) if known.isdisjoint(row)])


def check_leaks(train: Labelled, test: Labelled) -> None:
  """Raises UserError when an id, a question or a picture stands on both sides."""
  flat = lambda pictures: [(i, picture) for i, row in enumerate(pictures) for picture in row]
  for what, ours, theirs in (('id', enumerate(train.ids), enumerate(test.ids)),
                             ('question', enumerate(train.questions), enumerate(test.questions)),
                             ('picture', flat(train.pictures), flat(test.pictures))):
    known = {value for _, value in ours}
    both = [i for i, value in theirs if value in known]
    if both:
      raise UserError(f'judge: a {what} of test record {test.ids[both[0]]} is also in the training rows ({len(set(both))} '
                      'such records in all); keep rows that share one on the same side')


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
  origin: _Draft | None = None  # of a text that was told anew, the row that its picture is from

  @property
  def teaches(self) -> tuple[int, ...]:
    return (ITS,) if self.generator == RETOLD else GENERATORS[self.generator].teaches


def _side(topic: str, held_out: float) -> str:
  place = int.from_bytes(hashlib.blake2b(f'judge/{topic}'.encode(), digest_size=4).digest(), 'big') / 2**32
  return TEST if place < held_out else TRAIN


def topics_of(side: str, held_out: float) -> list[Topic]:
  """The topics of split 1 that belong to one side."""
  topics = [t for t in story.topics_of('roles') if _side(str(t), held_out) == side]
  if not topics:
    raise UserError(f'judge.held_out is {held_out}: it leaves no topic for the {side} rows; use about 0.15')
  return topics


def _drafts(corpus: Corpus, side: str, count: int, names: Sequence[str], shares: np.ndarray) -> list[_Draft]:
  topics = topics_of(side, corpus.held_out)
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
    if generator.foreign:
      other = story.conversation(
          corpus.seed, number + 20_000_000, 'roles', pixels=corpus.pixels, jitter=corpus.jitter, steps=corpus.steps,
          objects=corpus.objects, turns=1, topic=rng.choice(topics))
      conversation = _with_answer(conversation, other.turns[-1].answer)
    flawed = rng.choice(generator.flaws)
    if flawed:
      conversation, _ = flaws.inject(conversation, rng, generator.kinds, flawed, jitter=corpus.jitter)
    drafts.append(_Draft(_spoken(conversation, f'judge-{side}-{corpus.seed}-{index}'), name, rng, gold))
  return drafts


def _spoken(conversation: Conversation, name: str) -> Conversation:
  """Names it; texts without any picture between them are one text, since that is all that tokens can say."""
  answer = conversation.turns[-1].answer
  if answer and not images_of(answer):
    answer = (Text(text_of(answer)),)
  return dataclasses.replace(_with_answer(conversation, answer), id=name)


def _with_answer(conversation: Conversation, answer: Sequence[Segment]) -> Conversation:
  """Another answer to its last question."""
  *turns, last = conversation.turns
  return dataclasses.replace(conversation, turns=(*turns, Turn(last.question, tuple(answer))))


def _map_images(conversation: Conversation, change: Callable[[Image], Image], *, answer_only: bool = False) -> Conversation:
  of = lambda segments: tuple(change(s) if isinstance(s, Image) else s for s in segments)
  turns = [Turn(of(t.question), of(t.answer)) for t in conversation.turns]
  if answer_only:
    return _with_answer(conversation, turns[-1].answer)
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
  draft.conversation = _with_answer(draft.conversation, answer)
  draft.document = document
  # An answer that keeps the format is written as `tokenise` writes it; in any other, steps may be counted differently.
  again = tokenise(draft.conversation, layout).text
  draft.in_steps = np.array_equal(again, np.asarray(document.text)[np.asarray(document.modality) > 0])


_BLANK = Scene(0, ())  # of a step without a picture, whose text claims as much

Readings = Mapping[int, Reading]
"""What is seen in a picture, by the `id` of its Image."""


def _readings(corpus: Corpus, drafts: Sequence[_Draft], known: Readings = types.MappingProxyType({})) -> Readings:
  """Decodes and reads all pictures, but for those that are known."""
  shown = {id(image): image for d in drafts for images in (d.gold, *(images_of(t.answer) for t in d.conversation.turns))
           for image in images if id(image) not in known}
  if not shown:
    return known
  pictures = corpus.decode(np.stack([image.codes for image in shown.values()]))
  return {**known, **dict(zip(shown, read(pictures, corpus.jitter), strict=True))}


def _retold(corpus: Corpus, draft: _Draft, readings: Readings) -> list[_Draft]:
  """Rows with a text told anew about each picture of a draft's answer. In every second one some places of the picture have random
  codes after that: every code must be known, also those that pictures seldom need."""
  rows = []
  for image in images_of(draft.conversation.turns[-1].answer) if ITS in draft.teaches else ():
    for number in range(corpus.retold):
      with contextlib.suppress(flaws.Unfit):
        text, shown = Text(flaws.retold(readings[id(image)].scene, draft.rng)), image
        if number % 2:
          share = draft.rng.uniform(*GENERATORS['codes'].share)
          shown = Image(codes=flaws.random_codes(image.codes, corpus.layout.block.codebook, draft.rng, share))
        conversation = Conversation(f'{draft.conversation.id}-{RETOLD}-{len(rows)}', '', (Turn((), (text, shown)),))
        rows.append(_Draft(conversation, RETOLD, draft.rng, (), tokenise(conversation, corpus.layout), origin=draft))
  return rows


def _label(corpus: Corpus, drafts: Sequence[_Draft], readings: Readings, side: str) -> Labelled:
  """Scores, and puts the labels where the views look for them."""
  kept, whole, steps, asked_iq, marked, expected = [], [], [], [], [], []
  for draft in drafts:
    turns = draft.conversation.turns
    earlier = [image for turn in turns[:-1] for image in images_of(turn.answer)]
    texts = [(text, None) for text, _ in steps_of(turns[-1].answer)]
    seen = [None if image is None else readings[id(image)] for _, image in steps_of(turns[-1].answer)]
    if draft.origin is not None:
      its = score.its_of(language.normalise(texts[0][0]), seen[0].scene)
      whole_, step = (Score(0, number, np.nan, np.nan, np.nan, its) for number in (-1, 0))
      scored = AnswerScore(whole_, (step,), (), ())
    else:
      scored = score.score_readings(Item([text_of(t.question) for t in turns], texts), seen,
                                    readings[id(earlier[-1])] if earlier else None)
    if scored is None:
      continue
    quality = np.array([readings[id(image)].quality for image in images_of(turns[-1].answer)])
    values = np.array(scored.whole.values(), np.float32)
    asked_iq.append(values[IQ])
    labels = np.full((corpus.max_steps, 4), np.nan, np.float32)
    if draft.origin is None:
      values[IQ] = quality.mean() if len(quality) else 0.0
      labels[:len(quality), IQ] = quality[:corpus.max_steps]
    mark = np.full((len(draft.document.text), len(MARKS)), np.nan, np.float32)
    should = np.full(np.shape(draft.document.codes), -1, np.int32)
    _mark_places(draft, readings, scored.goals, mark, should)
    if draft.in_steps:
      _step_labels(turns[-1].answer, scored.steps, labels)
      _mark_facts(draft, scored.asked, seen, corpus.layout, mark)
    if side == TRAIN:
      others = [d for d in range(len(DIMENSIONS)) if d not in draft.teaches]
      values[others] = labels[:, others] = np.nan
    for values_of, value in ((kept, draft), (whole, values), (steps, labels), (marked, mark), (expected, should)):
      values_of.append(value)
  votes = annotators.simulate(np.stack(whole), corpus.annotators, corpus.disagreement, corpus.seed,
                             first=_TEST_ROWS if side == TEST else 0)
  return Labelled(
      [d.conversation.id for d in kept], [d.generator for d in kept], [d.document for d in kept],
      np.stack(whole), votes, np.stack(steps), marked, expected, np.array(asked_iq, np.float32),
      [_hash(repr([text_of(t.question) for t in (d.origin or d).conversation.turns]).encode()) for d in kept],
      [tuple(_hash(image.codes.tobytes()) for image in images_of(d.conversation.turns[-1].answer))
       if d.teaches != (TCC,) else () for d in kept])


def _hash(value: bytes) -> str:
  return hashlib.blake2b(value, digest_size=8).hexdigest()


def _mark_places(draft: _Draft, readings: Readings, goals: Sequence[Scene | None], out: np.ndarray, expected: np.ndarray) -> None:
  """Marks the places of the last answer's pictures, and writes down what should have stood there: the gold picture's codes, where
  what it shows is what this answer, too, had to show."""
  steps = steps_of(draft.conversation.turns[-1].answer)
  pictures = [(step, image) for step, (_, image) in enumerate(steps) if image is not None]
  at = np.flatnonzero(np.asarray(draft.document.modality) == CODES)
  places = len(pictures[0][1].codes) if pictures else 1
  shown, filled = (list(MARKS).index(name) for name in ('shown', 'filled'))
  for (step, image), where in zip(pictures, at.reshape(-1, places)[-len(pictures):] if pictures else (), strict=True):
    tiles = _tiles(readings[id(image)].scene)
    out[where, filled] = _at_places(tiles >= 0, places)
    if step >= len(goals):
      continue
    goal = _tiles(goals[step])
    out[where, shown] = _at_places(tiles != goal, places)
    if step < len(draft.gold):
      alike = _at_places(_tiles(readings[id(draft.gold[step])].scene) == goal, places)
      expected[where] = np.where(alike[:, None], draft.gold[step].codes, -1)


def _tiles(view: Scene) -> np.ndarray:
  """What stands in each cell, int[cells]: the object, its size aside, or the ground; what has no place stands nowhere."""
  cells = np.full(CELLS, -1 - view.ground)
  for item in view.objects:
    if item.cell is not None:
      cells[item.cell] = item.colour * len(SHAPES) + item.shape
  return cells


def _at_places(cells: np.ndarray, places: int) -> np.ndarray:
  """Values of cells at the places of the picture's codes [P]."""
  side = int(round(places ** 0.5))
  at = np.arange(side) * SIDE // side
  return cells[(at[:, None] * SIDE + at[None, :]).reshape(-1)]


def _mark_facts(draft: _Draft, asked: Sequence[Asked], seen: Sequence[Reading | None], layout: Layout, out: np.ndarray) -> None:
  """Marks the facts of the texts where their last token stands; `seen` is what the picture of each step shows. Texts that are not
  written as `encode` writes them (a policy may spell a word in other pieces) stay without marks."""
  document, runs = draft.document, []
  begin = answer_begins(document, int(np.max(document.turn)))
  plain = (np.asarray(document.modality) == TEXT) & ~np.asarray(document.forced)
  plain &= ~np.isin(document.text, list(layout.marks)) & (np.asarray(document.text) != layout.special(STOP))
  for t in np.flatnonzero(plain[begin:]) + begin:
    if not runs or t != runs[-1][-1] + 1:
      runs.append([])
    runs[-1].append(int(t))
  steps = [(step, text) for step, (text, _) in enumerate(steps_of(draft.conversation.turns[-1].answer)) if text is not None]
  if len(runs) != len(steps):
    return
  told, claimed, denied = (list(MARKS).index(name) for name in ('told', 'claimed', 'denied'))
  for run, (step, text) in zip(runs, steps, strict=True):
    ends = layout.tokenizer.ends(text, document.text[run])
    if ends is None or language.normalise(text) != text:
      continue
    at = lambda end, run=run, ends=ends: run[int(np.searchsorted(ends, end))]
    out[run, claimed] = 0
    reading = seen[step]
    for end, holds in marks.statements(text, _BLANK if reading is None else reading.scene):
      out[at(end), claimed] = 1
      if reading is not None:
        out[at(end), denied] = not holds
    for end, wrong in marks.facts(text, asked[step]) if step < len(asked) else ():
      out[at(end), told] = wrong


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
