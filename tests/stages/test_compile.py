"""The stage `compile`: what is read off a program, and the command line."""

from __future__ import annotations

import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from intersyn_jax.__main__ import main
from intersyn_jax.stages.aot import hlo, report, shapes, work
from tests.aot import goldens

LOOP = '''HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%condition (state: (s32[], bf16[8,16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(31)
  %state = (s32[], bf16[8,16]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (state.1: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %state.1 = (s32[], bf16[8,16]) parameter(0)
  %x = bf16[8,16]{1,0} get-tuple-element(%state.1), index=1
  %g = bf16[128,16] all-gather(%x), channel_id=1, replica_groups=mesh['a'=16,'b'=1] {'a'}, metadata={op_name="jit(f)/while/dot"}
  %reduce = f32[8,16]{1,0} all-reduce(%y), channel_id=2, replica_groups=[8,2]<=[2,8]T(1,0), to_apply=%add
  %two = s32[] constant(2)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %next = s32[] add(%i.1, %two)
  ROOT %out = (s32[], bf16[8,16]) tuple(%next, /*index=1*/%x)
}

%data (state.2: (s32[], bf16[8,16])) -> pred[] {
  %state.2 = (s32[], bf16[8,16]) parameter(0)
  ROOT %any = pred[] get-tuple-element(%state.2), index=1
}

%answers (state.3: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %permute = (bf16[4,16], bf16[4,16]) collective-permute-start(%x), channel_id=3, source_target_pairs={{0,1},{1,0}}
}

ENTRY %main (p: bf16[8,16]) -> bf16[8,16] {
  %p = bf16[8,16]{1,0} parameter(0)
  %first = (s32[], bf16[8,16]) while(%t), condition=%condition, body=%body
  %second = (s32[], bf16[8,16]) while(%t), condition=%data, body=%answers
  %scatter = f32[4,16]{1,0} reduce-scatter(%z), channel_id=4, replica_groups={{0,1},{2,3}}, dimensions={0}, to_apply=%add
  %clone = f32[4,16]{1,0} reduce-scatter(%z), channel_id=4, replica_groups={{0,1},{2,3}}, dimensions={0}, to_apply=%add
}
'''


def test_collectives_count_loops_and_leave_out_clones():
  # The counter of the first loop goes up to 31 by twos.
  found = {one.kind: one for one in hlo.collectives(LOOP, open_loops=100)}
  assert set(found) == {'all-gather', 'all-reduce', 'collective-permute', 'reduce-scatter'}
  gather = found['all-gather']
  assert (gather.count, gather.received, gather.group) == (16, 128 * 16 * 2 * 15 / 16, frozenset(range(16)))
  assert gather.where == 'jit(f)/while/dot'
  reduce = found['all-reduce']
  assert (reduce.count, reduce.received, reduce.group) == (16, 2 * 8 * 16 * 4 / 2, frozenset({0, 8}))
  assert (found['collective-permute'].count, found['collective-permute'].received) == (100, 4 * 16 * 2)
  assert (found['reduce-scatter'].count, found['reduce-scatter'].received) == (1, 4 * 16 * 4)


@pytest.mark.parametrize('written, group', [
    ("mesh['a'=16,'b'=1,'c'=4], device_ids=([4,16]T(1,0)) {'a'}", range(16)),
    ("mesh['a'=16,'b'=4], device_ids=([4,16]T(1,0)) {'b'}", (0, 16, 32, 48)),
    ("mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", (0, 2)),
    ("mesh['a'=4,'b'=16] {'b'}", range(16)), ("mesh['a'=2,'b'=2] {'a','b'}", range(4)),
    ('[2,32]<=[64]', range(32)), ('[8,2]<=[2,8]T(1,0)', (0, 8)), ('{{0,3},{1,2}}', (0, 3)), ('{}', (0,))])
def test_groups_in_every_way_that_they_are_written_in(written, group):
  text = f'%x), channel_id=7, replica_groups={written}, use_global_device_ids=true, metadata={{op_name="jit(f)"}}'
  assert hlo._group(text) == frozenset(group)


def test_groups_written_in_an_unknown_way_are_not_taken_for_none():
  with pytest.raises(ValueError, match='not known'):
    hlo._group("%x), replica_groups=mesh['a'=16] {'a':(1)4}, use_global_device_ids=true")


def test_work_counts_products_in_loops():
  def step(w, x):
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w[0], lambda: x)

  w, x = jnp.zeros((5, 8, 8)), jnp.zeros((4, 8))
  found = work.count(jax.make_jaxpr(step)(w, x))
  assert found.flops == 6 * 2 * 4 * 8 * 8
  assert found.traffic == 6 * 4 * (4 * 8 + 8 * 8 + 4 * 8)
  both = work.count(jax.make_jaxpr(jax.value_and_grad(lambda w, x: step(w, x).sum()))(w, x))
  assert both.flops == pytest.approx(3 * found.flops, rel=0.2), 'a gradient takes twice as much again'

  def written(w, x):
    return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ w[0], x)

  assert work.count(jax.make_jaxpr(written)(w, x), rounds=7).flops == 7 * 2 * 4 * 8 * 8


def test_a_published_size_needs_no_files():
  from intersyn_jax.stages import settings
  config = settings.load_config('configs/vila_u.py').lock()
  parts = shapes.Shapes(config, jax.devices())
  assert parts.layout.block.places == 256 and parts.layout.block.depth == 4
  assert parts.model_config.vocabulary == 32_008, 'four rows for the tags behind the checkpoint'
  total = sum(a.size for a in jax.tree.leaves(parts.load(parts.model)))
  assert total == pytest.approx(7.3e9, rel=0.01)
  assert {a.dtype.name for a in jax.tree.leaves(parts.load(parts.model))} == {'bfloat16'}
  assert shapes.Shapes(settings.load_config('configs/storyworld.py:tiny').lock(), jax.devices()).model_config.vocabulary == 768


def test_settings_for_pods_follow_the_model():
  from intersyn_jax.stages import settings
  small, large = (settings.load_config(f'configs/{name}@v5e') for name in ('vila_u.py:7b-256', 'emu3.py:8b'))
  assert (small.warmup.log_prob_chunk, large.warmup.log_prob_chunk) == (0, 1024), 'logits of a large vocabulary come in chunks'
  writing = settings.load_config('configs/vila_u.py:7b-256@v5e-rollout')
  assert (small.mesh.tensor, writing.mesh.tensor) == (1, 8)
  assert shapes.Shapes(small.lock(), jax.devices()).model_config.head_remat == ''
  assert shapes.Shapes(writing.lock(), jax.devices()).model_config.head_remat == 'none'


@pytest.fixture(autouse=True)
def same_settings():
  """The stage sets the whole process to its level; the tests after it go on at theirs."""
  names = ('jax_optimization_level', 'jax_enable_compilation_cache')
  before = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)


TPU = pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='the extra tpu is not installed')


@TPU
@pytest.mark.parametrize('flags,told', [
    (['--topology=v9:4x4'], 'v5e:4x4'), ([], 'v5e:4x4'), (['--topology=v5p:4x4'], '3 axes'),
    (['--topology=v5e:3x3'], 'v5e:16x16'),
    (['--topology=v5e:4x4', '--stage=evaluate'], 'warmup'), (['--topology=v5e:4x4', '--level=O9'], 'O1'),
    (['--topology=v5e:4x4', '--stage=warmup', '--config.warmup.rows=3'], 'config.warmup.rows')])
def test_a_mistake_is_one_line(capfd, flags, told):
  assert main(['compile', '--config=configs/storyworld.py:smoke', *flags]) == 2
  error = capfd.readouterr().err.splitlines()
  assert told in error[-1] and error[-1].startswith('error: ')


def test_without_the_extra_it_says_so(capfd, monkeypatch):
  real = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: None if name == 'libtpu' else real(name, *a))
  assert main(['compile', '--config=configs/storyworld.py:smoke', '--topology=v5e:4x4']) == 2
  assert 'install the extra tpu' in capfd.readouterr().err


@TPU
@pytest.mark.parametrize('case', goldens.QUICK, ids=lambda case: case.name)
def test_memory_and_collectives_are_what_they_were(case):
  """The quickest of `make test-aot`."""
  then = goldens.golden(case).get(report.versions())
  if then is None:
    pytest.skip(f'nothing to compare with for {report.versions()}: python tests/aot/goldens.py {case.name}')
  assert not list(goldens.differences(goldens.found(case), then))


@TPU
def test_the_report_tells_memory_collectives_and_time(capsys, tmp_path):
  out = tmp_path / 'found.json'
  flags = ['--topology=v5e:2x4', '--stage=decode', '--level=O1', f'--out={out}', '--config.decode.max_positions=16',
           '--config.decode.rows=8', '--config.model.layers=1']
  assert main(['compile', '--config=configs/storyworld.py:smoke', *flags]) == 0
  told = capsys.readouterr().out
  for word in ('decode: compiled in', 'fits', 'memory a chip', 'collectives', 'estimated step', 'estimated MFU', 'step = max('):
    assert word in told
  program, = json.loads(out.read_text())['stages']['decode']['programs']
  assert program['fits'] and 0 < program['total'] < 1e9
  assert program['step'] == max(program['compute'], program['memory'], program['links'])
