"""Downloaded folders as users have them at their worst: one line that names the file and the mend, and nothing is run."""

import json
import shutil

import numpy as np
import pytest

from intersyn_jax import __main__ as cli
from intersyn_jax.errors import UserError
from intersyn_jax.models.families import table, weights
from tests.families import checkpoints


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A folder with nothing wrong."""
  root = tmp_path_factory.mktemp('whole') / 'down'
  checkpoints.write(root, 'chameleon')
  return root


@pytest.fixture
def root(whole, tmp_path):
  """A copy of it, to be damaged."""
  return shutil.copytree(whole, tmp_path / 'down')


@pytest.fixture
def mistake(capsys, tmp_path):
  """Converts a folder, which must end with exit code 2, and gives the one line that says why."""
  def convert(root, *flags, config='anole'):
    capsys.readouterr()
    code = cli.main(['convert', f'--config=configs/{config}.py:tiny', f'--workdir={tmp_path / "work"}', f'--from={root}', *flags])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert code == 2 and len(lines) == 1
    assert not (tmp_path / 'work' / 'convert' / 'family.json').exists()
    return lines[0]
  return convert


def rewrite(root, change):
  """Changes config.json."""
  fields = json.loads((root / 'config.json').read_text())
  change(fields)
  (root / 'config.json').write_text(json.dumps(fields))


def test_no_folder_and_no_config(root, mistake, tmp_path):
  assert 'is no folder' in mistake(tmp_path / 'nowhere')
  (root / 'config.json').unlink()
  assert 'config.json is missing' in mistake(root)
  (root / 'config.json').write_text('[1]')
  assert 'holds a list' in mistake(root)
  (root / 'config.json').write_text('[' * 100_000)
  assert 'not JSON' in mistake(root)


def test_families_are_recognised(tmp_path):
  for name, family in table.FAMILIES.items():
    for hf in family.sizes.values():
      assert table.recognise(tmp_path, hf).name == name


def test_an_unknown_family_is_told_with_what_was_seen(root, mistake):
  rewrite(root, lambda hf: hf.update(model_type='llama', architectures=['LlamaForCausalLM']))
  line = mistake(root)
  assert "model_type 'llama'" in line and 'LlamaForCausalLM' in line and '--family=NAME' in line
  assert "not of family chameleon: model_type is 'llama', not 'chameleon'" in mistake(root, '--family=chameleon')
  assert "no family 'best'" in mistake(root, '--family=best')


def test_plain_gemma_is_no_liquid(tmp_path):
  plain = {'model_type': 'gemma', 'vocab_size': 256000}
  with pytest.raises(UserError, match='vocab_size is 256000, not 264192'):
    table.forced('liquid', tmp_path, plain)
  with pytest.raises(UserError, match=r'no known family .*vocab_size 256000'):
    table.recognise(tmp_path, plain)


def test_the_configuration_of_another_family(root, mistake):
  assert "is of family chameleon, but config.family is 'emu3'" in mistake(root, config='emu3')
  assert "not of family emu3: model_type is 'chameleon'" in mistake(root, '--family=emu3', config='emu3')


def test_fields_of_config_json_that_make_no_sense(root, mistake):
  for change, words in ((dict(hidden_size='large'), 'hidden_size'), (dict(vocab_size=-1), 'vocab_size'),
                        (dict(num_hidden_layers=10**9), 'num_hidden_layers'), (dict(vq_config=[1]), 'vq_config')):
    before = (root / 'config.json').read_text()
    rewrite(root, lambda hf, change=change: hf.update(change))
    assert words in mistake(root)
    (root / 'config.json').write_text(before)


def test_another_size_than_config_json_says(root, mistake):
  rewrite(root, lambda hf: hf.update(intermediate_size=96))
  line = mistake(root)
  assert '6 of another shape (model.layers.0.mlp.gate_proj.weight is [80, 48] and should be [96, 48]' in line
  rewrite(root, lambda hf: hf.update(intermediate_size=80, num_hidden_layers=3))
  assert 'missing (model.layers.2.' in mistake(root)
  rewrite(root, lambda hf: hf.update(num_hidden_layers=1))
  assert 'unexpected (model.layers.1.' in mistake(root)


def test_damaged_weights(root, mistake):
  shard = sorted(root.glob('*.safetensors'))[1]
  data = shard.read_bytes()
  shard.write_bytes(data[:-10])
  assert f'{shard.name}: no complete safetensors file' in mistake(root)
  shard.unlink()
  assert f'{shard.name} is missing' in mistake(root)
  shard.symlink_to('/etc/hostname')
  assert 'leads out of' in mistake(root)
  shard.unlink()
  shard.write_bytes(data)
  index = root / 'model.safetensors.index.json'
  places = json.loads(index.read_text())['weight_map']
  index.write_text(json.dumps({'weight_map': {n: f for n, f in places.items() if f != shard.name}}))
  assert f'{shard.name} is not named by' in mistake(root)


def retyped(root, kind):
  """The same folder in one file, with some weights of another type."""
  found = weights.open_tensors(root)
  arrays = {name: weights.read(t) for name, t in found.items()}
  specs = {name: weights.Spec(t.dtype, t.shape) for name, t in found.items()}
  name = 'model.layers.0.mlp.gate_proj.weight'
  arrays[name], specs[name] = arrays[name].astype(weights.KINDS[kind]), weights.Spec(kind, specs[name].shape)
  for path in root.glob('model*'):
    path.unlink()
  weights.write_tensors(root, specs, iter(arrays.items()))


def test_surprising_types(root, mistake):
  retyped(root, 'F32')
  assert 'several types' in mistake(root) and '--dtype=float32' in mistake(root)
  assert '--dtype=int8 is no type of weights' in mistake(root, '--dtype=int8')
  retyped(root, 'I8')
  assert '1 not of type F32, F16, BF16 (model.layers.0.mlp.gate_proj.weight is I8)' in mistake(root)


def test_a_tokenizer_that_is_missing_or_damaged(root, mistake):
  (root / 'tokenizer.json').write_text('{"model": ')
  assert 'tokenizer.json' in mistake(root)
  (root / 'tokenizer.json').unlink()
  assert 'has no tokenizer.json' in mistake(root)


def test_a_hostile_chat_template(root, mistake):
  """It is run in a sandbox, and only where the configuration asks for it."""
  for hostile in ("{{ ''.__class__.__mro__[1].__subclasses__() }}", '{% for i in range(10**9) %}x{% endfor %}',
                  "{% import 'os' as os %}"):
    (root / 'chat_template.jinja').write_text(hostile)
    assert 'template' in mistake(root, '--config.template=checkpoint')


def test_no_decoder_of_pictures(root, mistake):
  """Chameleon's converted folders have an encoder alone; the original file, put beside, has all."""
  found = weights.open_tensors(root)
  arrays = {name: weights.read(t) for name, t in found.items()}
  kept = {name: a for name, a in arrays.items() if not name.startswith('model.vqmodel.decoder.')}
  specs = lambda some: {name: weights.Spec(kinds[a.dtype], a.shape) for name, a in some.items()}
  kinds = {np.dtype(kind): name for name, kind in weights.KINDS.items()}
  for path in root.glob('model*'):
    path.unlink()
  weights.write_tensors(root, specs(kept), iter(kept.items()))
  line = mistake(root)
  assert 'only a part of the image tokenizer' in line and 'put vqgan.ckpt or vqgan.safetensors' in line
  original = {name.removeprefix('model.vqmodel.'): a for name, a in arrays.items() if name.startswith('model.vqmodel.')}
  original['loss.discriminator.weight'] = np.ones(3, np.float32)
  weights.write_tensors(root, specs(original), iter(original.items()), stem='vqgan')
  work = root.parent / 'work'
  assert cli.main(['convert', '--config=configs/anole.py:tiny', f'--workdir={work}', f'--from={root}']) == 0
  assert cli.main(['export', '--config=configs/anole.py:tiny', f'--workdir={work}', f'--out={root.parent / "again"}']) == 0
  bits = lambda folder: {n: weights.read(t).tobytes() for n, t in weights.open_tensors(folder, files=('vqgan',)).items()}
  assert bits(root) == bits(root.parent / 'again')


def test_a_tied_head_that_is_stored_must_be_the_embedding(tmp_path, mistake):
  root = tmp_path / 'liquid'
  checkpoints.write(root, 'liquid')
  found = {name: weights.read(t) for name, t in weights.open_tensors(root).items()}
  kinds = {np.dtype(kind): name for name, kind in weights.KINDS.items()}
  for path in root.glob('model*'):
    path.unlink()
  found['lm_head.weight'] = found['model.embed_tokens.weight'] * 2
  weights.write_tensors(root, {n: weights.Spec(kinds[a.dtype], a.shape) for n, a in found.items()}, iter(found.items()))
  assert 'lm_head.weight differs from model.embed_tokens.weight' in mistake(root, config='liquid')


def test_where_to_export(whole, tmp_path, capsys):
  work = tmp_path / 'work'
  export = lambda *flags: cli.main(['export', '--config=configs/anole.py:tiny', f'--workdir={work}', *flags])
  assert export(f'--out={tmp_path / "again"}') == 2 and 'run the stage convert' in capsys.readouterr().err
  assert cli.main(['convert', '--config=configs/anole.py:tiny', f'--workdir={work}', f'--from={whole}']) == 0
  assert export() == 2 and '--out is missing' in capsys.readouterr().err
  assert export(f'--out={whole}') == 2 and 'not empty' in capsys.readouterr().err
  assert export(f'--out={tmp_path / "again"}', '--policy=grpo') == 2 and 'run its stage first' in capsys.readouterr().err
  assert export(f'--out={tmp_path / "again"}', '--policy=best') == 2 and 'no policy' in capsys.readouterr().err
  assert not list(tmp_path.glob('.*')) and not (tmp_path / 'again').exists()
