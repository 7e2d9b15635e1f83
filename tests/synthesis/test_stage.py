"""The stage: configuration to method, windows, resume, metrics, files."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from intersyn_jax.data import manifest, shards
from intersyn_jax.errors import UserError
from intersyn_jax.stages import synthesize
from intersyn_jax.stages.common import Run
from intersyn_jax.training.metrics import read_rows
from tests.synthesis import fake


def config(**fields) -> ConfigDict:
  return ConfigDict(dict(
      seed=3, data=dict(steps=(1, 2)), decode=dict(max_images=3), report=dict(conversations=2),
      synthesize=dict(
          conversations=20, window=8, in_flight=6, unrefined=True, rounds=dict(question=1, answer=1, image=2), accept='gated',
          enough=3.0, history_pictures=False, rate_finished=True, turns=(1, 2), word_limits=dict(question=50, caption=65),
          retries=1, topics='', templates='', duplicate_similarity=1.0, rows=8, rooms=dict(prompts=(96,)), shard_records=8,
          endpoints=dict(images=dict(url=''))) | fields))


class Parts:
  """Only what the stage itself takes of the parts: pictures of codes."""

  def __init__(self, run, devices):
    del run, devices

  def decode(self, codes: np.ndarray) -> np.ndarray:
    return np.broadcast_to(codes.astype(np.uint8)[:, :, :, None], (len(codes), 4, 1, 3)).copy()


@pytest.fixture
def scripted(monkeypatch):
  """Puts a scripted crew in the place of the writer; gives it back so that a test can make it stumble."""
  actor = fake.Actor()
  monkeypatch.setattr(synthesize, 'Parts', Parts)
  monkeypatch.setattr(synthesize, 'crew_of', lambda run, parts, method: fake.crew(actor))
  return actor


def files(folder):
  return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*'))
          if path.is_file() and 'tensorboard' not in str(path)}


def test_the_stage_writes_what_others_read(tmp_path, scripted):
  run = Run(config(), tmp_path)
  metrics = synthesize.run(run)
  assert metrics['conversations'] == metrics['unrefined'] == 20 and metrics['rejected'] == 0
  assert metrics['judge_mean_refined'] == metrics['judge_mean_unrefined'] == 3.25
  assert metrics['image_stop_1'] == 0 and metrics['image_stop_2'] == 1 and metrics['image_accept'] == 1
  refined = shards.open_split(tmp_path / 'synthesize' / 'data', 'refined')
  assert len(refined) == 20 and all(len(c.scores) >= 3 for c in refined)
  assert manifest.verify(tmp_path / 'synthesize' / 'data').splits['refined'].settings['seed'] == 3
  rows = [json.loads(line) for line in (tmp_path / 'synthesize' / 'traces.jsonl').read_text().splitlines()]
  assert len(rows) == 2 and all(row['turns'][0]['image_rounds'] for row in rows)
  assert [row['step'] for row in read_rows(tmp_path / 'synthesize' / 'metrics.jsonl')] == [8, 16, 24]


def test_a_run_that_is_cut_ends_as_an_undisturbed_one(tmp_path, scripted, monkeypatch):
  whole = synthesize.run(Run(config(), tmp_path / 'whole'))
  real, left = fake.Actor.run, [40]

  def stumble(self, *arguments):
    left[0] -= 1
    if left[0] < 0:
      raise KeyboardInterrupt
    return real(self, *arguments)

  for _ in range(3):  # cut in every window; nothing of a cut one is kept
    monkeypatch.setattr(fake.Actor, 'run', stumble)
    left[0] = 40
    with pytest.raises(KeyboardInterrupt):
      synthesize.run(Run(config(), tmp_path / 'cut'))
    monkeypatch.setattr(fake.Actor, 'run', real)
    monkeypatch.setattr(fake.Actor, 'run', real)
    done = len(list((tmp_path / 'cut' / 'synthesize' / 'windows').glob('window-*')))
  assert done < 3
  cut = synthesize.run(Run(config(), tmp_path / 'cut'))
  assert cut == whole
  one, two = (files(tmp_path / name / 'synthesize') for name in ('whole', 'cut'))
  assert one.keys() == two.keys() and [name for name in one if one[name] != two[name]] == []


def test_each_process_makes_windows_of_its_own(tmp_path, scripted, monkeypatch):
  """Here one after the other; test_processes.py starts real ones."""
  synthesize.run(Run(config(), tmp_path / 'one'))
  of = lambda run: sorted(path.name for path in (run.workdir / 'synthesize' / 'windows').iterdir())
  run = Run(config(), tmp_path / 'two')
  run.active = False
  with monkeypatch.context() as second:
    second.setattr(synthesize, 'barrier', lambda name: None)
    second.setattr(synthesize.jax, 'process_count', lambda: 2)
    second.setattr(synthesize.jax, 'process_index', lambda: 1)
    with pytest.raises(UserError, match='window-00000'):  # without the barrier it does not wait for the first process
      synthesize.run(run)
  assert of(run) == ['window-00001']
  synthesize.run(Run(config(), tmp_path / 'two'))
  one, two = (files(tmp_path / name / 'synthesize') for name in ('one', 'two'))
  assert [name for name in one if one[name] != two.get(name)] == []


def test_without_unrefined_ones_there_is_one_split(tmp_path, scripted):
  metrics = synthesize.run(Run(config(unrefined=False), tmp_path))
  assert metrics['conversations'] == 20 and metrics['unrefined'] == 0
  assert shards.splits(tmp_path / 'synthesize' / 'data') == ['refined']


def test_finished_windows_are_not_made_again(tmp_path, scripted):
  synthesize.run(Run(config(), tmp_path))
  asked = len(scripted.requests)
  again = synthesize.run(Run(config(), tmp_path))
  assert again['conversations'] == 20 and len(scripted.requests) == asked


def test_everything_rejected_ends_with_a_warning_and_reasons(tmp_path, scripted, capsys):
  scripted._answer = lambda request: fake.Reply('')
  metrics = synthesize.run(Run(config(), tmp_path))
  assert metrics['conversations'] == 0 and metrics['rejected'] == metrics['rejected_question_write'] == 20
  assert 'every conversation was rejected' in capsys.readouterr().err


def test_storyworld_topics_are_those_of_the_policy_split_and_templates_fit_the_turn(tmp_path):
  from intersyn_jax.data.storyworld import topics
  method, dropped = synthesize.method_of(Run(config(), tmp_path))
  assert {topics.split_of(topics.parse_topic(topic)) for topic in method.topics} == {'policy'} and not dropped
  assert all('*' in template for template in (*method.templates, *method.later_templates))
  assert not set(method.templates) & set(method.later_templates)


def test_files_of_topics_and_templates_lose_placeholders_and_repetitions(tmp_path):
  """Defect 7: the released code draws its dummy entries `...`."""
  (tmp_path / 'topics.json').write_text(json.dumps({'animals': {'cats': ['lynx', 'Lynx', 'puma']}}))
  (tmp_path / 'templates.json').write_text(json.dumps(['Do you know ***? Draw it.', '...', '...']))
  run = Run(config(topics=str(tmp_path / 'topics.json'), templates=str(tmp_path / 'templates.json')), tmp_path / 'work')
  method, dropped = synthesize.method_of(run)
  assert method.topics == ['animals/cats/lynx', 'animals/cats/puma']
  assert method.templates == method.later_templates == ['Do you know ***? Draw it.'] and len(dropped) == 3


@pytest.mark.parametrize(('fields', 'message'), [
    (dict(accept='newest'), 'config.synthesize.accept is'), (dict(enough=6), 'config.synthesize.enough is 6'),
    (dict(window=0), 'config.synthesize.window is 0'),
    (dict(topics='missing.json'), 'topics file missing.json cannot be read')])
def test_mistakes_are_named(tmp_path, fields, message):
  with pytest.raises(UserError, match=message):
    synthesize.method_of(Run(config(**fields), tmp_path))


def test_an_empty_topics_file_is_named(tmp_path):
  (tmp_path / 'topics.json').write_text('')
  with pytest.raises(UserError, match='topics.json is empty'):
    synthesize.method_of(Run(config(topics=str(tmp_path / 'topics.json')), tmp_path))
