"""The export formats: what one conversation becomes, what is left out, and that the importers read it back."""

import json
import sys

import numpy as np
import pytest

from intersyn_jax.data import exporters, images, parquet
from intersyn_jax.data.exporters import shared
from intersyn_jax.data.importers import flat, intersyn
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Conversation, Image, Score, Text, Turn
from tests.data import samples

SIDE = 16


def picture(seed=0, caption='a red wall'):
  return Image(samples.png(seed, SIDE), samples.codes(seed), caption)


def single(number=0, turns=2, **changes):
  """One text and one picture a turn: what the released formats are made for. The last of five turns has no picture."""
  made = tuple(Turn((Text(f'Please draw "{number}" \n in turn {turn} – now.'),),
                    (Text(f'Here is {turn}.'),) + ((picture(10 * number + turn, f'caption {turn}'),) if turn < 4 else ()))
               for turn in range(turns))
  return Conversation(**dict(id=f'seir_{number:010d}', topic='a/b/ünï', turns=made, scores=(Score(0, -1, 5, 4, 3, 2),),
                             generator='seir', seed=7, trace='t') | changes)


def steps():
  """Two turns: an answer of two steps, then one of one step."""
  return Conversation('story_1', 'a', (
      Turn((Text('draw a cross .'), Text('then make it blue .')),
           (Text('here it is .'), picture(1, 'red cross'), Text('now it is blue .'), picture(2))),
      Turn((Text('add a ring .'),), (Text('done .'), picture(3)))),
      scores=(Score(0, -1, 5, 5, 1, 5), Score(0, 0, 5, 5, 4, 5), Score(0, 0, 5, 5, 3, 5), Score(1, -1, 5, 5, 2, 5)))


def answer(*segments):
  return Conversation('x', '', (Turn((Text('q'),), segments),))


SHOWN = Conversation('shown', '', (Turn((picture(5), Text('what is this ?')), (Text('a cross .'),)),))


def write(folder, name, *items):
  """Counts, and the reasons of what was left out."""
  left = []
  counts = exporters.write(name, folder, 'refined', [(f'record {i}', item) for i, item in enumerate(items)], left.append)
  return counts, [row.reason for row in left]


def carried(conversation):
  """What formats with fields of id, topic, text, picture and caption can carry: no codes, scores or origin, and pixels."""
  def pixels(segment):
    return segment if isinstance(segment, Text) else (images.pixels(segment.data).tobytes(), segment.caption)
  return (conversation.id, conversation.topic,
          [[[pixels(s) for s in side] for side in (turn.question, turn.answer)] for turn in conversation.turns])


def rows_of(path):
  pa = parquet.arrow()
  return pa.parquet.read_table(path).to_pylist()


IMPORTS = {'intersyn': lambda folder, **kw: intersyn.conversations(folder / 'refined.json', folder=folder / 'images', **kw),
           'flat': lambda folder, **kw: flat.conversations(folder, **kw)}


@pytest.mark.parametrize('name', IMPORTS)
def test_the_importer_reads_the_export_back(tmp_path, name):
  items = [single(i, turns) for i, turns in enumerate((1, 2, 5))] + [single(9, topic='')]
  counts, left = write(tmp_path, name, *items)
  assert not left and counts == {'conversations': 4, 'rows': 4, 'pictures': 9}
  rejected = []
  found = list(IMPORTS[name](tmp_path, reject=rejected.append, pixels=SIDE))
  assert not rejected and [carried(c) for c in found] == [carried(c) for c in items]


@pytest.mark.parametrize('name', IMPORTS)
def test_the_released_formats_leave_steps_out_and_say_so(tmp_path, name):
  two = answer(Text('a'), picture(1), Text('b'), picture(2))
  counts, left = write(tmp_path, name, single(), two, SHOWN, answer(picture()), answer(picture(), Text('a')), steps())
  assert counts['conversations'] == 1 and len(left) == 5
  assert 'turn 0: its answer has 2 texts and 2 pictures' in left[0]
  assert all('turn 0: its question is not one text' in reason for reason in (left[1], left[4]))
  assert '0 texts and 1 pictures' in left[2] and '1 texts and 1 pictures' in left[3]


@pytest.mark.parametrize('name', exporters.FORMATS)
def test_what_no_format_carries_is_left_out(tmp_path, name):
  bare = answer(Text('a'), Image(codes=samples.codes()))
  counts, left = write(tmp_path, name, single(), bare, answer(), answer(Text(' '), picture()), single(turns=1),
                       single(1, id=' '))
  assert counts['conversations'] == 1
  assert [word in reason for word, reason in zip(
      ('only codes', 'its answer is missing', 'a text is empty', 'stands already at record 0', 'its id is empty'), left,
      strict=True)] == [True] * 5


@pytest.mark.parametrize('name', exporters.FORMATS)
def test_no_conversations_give_files_that_can_be_read(tmp_path, name):
  assert write(tmp_path, name) == ({'conversations': 0, 'rows': 0, 'pictures': 0}, [])
  for path in tmp_path.glob('*.json'):
    assert not json.loads(path.read_text())


def test_intersyn_has_exactly_the_fields_of_the_generator(tmp_path):
  write(tmp_path, 'intersyn', single(3), single(4, 5))
  row, long = json.loads((tmp_path / 'refined.json').read_text())
  assert list(row) == ['id', 'topic', 'conversations']
  assert row['conversations'][3] == {'from': 'gpt', 'value': 'Here is 1.', 'caption': 'caption 1',
                                     'image': 'seir_0000000003_caption_1.png'}
  assert long['conversations'][-1] == {'from': 'gpt', 'value': 'Here is 4.', 'caption': '', 'image': ''}
  assert (tmp_path / 'images' / 'seir_0000000003_caption_1.png').read_bytes() == single(3).turns[1].answer[1].data


def test_flat_has_at_most_five_turns(tmp_path):
  _, left = write(tmp_path, 'flat', single(0, 6))
  assert left == ['it has 6 turns; the format has at most 5']
  write(tmp_path, 'flat', single(1, 1))
  (row,) = rows_of(tmp_path / 'data' / 'refined-00000-of-00001.parquet')
  assert list(row) == ['id', 'topic'] + [f'{kind}{i}' for kind in ('human', 'gpt', 'caption', 'image') for i in range(1, 6)]
  assert row['image1']['path'] == 'seir_0000000001_caption_0.png' and row['caption1'] == 'caption 0'
  assert all(row[f'{kind}2'] is None for kind in ('human', 'gpt', 'caption', 'image'))


def test_flat_is_shown_by_datasets(tmp_path, monkeypatch):
  datasets = pytest.importorskip('datasets')
  write(tmp_path / 'out', 'flat', single(0), single(1, 1))
  (tmp_path / 'out' / 'manifest.json').write_text('{}')
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  loaded = datasets.load_dataset(str(tmp_path / 'out'), cache_dir=str(tmp_path / 'cache'))
  assert list(loaded) == ['refined'] and isinstance(loaded['refined'].features['image5'], datasets.Image)
  row = loaded['refined'][0]
  np.testing.assert_array_equal(np.asarray(row['image2']), images.pixels(single(0).turns[1].answer[1].data))
  assert row['human2'] == single(0).turns[1].question[0].text and loaded['refined'][1]['image2'] is None


def test_anole_has_a_row_for_each_picture_with_all_that_was_said(tmp_path):
  counts, left = write(tmp_path, 'anole', steps(), SHOWN, answer(Text('a'), picture(), Text('and more')))
  assert counts == {'conversations': 1, 'rows': 3, 'pictures': 3}
  assert 'question holds a picture' in left[0] and 'last text has no picture' in left[1]
  rows = [json.loads(line) for line in (tmp_path / 'refined.jsonl').read_text().splitlines()]
  first = 'draw a cross .\nthen make it blue .\nhere it is .'
  assert rows[0] == {'text': first, 'image': 'images/story_1_caption_0_0.png', 'aesthetic': 3.5}
  assert rows[1] == {'text': f'{first}\nnow it is blue .', 'image': 'images/story_1_caption_0_1.png', 'aesthetic': None}
  assert rows[2]['text'] == f'{first}\nnow it is blue .\nadd a ring .\ndone .' and rows[2]['aesthetic'] == 2.0
  assert (tmp_path / rows[2]['image']).read_bytes() == picture(3).data


def test_show_o2_has_a_caption_before_each_picture(tmp_path):
  counts, left = write(tmp_path, 'show_o2', steps(), SHOWN, answer(Text('only text')))
  assert counts == {'conversations': 1, 'rows': 1, 'pictures': 3} and len(left) == 2
  (row,) = json.loads((tmp_path / 'refined.json').read_text())
  assert row == {'images': [f'images/story_1_caption_{at}.jpg' for at in ('0_0', '0_1', '1_0')],
                 'captions': ['draw a cross .\nthen make it blue .\nhere it is .', 'now it is blue .',
                              'add a ring .\ndone .']}
  assert images.sniff((tmp_path / row['images'][0]).read_bytes()) == 'JPEG'


def test_bagel_has_what_its_reader_wants_and_the_whole_sequence(tmp_path, monkeypatch):
  monkeypatch.setattr(parquet, 'GROUP_ROWS', 2)
  counts, left = write(tmp_path, 'bagel', steps(), SHOWN, answer(Text('only text')))
  assert counts == {'conversations': 3, 'rows': 3, 'pictures': 4} and not left
  file = 'data/refined-00000-of-00001.parquet'
  assert json.loads((tmp_path / 'parquet_info.json').read_text()) == {file: {'num_row_groups': 2}}
  story, shown, text = rows_of(tmp_path / file)
  assert story['image_list'] == [picture(i).data for i in (1, 2, 3)]
  assert story['instruction_list'] == [['now it is blue .'], ['add a ring .\ndone .']]  # between one picture and the next
  flags = lambda row: [(item['text'] or item['image'], item['need_loss'], item['need_vae'], item['need_vit'])
                       for item in row['sequence']]
  no, yes = False, True
  assert flags(story) == [
      ('draw a cross .', no, no, no), ('then make it blue .', no, no, no), ('here it is .', yes, no, no), (0, yes, yes, yes),
      ('now it is blue .', yes, no, no), (1, yes, yes, yes), ('add a ring .', no, no, no), ('done .', yes, no, no),
      (2, yes, no, no)]
  assert flags(shown) == [(0, no, no, yes), ('what is this ?', no, no, no), ('a cross .', yes, no, no)]
  assert text['image_list'] == text['instruction_list'] == []


def test_large_exports_are_cut_into_files_and_row_groups(tmp_path, monkeypatch):
  size = len(picture().data)
  monkeypatch.setattr(parquet, 'GROUP_BYTES', 2 * size - 20)
  monkeypatch.setattr(parquet, 'FILE_BYTES', 4 * size - 40)
  items = [single(i, 1) for i in range(7)]
  write(tmp_path, 'flat', *items)
  files = sorted(path.name for path in (tmp_path / 'data').iterdir())
  assert files == ['refined-00000-of-00002.parquet', 'refined-00001-of-00002.parquet']
  assert parquet.Reader(tmp_path / 'data' / files[0]).groups == 2
  found = list(flat.conversations(tmp_path, print, pixels=SIDE))
  assert [c.id for c in found] == [c.id for c in items]


@pytest.mark.parametrize('name', ['../../evil', '/etc/x', '.hidden', 'a\0b', 'ü' * 90, 'con/aux', 'x' * 400])
def test_an_id_never_leads_out_of_the_folder(tmp_path, name):
  counts, _ = write(tmp_path / 'out', 'intersyn', single(0, 1, id=name))
  assert counts['pictures'] == 1
  (file,) = (tmp_path / 'out' / 'images').iterdir()
  assert shared._PLAIN.fullmatch(file.name) and sorted(p.name for p in tmp_path.iterdir()) == ['out']
  (row,) = json.loads((tmp_path / 'out' / 'refined.json').read_text())
  assert row['id'] == name and row['conversations'][1]['image'] == file.name


def test_a_picture_file_is_never_replaced(tmp_path):
  taken = shared.picture_name('a/b', 0, picture().data).removesuffix('_caption_0.png')
  counts, left = write(tmp_path, 'intersyn', single(0, 1, id='a/b'), single(1, 1, id=taken))
  assert counts['conversations'] == 1 and 'has the file name' in left[0]


def test_pictures_that_are_no_png_keep_their_bytes(tmp_path):
  (tmp_path / 'p.png').write_bytes(samples.png(1, 24))
  jpeg = images.load('p.png', tmp_path, SIDE, encoding='JPEG')
  item = answer(Text('a'), Image(jpeg))
  for name in ('intersyn', 'show_o2'):
    write(tmp_path / name, name, item)
    (file,) = (tmp_path / name / 'images').iterdir()
    assert file.suffix == '.jpg' and file.read_bytes() == jpeg


def test_where_a_conversation_came_from_is_kept_beside_every_format(tmp_path):
  for name in exporters.FORMATS:
    write(tmp_path / name, name, single(2))
    (row,) = map(json.loads, (tmp_path / name / exporters.PROVENANCE).read_text().splitlines())
    scores = [dict(turn=0, step=-1, tcc=5, icc=4, iq=3, its=2)]
    assert row == {'id': 'seir_0000000002', 'topic': 'a/b/ünï', 'generator': 'seir', 'seed': 7, 'trace': 't',
                   'scores': scores}


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  exporters.flat.schema.cache_clear()
  with pytest.raises(UserError, match=r'intersyn_jax\[parquet\]'):
    write(tmp_path, 'flat', single())
  (tmp_path / 'rows.parquet').touch()
  with pytest.raises(UserError, match=r'intersyn_jax\[parquet\]'):
    list(flat.conversations(tmp_path / 'rows.parquet', print, pixels=8))
