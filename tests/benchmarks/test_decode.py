"""The benchmark of decoding: its command line, its rows, and that what it measures is what it says."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from intersyn_jax.benchmarks import __main__ as command
from intersyn_jax.benchmarks import decode, rows
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.layout import CODES, PADDING
from intersyn_jax.models.trunk import TrunkConfig

TINY = decode.Model('tiny', TrunkConfig(width=32, layers=2, heads=8, kv_heads=8, head_width=4, mlp_width=64), 64, places=4,
                    codebook=16)
FIELDS = {'case', 'metric', 'ours', 'peer', 'peer_name', 'ratio', 'floor_fraction', 'unit', 'runs', 'device', 'versions'}


def test_options():
  assert rows.options(['--out=a.json', '--cases=text,group', '--runs=3']) == rows.Options('a.json', ('text', 'group'), 3)
  assert rows.options([]).wants('anything') and not rows.Options(cases=('text',)).wants('images, 7M')
  for flags in (['--out'], ['--speed=1'], ['out=a'], ['--runs=0'], ['--runs=x']):
    with pytest.raises(UserError):
      rows.options(flags)


def test_a_ratio_above_one_is_better_either_way():
  slow = rows.row('c', 'm', 2.0, 'ms', 1, peer=6.0, peer_name='p', floor=1.0)
  assert set(slow) == FIELDS and slow['ratio'] == 3.0 and slow['floor_fraction'] == 0.5
  many = rows.row('c', 'm', 10.0, '1/s', 1, peer=5.0, peer_name='p', floor=40.0, less_is_better=False)
  assert many['ratio'] == 2.0 and many['floor_fraction'] == 0.25
  assert rows.row('c', 'm', 1.0, 'ms', 1)['ratio'] is None


def test_rows_are_written_whole(tmp_path, capsys):
  rows.write(str(tmp_path / 'a.json'), [rows.row('c', 'm', 2.0, 'ms', 1)])
  assert json.loads((tmp_path / 'a.json').read_text())[0]['case'] == 'c'
  with pytest.raises(UserError, match='there is no folder'):
    rows.write(str(tmp_path / 'no' / 'a.json'), [])
  assert command.main(['speed']) == 2 and 'there is no benchmark' in capsys.readouterr().err
  assert command.main([]) == 2 and command.main(['--help']) == 0
  assert command.main(['decode', '--cases=nothing']) == 2 and 'no case has such a name' in capsys.readouterr().err


@pytest.mark.slow
def test_cases_measure_what_they_say():
  text = list(decode._text('text', TINY, 8, 1))
  assert all(r['ours'] > 0 and r['floor_fraction'] > 0 and r['unit'] == 'ms' for r in text) and len(text) == 2
  images = list(decode._images('images', TINY._replace(depth=4), 8, 2.0, 1))
  assert [r['metric'] for r in images] == ['positions', 'images'] and all(r['ours'] > 0 for r in images)
  assert images[0]['ours'] / images[1]['ours'] > TINY.places


def test_rows_write_all_their_positions_and_images():
  params = decode._params(TINY)
  done = jax.device_get(decode._rollout(TINY, 8, params, max_positions=50, max_images=0, stop=('<pad>',))().tokens)
  assert (done.modality != PADDING).all() and not (done.modality == CODES).any()
  eager = decode._eager(params, TINY.layout)
  done = jax.device_get(decode._rollout(TINY, 8, eager, max_positions=200, max_images=4, stop=('<pad>',))().tokens)
  assert ((done.modality == CODES).sum(1) == 4 * TINY.places).mean() > 0.5


def test_the_floor_computes_every_product():
  """Each weight matters to what the loop gives, so that no product can be left out."""
  params = jax.tree.map(np.asarray, decode._params(TINY))
  before = np.asarray(decode._products(params, 8, 3)())
  assert np.isfinite(before).all() and not np.array_equal(before, np.asarray(decode._products(params, 8, 3, places=5)()))
  layers = params['backbone']['trunk']['layers']
  for name in ('query_kernel', 'key_kernel', 'value_kernel', 'out_kernel', 'gate_kernel', 'up_kernel', 'down_kernel'):
    changed = params | {'backbone': params['backbone'] | {'trunk': params['backbone']['trunk'] | {
        'layers': layers | {name: layers[name] * 1.5}}}}
    assert not np.array_equal(np.asarray(decode._products(changed, 8, 3)()), before), name


def test_help():
  done = subprocess.run([sys.executable, '-m', 'intersyn_jax.benchmarks', '--help'], capture_output=True, text=True, check=True)
  assert 'decode' in done.stdout and '--out=FILE.json' in done.stdout
