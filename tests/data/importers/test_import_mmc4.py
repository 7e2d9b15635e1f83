"""MMC4 rows: where pictures stand, the folders of the official script, hostile pictures, and what is left out."""

import io
import json

import numpy as np
import PIL.Image
import pytest

from intersyn_jax.data import images, records
from intersyn_jax.data.importers import mmc4
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Image, Text
from tests.data import samples

SHARD = 'docs_no_face_shard_0_v3'


def picture(name='a.png', place=0, similarity=0.3, **changes):
  return {'image_name': name, 'raw_url': f'http://example.org/{name}', 'matched_text_index': place,
          'matched_sim': similarity, 'face_detections': None} | changes


def row(texts=('One.', 'Two.', 'Three.'), pictures=None, **changes):
  return {'url': 'http://example.org/page.html', 'text_list': list(texts), 'could_have_url_duplicate': 0,
          'image_info': [picture()] if pictures is None else pictures, 'similarity_matrix': [[0.1, 0.2, 0.3]]} | changes


@pytest.fixture
def read(tmp_path):
  folder = tmp_path / f'{SHARD}_images'
  folder.mkdir()
  for number, name in enumerate('abc'):
    (folder / f'{name}.png').write_bytes(samples.png(number, 12))

  def read(*rows, path=tmp_path / f'{SHARD}.jsonl', **options):
    if rows:
      path.write_text('\n'.join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    rejected = []
    return list(mmc4.conversations(path, rejected.append, **({'pixels': 8} | options))), rejected

  return read


def shape(found):
  return [s.text if isinstance(s, Text) else Image for s in found.turns[0].answer]


def test_a_picture_stands_before_its_sentence(read):
  (found,), rejected = read(row(pictures=[picture('a.png', 2), picture('b.png', 0)]))
  assert not rejected and (found.id, found.trace) == (f'{SHARD}.jsonl-1', 'http://example.org/page.html')
  assert found.topic == '' and found.generator == 'mmc4' and len(found.turns) == 1 and found.turns[0].question == ()
  assert shape(found) == [Image, 'One. Two.', Image, 'Three.']
  assert records.decode(records.encode(found)) == found


def test_several_at_a_sentence_stand_in_order_of_similarity(read):
  (found, one), _ = read(row(pictures=[picture('a.png', 1, 0.2), picture('b.png', 1, 0.4), picture('c.png', 1, 0.2)]),
                         row(['x'], [picture('b.png')]))
  assert shape(found) == ['One.', Image, Image, Image, 'Two. Three.']
  alone = [read(row(['x'], [picture(f'{name}.png')]))[0][0].turns[0].answer[0] for name in 'bac']
  assert [s for s in found.turns[0].answer if isinstance(s, Image)] == alone
  assert one.id == f'{SHARD}.jsonl-2'


def test_shards_of_a_folder_have_their_own_picture_folders(read, tmp_path):
  other = tmp_path / 'other_images'
  other.mkdir()
  (other / 'a.png').write_bytes(samples.png(9, 12))
  read(row(['x'], [picture('a.png')]))
  read(row(['x'], [picture('a.png')]), path=tmp_path / 'other.jsonl')
  found, rejected = read(path=tmp_path)
  assert not rejected and [c.id for c in found] == [f'{SHARD}.jsonl-1', 'other.jsonl-1']
  assert found[0].turns[0].answer[0] != found[1].turns[0].answer[0]
  assert read(path=tmp_path, folder=other)[0][0].turns[0].answer == found[1].turns[0].answer  # a folder of all pictures


def test_a_page_that_comes_twice_is_kept_twice(read):
  found, _ = read(row(could_have_url_duplicate=1), row(could_have_url_duplicate=1))
  assert len({c.id for c in found}) == 2


@pytest.mark.parametrize(('bad', 'reason'), [
    (row(pictures=[picture(place=3)]), 'matched_text_index is no number of a sentence, 0 to 2'),
    (row(pictures=[picture(place=-1)]), 'matched_text_index'), (row(pictures=[picture(place=True)]), 'matched_text_index'),
    (row(pictures=[picture(place=1.0)]), 'matched_text_index'), (row(pictures=[picture(place=None)]), 'matched_text_index'),
    (row(pictures=[picture(place=10**30)]), 'matched_text_index'),
    (json.dumps(row(pictures=[picture(similarity=float('nan'))])), 'matched_sim'),
    (row(pictures=[picture(similarity='high')]), 'matched_sim'),
    (row(pictures=[picture('z.png', similarity=10**400)]), 'missing'),
    (row(pictures=['a.png']), 'entry 0 of field image_info'),
    (row(pictures=[picture('z.png')]), "image 'z.png' is missing"), (row(pictures=[picture(None)]), 'field image_name'),
    (row(pictures=[picture('../outside.png')]), 'outside the folder'), (row(pictures=[picture('/etc/passwd')]), 'outside'),
    (row(pictures=[picture('a\0.png')]), 'zero byte'),
    (row(pictures=[picture('http://example.org/a.png')]), 'is an address'),
    (row(pictures=[picture('x' * 3000)]), 'cannot be read'), (row(pictures=[picture('\ud800.png')]), 'half a Unicode'),
    (row(['One.', 7, 'Three.']), 'field text_list'), (row(['One.', '\ud800', 'Three.']), 'half a Unicode character'),
    (row(text_list='One.'), 'field text_list'), (row([], []), 'neither text nor picture'),
    (row(image_info={}), 'field image_info'),
    (row(url=['x']), 'field url'), ('[' * 100_000, 'no JSON'), ('{"text_list": ["a"', 'no JSON'), ('7', 'no JSON object'),
])
def test_rows_that_are_left_out(read, tmp_path, bad, reason):
  (tmp_path.parent / 'outside.png').write_bytes(samples.png())
  found, rejected = read(row(), bad, row())
  assert [c.id for c in found] == [f'{SHARD}.jsonl-1', f'{SHARD}.jsonl-3']
  assert [r.where for r in rejected] == [f'{SHARD}.jsonl line 2'] and reason in rejected[0].reason
  assert len(rejected[0].reason) < 5000


def encoded(form, image, **options):
  out = io.BytesIO()
  image.save(out, form, **options)
  return out.getvalue()


def test_pictures_of_every_kind(read, tmp_path):
  folder = tmp_path / f'{SHARD}_images'
  red, blue = (PIL.Image.new('RGB', (12, 12), colour) for colour in ('red', 'blue'))
  exif = PIL.Image.Exif()
  exif[0x0112] = 6  # turn right
  halves = PIL.Image.fromarray(np.vstack([np.full((8, 16, 3), 255, np.uint8), np.zeros((8, 16, 3), np.uint8)]))
  kinds = {'zero.png': (b'', 'no PNG'), 'film.gif': (encoded('GIF', red, save_all=True, append_images=[blue]), 'no PNG'),
           'film.webp': (encoded('WEBP', red, save_all=True, append_images=[blue], lossless=True), (255, 0, 0)),
           'cmyk.jpg': (encoded('JPEG', red.convert('CMYK')), (255, 0, 0)), 'text.png': (b'<html>', 'no PNG'),
           'one.png': (encoded('PNG', PIL.Image.new('1', (9, 9), 1)), 255),
           'deep.png': (encoded('PNG', PIL.Image.new('I;16', (9, 9), 65535)), 255),
           'clear.png': (encoded('PNG', PIL.Image.new('RGBA', (9, 9), (9, 9, 9, 0))), 255),
           'vast.png': (encoded('PNG', PIL.Image.new('1', (10_000, 10_000))), 'larger than'),
           'turned.jpg': (encoded('JPEG', halves, exif=exif, quality=95), None),
           'CASE.png': (encoded('PNG', red), (255, 0, 0))}
  for name, (data, _) in kinds.items():
    (folder / name).write_bytes(data)
  found, rejected = read(*[row(['x'], [picture('CASE.PNG' if name == 'CASE.png' else name)]) for name in kinds])
  assert len(found) + len(rejected) == len(kinds)
  pixels = {c.id: images.pixels(c.turns[0].answer[0].data) for c in found}
  reasons = {r.where.rpartition(' ')[2]: r.reason for r in rejected}
  for number, (name, (_, expected)) in enumerate(kinds.items(), start=1):
    if isinstance(expected, str):
      assert expected in reasons[str(number)], name
    elif expected is not None:
      assert np.abs(pixels[f'{SHARD}.jsonl-{number}'].astype(int) - expected).max() < 5, name
  turned = pixels[f'{SHARD}.jsonl-{list(kinds).index("turned.jpg") + 1}']
  assert turned[:, 0].max() < 30 and turned[:, -1].min() > 225  # the white half is on the right


def test_files_that_cannot_be_read(read, tmp_path):
  with pytest.raises(UserError, match='set data.path to one'):
    read(path=tmp_path / 'nowhere.jsonl')
  with pytest.raises(UserError, match='unpack the shards'):
    read(path=tmp_path / f'{SHARD}_images')
