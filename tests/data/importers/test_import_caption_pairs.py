"""Captions and their pictures: JourneyDB's fields, ours, and which text is taken."""

import json

import pytest

from intersyn_jax.data.importers import caption_pairs
from intersyn_jax.interleave.types import Image, Text
from tests.data import samples


@pytest.fixture
def read(tmp_path):
  (tmp_path / 'imgs/000').mkdir(parents=True)
  (tmp_path / 'imgs/000/a.jpg').write_bytes(samples.png(1, 12))

  def read(*rows):
    (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    rejected = []
    found = caption_pairs.conversations(tmp_path / 'rows.jsonl', rejected.append, pixels=8, folder=tmp_path / 'imgs')
    return list(found), rejected

  return read


def row(**changes):
  return {'img_path': './000/a.jpg', 'prompt': 'red fox, oil --ar 3:2 --v 4', 'Task2': {'Caption': 'A red fox in oil.'}} | changes


@pytest.mark.parametrize(('changes', 'caption'), [
    ({}, 'A red fox in oil.'), ({'Task2': None}, 'red fox, oil'), ({'Task2': {'Caption': ''}}, 'red fox, oil'),
    ({'Task2': {}, 'prompt': 'well-known -- fox'}, 'well-known -- fox'), ({'caption': 'mine'}, 'mine')])
def test_which_text_is_taken(read, changes, caption):
  (made,), rejected = read(row(**changes))
  assert not rejected and made.turns[0].question == (Text(caption),)
  (picture,) = made.turns[0].answer
  assert isinstance(picture, Image) and picture.caption == caption and made.trace == './000/a.jpg'


def test_a_picture_may_have_several_captions(read):
  found, rejected = read({'image': '000/a.jpg', 'caption': 'one'}, {'image': '000/a.jpg', 'caption': 'two'})
  assert not rejected and [c.id for c in found] == ['rows.jsonl-1', 'rows.jsonl-2']


@pytest.mark.parametrize(('changes', 'reason'), [
    ({'img_path': './000/b.jpg'}, 'missing'), ({'img_path': None}, 'field img_path'),
    ({'img_path': 'https://cdn.example.org/a.jpg'}, 'nothing is fetched'), ({'Task2': {'Caption': 3}}, 'field Caption'),
    ({'Task2': None, 'prompt': None}, 'field prompt'), ({'Task2': {}, 'prompt': ' --ar 1:1 --v 4'}, 'settings alone')])
def test_rows_that_are_left_out(read, changes, reason):
  found, rejected = read(row(), row(**changes), row())
  assert len(found) == 2 and [r.where for r in rejected] == ['rows.jsonl line 2'] and reason in rejected[0].reason
