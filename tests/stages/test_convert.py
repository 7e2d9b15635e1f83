"""Stages `convert` and `export` by the command line: a folder in, a policy out, the same folder again."""

import json
import re

import jax
import numpy as np
import pytest

from intersyn_jax import __main__ as cli
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.errors import UserError
from intersyn_jax.models import unified
from intersyn_jax.models.families import folder, table, weights
from intersyn_jax.stages import convert, settings
from intersyn_jax.stages.common import Run
from intersyn_jax.stages.converted import folder_of
from intersyn_jax.stages.parts import Parts, policy_folder
from intersyn_jax.training import checkpoints as saved
from intersyn_jax.training import trees
from intersyn_jax.training.optimizer import OptimizerConfig
from tests.families import checkpoints

CONFIGS = {'chameleon': 'anole', 'emu3': 'emu3', 'janus': 'janus_pro', 'liquid': 'liquid', 'vila_u': 'vila_u'}
SIZES = [(family, size) for family in CONFIGS for size in table.FAMILIES[family].sizes if size != 'tiny']


def command(stage, family, workdir, *flags):
  return cli.main([stage, f'--config=configs/{CONFIGS[family]}.py:tiny', f'--workdir={workdir}', *map(str, flags)])


def bits(root, family):
  """Names of tensors, with types, shapes and bits."""
  found = weights.open_tensors(root, table.FAMILIES[family].folders)
  return {name: (t.dtype, t.shape, weights.read(t).tobytes()) for name, t in found.items()}


def files(root):
  """Everything but weights."""
  return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob('*'))
          if p.is_file() and 'safetensors' not in p.name}


def parts_of(family, workdir):
  return Parts(Run(settings.load_config(f'configs/{CONFIGS[family]}.py:tiny').lock(), workdir))


@pytest.fixture(scope='module')
def work(tmp_path_factory):
  """A downloaded folder and a work folder that it was converted in, of one family."""
  root = tmp_path_factory.mktemp('vila_u')
  checkpoints.write(root / 'down', 'vila_u')
  assert command('convert', 'vila_u', root / 'work', f'--from={root / "down"}') == 0
  return root


def test_of_vila_u(work, capsys):
  """Three folders, and rows that the layout adds: they are left out again, and a line says so."""
  assert command('export', 'vila_u', work / 'work', f'--out={work / "again"}') == 0
  assert '4 rows of the text table' in capsys.readouterr().err
  assert bits(work / 'down', 'vila_u') == bits(work / 'again', 'vila_u') and files(work / 'down') == files(work / 'again')


@pytest.mark.parametrize('family, dtype', [('chameleon', 'BF16'), ('emu3', 'F32'), ('janus', 'F16'), ('liquid', 'BF16')])
def test_what_is_exported_is_what_was_downloaded(tmp_path, family, dtype):
  checkpoints.write(tmp_path / 'down', family, dtype=dtype)
  assert command('convert', family, tmp_path / 'work', f'--from={tmp_path / "down"}') == 0
  summary = json.loads((tmp_path / 'work' / 'convert' / 'summary.json').read_text())
  assert summary['family'] == family and summary['unused'] > 0 and summary['dtype'] == convert.NAMES[dtype]
  assert command('export', family, tmp_path / 'work', f'--out={tmp_path / "again"}') == 0
  assert bits(tmp_path / 'down', family) == bits(tmp_path / 'again', family)
  assert files(tmp_path / 'down') == files(tmp_path / 'again')
  assert not list(tmp_path.glob('.*'))


def test_the_policy_is_there_for_other_stages(work):
  """Its weights are those of the folder, spread over the mesh; new rows are the mean of the words that they mean."""
  parts = parts_of('vila_u', work / 'work')
  params = trees.flat(parts.start())
  found = weights.open_tensors(work / 'down', table.FAMILIES['vila_u'].folders)
  read = lambda name: weights.read(found[name])
  np.testing.assert_array_equal(params['image_head/head'], read('vision_tower/rqtransformer.classifier_mlp.linear.weight').T)
  words = read('llm/model.embed_tokens.weight')
  table_ = np.asarray(params['backbone/text_embedding'])
  np.testing.assert_array_equal(table_[:len(words)], words)
  (name, ids), *_ = parts.layout.tokenizer.appended.items()
  assert name == '<think>' and parts.layout.special(name) == len(words)
  mean = words[list(ids)].astype(np.float32).mean(axis=0).astype(words.dtype)
  np.testing.assert_array_equal(table_[len(words)], mean)
  head = read('llm/lm_head.weight')[list(ids)].astype(np.float32).mean(axis=0).astype(words.dtype)
  np.testing.assert_array_equal(np.asarray(params['text_head'])[:, len(words)], head)
  assert {a.dtype for a in params.values()} == {words.dtype}
  assert len(params['text_head'].sharding.device_set) == len(jax.devices())
  assert parts.layout.block.depth == parts.model_config.depth == parts.checkpoint.codec.depth == 4


def test_a_policy_that_was_trained_is_exported(work, tmp_path):
  """What stands in its checkpoint stands in the files; the image tokenizer is as it was."""
  before = folder_of(work / 'work')
  doubled = {path: (a * 2).astype(a.dtype) for path, a in saved.read_params(before, saved.param_shapes(before))}
  pending = {path: saved.Pending(a.shape, a.dtype, lambda a=a: a) for path, a in doubled.items()}
  saved.save_params(policy_folder(work / 'work', 'warmup'), pending)
  assert command('export', 'vila_u', work / 'work', '--policy=warmup', f'--out={tmp_path / "trained"}') == 0
  before, after = bits(work / 'down', 'vila_u'), bits(tmp_path / 'trained', 'vila_u')
  assert before.keys() == after.keys()
  same = {name for name in before if before[name] == after[name]}
  assert 'llm/lm_head.weight' not in same and 'mm_projector/layers.0.bias' not in same
  assert {name for name in same if '.rotary_emb.' not in name} == {name for name in before if '/rqvaesiglip.' in name}


def test_a_second_conversion(work, capsys):
  """Complete means done, from the same folder; another one is told."""
  convert_again = lambda *flags: command('convert', 'vila_u', work / 'work', *flags)
  assert convert_again(f'--from={work / "down"}') == 0 and 'convert: complete' in capsys.readouterr().err
  assert convert_again() == 0
  assert convert_again(f'--from={work / "down"}', '--dtype=float16') == 2 and 'another --dtype' in capsys.readouterr().err
  assert convert_again('--config.hf={}') == 2  # no field of that name can be set from the command line


def test_a_cut_conversion_is_begun_again(tmp_path, monkeypatch):
  """Nothing of it counts as a policy, whatever was written before the cut."""
  checkpoints.write(tmp_path / 'down', 'liquid')
  go = lambda: command('convert', 'liquid', tmp_path / 'work', f'--from={tmp_path / "down"}')
  real, calls = saved.save_params, []

  def cut(where, *rest, **named):
    calls.append(where)
    if len(calls) == 2:
      raise KeyboardInterrupt
    real(where, *rest, **named)

  monkeypatch.setattr(saved, 'save_params', cut)
  assert go() == 130
  assert saved.latest_step(calls[0]) == 0 and not (tmp_path / 'work' / 'convert' / 'summary.json').exists()
  with pytest.raises(UserError, match='holds no converted checkpoint'):
    parts_of('liquid', tmp_path / 'work').start()
  monkeypatch.undo()
  assert go() == 0
  assert parts_of('liquid', tmp_path / 'work').layout.block.places == 16


def test_another_type(tmp_path):
  """float32 holds every bit of bfloat16, so that the way back is exact too."""
  checkpoints.write(tmp_path / 'down', 'liquid')
  assert command('convert', 'liquid', tmp_path / 'work', f'--from={tmp_path / "down"}', '--dtype=float32') == 0
  assert parts_of('liquid', tmp_path / 'work').model_config.param_dtype == 'float32'
  assert command('export', 'liquid', tmp_path / 'work', f'--out={tmp_path / "again"}') == 0
  assert bits(tmp_path / 'down', 'liquid') == bits(tmp_path / 'again', 'liquid')


@pytest.mark.parametrize('family, size', SIZES)
def test_shipped_configurations_fit_the_public_sizes(family, size):
  """Every parameter has its place in the checkpoint; the sections can be read; frozen patterns find something."""
  config = settings.load_config(f'configs/{CONFIGS[family]}.py:{size}')
  known = table.FAMILIES[family]
  hf = known.sizes[size]
  assert config.family == family and not known.contradiction(hf)
  model = known.model(hf)
  shapes = folder.flat(unified.define(model).shapes)
  assert len(folder.Part(shapes, known.entries(hf)).theirs()) > 200
  decode = DecodeConfig(**config.decode.to_dict())
  assert decode.max_positions > model.places and decode.guidance > 1
  for section in (config.warmup, config.finetune, config.grpo):
    for pattern in OptimizerConfig(**section.optimizer).frozen:
      assert any(re.search(pattern, path) for path in shapes)


@pytest.mark.slow
@pytest.mark.parametrize('family, size', SIZES)
def test_image_tokenizers_of_the_public_sizes(family, size):
  config, known = settings.load_config(f'configs/{CONFIGS[family]}.py:{size}'), table.FAMILIES[family]
  model, codec = known.model(known.sizes[size]), known.codec(known.sizes[size])
  assert (model.places, model.depth, model.codebook) == (codec.places, codec.depth, codec.codebook)
  assert config.data.pixels == codec.pixels
  assert folder.Part(folder.flat(codec.definition.shapes), codec.entries).theirs()


@pytest.mark.slow
@pytest.mark.parametrize('family', CONFIGS)
def test_from_a_folder_to_an_answer_and_on(tmp_path, family, capsys):
  """The commands of the configurations' docstrings, and training from the converted weights."""
  checkpoints.write(tmp_path / 'down', family)
  rows = []
  for i in range(8):
    checkpoints.picture(tmp_path / f'{i}.png', i)
    rows.append({'id': f'a{i}', 'topic': 't', 'conversations': [
        {'from': 'human', 'value': f'draw {i}'}, {'from': 'gpt', 'value': 'here', 'caption': 'c', 'image': f'{i}.png'}]})
  (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  go = lambda stage, *flags: command(stage, family, tmp_path / 'work', f'--config.data.path={tmp_path / "rows.jsonl"}', *flags)
  assert go('convert', f'--from={tmp_path / "down"}') == 0
  assert go('sample', '--question=draw a circle', '--seed=1') == 0
  assert 'step 1' in capsys.readouterr().out
  assert go('data') == 0 and go('tokenizer') == 0 and go('warmup') == 0
  assert go('export', '--policy=warmup', f'--out={tmp_path / "again"}') == 0
  assert bits(tmp_path / 'down', family).keys() == bits(tmp_path / 'again', family).keys()
