"""Lists of topics and templates: flat or nested; empty files are mistakes, repetitions and placeholders are dropped."""

import json

import pytest

from intersyn_jax.data.importers import rows
from intersyn_jax.errors import UserError


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
