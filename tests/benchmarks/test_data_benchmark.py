"""The benchmark of data: what it reads is whole, its rows say what was compared, and a window's share is that of its time."""

import numpy as np
import pytest

from intersyn_jax.benchmarks import BENCHMARKS, data, data_peers, rows
from intersyn_jax.benchmarks.rows import Options
from intersyn_jax.data import images, shards
from intersyn_jax.data.pipeline import Documents
from intersyn_jax.interleave.types import images_of
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.unified import ModelConfig

SMALL = data.Sizes(pictured=3, coded=12, places=4, codebook=16, words=(2, 5), rows=4, length=128)


def pictures_of(conversation):
  return images_of(conversation.turns[0].answer)


def test_records_are_conversations_with_pictures_or_codes():
  found = {kind: data.conversations(6, SMALL, pictures=kind) for kind in (True, False)}
  assert all(1 <= len(pictures_of(c)) <= 3 for kind in found.values() for c in kind)
  pictures = [image for c in found[True] for image in pictures_of(c)]
  assert all(images.pixels(image.data).shape == (data.SIDE, data.SIDE, 3) and image.codes is None for image in pictures)
  assert len({image.data for image in pictures}) == len(pictures), 'none is decoded for two'
  assert all(image.codes.shape == (4, 1) and not image.data for c in found[False] for image in pictures_of(c))
  assert data.conversations(6, SMALL, pictures=False) == found[False]


def test_every_case_gives_its_rows_without_peers(monkeypatch, tmp_path):
  monkeypatch.setattr(data_peers, 'installed', lambda folder: [])
  monkeypatch.setattr(data, 'layout_of', lambda found, sizes, vocabulary, make=data.layout_of: make(found, sizes, 300))
  found = list(data._read(Options(runs=1), tmp_path, SMALL))
  assert 'data' in BENCHMARKS
  assert [(r['case'].split(',')[0], r['metric'], r['unit']) for r in found] == [
      ('encoded images 256 pixels', 'records', '1/s'), *[('cached codes', 'positions', '1/s')] * 3]
  assert all(r['ours'] > 0 and r['peer'] is None and rows.line(r) for r in found)
  assert not list(data._read(Options(cases=('nothing',)), tmp_path, SMALL))


def test_the_quickest_of_each_peer_counts():
  order = []
  run = lambda name: (name, lambda: order.append(name))
  others = [dict([run('slow'), run('quick')]), dict([run('other')])]
  timed = {'slow': 4.0, 'quick': 2.0, 'other': 8.0}

  def seconds(*functions, runs):
    for function in functions:
      function()
    assert runs == 3
    return [1.0, *(timed[name] for name in order[1:])]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(data, 'seconds', seconds)
    found = list(data._compared('case', 'records', 100, lambda: order.append('ours'), others, 3))
  assert order == ['ours', 'slow', 'quick', 'other']
  assert [(r['ours'], r['peer'], r['peer_name'], r['ratio']) for r in found] == [
      (100.0, 50.0, 'quick', 2.0), (100.0, 12.5, 'other', 8.0)]


def test_a_pass_over_pictures_that_loses_one_is_an_error(tmp_path):
  found = data.conversations(3, SMALL, pictures=True)
  shards.write_split(tmp_path, 'train', found)
  data._pictures(tmp_path, found)
  with pytest.raises(RuntimeError, match='3 records'):
    data._pictures(tmp_path, [*found, found[0]])


def test_rows_packed_for_peers_hold_every_document():
  found = data.conversations(12, SMALL, pictures=False)
  documents = Documents({'train': found}, data.layout_of(found, SMALL, 300), length=SMALL.length)
  whole = data._whole(documents, SMALL)
  assert whole.text.shape[1] == SMALL.length and whole.document.any(axis=1).all()
  assert (whole.document > 0).sum() == documents.lengths.sum()


@pytest.mark.slow
def test_waiting_is_measured_in_the_loop_of_training():
  model = ModelConfig(TrunkConfig(width=32, layers=1, heads=2, kv_heads=2, head_width=16, mlp_width=64), 300, places=4, depth=1,
                      codebook=16)
  found = data._waiting('waiting here', data.Trained('here', model, SMALL._replace(rows=8), windows=2, steps=2))
  assert 0 < found['ours'] < 1 and found['unit'] == 'of the step' and found['runs'] == 2
  np.testing.assert_allclose(found['ratio'], data.GOAL / found['ours'])


def test_a_window_has_the_share_of_its_own_time(monkeypatch):
  clock = iter([10.0, 14.0, 24.0])
  monkeypatch.setattr(data.time, 'perf_counter', lambda: next(clock))
  batches = data._Timed(iter(()), None)
  windows = data._Windows(batches)
  for spent in (3.0, 4.0, 4.5):  # the first window holds the compilation
    batches.seconds = spent
    windows.write(0, {})
  assert windows.shares == [0.25, 0.05]
