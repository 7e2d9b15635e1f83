"""The peers of benchmark `data` read what ours reads: the same pictures, the same tokens."""

import pathlib

import numpy as np
import pytest

from intersyn_jax.benchmarks import data, data_peers
from intersyn_jax.data import images
from intersyn_jax.data.pipeline import Documents
from intersyn_jax.interleave.layout import TokenBatch
from intersyn_jax.interleave.types import images_of

SIZES = data.Sizes(pictured=5, coded=30, places=4, codebook=16, words=(2, 5), rows=4, length=128)


@pytest.fixture(params=data_peers.PEERS)
def peer(request, tmp_path: pathlib.Path):
  return request.param(tmp_path)


def batches(passes, monkeypatch):
  """What each pass sends to the device, by its name."""
  sent = []
  monkeypatch.setattr(data_peers.jax, 'device_put', lambda batch: sent.append(batch))
  found = {}
  for name, run in passes.items():
    run()
    found[name], sent[:] = list(sent), []
  assert [name.split(', ')[-1] for name in found] == ['0 workers', '1 workers', '2 workers']
  return found.values()


def documents_of(batch: TokenBatch):
  """Each document of a batch as bytes."""
  for row in range(len(batch['text'])):
    for number in range(1, batch['document'][row].max() + 1):
      mine = batch['document'][row] == number
      yield b''.join(np.ascontiguousarray(batch[name][row][mine]).tobytes() for name in data_peers.FIELDS if name != 'document')


def test_pictures(peer, monkeypatch):
  found = data.conversations(SIZES.pictured, SIZES, pictures=True)
  wanted = sorted(images.pixels(image.data).tobytes() for c in found for image in images_of(c.turns[0].answer))
  for sent in batches(peer.pictures(found, 2), monkeypatch):
    assert len(sent) >= 3 and sorted(picture.tobytes() for batch in sent for picture in batch) == wanted


def test_rows(peer, monkeypatch):
  found = data.conversations(SIZES.coded, SIZES, pictures=False)
  layout = data.layout_of(found, SIZES, 300)
  documents = Documents({'train': found}, layout, length=SIZES.length)
  whole = data._whole(documents, SIZES)
  fields = {name: getattr(whole, name) for name in data_peers.FIELDS}
  wanted = sorted(documents_of(fields))
  assert len(wanted) == SIZES.coded
  monkeypatch.setattr(data_peers.plan, 'WINDOW', 7)
  for passes in (peer.rows(whole, SIZES.rows), peer.documents(documents, SIZES.length),
                 peer.records(found, layout, SIZES.length)):
    for sent in batches(passes, monkeypatch):
      assert sorted(document for batch in sent for document in documents_of(batch)) == wanted
      assert all(batch[name].dtype == fields[name].dtype for batch in sent for name in data_peers.FIELDS)
