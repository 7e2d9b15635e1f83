"""The stage `evaluate`: its files, and that a killed stage ends with the same ones."""

import dataclasses
import json
import types

import jax
import ml_collections
import numpy as np
import pytest

from intersyn_jax.decoding.decoder import DecodeConfig, Decoder
from intersyn_jax.errors import UserError
from intersyn_jax.interleave import layout
from intersyn_jax.judge import model as judge_model
from intersyn_jax.judge.views import Widths
from intersyn_jax.stages import evaluate, report
from intersyn_jax.stages.common import Run
from intersyn_jax.training import checkpoints
from tests import small_model
from tests.evaluation import world

CONFIG = {
    'seed': 3, 'data': {'source': 'storyworld', 'pixels': 32, 'jitter': 0}, 'decode': {'rows': 4},
    'evaluate': {'prompts': 6, 'decodings': ('sampled', 'greedy'), 'bootstrap': 50, 'gallery': 2}}


class Parts:
  """Stands for `stages.parts.Parts`: a random small model as every policy, and an exact image codec."""

  layout = world.small_layout()
  codec = world.Codec()
  mesh = small_model.one_device()
  model = small_model.definition(layout)
  params = small_model.eager(model.init(jax.random.key(0), mesh), layout, begin=2.0)
  decoders: dict = {}

  def __init__(self, run):
    self.encode, self.decode = self.codec.encode, self.codec.decode

  def conversations(self, split):
    return world.gold(8, self.codec, 'test' if split == 'test' else 'policy', steps=1)

  def decoder(self, **overrides):
    key = str(overrides)
    if key not in self.decoders:
      self.decoders[key] = Decoder(self.model, self.layout, self.mesh, DecodeConfig(**{'max_positions': 40, 'rows': 4} | overrides))
    return self.decoders[key]

  def load(self, model, folder):
    return jax.tree.map(lambda a: a * 1.5, self.params) if 'grpo' in str(folder) else self.params

  @classmethod
  def judge(cls):
    if not hasattr(cls, '_judge'):
      config = small_model.definition  # the same sizes as the policies
      definition = judge_model.define(_model_config(config, cls.layout), 1)
      cls._judge = (judge_model.SynJudge(definition, cls.layout, Widths(96, 96, 120), 3),
                    definition.init(jax.random.key(1), cls.mesh))
    return cls._judge


def _model_config(_, layout_):
  from intersyn_jax.models.trunk import TrunkConfig
  from intersyn_jax.models.unified import ModelConfig
  sizes = TrunkConfig(width=32, layers=2, heads=4, kv_heads=2, head_width=8, mlp_width=64)
  return ModelConfig(sizes, layout_.tokenizer.size, layout_.block.places, 1, layout_.block.codebook, mix=4)


@pytest.fixture
def stage(monkeypatch):
  monkeypatch.setattr(evaluate, 'Parts', Parts)
  monkeypatch.setattr(Run, 'require', lambda self, *stages: None)
  monkeypatch.setattr(checkpoints, 'latest_step',
                      lambda folder: 5 if any(n in str(folder) for n in ('warmup/checkpoints', 'grpo')) else None)

  def start(workdir):
    one = Run(ml_collections.ConfigDict(CONFIG).lock(), workdir)
    return evaluate.run(one)
  return start


FILES = ('scores.json', 'by_steps.json', 'skills.json', 'gallery.jsonl')


def test_files_and_resume(stage, tmp_path, monkeypatch):
  metrics = stage(tmp_path / 'whole')
  folder = tmp_path / 'whole' / 'evaluate'
  scores = json.loads((folder / 'scores.json').read_text())
  assert list(scores['policies']) == ['chance', 'warmup', 'grpo']
  for policy in scores['policies'].values():
    assert set(policy) == {'sampled', 'greedy'}
    assert set(policy['sampled']['truth']) == {'tcc', 'icc', 'iq', 'its', 'mean'}
  assert scores['policies']['chance']['sampled']['truth']['tcc']['mean'] > 1
  assert metrics['grpo.sampled.truth.mean'] == scores['policies']['grpo']['sampled']['truth']['mean']['mean']
  assert {(d['a'], d['b']) for d in scores['differences']} == {('chance', 'warmup'), ('chance', 'grpo'), ('warmup', 'grpo')}
  skill = json.loads((folder / 'skills.json').read_text())
  assert set(skill['grpo']) == {'understanding', 'text_to_image', 'diversity', 'format'}
  assert skill['chance']['format']['sampled']['well_formed'] == 1
  notes = []
  gallery = report._gallery(tmp_path / 'whole', notes)
  assert not notes and len(gallery['cards']) == 2
  assert [p['name'] for p in gallery['cards'][0]['policies']] == ['warmup', 'grpo']

  # Killed in the middle of the second policy; the second start must not do the first one again.
  asked = []
  real = evaluate.answers_lib.write

  def write(*args, **options):
    asked.append(1)
    if len(asked) == 6:
      raise KeyboardInterrupt
    return real(*args, **options)

  monkeypatch.setattr(evaluate.answers_lib, 'write', write)
  with pytest.raises(KeyboardInterrupt):
    stage(tmp_path / 'cut')
  assert not (tmp_path / 'cut' / 'evaluate' / 'scores.json').exists()
  assert stage(tmp_path / 'cut') == metrics
  assert len(asked) < 6 + 10  # 2 policies need 5 each
  for name in FILES:
    assert (tmp_path / 'cut' / 'evaluate' / name).read_text() == (folder / name).read_text(), name


def test_raw_scores_are_kept_for_studies(stage, tmp_path):
  stage(tmp_path)
  raw = evaluate.read_scores(tmp_path)
  scores = json.loads((tmp_path / 'evaluate' / 'scores.json').read_text())
  assert raw['warmup']['greedy']['truth'].shape == (6, 4)
  assert np.allclose(raw['grpo']['sampled']['truth'].mean(0)[1], scores['policies']['grpo']['sampled']['truth']['icc']['mean'])


def test_a_failed_judge_is_no_number():
  parts = Parts(None)
  conversations = parts.conversations('test')
  prompts = [layout.prompt(c, parts.layout) for c in conversations]
  made = evaluate.answers_lib.of_documents([layout.tokenise(c, parts.layout) for c in conversations], parts.layout, 90)
  judge, params = parts.judge()
  batch = evaluate.answers_lib.joined(prompts, made, evaluate.answers_lib.room(prompts, 16))
  whole = evaluate.judged(judge, params, batch, 4)
  assert whole.shape == (8, 4) and np.isfinite(whole).all()
  narrow = dataclasses.replace(judge, widths=Widths(96, 4, 120))
  assert np.isnan(evaluate.judged(narrow, params, batch, 4)).all()


def test_mistakes(stage, tmp_path, monkeypatch):
  for field, value, words in (('prompts', 9, 'has 8 conversations'), ('decodings', ('loud',), "names 'loud'")):
    monkeypatch.setitem(CONFIG, 'evaluate', CONFIG['evaluate'] | {field: value})
    with pytest.raises(UserError, match=words):
      stage(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(evaluate, 'Parts', Parts)
    monkeypatch.setattr(Run, 'require', lambda self, *stages: None)


def test_policies_have_folders():
  run = types.SimpleNamespace(workdir=evaluate.epath.Path('w'))
  assert len({str(evaluate.policy_folder(run.workdir, name)) for name in evaluate.TRAINED}) == len(evaluate.TRAINED)
