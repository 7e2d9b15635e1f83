"""Files of torch.save: plain rows come out whole, a few at a time; programs are refused and never run."""

import os
import pickle
import pickletools
import tracemalloc
import zipfile

import pytest

from intersyn_jax.data.importers import plain_pickle
from intersyn_jax.errors import UserError


def torch_file(path, data, member='archive/data.pkl', compression=zipfile.ZIP_STORED):
  """What torch.save writes of a list without tensors: a zip with a pickle of protocol 2."""
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr(member, data if isinstance(data, bytes) else pickle.dumps(data, 2))
    archive.writestr('archive/version', '3\n')
  return path


def rows(count):
  shared = {'type': 'text', 'content': 'the same in all'}
  return [{'data_id': f'wiki_{i}', 'title': None if i % 3 else f'Crane {i} 鶴', 'numbers': [i, -i, i << 20, i << 40, i / 3],
           'step_info': [[shared, {'type': 'image', 'url': None, 'new': i % 2 == 0}], []]} for i in range(count)]


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('count', [0, 1, 2, 1500])
def test_plain_rows(tmp_path, protocol, count):
  path = torch_file(tmp_path / 'rows.pth', pickle.dumps(rows(count), protocol))
  assert plain_pickle.is_torch(path) and list(plain_pickle.entries(path)) == rows(count)


def test_only_a_few_rows_are_in_memory(tmp_path):
  """A pickle notes every value in case it comes again; what does not come again is not kept."""
  path = torch_file(tmp_path / 'rows.pth', [{'text': f'{i:06d}' * 500} for i in range(4000)])  # 12 MB in batches of 1000
  tracemalloc.start()
  assert sum(len(row['text']) for row in plain_pickle.entries(path)) == 4000 * 3000
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 6_000_000


class Program:
  """Makes a folder when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (self.path,)


@pytest.mark.parametrize('protocol', [0, 2, 4])
@pytest.mark.parametrize('place', ['alone', 'in a row', 'last'])
def test_programs_are_refused_and_do_not_run(tmp_path, protocol, place):
  trap = tmp_path / 'trap'
  program = Program(str(trap))
  bad = {'alone': program, 'in a row': [{'title': program}], 'last': [*rows(1200), program]}[place]
  path = torch_file(tmp_path / 'rows.pth', pickle.dumps(bad, protocol))
  with pytest.raises(UserError, match='holds the pickle opcode .* nothing of it was run'):
    next(plain_pickle.entries(path))
  assert not trap.exists()
  if place == 'alone':
    pickle.loads(pickle.dumps(bad, protocol))  # the trap does close
    assert trap.exists()


@pytest.mark.parametrize('opcode', sorted(o.name for o in pickletools.opcodes if o.name not in plain_pickle.OPCODES))
def test_every_other_opcode_is_refused(tmp_path, opcode):
  (found,) = [o for o in pickletools.opcodes if o.name == opcode]
  argument = b'' if found.arg is None else {pickletools.decimalnl_short: b'1\n', pickletools.stringnl: b"'a'\n"}.get(
      found.arg, b'1\n1\n' if found.arg.n < 0 else b'\0' * (found.arg.n if found.arg.n >= 0 else 9) + b'\0' * 8)
  path = torch_file(tmp_path / 'rows.pth', b'\x80\x02]' + found.code.encode('latin-1') + argument + b'.')
  with pytest.raises(UserError, match=f'opcode {opcode} |is damaged'):
    list(plain_pickle.entries(path))


LISTS = pickle.dumps(rows(3), 2)


@pytest.mark.parametrize('data', [
    b'', b'.', b'\x80\x02', b'\x80\x02].' + b'x' * 9, b'\x80\x02}.', b'\x80\x02N.', b'\x80\x02]]' + b'.',
    b'\x80\x02]a.', b'\x80\x02](',
    b'\x80\x02]e.', b'\x80\x02]h\x05a.', b'\x80\x02](q\x00e.', b'\x80\x02]Nu.', b'\x80\x02]}NNsa.', b'\x80\x02]}(Nua.',
    b'\x80\x02](}(X\x01\0\0\0aue.',
    b'\x80\x02]X\xff\xff\xff\x7fabc.', b'\x80\x02]\x8d' + b'\xff' * 8 + b'abc.', b'\x80\x02]X\x02\0\0\0\xff\xfea.',
    LISTS[:-40], LISTS[:300],
])
def test_nonsense_ends_in_one_line(tmp_path, data):
  path = torch_file(tmp_path / 'rows.pth', data)
  try:
    assert list(plain_pickle.entries(path)) == []
  except UserError as error:
    assert 'rows.pth' in str(error) and '\n' not in str(error) and len(str(error)) < 500


def test_values_that_hold_themselves(tmp_path):
  one = {'title': 'x'}
  one['step_info'] = [one]
  (found,) = plain_pickle.entries(torch_file(tmp_path / 'rows.pth', [one]))
  assert found['step_info'][0] is found
  whole = []
  whole.append(whole)
  assert list(plain_pickle.entries(torch_file(tmp_path / 'rows.pth', whole))) == [[]]


def test_zips_that_torch_did_not_write(tmp_path):
  for number, options in enumerate((dict(member='rows.jsonl'), dict(compression=zipfile.ZIP_DEFLATED))):
    path = torch_file(tmp_path / f'{number}.zip', [], **options)
    with pytest.raises(UserError, match='none of torch.save'):
      list(plain_pickle.entries(path))
  path = torch_file(tmp_path / 'c.pth', rows(50))
  data = bytearray(path.read_bytes())
  data[200] ^= 255  # its checksum is wrong now
  path.write_bytes(data)
  with pytest.raises(UserError, match='c.pth is damaged'):
    list(plain_pickle.entries(path))
  path.write_bytes(data[:-30])
  assert not plain_pickle.is_torch(path)
