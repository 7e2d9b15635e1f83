"""Rows that people scored become labelled rows: labels where the views look for them, sides that share nothing."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from intersyn_jax.data import images, shards
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import CODES
from intersyn_jax.interleave.types import Score, Text, Turn
from intersyn_jax.judge import labelled, rated
from intersyn_jax.judge.labelled import Labelled
from intersyn_jax.stages import settings
from tests.data import samples
from tests.data.samples import CODEBOOK, PLACES

HAS_VOTES = 'votes' in {field.name for field in dataclasses.fields(Labelled)}


def encode(pictures):
  """Codes that tell the pictures of `samples` apart."""
  sums = pictures.reshape(len(pictures), PLACES, -1).astype(np.int64).sum(axis=-1, keepdims=True)
  return (sums % CODEBOOK).astype(np.int32)


def row(number=0, **changes):
  return {'id': f'q{number}', 'question': f'please draw number {number}', 'answer': f'number {number}',
          'image': f'{number}.png', 'labels': [4, 3, 5, 2]} | changes


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('rated')
  for number in range(60):
    (folder / f'{number}.png').write_bytes(samples.png(number, 8))
  return folder


def read(folder, entries, reject=None, **options):
  path = folder / 'rows.jsonl'
  path.write_text(''.join(json.dumps(entry) + '\n' for entry in entries))
  fields = dict(pixels=8, longest=120, max_steps=3, held_out=0.25)
  return rated.read(path, '', samples.layout(), encode, reject or (lambda entry: None), **(fields | options))


def only(folder, entry, **options):
  """The labelled row of an entry, whichever side it is on."""
  for side in read(folder, [entry, row(50), row(51)], **{'held_out': 0.34} | options):
    if entry['id'] in side.ids:
      return side, side.ids.index(entry['id'])
  raise AssertionError('left out')


def test_labels_are_means_of_votes_and_documents_have_codes(folder):
  side, i = only(folder, row(labels=[[4, 3, 5, 2], [1, 2, 3, 4], [0, 0, 0, 0]]))
  np.testing.assert_allclose(side.whole[i], [5 / 3, 5 / 3, 8 / 3, 2], rtol=1e-6)
  np.testing.assert_array_equal(side.asked_iq, side.whole[:, 2])
  assert side.whole.dtype == side.steps.dtype == np.float32 and side.generators[i] == 'unknown'
  document = side.documents[i]
  np.testing.assert_array_equal(document.codes[document.modality == CODES], encode(np.asarray([_pixels(folder, 0)]))[0])
  if HAS_VOTES:
    assert side.votes.shape == (len(side), 3, 4) and np.isfinite(side.votes[i]).all()
  other, j = only(folder, row(1, labels=[0, 1, 2, 3]))
  np.testing.assert_array_equal(other.whole[j], [0, 1, 2, 3])


def _pixels(folder, number):
  return images.pixels((folder / f'{number}.png').read_bytes())


@pytest.mark.parametrize(('changes', 'first'), [
    ({}, [4, 3, 5, 2]),
    ({'image': None, 'labels': [4, 0, 0, 0]}, [4, np.nan, np.nan, np.nan]),
    ({'answer': '', 'labels': [0, 3, 5, 0]}, [np.nan, 3, 5, np.nan]),
    ({'answer': ['one', 'two'], 'image': ['0.png', '1.png']}, [np.nan] * 4),
    ({'answer': ['one', None], 'image': ['0.png', '1.png']}, [np.nan] * 4),
    ({'answer': None, 'image': None, 'labels': [0] * 4}, [np.nan] * 4),
])
def test_only_the_one_step_of_an_answer_has_labels(folder, changes, first):
  side, i = only(folder, row(**changes))
  np.testing.assert_array_equal(side.steps[i], [first, [np.nan] * 4, [np.nan] * 4])
  assert np.isfinite(side.whole).all()


def test_sides_share_no_question_and_no_picture(folder):
  """Chains: q0 and q1 share a picture, q1 and q2 a question (but for case and blanks), q2 and q3 a picture of step two."""
  entries = [row(i, generator=f'g{i % 3}') for i in range(40)]
  entries[1]['image'] = '0.png'
  entries[2]['question'] = ' Please draw  NUMBER 1'
  entries[3] |= {'answer': ['a', 'b'], 'image': ['3.png', '2.png']}
  for seed in range(6):
    train, test = read(folder, entries, seed=seed)
    assert len(test) == 10 and len(train) == 30
    labelled.check_leaks(train, test)
    assert not {p for row in train.pictures for p in row} & {p for row in test.pictures for p in row}
    for side in (train, test):
      assert len({'g0/q0', 'g1/q1', 'g2/q2', 'g0/q3'} & set(side.ids)) in (0, 4)
  again = read(folder, entries[::-1], seed=5)
  assert set(again[1].ids) == set(test.ids) != set(read(folder, entries, seed=6)[1].ids)


def test_a_group_too_large_for_the_share_stays_in_training(folder):
  entries = [row(i, image='0.png') for i in range(20)] + [row(i) for i in range(20, 40)]
  for seed in range(5):
    train, test = read(folder, entries, seed=seed)
    assert len(test) == 10 and {f'q{i}' for i in range(20)} <= set(train.ids)
  with pytest.raises(UserError, match='leaves no test rows of the 20 scored answers'):
    read(folder, entries[:20])


def test_generators_that_only_the_test_has(folder):
  entries = [row(i, id=f'q{i}-{name}', answer=f'{name} {i}', generator=name, image=f'{i + 20 * (name == "emu3")}.png')
             for i in range(20) for name in ('anole', 'emu3')]
  rejected = []
  train, test = read(folder, entries, rejected.append, held_out_generators=('emu3',))
  assert set(train.generators) == {'anole'} and set(test.generators) == {'anole', 'emu3'}
  assert len(train) + len(test) + len(rejected) == 40 and len(rejected) == len(train) == 15
  assert 'emu3 is for test rows only' in rejected[0].reason
  with pytest.raises(UserError, match="names 'emu'; the rows of .* have anole, emu3"):
    read(folder, entries, held_out_generators=('emu',))


def test_what_cannot_be_judged_is_left_out_with_its_reason(folder):
  rejected = []
  long, many = row(answer='number one two three ' * 40), row(1, image=['1.png', '2.png', '3.png', '4.png'])
  train, test = read(folder, [long, many, row(2, image='none.png'), *(row(i) for i in range(5, 9))], rejected.append)
  assert len(train) + len(test) == 4
  reasons = {r.id: r.reason for r in rejected}
  assert len(rejected) == len(reasons) == 3
  assert 'more than 120' in reasons['q0'] and 'judge.max_steps=3' in reasons['q1'] and 'missing' in reasons['q2']
  with pytest.raises(UserError, match=r'no scored answer in judge.source=.*jsonl could be used \(rows.jsonl line 1: .*none'):
    read(folder, [row(2, image='none.png')])


def test_shards_with_several_turns(tmp_path):
  """Both scored answers of a conversation are rows and stay together; an equal second question elsewhere binds nothing."""
  items = []
  for i in range(12):
    one = samples.interleaved(i, steps=1)
    turns = (*one.turns, Turn((Text('go on'),), (Text(f'text {i}'),)))
    items.append(dataclasses.replace(one, turns=turns, scores=(Score(0, -1, 4, 3, 2, 5), Score(1, -1, 4, 0, 0, 0))))
  shards.write_split(tmp_path, 'rated', items)
  train, test = rated.read(tmp_path, '', samples.layout(), encode, print, pixels=8, longest=200, max_steps=2, held_out=0.25)
  assert len(test) == 6 and len(train) == 18
  labelled.check_leaks(train, test)
  for side in (train, test):
    assert {name.split('/')[0] for name in side.ids} == {name for name in side.ids if '/' not in name}
    for name, whole, steps in zip(side.ids, side.whole, side.steps, strict=True):
      np.testing.assert_array_equal(whole, [4, 3, 2, 5] if '/' in name else [4, 0, 0, 0])
      np.testing.assert_array_equal(steps[0], [4, 3, 2, 5] if '/' in name else [4, np.nan, np.nan, np.nan])


def test_codes_of_another_tokenizer_are_a_mistake_of_the_user(folder):
  wrong = lambda pictures: encode(pictures) + CODEBOOK
  path = folder / 'rows.jsonl'
  path.write_text(json.dumps(row()))
  with pytest.raises(UserError, match='record q0: image codes lie outside'):
    rated.read(path, '', samples.layout(), wrong, print, pixels=8, longest=120, max_steps=3, held_out=0.2)


def test_the_configuration_names_where_rows_and_pictures_are():
  config = settings.load_config(f'{pathlib.Path(__file__).parents[2] / "configs" / "judged.py"}:smoke')
  assert config.judge.source == config.judge.images == '' and config.judge.held_out_generators == ()
  assert config.judge.init == 'warmup' and config.judge.row_length >= max(config.judge.widths.values())
  assert config.data.source == 'opening' and config.warmup.row_length
