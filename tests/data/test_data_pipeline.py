"""The pipeline: every document once an epoch, no document cut, exact resume, slices that add up, mixture and null prompts."""

import collections
import dataclasses
import itertools
import json

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from intersyn_jax.data import pipeline, plan
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import CODES, TEXT, TokenBatch, null_prompt, tokenise
from intersyn_jax.interleave.types import Conversation, Turn
from tests.data import samples

LENGTH = 160
SOURCES = {'interleaved': [samples.interleaved(i, 3) for i in range(40)],
           'understanding': [samples.understanding(i) for i in range(30)],
           'text_to_image': [samples.text_to_image(i) for i in range(50)]}
NAMES = [field.name for field in dataclasses.fields(TokenBatch)]


@pytest.fixture(scope='module')
def documents():
  return pipeline.Documents(SOURCES, samples.layout(), length=LENGTH, null=True)


def make(documents, **options):
  return pipeline.Pipeline(documents, **({'rows': 4, 'length': LENGTH, 'seed': 7} | options))


def share(index, count, rows=4):
  """The rows of a batch that one of several processes fills."""
  return range(rows * index // count, rows * (index + 1) // count)


def equal(one, other):
  for name in NAMES:
    np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert getattr(one, name).dtype == getattr(other, name).dtype


def contents(batch):
  """The documents of a batch as (text, codes, modality, loss) bytes, checking how they lie in their rows."""
  for row in range(len(batch.text)):
    document = batch.document[row]
    used = int((document > 0).sum())
    assert (document[:used] > 0).all() and (np.diff(document[:used]) >= 0).all(), 'padding only at the end'
    for name in NAMES:
      fill = -1 if name in ('turn', 'step') else 0
      assert (getattr(batch, name)[row, used:] == fill).all()
    for number in range(1, document.max(initial=0) + 1):
      places = np.flatnonzero(document == number)
      np.testing.assert_array_equal(batch.position[row, places], np.arange(len(places)))
      yield tuple(getattr(batch, name)[row, places].tobytes() for name in NAMES if name not in ('document', 'position'))


def expected(conversation, drop=False):
  document = tokenise(conversation, samples.layout(), drop_question=drop)
  return tuple(getattr(document, name).tobytes() for name in NAMES if name not in ('document', 'position'))


@pytest.mark.parametrize('memory', [1 << 20, 1000, 0])
def test_an_epoch_holds_every_document_whole_and_once(memory):
  documents = pipeline.Documents(SOURCES, samples.layout(), length=LENGTH, memory=memory)
  run = make(documents, epochs=1)
  batches = list(run)
  assert len(batches) == len(run)
  assert {batch.text.shape for batch in batches} == {(4, LENGTH)}
  found = [content for batch in batches for content in contents(batch)]
  assert sorted(found) == sorted(expected(c) for source in SOURCES.values() for c in source)
  in_order = [c for b in make(documents, epochs=1, shuffle=False) for c in contents(b)]
  assert in_order != found and sorted(in_order) == sorted(found)


def test_a_file_gives_the_same_batches_as_memory(documents, monkeypatch):
  monkeypatch.setattr('intersyn_jax.data.documents._Flat._PART', 5000)  # bytes: some of it waits when the file is there
  again = pipeline.Documents(SOURCES, samples.layout(), length=LENGTH, null=True, memory=20_000)
  assert type(again._flat.base) is not type(documents._flat.base)
  for one, other in itertools.islice(zip(make(documents, null_prompt_rate=.5), make(again, null_prompt_rate=.5)), 8):
    equal(one, other)


def test_no_room_for_the_file_is_told(monkeypatch, tmp_path):
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'missing'))
  with pytest.raises(UserError) as error:
    pipeline.Documents(SOURCES, samples.layout(), length=LENGTH, memory=0)
  assert 'no room for the tokens' in samples.message(error) and 'TMPDIR' in samples.message(error)


def test_fields_are_those_of_the_batch(documents):
  batch = next(iter(make(documents)))
  assert isinstance(batch, TokenBatch)
  kinds = {'text': 'int32', 'codes': 'int32', 'modality': 'int8', 'loss': 'float32', 'forced': 'bool', 'document': 'int32',
           'position': 'int32', 'turn': 'int32', 'step': 'int32'}
  assert {name: str(getattr(batch, name).dtype) for name in NAMES} == kinds
  assert batch.codes.shape == (4, LENGTH, 1)
  assert ((batch.modality == 0) == (batch.document == 0)).all()
  assert {TEXT, CODES} <= set(np.unique(batch.modality))


@pytest.mark.parametrize('steps', [0, 1, 5, 90])
def test_resume_is_exact(documents, steps):
  options = {'null_prompt_rate': 0.3, 'weights': {'interleaved': 2, 'text_to_image': 1}}
  first = iter(make(documents, **options))
  for _ in range(steps):
    next(first)
  state = first.get_state()
  second = iter(make(documents, **options))
  for _ in range(3):
    next(second)  # where it stood before does not matter
  second.set_state(state)
  for _ in range(5):
    equal(next(first), next(second))
  assert first.get_state() == second.get_state()


def test_resume_of_a_finite_run_reaches_the_same_end(documents):
  run = list(make(documents, epochs=2))
  for steps in (0, 3, len(run) - 1, len(run)):
    first = iter(make(documents, epochs=2))
    for _ in range(steps):
      next(first)
    second = iter(make(documents, epochs=2))
    second.set_state(first.get_state())
    rest = list(second)
    assert len(rest) == len(run) - steps
    for one, other in zip(rest, run[steps:], strict=True):
      equal(one, other)


def test_state_goes_through_a_grain_checkpoint(documents, tmp_path):
  first = iter(make(documents))
  for _ in range(5):
    next(first)
  with ocp.CheckpointManager(tmp_path) as manager:
    manager.save(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(first)))
    manager.wait_until_finished()
    second = iter(make(documents))
    manager.restore(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(second)))
  equal(next(first), next(second))


@pytest.mark.parametrize('change', [{'seed': 8}, {'rows': 2}, {'weights': {'interleaved': 1}}, {'null_prompt_rate': .1}])
def test_a_state_of_another_run_is_refused(documents, change):
  with pytest.raises(UserError, match='other data, batch size, weights or seed'):
    iter(make(documents, **change)).set_state(iter(make(documents)).get_state())


@pytest.mark.parametrize('count', [2, 4])
def test_slices_of_processes_make_the_global_batch(documents, count):
  parts = [make(documents, mine=share(i, count), null_prompt_rate=.2) for i in range(count)]
  for whole, *slices in itertools.islice(zip(make(documents, null_prompt_rate=.2), *parts), 40):
    equal(whole, TokenBatch(**{name: np.concatenate([getattr(s, name) for s in slices]) for name in NAMES}))


@pytest.mark.parametrize(('before', 'after'), [(1, 2), (1, 4), (2, 1), (2, 4), (4, 1), (4, 2)])
def test_a_run_goes_on_with_another_number_of_processes(documents, before, after):
  """Cut anywhere: the batches and counts are those of a run that was never cut."""
  options = {'null_prompt_rate': .2, 'weights': {'interleaved': 2, 'text_to_image': 1}}
  whole = iter(make(documents, **options))
  wanted = [(next(whole), whole.counts()) for _ in range(64)]
  for cut in (0, 1, 31, 60):
    first = [iter(make(documents, mine=share(i, before), **options)) for i in range(before)]
    for iterator in first:
      for _ in range(cut):
        next(iterator)
    states = [iterator.get_state() for iterator in first]
    assert all(state == states[0] for state in states)
    state = json.loads(json.dumps(states[-1]))
    second = [iter(make(documents, mine=share(i, after), **options)) for i in range(after)]
    for iterator in second:
      iterator.set_state(state)
    for batch, counts in wanted[cut:cut + 4]:
      slices = [next(iterator) for iterator in second]
      equal(batch, TokenBatch(**{name: np.concatenate([getattr(s, name) for s in slices]) for name in NAMES}))
      assert all(iterator.counts() == counts for iterator in second)


@pytest.mark.parametrize('options', [
    {'epochs': 2}, {'null_prompt_rate': 0.5, 'weights': {'understanding': 1, 'text_to_image': 3}}])
def test_counts_are_those_of_the_batches(documents, options):
  kinds = {expected(c, drop): split for split, source in SOURCES.items() for c in source
           for drop in ([False, True] if split == 'text_to_image' else [False])}
  run = iter(make(documents, **options))
  found = collections.Counter({f'{what}_read.{split}': 0 for what in ('documents', 'positions') for split in SOURCES})
  assert run.counts() == found
  for batch in itertools.islice(run, 40):
    for content in contents(batch):
      found[f'documents_read.{kinds[content]}'] += 1
      found[f'positions_read.{kinds[content]}'] += len(content[0]) // 4
    assert run.counts() == found
  if 'epochs' in options:
    assert [found[f'documents_read.{split}'] for split in SOURCES] == [2 * len(source) for source in SOURCES.values()]


def test_weights_are_the_shares_of_documents(documents):
  kinds = {expected(c): split for split, source in SOURCES.items() for c in source}
  run = make(documents, weights={'interleaved': 0.5, 'understanding': 0.2, 'text_to_image': 0.3})
  found = [kinds[content] for batch in itertools.islice(run, 100) for content in contents(batch)]
  for split, share in (('interleaved', .5), ('understanding', .2), ('text_to_image', .3)):
    assert abs(found.count(split) / len(found) - share) < 0.02
  only = make(documents, weights={'understanding': 1, 'text_to_image': 0})
  assert {kinds[content] for batch in itertools.islice(only, 5) for content in contents(batch)} == {'understanding'}


def test_epochs_are_shuffled_anew_and_seeds_differ(documents):
  run = list(itertools.islice(make(documents, weights={'understanding': 1}), 40))
  found = [content for batch in run for content in contents(batch)]
  one, two = found[:30], found[30:60]
  names = {expected(c) for c in SOURCES['understanding']}
  assert set(found) == names and one != two
  assert not np.array_equal(next(iter(make(documents))).text, next(iter(make(documents, seed=8))).text)


def test_null_prompts_only_in_text_to_image_at_their_rate(documents):
  dropped = {expected(c, drop=True) for c in SOURCES['text_to_image']}
  whole = {expected(c) for source in SOURCES.values() for c in source}
  run = make(documents, weights={'text_to_image': 1, 'understanding': 1}, null_prompt_rate=.4)
  found = [content for batch in itertools.islice(run, 150) for content in contents(batch)]
  assert set(found) <= dropped | whole
  assert abs(sum(c in dropped for c in found) / len(found) - 0.2) < 0.03
  start = len(null_prompt(samples.layout()).text)
  document = tokenise(SOURCES['text_to_image'][0], samples.layout(), drop_question=True)
  np.testing.assert_array_equal(document.text[:start], null_prompt(samples.layout()).text)
  assert not any(c in dropped for b in itertools.islice(make(documents), 50) for c in contents(b))


def test_rows_are_well_filled(documents):
  """Better than by first fit, which a stream allows, of the same documents in the same windows."""
  batches = list(itertools.islice(make(documents), 100))
  filled = np.mean([batch.document > 0 for batch in batches])
  rng, rows, used = np.random.default_rng(0), 0, 0
  for _ in range(8):
    lengths = rng.choice(documents.lengths[:120], plan.WINDOW)
    free = [LENGTH] * len(lengths)
    for size in lengths:
      free[next(i for i, left in enumerate(free) if left >= size)] -= size
    rows, used = rows + sum(left < LENGTH for left in free), used + lengths.sum()
  assert filled > used / (rows * LENGTH) + 0.01


def test_the_longest_documents_come_first_and_each_into_the_fullest_row():
  lengths = np.array([3, 5, 2, 6, 4, 10])
  assert plan.best_fit(np.arange(10, 16), lengths, 10) == [[15], [13, 14], [11, 10, 12]]
  assert plan.best_fit(np.array([], np.int64), np.array([], np.int64), 10) == []


def test_splits_are_mixed_evenly():
  """After any number of documents each split has its share, to less than two documents; no number is left out."""
  parts = [plan.Epochs(np.arange(1000 * i, 1000 * i + 70), [i], shuffle=False) for i in range(3)]
  shares = (0.5, 0.2, 0.3)
  order = plan.Order(parts, shares, plan.ENDLESS)
  numbers = order.numbers(0, 400)
  for i, share in enumerate(shares):
    mine = numbers // 1000 == i
    np.testing.assert_array_equal(numbers[mine], 1000 * i + np.arange(mine.sum()) % 70)
    assert np.abs(np.cumsum(mine) - share * np.arange(1, 401)).max() < 2
  for start, stop in ((0, 1), (5, 5), (7, 123), (399, 400)):
    np.testing.assert_array_equal(order.numbers(start, stop), numbers[start:stop])


def test_rows_of_a_plan_do_not_depend_on_who_asked_for_what(documents):
  one, other = (make(documents, null_prompt_rate=.3).batches._plan for _ in range(2))
  wanted = one.rows(range(400))
  for row in np.random.default_rng(0).permutation(400)[:150]:
    assert other.rows([int(row)]) == [wanted[row]]


def test_documents_longer_than_a_row_are_a_mistake_of_the_caller(documents):
  with pytest.raises(ValueError, match='a document has'):
    make(documents, length=40)


def long_record():
  turn = SOURCES['interleaved'][2].turns[0]
  return Conversation('long-one', '', (turn,) * 12)


def test_a_record_that_is_too_long_is_named_or_dropped():
  sources = {'interleaved': [*SOURCES['interleaved'][:3], long_record()]}
  with pytest.raises(UserError, match=r'record long-one of split interleaved has \d+ positions'):
    pipeline.Documents(sources, samples.layout(), length=LENGTH)
  documents = pipeline.Documents(sources, samples.layout(), length=LENGTH, too_long='drop')
  assert documents.dropped == ['long-one'] and len(documents.lengths) == 3
  with pytest.raises(UserError, match='no split has a record'):
    pipeline.Documents({}, samples.layout(), length=LENGTH)
  with pytest.raises(UserError, match='no usable record'):
    pipeline.Documents({'interleaved': [long_record()]}, samples.layout(), length=LENGTH, too_long='drop')


def test_words_of_questions_may_have_a_weight_in_the_loss_and_nothing_else_changes():
  sources = {'understanding': SOURCES['understanding'][:5]}  # a picture and words ask, words answer
  plain, weighted = (pipeline.Documents(sources, samples.layout(), length=LENGTH, question_weight=weight) for weight in (0, 0.25))
  for number in range(5):
    one, other = (documents.rows([[number]], LENGTH) for documents in (plain, weighted))
    equal(one, other.replace(loss=one.loss))
    answer, picture = one.loss == 1, one.modality == CODES
    assert (other.loss[answer] == 1).all() and (other.loss[picture | (one.document == 0)] == 0).all()
    words = (one.modality == TEXT) & ~answer & ~one.forced & (one.position > 0)
    assert words.any() and (other.loss[words] == 0.25).all() and other.loss[0, 0] == 0


def test_images_without_codes_are_named():
  bare = Conversation('bare', '', (Turn((), (dataclasses.replace(SOURCES['interleaved'][0].turns[0].answer[1], codes=None),)),))
  with pytest.raises(UserError, match='record bare'):
    pipeline.Documents({'interleaved': [bare]}, samples.layout(), length=LENGTH)


@pytest.mark.parametrize(('options', 'words'), [
    ({'rows': 0}, 'a batch of 0 rows'),
    ({'weights': {'hugo': 1}}, 'hugo'),
    ({'weights': {'interleaved': 0}}, 'no positive sum'),
    ({'weights': {'interleaved': 1}, 'epochs': 1}, 'exclude'),
    ({'null_prompt_rate': 2.0}, 'null_prompt_rate'),
])
def test_mistakes_are_told(documents, options, words):
  with pytest.raises(UserError) as error:
    make(documents, **options)
  assert words in samples.message(error)
