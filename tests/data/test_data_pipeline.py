"""The pipeline: every document once an epoch, no document cut, exact resume, slices that add up, mixture and null prompts."""

import dataclasses
import itertools

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from intersyn_jax.data import pipeline
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


@pytest.mark.parametrize('keep', [1000, 10])
def test_an_epoch_holds_every_document_whole_and_once(keep):
  documents = pipeline.Documents(SOURCES, samples.layout(), length=LENGTH, keep=keep)
  run = make(documents, epochs=1)
  batches = list(run)
  assert len(batches) == len(run)
  assert {batch.text.shape for batch in batches} == {(4, LENGTH)}
  found = [content for batch in batches for content in contents(batch)]
  assert sorted(found) == sorted(expected(c) for source in SOURCES.values() for c in source)
  in_order = [c for b in make(documents, epochs=1, shuffle=False) for c in contents(b)]
  assert in_order != found and sorted(in_order) == sorted(found)


def test_kept_and_read_again_give_the_same_batches(documents):
  again = pipeline.Documents(SOURCES, samples.layout(), length=LENGTH, null=True, keep=3)
  for one, other in itertools.islice(zip(make(documents, null_prompt_rate=.5), make(again, null_prompt_rate=.5)), 8):
    equal(one, other)


def test_fields_are_those_of_the_batch(documents):
  batch = next(iter(make(documents)))
  assert isinstance(batch, TokenBatch)
  kinds = {'text': 'int32', 'codes': 'int32', 'modality': 'int8', 'loss': 'float32', 'forced': 'bool', 'document': 'int32',
           'position': 'int32', 'turn': 'int32', 'step': 'int32'}
  assert {name: str(getattr(batch, name).dtype) for name in NAMES} == kinds
  assert batch.codes.shape == (4, LENGTH, 1)
  assert ((batch.modality == 0) == (batch.document == 0)).all()
  assert {TEXT, CODES} <= set(np.unique(batch.modality))


@pytest.mark.parametrize('threads', [0, 2])
@pytest.mark.parametrize('steps', [0, 1, 5, 90])
def test_resume_is_exact(documents, threads, steps):
  options = {'null_prompt_rate': 0.3, 'weights': {'interleaved': 2, 'text_to_image': 1}, 'threads': threads}
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
  parts = [make(documents, process_index=i, process_count=count, null_prompt_rate=.2) for i in range(count)]
  for whole, *slices in itertools.islice(zip(make(documents, null_prompt_rate=.2), *parts), 40):
    equal(whole, TokenBatch(**{name: np.concatenate([getattr(s, name) for s in slices]) for name in NAMES}))


def test_a_state_fits_any_number_of_processes(documents):
  first = iter(make(documents, process_index=1, process_count=2))
  for _ in range(60):
    next(first)
  alone = iter(make(documents))
  alone.set_state(first.get_state())
  np.testing.assert_array_equal(next(alone).text[2:], next(first).text)


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
  batches = list(itertools.islice(make(documents), 30))
  assert np.mean([batch.document > 0 for batch in batches]) > 0.85


def long_record():
  turn = SOURCES['interleaved'][2].turns[0]
  return Conversation('long-one', '', (turn,) * 12)


def test_a_record_that_is_too_long_is_named_or_dropped():
  sources = {'interleaved': [*SOURCES['interleaved'][:3], long_record()]}
  with pytest.raises(UserError, match=r'record long-one of split interleaved has \d+ positions'):
    pipeline.Documents(sources, samples.layout(), length=LENGTH)
  documents = pipeline.Documents(sources, samples.layout(), length=LENGTH, too_long='drop')
  assert documents.dropped == ['long-one'] and len(documents.lengths) == 3
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
    ({'rows': 3, 'process_count': 2}, 'does not divide'),
    ({'weights': {'hugo': 1}}, 'hugo'),
    ({'weights': {'interleaved': 0}}, 'no positive sum'),
    ({'weights': {'interleaved': 1}, 'epochs': 1}, 'exclude'),
    ({'null_prompt_rate': 2.0}, 'null_prompt_rate'),
])
def test_mistakes_are_told(documents, options, words):
  with pytest.raises(UserError) as error:
    make(documents, **options)
  assert words in samples.message(error)
