"""Stories in key frames: rows of the release, as parquet and JSON Lines, and rows that are a story."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intersyn_jax.data.importers import openstory
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import steps_of
from tests.data import samples

VIDEOS = ('abcdefghij0', 'abcdefghij1')


def frame(video, second, caption=None, **changes):
  told = {'caption': caption or f'scene {second}'}
  return {'video_id': VIDEOS[video], 'time_stamp': f'0-0-{second}-500', 'json': told} | changes


@pytest.fixture
def folder(tmp_path):
  for video in VIDEOS:
    (tmp_path / video).mkdir()
    for second in range(12):
      (tmp_path / f'{video}/{video}_keyframe_0-0-{second}-500.jpg').write_bytes(samples.png(second, 12))
  return tmp_path


def read(path):
  rejected = []
  return list(openstory.conversations(path, rejected.append, pixels=8)), rejected


def lines(folder, *rows):
  (folder / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  return read(folder / 'rows.jsonl')


def texts(made):
  return [made.turns[0].question[0].text.rsplit(': ', 1)[1], *(text for text, _ in steps_of(made.turns[0].answer))]


def test_frames_of_a_video_are_stories_of_at_most_five(folder):
  found, rejected = lines(folder, *(frame(0, s) for s in range(7)), *(frame(1, s) for s in range(2)), frame(0, 9), frame(0, 10))
  assert not rejected and [len(texts(c)) for c in found] == [5, 2, 2, 2]
  assert texts(found[0]) == [f'scene {s}' for s in range(5)] and texts(found[3]) == ['scene 9', 'scene 10']
  assert [c.id for c in found] == [f'{VIDEOS[0]}/0-0-0-500', f'{VIDEOS[0]}/0-0-5-500', f'{VIDEOS[1]}/0-0-0-500',
                                   f'{VIDEOS[0]}/0-0-9-500']
  assert all(picture.caption == text for text, picture in steps_of(found[0].turns[0].answer))


def test_the_release_as_parquet_with_json_as_text_or_struct(folder):
  rows = [frame(0, s) for s in range(3)] + [frame(1, 4), frame(1, 4), frame(1, 5)]
  pq.write_table(pa.Table.from_pylist(rows), folder / 'a.parquet', row_group_size=2)
  found, rejected = read(folder / 'a.parquet')
  assert not rejected and texts(found[0]) == ['scene 0', 'scene 1', 'scene 2']
  assert len(found) == 2 and texts(found[1]) == ['scene 4', 'scene 5'], 'a frame that repeats is one'
  as_text = [row | {'json': json.dumps(row['json'])} for row in rows]
  pq.write_table(pa.Table.from_pylist(as_text), folder / 'a.parquet')
  assert read(folder)[0] == found
  (folder / 'a.parquet').unlink()
  assert lines(folder, *rows)[0] == found


def test_a_row_may_be_a_story(folder):
  name = f'{VIDEOS[0]}/{VIDEOS[0]}_keyframe_0-0-1-500.jpg'
  story = {'id': 's', 'frames': [{'image': name, 'caption': f'part {i}'} for i in range(9)]}
  found, rejected = lines(folder, story, frame(1, 1), frame(1, 2))
  assert not rejected and texts(found[0]) == [f'part {i}' for i in range(9)] and texts(found[1]) == ['scene 1', 'scene 2']


@pytest.mark.parametrize(('rows', 'where', 'reason'), [
    ([frame(0, 3)], 'line 2', '1 key frames'),
    ([frame(0, 3), frame(0, 99)], 'lines 2-3', 'missing'),
    ([frame(0, 3), frame(0, 4, json='{')], 'lines 2-3', 'field caption'),
    ([frame(0, 3), frame(0, 4, json={'caption': ['x']})], 'lines 2-3', 'field caption'),
    ([{'caption': 'x'}], 'line 2', 'neither frames nor the video_id'),
    ([{'video_id': ['x']}], 'line 2', 'neither frames nor the video_id'),
    ([{'id': 's', 'frames': [3]}], 'line 2', 'entry 0 of field frames'),
    ([frame(0, 3, image='../x.png'), frame(0, 4)], 'lines 2-3', 'outside')])
def test_what_is_left_out(folder, rows, where, reason):
  story = {'id': 'good', 'frames': [{'image': f'{VIDEOS[1]}/{VIDEOS[1]}_keyframe_0-0-1-500.jpg', 'caption': 'c'}] * 2}
  found, rejected = lines(folder, story, *rows)
  assert [c.id for c in found] == ['good'] and [r.where for r in rejected] == [f'rows.jsonl {where}']
  assert reason in rejected[0].reason


def test_rows_of_no_video_are_left_out_one_by_one(folder):
  found, rejected = lines(folder, *[{'video_id': '', 'json': {'caption': 'x'}}] * 3, *[{'video_id': None}] * 2)
  assert not found and [r.where for r in rejected] == [f'rows.jsonl line {n}' for n in range(1, 6)]


def test_files_that_are_none(tmp_path):
  with pytest.raises(UserError, match='set data.path'):
    read(tmp_path)
  pq.write_table(pa.table({'video_id': ['a']}), tmp_path / 'a.parquet')
  with pytest.raises(UserError, match='no column time_stamp'):
    read(tmp_path / 'a.parquet')
