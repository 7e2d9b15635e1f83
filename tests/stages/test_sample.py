"""The stage `sample`: mistakes as one line, and what it shows."""

import io

import ml_collections
import numpy as np
import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.stages import sample
from intersyn_jax.stages.common import Run
from intersyn_jax.training import checkpoints


@pytest.fixture
def start(tmp_path, monkeypatch):
  monkeypatch.setattr(Run, 'require', lambda self, *stages: None)
  config = ml_collections.ConfigDict({
      'seed': 0, 'data': {'source': 'storyworld'}, 'decode': {'max_positions': 96}, 'warmup': {'row_length': 128},
      'finetune': {'row_length': 160}})
  return lambda **options: sample.run(Run(config.lock(), tmp_path, options))


def test_mistakes(start, monkeypatch):
  for options, words in (({'question': '  '}, '--question is empty'), ({'policy': 'best'}, 'no policy'),
                         ({'seed': 'x'}, '--seed=x is not a whole number'), ({'greedy': 'maybe'}, '--greedy=maybe'),
                         ({'question': 'show it'}, 'run its stage first')):
    with pytest.raises(UserError, match=words):
      start(**options)
  monkeypatch.setattr(checkpoints, 'latest_step', lambda folder: 3 if 'finetune' in str(folder) else None)
  with pytest.raises(UserError, match='policy grpo is not trained in .*: there are .*finetune'):
    start(question='show it')


def test_too_long_questions_are_refused(start, monkeypatch):
  from tests.evaluation import world
  monkeypatch.setattr(sample.Generator, 'of', lambda *parts, **decode: None)
  monkeypatch.setattr(sample, 'Parts', lambda run: type('Parts', (), {'layout': world.small_layout()}))
  with pytest.raises(UserError, match='and 64 is what'):
    start(question='show one picture . ' * 40)


def test_a_damaged_work_folder_is_named(tmp_path):
  (tmp_path / 'config.json').write_text('{"model": ')
  with pytest.raises(UserError, match='config.json: not JSON'):
    sample.Generator.from_workdir(tmp_path)


def test_strange_words_are_found():
  assert sample.strange_words('Given a small red circle on sand, paint the red circle blue. Show one picture.') == []
  assert sample.strange_words('paint a dragon , a dragon and a wizard') == ['dragon', 'wizard']


def test_folder_names():
  assert sample.slug('Show: ../../etc/passwd <b>?') == 'show-etc-passwd-b'
  assert sample.slug('???') == 'question' and len(sample.slug('word ' * 80)) <= 60


def test_terminal_look():
  picture = np.zeros((4, 3, 3), np.uint8)
  picture[0] = (255, 0, 0)
  steps = [sample.Step('a \x1b[31m', picture, 'step-1.png'), sample.Step('', None, '')]
  plain = io.StringIO()
  sample.show('what ?', steps, plain)
  assert plain.getvalue().splitlines() == [
      'question: what ?', 'step 1: a  [31m', 'step-1.png', 'step 2: (no text)', '(no picture)']
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  sample.show('what ?', steps, terminal)
  assert terminal.getvalue().count('▀') == 6 and '\x1b[38;2;255;0;0m\x1b[48;2;0;0;0m▀' in terminal.getvalue()


def test_files_escape_what_a_model_says(tmp_path):
  hostile = '<script>alert(1)</script>'
  folder = sample.epath.Path(tmp_path)
  (folder / 'step-3.png').write_bytes(b'old')
  sample._write(folder, hostile, [sample.Step(hostile, np.zeros((4, 4, 3), np.uint8), 'step-1.png')], policy='grpo',
                decoding='greedy', seed=0)
  page = (folder / 'index.html').read_text()
  assert hostile not in page and '&lt;script&gt;' in page
  import PIL.Image
  assert PIL.Image.open(tmp_path / 'step-1.png').size == (32, 32) and not (folder / 'step-3.png').exists()
