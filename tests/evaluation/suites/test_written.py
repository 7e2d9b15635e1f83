"""Answers of a policy in windows: whole or not at all, written once, the same after a cut."""

import json

import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites import mmie, suite, written
from intersyn_jax.evaluation.suites.written import Written
from intersyn_jax.interleave.types import Image, Text
from tests.evaluation.suites import samples

NAMES = tuple(f'SA-{n}' for n in range(5))
FACTS = {'policy': 'grpo', 'seed': 0}


class Model:
  """Answers with what it was asked, the seed and a picture; dies at a given window."""

  def __init__(self, count=1, dies=None):
    self.count, self.dies, self.asked = count, dies, []

  def __call__(self, group, seed):
    if len(self.asked) == self.dies:
      raise KeyboardInterrupt
    self.asked.append([c.id for c in group])
    said = lambda c, k: (Text(f'{c.turns[-1].question[0].text} {seed} {k}'), *samples.step(1)[1:])
    return [[suite.answered(c, said(c, k)) for k in range(self.count)] for c in group]


def go(tmp_path, model, **options):
  of = mmie.Mmie(samples.mmie(tmp_path, NAMES))
  kept = Written(tmp_path / 'answers', FACTS)
  written.write(of, kept, model, options.pop('refuse', lambda c: ''), look=suite.Look(8), window=2, seed=3, **options)
  return of, Written(tmp_path / 'answers', FACTS)


def test_a_cut_job_goes_on_and_ends_the_same(tmp_path):
  _, whole = go(tmp_path / 'whole', Model())
  with pytest.raises(KeyboardInterrupt):
    go(tmp_path / 'cut', Model(dies=2))
  assert not Written(tmp_path / 'cut' / 'answers', FACTS).complete
  second = Model()
  _, resumed = go(tmp_path / 'cut', second)
  assert second.asked == [['SA-4']]  # what was written is not written again
  assert all(resumed.get(n) == whole.get(n) for n in NAMES) and resumed.complete
  third = Model()
  go(tmp_path / 'cut', third)
  assert third.asked == []
  assert len({whole.get(n)[0].text.split()[-2] for n in ('SA-0', 'SA-2')}) == 2  # windows have seeds of their own


def test_a_half_written_window_is_written_again(tmp_path):
  go(tmp_path, Model())
  (tmp_path / 'answers' / 'complete.json').unlink()
  (tmp_path / 'answers' / 'window_00001.json').unlink()  # as if it had been cut between the answers and its note
  model = Model()
  _, found = go(tmp_path, model)
  assert model.asked == [['SA-2', 'SA-3']] and found.get('SA-3')[0].text.startswith('do SA-3')


def test_other_values_need_another_folder(tmp_path):
  go(tmp_path, Model())
  with pytest.raises(UserError, match='holds answers with seed=0, not 1; name another --out'):
    Written(tmp_path / 'answers', FACTS | {'seed': 1})


def test_questions_that_are_not_asked_have_their_reason(tmp_path):
  path = tmp_path / 'images' / 'q.png'
  _, found = go(tmp_path, Model(), refuse=lambda c: 'too long' if c.id == 'SA-1' else '')
  with pytest.raises(suite.Missing, match='too long'):
    found.get('SA-1')
  note = json.loads((tmp_path / 'answers' / 'window_00000.json').read_text())
  assert note == {'answers': ['SA-0'], 'unanswered': {'SA-1': 'too long'}}
  path.unlink()
  other = mmie.Mmie(tmp_path / 'mmie.json')
  kept = Written(tmp_path / 'none', FACTS)
  written.write(other, kept, Model(), lambda c: '', look=suite.Look(8), window=2, seed=3)
  again = Written(tmp_path / 'none', FACTS)
  assert set(again.unusable) == set(NAMES) and 'q.png' in again.unusable['SA-0']
  with pytest.raises(suite.Missing, match=suite.UNUSABLE):
    again.get('SA-0')


def test_several_answers_and_an_instruction(tmp_path):
  _, found = go(tmp_path, Model(count=2), instruction='Be brief.')
  texts = [found.get(f'SA-0/000{k}')[0].text for k in range(2)]
  assert texts[0].startswith('do SA-0\nlike this') and texts[0] != texts[1] and len(found) == 10
  asked = next(iter(mmie.Mmie(tmp_path / 'mmie.json').conversations(suite.Look(8))))
  said = written.instructed(asked, 'Be brief.')
  assert said.turns[-1].question[-1] == Text('Be brief.')  # behind a picture it is a text of its own
  assert isinstance(said.turns[-1].question[-2], Image) and written.instructed(asked, '') is asked


def test_an_empty_answer_is_an_answer(tmp_path):
  of = mmie.Mmie(samples.mmie(tmp_path, NAMES))
  kept = Written(tmp_path / 'answers', FACTS)
  silent = lambda group, seed: [[suite.answered(c, ())] for c in group]
  written.write(of, kept, silent, lambda c: '', look=suite.Look(8), window=2, seed=0)
  assert Written(tmp_path / 'answers', FACTS).get('SA-0') == ()
