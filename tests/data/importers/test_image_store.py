"""Pictures found by the address they came from, and stores made of what img2dataset wrote."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from intersyn_jax.data.importers import image_store
from intersyn_jax.errors import UserError

URL = 'https://cdn.example.org/a/b%20c.jpg?w=3'
DIGEST = hashlib.sha256(URL.encode()).hexdigest()


@pytest.mark.parametrize('name', [f'{DIGEST[:2]}/{DIGEST}.jpg', f'{DIGEST}.webp', DIGEST, 'cdn.example.org/a/b%20c.jpg?w=3'])
def test_names_that_count(tmp_path, name):
  (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
  (tmp_path / name).write_bytes(b'x')
  assert image_store.find(URL, tmp_path) == name


@pytest.mark.parametrize(('name', 'address'), [
    ('b.jpg', 'http://example.org/a/b.jpg'), ('a/b.jpg', 'http://example.org/a/b.jpg'),
    ('example.org/b.jpg', 'http://example.org/a/../b.jpg'), ('b.jpg', 'http://../b.jpg'), ('b.jpg', 'file:///b.jpg'),
    ('b.jpg', 'http://[/b.jpg'), ('example.org', 'http://example.org'),
    (f'example.org/{"x" * 20}', f'http://example.org/{"x" * 3000}'),
])
def test_names_that_do_not(tmp_path, name, address):
  (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
  (tmp_path / name).write_bytes(b'x')
  with pytest.raises(ValueError, match='has no file named after it; nothing is fetched') as error:
    image_store.find(address, tmp_path)
  assert len(str(error.value)) < 400


@pytest.fixture
def downloaded(tmp_path):
  """A folder as img2dataset writes it: three pictures, one that failed, one note that is no JSON."""
  base = tmp_path / 'downloaded'
  for shard, key, url in (('00000', '000000000', URL), ('00000', '000000001', 'http://b/c.png'), ('00001', '000010000', None)):
    (base / shard).mkdir(parents=True, exist_ok=True)
    (base / shard / f'{key}.json').write_text(json.dumps({'url': url, 'key': key, 'status': 'success'}))
    (base / shard / f'{key}.jpg').write_bytes(key.encode())
  (base / '00000' / '000000002.json').write_text(json.dumps({'url': 'http://gone/a.jpg', 'status': 'failed_to_download'}))
  (base / '00000' / '000000003.json').write_text('[' * 100_000)
  (base / '00000' / '000000003.jpg').write_bytes(b'x')
  return base


def test_what_img2dataset_wrote_becomes_a_store(tmp_path, downloaded):
  store = tmp_path / 'store'
  assert image_store.link(downloaded, store) == (2, 3)
  found = store / image_store.find(URL, store)
  assert found.read_bytes() == b'000000000' and os.stat(found).st_nlink == 2
  assert (store / image_store.find('http://b/c.png', store)).read_bytes() == b'000000001'
  assert image_store.link(downloaded, store) == (2, 3)  # again: nothing changes
  assert sum(len(files) for _, _, files in os.walk(store)) == 2


def test_copies_where_there_can_be_no_links(tmp_path, downloaded, monkeypatch):
  def refused(*_):
    raise OSError(18, 'Invalid cross-device link')

  monkeypatch.setattr(os, 'link', refused)
  assert image_store.link(downloaded, tmp_path / 'store') == (2, 3)
  assert (tmp_path / 'store' / image_store.find(URL, tmp_path / 'store')).read_bytes() == b'000000000'


def test_the_command(tmp_path, downloaded):
  run = lambda *a: subprocess.run([sys.executable, '-m', 'intersyn_jax.data.importers.image_store', *map(str, a)],
                                  capture_output=True, text=True)
  done = run(downloaded, tmp_path / 'store')
  assert done.returncode == 0 and done.stdout.startswith('2 pictures in ') and '3 without picture or address' in done.stdout
  done = run(tmp_path / 'nowhere', tmp_path / 'store')
  assert done.returncode == 2 and 'is no folder' in done.stderr and done.stderr.count('\n') == 1


def test_mistakes(tmp_path):
  with pytest.raises(UserError, match='give two folders'):
    image_store.main(['one'])
