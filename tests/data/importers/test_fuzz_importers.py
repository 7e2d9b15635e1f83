"""Every importer of the registry on rows, files and pictures that nobody would write: no crash, and no row is lost."""

import copy
import io
import json
import pickle
import re
import zipfile

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intersyn_jax.data import conversion, images, records, sources
from intersyn_jax.data.importers import SOURCES, rows
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Image
from tests.data import samples

TALK = [{'from': 'human', 'value': 'What is <image> this?'}, {'from': 'gpt', 'value': 'A cat.'}]
ITEM = [{'type': 'text', 'content': 'Look.'}, {'type': 'image', 'content': 'good.png', 'image_path': 'good.png'}]
CONTENT = [{'text': 'Look.', 'image': 'good.png'}, {'text': None, 'image': 'good.jpg'}]
VALID = {
    'intersyn_release': {'id': 'a', 'topic': 'Panda', 'conversations': [
        {'from': 'human', 'value': 'Q'}, {'from': 'gpt', 'value': 'A', 'caption': 'c', 'image': 'good.png'}]},
    'opening': {'total_uid': 'a', 'meta_task_name': 'x', 'subtask_name': 'y', 'conversations': [
        {'input': [{'image': None, 'text': '<BEGIN> Draw.'}]}, {'output': [{'image': 'good.jpg', 'text': 'It. <image>'}]}]},
    'genhowto': {'id': 'a', 'initial': 'good.png', 'action': 'good.jpg', 'final': 'good.webp', 'action_prompt': 'cut'},
    'dense_captions': {'id': 'a', 'duration': 9.5, 'timestamps': [[0, 2.5], [1, 9.5]], 'sentences': ['One.', 'Two.'],
                       'frames': ['good.png', 'good.jpg']},
    'openstory': {'id': 'a', 'frames': [{'image': 'good.png', 'caption': 'one'}, {'image': 'good.jpg', 'caption': 'two'}]},
    'caption_pairs': {'img_path': './good.jpg', 'prompt': 'a cat --ar 3:2', 'Task2': {'Caption': 'A cat.'}},
    'llava': {'id': 'a', 'image': ['good.png'], 'conversations': TALK},
    'mmc4': {'url': 'https://example.org', 'text_list': ['One.', 'Two.'], 'could_have_url_duplicate': 0,
             'image_info': [{'image_name': 'good.jpg', 'matched_text_index': 1, 'matched_sim': 0.25}]},
    'comm': {'data_id': 'a', 'dataset_type': 'wiki', 'title': 'How?', 'summary_info': [], 'step_info': [ITEM, ITEM]},
    'mmie': {'id': 'SA-1', 'catagory': 'x', 'field': 'y', 'conversations': [
        {'from': 'human', 'content': CONTENT}, {'from': 'gpt', 'content': CONTENT}]},
    'interleaved_bench': {'id': 'a', 'task_name': 'x', 'image': ['good.png', 'good.jpg'], 'conversations': TALK},
    'isg': {'id': 'a', 'Category': 'x', 'Query': ITEM, 'Golden': ITEM, 'predict': {'structure': []}}}

PICTURE = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
COLUMNS = {
    'intersyn_flat': {'id': pa.string(), 'topic': pa.string()} | {
        f'{kind}{turn}': PICTURE if kind == 'image' else pa.string()
        for turn in (1, 2) for kind in ('human', 'gpt', 'caption', 'image')},
    'obelics': {'images': pa.list_(PICTURE), 'texts': pa.list_(pa.string()), 'general_metadata': pa.string()},
    'openstory': {'video_id': pa.string(), 'time_stamp': pa.string(), 'image': pa.string(),
                  'json': pa.struct([('caption', pa.string()), ('origin_caption', pa.list_(pa.string()))])}}

NAMES = ('good.png', 'good.jpg', 'good.webp', 'empty.png', 'text.png', 'cut.jpg', 'vast.png', 'thin.png', 'moving.gif',
         'moving.webp', 'turned.jpg', 'print.jpg', 'deep.png', 'clear.png', 'folder', 'link.png', 'loop.png', '../outside.png',
         '/etc/hostname', 'https://example.org/a.png', 'file:good.png', 'a\0b.png', '\ud800.png', 'x' * 5000, '.', '', ' ',
         '<image>')


def encoded(image, kind, **options):
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Pictures, good and hostile."""
  base = tmp_path_factory.mktemp('fuzz')
  inside = base / 'pictures'
  (inside / 'folder').mkdir(parents=True)
  picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8))
  exif = PIL.Image.Exif()
  exif[0x0112] = 6
  frames = [picture, picture.rotate(90)]
  for name, data in {
      'good.png': samples.png(1, 20), 'good.jpg': encoded(picture, 'JPEG'), 'good.webp': encoded(picture, 'WEBP'),
      'empty.png': b'', 'text.png': b'no picture', 'cut.jpg': encoded(picture, 'JPEG')[:200],
      'vast.png': encoded(PIL.Image.new('1', (10_000, 10_000)), 'PNG'),
      'thin.png': encoded(PIL.Image.new('L', (60_000, 1)), 'PNG'),
      'moving.gif': encoded(picture, 'GIF', save_all=True, append_images=frames),
      'moving.webp': encoded(picture, 'WEBP', save_all=True, append_images=frames),
      'turned.jpg': encoded(picture, 'JPEG', exif=exif), 'print.jpg': encoded(picture.convert('CMYK'), 'JPEG'),
      'deep.png': encoded(PIL.Image.fromarray(np.full((9, 9), 40_000, np.uint16)), 'PNG'),
      'clear.png': encoded(picture.convert('LA'), 'PNG'), '../outside.png': samples.png()}.items():
    (inside / name).write_bytes(data)
  (inside / 'link.png').symlink_to(base / 'outside.png')
  (inside / 'loop.png').symlink_to(inside / 'loop.png')
  return inside


TEXTS = st.sampled_from(NAMES) | st.text(st.characters(exclude_categories=()), max_size=8)
DEEP = st.integers(1, 150).map(lambda depth: json.loads('[' * depth + ']' * depth))
VALUES = st.recursive(st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | TEXTS | DEEP,
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=5)


def places(value, path=()):
  """The path of every entry of a nested value."""
  items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
  for key, inner in items:
    yield (*path, key)
    yield from places(inner, (*path, key))


@st.composite
def mutated(draw, row):
  """A row with some of its entries changed, gone, or there several times."""
  row = copy.deepcopy(row) | ({'id': draw(st.sampled_from('abc'))} if 'id' in row else {})
  for _ in range(draw(st.integers(0, 2))):
    *path, last = draw(st.sampled_from(list(places(row)) or [('x',)]))
    holder = row
    for key in path:
      holder = holder[key]
    change = draw(st.sampled_from(('value', 'value', 'gone', 'many')))
    if change == 'gone':
      del holder[last]
    elif change == 'many' and isinstance(holder, list):
      holder.extend([holder[last]] * draw(st.sampled_from((1, 300))))
    else:
      holder[last] = draw(VALUES)
  return row


def lines(row):
  """Lines of a file: rows, good and mutated, in several encodings, cut short, or no rows at all."""
  text = mutated(row).map(json.dumps)
  return text.map(str.encode) | st.one_of(
      st.just(json.dumps(row).encode()), st.binary(max_size=30), VALUES.map(json.dumps).map(str.encode),
      st.tuples(text, st.integers(1, 60)).map(lambda pair: pair[0].encode()[:-pair[1]]),
      text.map(lambda t: t.replace('a', 'é').encode('latin-1', 'replace')), text.map(lambda t: t.encode('utf-16')),
      st.sampled_from([b'[' * 100_000, b'{"id": ' + b'9' * 5000 + b'}', b'\xef\xbb\xbf', b'', b'\r']))


def outcomes(name, path, folder):
  """What becomes of the rows of a file, each checked; None if the file as a whole is refused."""
  left_out = []
  try:
    items = sources.Import(name, path, pixels=8, images=folder).conversations(left_out.append)
    found = list(conversion.outcomes(rows.source(items, left_out.append), left_out))
  except UserError as error:
    assert path.name in str(error) and '\n' not in str(error)
    return None
  assert not left_out
  for outcome in found:
    assert bool(outcome.data) != bool(outcome.reason) and outcome.where.startswith(path.name)
    assert len(outcome.reason) <= conversion.LONGEST and len(outcome.name) <= 3000
    assert (outcome.name + outcome.where).isprintable()
    if outcome.data:
      conversation = records.decode(outcome.data)
      assert conversation.id == outcome.id
      pictures = [s for turn in conversation.turns for s in (*turn.question, *turn.answer) if isinstance(s, Image)]
      assert {images.pixels(picture.data).shape for picture in pictures} <= {(8, 8, 3)}
  return found


def count(found):
  """How many rows of the source they stand for: some are stories of several."""
  spans = (re.search(r' (?:line|row|entrie|entry)s (\d+)-(\d+)$', outcome.where) for outcome in found)
  return sum(int(span[2]) - int(span[1]) + 1 if span else 1 for span in spans)


def check_lines(name, content, folder, path):
  path.write_bytes(content)
  found = outcomes(name, path, folder)
  if found is None:
    start = content.removeprefix(b'\xef\xbb\xbf').lstrip()
    assert start[:1] == b'[' or content[:2] in (b'\xff\xfe', b'\xfe\xff') or (name == 'dense_captions' and start[:1] == b'{')
  elif not content.removeprefix(b'\xef\xbb\xbf').lstrip().startswith(b'['):
    first, *others = content.split(b'\n')
    assert count(found) == sum(bool(line.strip()) for line in (first.removeprefix(b'\xef\xbb\xbf'), *others))
  return found


def check_list(name, values, folder, path):
  path.write_text(json.dumps(values))
  found = outcomes(name, path, folder)
  assert found is not None and count(found) == len(values)


def check_parquet(name, table, flips, folder, path):
  pq.write_table(table, path, row_group_size=2)
  if flips:
    data = bytearray(path.read_bytes())
    for place, value in flips:
      data[place % len(data)] ^= value
    path.write_bytes(data)
    outcomes(name, path, folder)  # what is damaged is told; how many rows there were, nobody knows any more
  else:
    found = outcomes(name, path, folder)
    assert found is not None and count(found) == len(table)


def cells(kind):
  """Values of a column."""
  if pa.types.is_list(kind):
    return st.none() | st.lists(cells(kind.value_type), max_size=4)
  if pa.types.is_struct(kind):
    return st.none() | st.fixed_dictionaries({field.name: cells(field.type) for field in kind})
  if pa.types.is_binary(kind):
    return st.none() | st.sampled_from([samples.png(), b'', b'no picture', b'\xff\xd8\xff']) | st.binary(max_size=9)
  return st.none() | TEXTS.map(lambda text: text.encode('utf-8', 'replace').decode())


FLIPS = st.just([]) | st.lists(st.tuples(st.integers(0, 2**20), st.integers(1, 255)), min_size=1, max_size=3)


def fuzz(check, values, examples):
  """Runs a check on values made up by hypothesis."""
  quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]

  @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=quiet)
  @given(values)
  def run(value):
    check(value)

  run()


def test_every_source_is_here(folder, tmp_path):
  assert VALID.keys() | COLUMNS.keys() == SOURCES.keys()
  for name, row in VALID.items():
    found = check_lines(name, json.dumps(row).encode(), folder, tmp_path / 'rows.jsonl')
    assert [outcome.reason for outcome in found] == [''], name


@pytest.mark.parametrize('name', sorted(VALID))
@pytest.mark.parametrize('examples', [pytest.param(10), pytest.param(150, marks=pytest.mark.slow)])
def test_rows(folder, tmp_path, name, examples):
  path = tmp_path / 'rows.jsonl'
  fuzz(lambda parts: check_lines(name, b'\n'.join(parts), folder, path), st.lists(lines(VALID[name]), max_size=6), examples)
  values = st.lists(mutated(VALID[name]) | VALUES, max_size=5)
  fuzz(lambda parts: check_list(name, parts, folder, path), values, examples // 2)


@pytest.mark.parametrize('name', sorted(COLUMNS))
@pytest.mark.parametrize('examples', [pytest.param(12), pytest.param(150, marks=pytest.mark.slow)])
def test_tables(folder, tmp_path, name, examples):
  schema = pa.schema(list(COLUMNS[name].items()))
  table = st.lists(st.fixed_dictionaries({field.name: cells(field.type) for field in schema}), max_size=5)
  made = st.tuples(table.map(lambda found: pa.Table.from_pylist(found, schema)), FLIPS)
  fuzz(lambda pair: check_parquet(name, *pair, folder, tmp_path / 'rows.parquet'), made, examples)


@pytest.mark.parametrize('examples', [pytest.param(10), pytest.param(150, marks=pytest.mark.slow)])
def test_files_of_torch(folder, tmp_path, examples):
  path = tmp_path / 'rows.pth'

  def check(pair):
    values, flips = pair
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('archive/data.pkl', pickle.dumps(values, 2))
    data = bytearray(path.read_bytes())
    for place, value in flips:
      data[place % len(data)] ^= value
    path.write_bytes(data)
    found = outcomes('comm', path, folder)
    assert flips or (found is not None and count(found) == len(values))

  fuzz(check, st.tuples(st.lists(mutated(VALID['comm']) | VALUES, max_size=5), FLIPS), examples)
