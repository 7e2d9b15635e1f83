"""Videos told event by event: the released object, JSON Lines, and the order of events."""

import json

import pytest

from intersyn_jax.data.importers import dense_captions
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Image, steps_of
from tests.data import samples

SENTENCES = ['A man runs.', 'He jumps.', 'He lands.']


def video(**changes):
  return {'duration': 30.5, 'timestamps': [[0, 8.5], [8, 20.25], [19, 30.5]], 'sentences': SENTENCES} | changes


@pytest.fixture
def read(tmp_path):
  for name in ('v_a', 'v_b'):
    (tmp_path / name).mkdir()
    for number in range(3):
      (tmp_path / f'{name}/{number}.jpg').write_bytes(samples.png(number, 12))

  def read(text):
    (tmp_path / 'train.json').write_text(text if isinstance(text, str) else json.dumps(text))
    rejected = []
    return list(dense_captions.conversations(tmp_path / 'train.json', rejected.append, pixels=8)), rejected

  return read


def texts(made):
  return [made.turns[0].question[0].text.rsplit(': ', 1)[1], *(text for text, _ in steps_of(made.turns[0].answer))]


def test_the_released_object_of_all_videos(read):
  found, rejected = read({'v_a': video(), 'v_b': video(), 'v_c': 3})
  assert [c.id for c in found] == ['v_a', 'v_b'] and texts(found[0]) == SENTENCES
  assert isinstance(found[0].turns[0].question[1], Image) and len(found[0].turns[0].question) == 2
  assert [picture.caption for _, picture in steps_of(found[0].turns[0].answer)] == SENTENCES[1:]
  assert [(r.where, r.id) for r in rejected] == [('train.json entry 3', 'v_c')]


def test_a_video_a_line_with_frames_of_its_own(read):
  rows = [video(id='v_a'), video(id='x', frames=['v_b/2.jpg', 'v_b/1.jpg', 'v_b/0.jpg'], timestamps=None)]
  found, rejected = read('\n'.join(map(json.dumps, rows)))
  assert not rejected and [c.id for c in found] == ['v_a', 'x']
  assert found[0].turns[0].question[1].data == found[1].turns[0].answer[3].data, 'the last frame of x is the first of v_a'


def test_events_stand_in_the_order_in_which_they_begin(read):
  (made,), _ = read({'v_a': video(timestamps=[[8, 9], [1, 2], [8, 8.5]])})
  assert texts(made) == ['He jumps.', 'He lands.', 'A man runs.']
  (same,), _ = read({'v_a': video(timestamps=[[4, 9], [4, 9], [4, 9]])})
  assert texts(same) == SENTENCES
  pictures = [made.turns[0].question[1].data, *(p.data for _, p in steps_of(made.turns[0].answer))]
  (plain,), _ = read({'v_a': video()})
  first, *rest = [plain.turns[0].question[1].data, *(p.data for _, p in steps_of(plain.turns[0].answer))]
  assert pictures == [rest[0], rest[1], first], 'a picture goes with its sentence'


@pytest.mark.parametrize(('bad', 'reason'), [
    ({'sentences': SENTENCES[:1], 'timestamps': None}, '1 events'), ({'sentences': 'A man'}, 'field sentences'),
    ({'timestamps': [[0, 1]]}, 'field timestamps has 1 entries'),
    ({'timestamps': [[0, 1], [1, 2], [2, float('nan')]]}, 'entry 2'),
    ({'timestamps': [[0, 1], [1, 2], 'x']}, 'entry 2'), ({'frames': ['v_b/0.jpg']}, 'field frames has 1'),
    ({'frames': ['v_b/0.jpg', '../train.json', 'v_b/1.jpg']}, 'outside'),
    ({'frames': [None, 'v_b/0.jpg', 'v_b/1.jpg']}, 'field frames'),
    ({'sentences': ['a', '', 'b']}, 'field sentences')])
def test_videos_that_are_left_out(read, bad, reason):
  found, rejected = read({'v_a': video(), 'v_b': video() | bad})
  assert [c.id for c in found] == ['v_a'] and [r.where for r in rejected] == ['train.json entry 2']
  assert reason in rejected[0].reason


def test_a_name_twice_and_a_broken_object(read):
  text = json.dumps(video())
  found, rejected = read('{"v_a": ' + text + ', "v_a": ' + text + '}')
  assert len(found) == 1 and 'stands already at train.json entry 1' in rejected[0].reason
  with pytest.raises(UserError, match='no JSON at line 2'):
    read('{"v_a": ' + text + ',\n "v_b": {"sentences": [}}')
