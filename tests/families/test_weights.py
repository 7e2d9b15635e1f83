"""Tensors of downloaded folders: what is read is what was written, and nothing a folder holds is trusted."""

import json
import pickle
import struct

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from intersyn_jax.errors import UserError
from intersyn_jax.models.families import weights
from intersyn_jax.training import checkpoints, trees


def draw(*shape, dtype=np.float32, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


TENSORS = {'a.weight': draw(3, 4), 'b.weight': draw(5, dtype=np.float16), 'c.weight': draw(2, 3, dtype=ml_dtypes.bfloat16),
           'd.bias': draw(1, seed=1), 'e.scale': draw(),
           'f.count': np.arange(3), 'g.mask': np.array([True, False])}


def save(path, tensors):
  path.parent.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(tensors, path)


def raw(path, header, data=b'', length=None):
  """A safetensors file of exactly this header."""
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(text) if length is None else length) + text + data)


def entry(begin, end, shape=(2,), dtype='F32'):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': [begin, end]}


def shards(folder, **changes):
  """Two shards and their index; `changes` replace entries of the index."""
  names = list(TENSORS)
  save(folder / 'model-00001-of-00002.safetensors', {n: TENSORS[n] for n in names[:2]})
  save(folder / 'model-00002-of-00002.safetensors', {n: TENSORS[n] for n in names[2:]})
  places = {n: f'model-0000{1 + (i >= 2)}-of-00002.safetensors' for i, n in enumerate(names)}
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': places | changes}))


def same(found, wanted):
  assert found.keys() == wanted.keys()
  for name, tensor in found.items():
    array = weights.read(tensor)
    assert array.dtype == wanted[name].dtype and array.shape == wanted[name].shape
    assert array.tobytes() == wanted[name].tobytes(), name


def test_a_single_file_shards_and_folders_below_are_read_alike(tmp_path):
  save(tmp_path / 'one' / 'model.safetensors', TENSORS)
  same(weights.open_tensors(tmp_path / 'one'), TENSORS)
  (tmp_path / 'two').mkdir()
  shards(tmp_path / 'two')
  same(weights.open_tensors(tmp_path / 'two'), TENSORS)
  save(tmp_path / 'two' / 'vqgan.safetensors', {'decoder.weight': draw(2)})
  same(weights.open_tensors(tmp_path / 'two', files=('vqgan',)), TENSORS | {'vqgan/decoder.weight': draw(2)})
  same(weights.open_tensors(tmp_path, folders=('one', 'two')),
       {f'{folder}/{name}': value for folder in ('one', 'two') for name, value in TENSORS.items()})


@pytest.mark.parametrize('shard_bytes, files', [(10**9, 1), (50, 3), (1, len(TENSORS))])
def test_what_is_written_is_what_the_library_reads(tmp_path, shard_bytes, files):
  kinds = {np.dtype(kind): name for name, kind in weights.KINDS.items()}
  specs = {name: weights.Spec(kinds[a.dtype], a.shape) for name, a in TENSORS.items()}
  weights.write_tensors(tmp_path, specs, iter(TENSORS.items()), shard_bytes=shard_bytes)
  same(weights.open_tensors(tmp_path), TENSORS)
  paths = sorted(tmp_path.glob('*.safetensors'))
  assert len(paths) == files and (tmp_path / 'model.safetensors.index.json').exists() == (files > 1)
  for path in paths:
    with safe_open(path, 'numpy') as file:
      for name in file.keys():  # noqa: SIM118, it is no dictionary
        assert file.get_tensor(name).tobytes() == TENSORS[name].tobytes()


@pytest.mark.parametrize('header, data, length', [
    ({'a': entry(0, 8)}, b'\0' * 4, None),  # cut short
    ({'a': entry(0, 8)}, b'\0' * 40, None),  # more than the header tells
    ({'a': entry(0, 8), 'b': entry(4, 12)}, b'\0' * 12, None),  # overlapping
    ({'a': entry(4, 12)}, b'\0' * 12, None),  # a gap
    ({'a': entry(0, 8, (2**62, 2**62))}, b'\0' * 8, None),
    ({'a': entry(0, 8, (3,))}, b'\0' * 8, None),
    ({'a': entry(0, 8, dtype='F99')}, b'\0' * 8, None),
    (b'{}', b'', 1 << 40),  # a header longer than the file
    (b'{"a": ', b'', None),
])
def test_damaged_safetensors_files_are_named(tmp_path, header, data, length):
  raw(tmp_path / 'model.safetensors', header, data, length)
  with pytest.raises(UserError, match=r'model\.safetensors: no complete safetensors file .*download it again'):
    weights.open_tensors(tmp_path)


def test_strange_types_are_refused_by_name(tmp_path):
  raw(tmp_path / 'model.safetensors', {'a.weight': entry(0, 2, dtype='F8_E4M3')}, b'\0' * 2)
  found = weights.open_tensors(tmp_path)
  with pytest.raises(UserError, match=r'tensor a\.weight is stored as F8_E4M3'):
    weights.read(found['a.weight'])


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
  save(tmp_path / 'model.safetensors', {'a.weight': draw(3, 4)})
  found = weights.open_tensors(tmp_path)
  path = tmp_path / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:-8])
  with pytest.raises(UserError, match='could not be read whole'):
    weights.read(found['a.weight'])


def test_index_and_shards_must_tell_the_same(tmp_path):
  second = tmp_path / 'model-00002-of-00002.safetensors'
  for change, words in [
      ({'a.weight': '../model.safetensors'}, 'no plain file name'),
      ({'a.weight': '/etc/passwd'}, 'no plain file name'),
      ({'a.weight': 'sub/model.safetensors'}, 'no plain file name'),
      ({'a.weight': 'model-00003-of-00002.safetensors'}, 'is missing, .* names it'),
      ({'z.weight': second.name}, r'has no tensor z\.weight'),
      ({'a.weight': 7}, 'no weight_map'),
  ]:
    shards(tmp_path, **change)
    with pytest.raises(UserError, match=words):
      weights.open_tensors(tmp_path)
  shards(tmp_path)
  save(second, {n: TENSORS[n] for n in (*list(TENSORS)[2:], 'a.weight')})
  with pytest.raises(UserError, match=r'tensor a\.weight lies in both'):
    weights.open_tensors(tmp_path)
  shards(tmp_path)
  index = tmp_path / 'model.safetensors.index.json'
  places = json.loads(index.read_text())['weight_map']
  index.write_text(json.dumps({'weight_map': {n: f for n, f in places.items() if f != second.name}}))
  with pytest.raises(UserError, match=r'00002-of-00002\.safetensors is not named by'):
    weights.open_tensors(tmp_path)
  index.write_text('{"weight_map": ')
  with pytest.raises(UserError, match=r'index\.json: not JSON'):
    weights.open_tensors(tmp_path)
  index.unlink()
  with pytest.raises(UserError, match='but no index'):
    weights.open_tensors(tmp_path)


def test_older_names(tmp_path):
  save(tmp_path / 'model.safetensors', TENSORS)
  found = weights.open_tensors(tmp_path, older=[(r'^a\.', 'first.'), (r'^first', 'model.first')])
  assert set(found) == set(TENSORS) - {'a.weight'} | {'model.first.weight'}
  assert found['model.first.weight'].name == 'a.weight'
  with pytest.raises(UserError, match=r'tensor b\.weight lies in both'):
    weights.open_tensors(tmp_path, older=[(r'^a\.', 'b.')])


def test_links_stay_inside(tmp_path):
  save(tmp_path / 'elsewhere' / 'model.safetensors', TENSORS)
  folder = tmp_path / 'folder'
  folder.mkdir()
  (folder / 'model.safetensors').symlink_to(tmp_path / 'elsewhere' / 'model.safetensors')
  with pytest.raises(UserError, match=r'leads out of .*cp -rL'):
    weights.open_tensors(folder)
  (folder / 'llm').symlink_to(tmp_path / 'elsewhere')
  with pytest.raises(UserError, match='leads out of'):
    weights.open_tensors(folder, folders=('llm',))
  (folder / 'config.json').symlink_to('/etc/passwd')
  with pytest.raises(UserError, match='leads out of'):
    weights.read_json(folder / 'config.json', folder)
  (folder / 'model.safetensors').unlink()
  save(folder / 'blobs' / 'x', TENSORS)
  (folder / 'model.safetensors').symlink_to('blobs/x')  # inside it is fine
  same(weights.open_tensors(folder), TENSORS)


def test_a_folder_without_weights(tmp_path):
  with pytest.raises(UserError, match='holds no weights'):
    weights.open_tensors(tmp_path)
  (tmp_path / 'model.safetensors').mkdir()
  with pytest.raises(UserError, match='no regular file'):
    weights.open_tensors(tmp_path)


def test_pytorch_files_without_torch_ask_for_it(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'torch', None)
  (tmp_path / 'pytorch_model.bin').write_bytes(pickle.dumps({}))
  with pytest.raises(UserError, match='install the extra peers, or convert it to safetensors'):
    weights.open_tensors(tmp_path)


def test_parameters_are_written_a_few_at_a_time(tmp_path, monkeypatch):
  """What does not fit into a batch is made when the batch before it is on disk; the checkpoint is read as any other."""
  monkeypatch.setattr(checkpoints, '_TOGETHER_BYTES', 30)
  arrays = {'trunk/a': draw(4, 3, dtype=ml_dtypes.bfloat16), 'trunk/b': draw(5, seed=2), 'head': draw(2), 'bias': draw(3)}
  pending = {path: checkpoints.Pending(a.shape, a.dtype, lambda a=a: a) for path, a in arrays.items()}
  assert [len(some) for some in checkpoints._batches([p.nbytes for p in pending.values()])] == [1, 2, 1]
  checkpoints.save_params(tmp_path, pending)
  shapes = checkpoints.param_shapes(tmp_path)
  assert {p: (s.shape, s.dtype) for p, s in shapes.items()} == {p: (a.shape, a.dtype) for p, a in arrays.items()}
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = trees.nested({p: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place) for p, a in arrays.items()})
  loaded = trees.flat(checkpoints.load_params(tmp_path, like))
  again = dict(checkpoints.read_params(tmp_path, shapes))
  assert list(again) == list(shapes)
  for path, array in arrays.items():
    assert np.asarray(loaded[path]).tobytes() == array.tobytes() == again[path].tobytes()


def test_a_cut_save_leaves_no_checkpoint(tmp_path):
  def cut():
    raise UserError('the file has changed')

  pending = {'a': checkpoints.Pending((2,), np.dtype(np.float32), lambda: draw(2)),
             'b': checkpoints.Pending((2,), np.dtype(np.float32), cut)}
  with pytest.raises(UserError, match='changed'):
    checkpoints.save_params(tmp_path, pending)
  assert checkpoints.latest_step(tmp_path) is None
