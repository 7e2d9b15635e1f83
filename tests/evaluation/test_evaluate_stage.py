"""The stage `evaluate`: its files, and that a killed stage ends with the same ones."""

import json
import types
from typing import ClassVar

import jax
import ml_collections
import numpy as np
import pytest

from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import Decoder
from intersyn_jax.errors import UserError
from intersyn_jax.interleave import layout
from intersyn_jax.stages import evaluate, report
from intersyn_jax.stages.common import Run
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
  decoders: ClassVar[dict] = {}

  def __init__(self, run):
    self.encode, self.decode = self.codec.encode, self.codec.decode

  def conversations(self, split):
    return world.gold(8, self.codec, 'test' if split == 'test' else 'policy', steps=1)

  def decoder(self, **overrides):
    key = str(overrides)
    if key not in self.decoders:
      config = DecodeConfig(**{'max_positions': 40, 'rows': 4} | overrides)
      self.decoders[key] = Decoder(self.model, self.layout, self.mesh, config)
    return self.decoders[key]

  def load(self, model, folder):
    return jax.tree.map(lambda a: a * 1.5, self.params) if 'grpo' in str(folder) else self.params

  def judge(self):
    """A judge that likes long answers; its parameters are a factor."""
    def score(factor, rows):
      length = (rows.modality != layout.PADDING).sum(axis=1, keepdims=True)
      return types.SimpleNamespace(whole=np.minimum(factor * length * np.ones(4), 5))

    return types.SimpleNamespace(jitted=score), 0.05


@pytest.fixture
def stage(monkeypatch):
  monkeypatch.setattr(evaluate, 'Parts', Parts)
  monkeypatch.setattr(Run, 'require', lambda self, *stages: None)
  monkeypatch.setattr(evaluate, 'trained', lambda run, policy: policy in ('warmup', 'grpo'))
  monkeypatch.setattr(evaluate, 'identity', lambda folder: folder.parent.name + WEIGHTS.get(folder.parent.name, ''))

  def start(workdir):
    one = Run(ml_collections.ConfigDict(CONFIG).lock(), workdir)
    return evaluate.run(one)
  return start


WEIGHTS: dict[str, str] = {}
"""What the checkpoint folders hold, beyond their names."""

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


def test_new_weights_are_evaluated_anew(stage, tmp_path, monkeypatch):
  stage(tmp_path)
  asked = []
  real = evaluate.answers_lib.write
  monkeypatch.setattr(evaluate.answers_lib, 'write', lambda *args, **options: asked.append(1) or real(*args, **options))
  stage(tmp_path)
  assert not asked
  monkeypatch.setitem(WEIGHTS, 'grpo', ' trained longer')
  stage(tmp_path)
  assert len(asked) == 5  # sampled, greedy, two skills, diversity; of grpo alone


def test_raw_scores_are_kept_for_studies(stage, tmp_path):
  stage(tmp_path)
  raw = evaluate.read_scores(tmp_path)
  scores = json.loads((tmp_path / 'evaluate' / 'scores.json').read_text())
  assert raw['warmup']['greedy']['truth'].shape == (6, 4)
  assert np.allclose(raw['grpo']['sampled']['truth'].mean(0)[1], scores['policies']['grpo']['sampled']['truth']['icc']['mean'])


def test_judge_scores_come_in_batches_and_failures_stay_nan():
  parts = Parts(None)
  conversations = parts.conversations('test')[:6]
  prompts = [layout.prompt(c, parts.layout) for c in conversations]
  made = evaluate.answers_lib.of_documents([layout.tokenise(c, parts.layout) for c in conversations], parts.layout, 90)
  batch = evaluate.answers_lib.joined(prompts, made, evaluate.answers_lib.room(prompts, 16))
  sizes = []

  def score(factor, rows):
    sizes.append(len(rows.text))
    length = (rows.modality != layout.PADDING).sum(axis=1)
    return types.SimpleNamespace(whole=np.repeat(np.where(length == 0, np.nan, factor * length)[:, None], 4, axis=1))

  whole = evaluate.judged(types.SimpleNamespace(jitted=score), 2.0, batch, 4)
  assert sizes == [4, 4] and whole.shape == (6, 4)
  np.testing.assert_array_equal(whole[:, 0], 2 * (batch.modality != layout.PADDING).sum(axis=1))
  batch.modality[1] = layout.PADDING
  whole = evaluate.judged(types.SimpleNamespace(jitted=score), 2.0, batch, 4)
  assert np.isnan(whole[1]).all() and np.isfinite(np.delete(whole, 1, axis=0)).all()


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
