"""Rows of JSON and JSON Lines, one at a time; lists of topics and templates, flat or nested."""

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intersyn_jax.data.importers import rows
from intersyn_jax.errors import UserError


def read(tmp_path, content):
  path = tmp_path / 'rows.json'
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  rejected = []
  return list(rows.read(path, rejected.append)), rejected


def test_lines_are_counted_as_they_stand_in_the_file(tmp_path):
  lines = [b'\xef\xbb\xbf{"a": 1}\r', b'', b'  ', b'{"a": 2}', b'[3]', b'{"a": "\xff"}', b'{"a": ' + b'9' * 5000 + b'}',
           b'[' * 9999, b'{"a": 3}']
  found, rejected = read(tmp_path, b'\n'.join(lines))
  assert found == [('rows.json line 1', {'a': 1}), ('rows.json line 4', {'a': 2}), ('rows.json line 9', {'a': 3})]
  assert [r.where for r in rejected] == [f'rows.json line {n}' for n in (5, 6, 7, 8)]
  reasons = ('no JSON object', 'no UTF-8 text (byte 7)', 'no JSON (Exceeds', 'no JSON (maximum recursion')
  assert all(reason in row.reason for row, reason in zip(rejected, reasons, strict=True))


def test_a_line_that_is_too_long_is_left_out_alone(tmp_path, monkeypatch):
  monkeypatch.setattr(rows, 'MAX_ROW', 100)
  fits, long = json.dumps({'a': 'x' * 90}), json.dumps({'a': 'x' * 91})
  assert (len(fits), len(long)) == (99, 100)
  content = '\n'.join([fits, long + ' ', long * 7, fits, long * 3])
  found, rejected = read(tmp_path, content)
  assert [where for where, _ in found] == ['rows.json line 1', 'rows.json line 4']
  assert [(r.where, r.reason) for r in rejected] == [(f'rows.json line {n}', 'is longer than 0 MiB') for n in (2, 3, 5)]


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                      max_leaves=9)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(VALUES, max_size=6), chunk=st.integers(1, 40), indent=st.none() | st.integers(0, 3), plain=st.booleans())
def test_a_list_is_read_in_pieces_of_any_size(tmp_path_factory, values, chunk, indent, plain):
  folder = tmp_path_factory.mktemp('list')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(rows, 'CHUNK', chunk)
    text = ' \n' + json.dumps(values, indent=indent, ensure_ascii=plain) + '\n'
    found, rejected = read(folder, text.encode(errors='surrogatepass'))
    objects = [(f'rows.json entry {n}', value) for n, value in enumerate(values, start=1) if isinstance(value, dict)]
    assert found == objects and len(rejected) == len(values) - len(objects)
    members = {f'{n}': value for n, value in enumerate(values)}
    (folder / 'rows.json').write_text(json.dumps(members, indent=indent), 'utf-8')
    assert [member[1:] for member in rows.read_members(folder / 'rows.json')] == list(members.items())


def test_a_list_that_is_cut_short_anywhere(tmp_path, monkeypatch):
  monkeypatch.setattr(rows, 'CHUNK', 5)
  text = '[{"a": 1},\n {"b": [2, "x"]},\n 3.25 ]'
  for end in range(1, len(text)):
    found = []
    (tmp_path / 'rows.json').write_text(text[:end])
    with pytest.raises(UserError, match='mend that line') as error:
      found.extend(rows.read(tmp_path / 'rows.json', list().append))
    line = int(str(error.value).split('at line ')[1].split(' ')[0])
    assert 1 <= line <= text[:end].count('\n') + 1
  assert read(tmp_path, text)[0] == [('rows.json entry 1', {'a': 1}), ('rows.json entry 2', {'b': [2, 'x']})]


@pytest.mark.parametrize(('content', 'words'), [
    ('[{"a": 1} {"b": 2}]', ', or ] must stand here'), ('[{"a": 1}] 2', 'something follows the end'),
    ('[{"a": 1},]', 'Expecting value'), ('[{"a": ' + '9' * 5000 + '}]', 'Exceeds the limit'), ('[' * 99999, 'nested too deeply'),
    (b'[{"a": "\xff"}]', 'no UTF-8 text after line'),
    (b'[{"a": 1},\n{"b": "' + b'x' * 300_000 + b'\xff"}]', 'no UTF-8 text after line 1'), (b'\xfe\xff\x00{', 'UTF-16'),
    ('[[1, 2', 'no JSON at line 1')])
def test_lists_that_cannot_be_read(tmp_path, content, words):
  with pytest.raises(UserError, match=words) as error:
    read(tmp_path, content)
  assert 'rows.json' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('form', ['list', 'lines'])
def test_a_file_is_never_in_memory_as_a_whole(tmp_path, form):
  entry = json.dumps({'text': 'x' * 20_000})
  with open(tmp_path / 'rows.json', 'w') as file:
    file.write('[' if form == 'list' else '')
    for number in range(1000):
      file.write((', ' if form == 'list' and number else '') + entry + '\n')
    file.write(']' if form == 'list' else '')
  tracemalloc.start()
  try:
    assert sum(1 for _ in rows.read(tmp_path / 'rows.json', list().append)) == 1000
    assert tracemalloc.get_traced_memory()[1] < 4 << 20, 'of 20 MB'
  finally:
    tracemalloc.stop()


def write(tmp_path, value):
  (tmp_path / 'list.json').write_text(value if isinstance(value, str) else json.dumps(value))
  return tmp_path / 'list.json'


def test_a_flat_list(tmp_path):
  topics, dropped = rows.load_topics(write(tmp_path, ['Red  Panda', 'Cruise ship', 'cruise Ship', '...', ' ', 3]))
  assert topics == ['Red Panda', 'Cruise ship']
  assert [entry.where for entry in dropped] == [f'list.json entry {i}' for i in (3, 4, 5, 6)]
  assert 'repeats' in dropped[0].reason and 'placeholder' in dropped[1].reason and 'int' in dropped[3].reason


def test_nested_topics_keep_their_path_and_templates_do_not(tmp_path):
  nested = {'animals': {'cats': ['lion'], 'dogs': ['wolf', 'lion']}, 'space': ['moon']}
  assert rows.load_topics(write(tmp_path, nested))[0] == [
      'animals/cats/lion', 'animals/dogs/wolf', 'animals/dogs/lion', 'space/moon']
  templates, dropped = rows.load_templates(write(tmp_path, {'a': ['Draw ***.', '***'], 'b': ['Draw ***.', 'Show ** in **']}))
  assert templates == ['Draw ***.', 'Show ** in **'] and len(dropped) == 2


@pytest.mark.parametrize(('text', 'words'), [
    ('', 'empty'), (' \n', 'empty'), ('[]', 'no usable entry'), ('["..."]', 'no usable entry'), ('["a",\n"b"', 'line 2')])
def test_files_without_topics(tmp_path, text, words):
  with pytest.raises(UserError, match=words) as error:
    rows.load_topics(write(tmp_path, text))
  assert 'list.json' in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
  with pytest.raises(UserError, match='cannot be read'):
    rows.load_templates(tmp_path / 'nowhere.json')


def test_topics_may_be_yaml(tmp_path):
  path = tmp_path / 'topics.yaml'
  path.write_text('animals:\n  cats:\n    - lynx\n    - Lynx\n  "2024": [puma]\nfood: [bread]\n')
  topics, dropped = rows.load_topics(path)
  assert topics == ['animals/cats/lynx', 'animals/2024/puma', 'food/bread'] and len(dropped) == 1


@pytest.mark.parametrize(('text', 'message'), [
    ('- ok\n- [bad', r'no YAML at line \d+'), ('a: &x [cat]\nb: *x\n', r'references .* are not read'),
    ('!!python/object/apply:os.system ["true"]', 'no YAML at line 1')])
def test_yaml_that_is_broken_or_does_more_than_list_is_refused(tmp_path, text, message):
  path = tmp_path / 'topics.yml'
  path.write_text(text)
  with pytest.raises(UserError, match=message):
    rows.load_topics(path)
