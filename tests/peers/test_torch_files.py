"""PyTorch's own files: read as the same bits as safetensors, and never run."""

import pickle

import numpy as np
import pytest
import torch

from intersyn_jax.errors import UserError
from intersyn_jax.models.families import weights


class Trap:
  """Unpickled, it would make a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), 'w')


TENSORS = {
    'a.weight': torch.randn(3, 4), 'b.weight': torch.randn(4, 3).T, 'c.weight': torch.randn(5).half(),
    'd.weight': torch.randn(2, 3).bfloat16(), 'e.scale': torch.randn(()), 'f.count': torch.arange(3)}


def bits(tensor):
  return tensor.contiguous().view(torch.int16 if tensor.dtype == torch.bfloat16 else tensor.dtype).numpy().tobytes()


def test_the_same_bits(tmp_path):
  torch.save(TENSORS, tmp_path / 'pytorch_model.bin')
  torch.save({'state_dict': TENSORS, 'epoch': 3}, tmp_path / 'vqgan.ckpt')
  found = weights.open_tensors(tmp_path, files=('vqgan',))
  assert found.keys() == {*TENSORS, *(f'vqgan/{name}' for name in TENSORS)}
  for name, tensor in found.items():
    array, wanted = weights.read(tensor), TENSORS[name.removeprefix('vqgan/')]
    assert array.shape == tuple(wanted.shape) == tensor.shape and array.tobytes() == bits(wanted), name
    assert array.dtype == np.dtype(weights.KINDS[tensor.dtype])


@pytest.mark.parametrize('protocol', ['torch', 'pickle'])
def test_code_in_a_file_is_not_run(tmp_path, protocol):
  path, mark = tmp_path / 'pytorch_model.bin', tmp_path / 'mark'
  held = {'a.weight': torch.ones(2), 'b.weight': Trap(mark)}
  if protocol == 'torch':
    torch.save(held, path)
  else:
    path.write_bytes(pickle.dumps(held))
  with pytest.raises(UserError, match=r'pytorch_model\.bin: holds more than weights, or is damaged .*safetensors version'):
    weights.open_tensors(tmp_path)
  assert not mark.exists()


def test_damaged_files_are_named(tmp_path):
  path = tmp_path / 'pytorch_model.bin'
  torch.save(TENSORS, path)
  path.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(UserError, match='damaged'):
    weights.open_tensors(tmp_path)
  torch.save([torch.ones(2)], path)
  with pytest.raises(UserError, match='holds a list'):
    weights.open_tensors(tmp_path)
