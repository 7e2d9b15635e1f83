"""Damaged files, as questions, answers or scores: one line that names the file, or an answer that is no answer."""

import itertools
import json

import hypothesis
import hypothesis.strategies as st
import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.evaluation import suites
from intersyn_jax.evaluation.suites import arena, opening, suite
from intersyn_jax.interleave.types import Image, Text
from tests.evaluation.suites import samples

LEAVES = st.none() | st.booleans() | st.integers(-3, 12) | st.floats() | st.sampled_from(
    ['SA-1', '0101001', '../../etc/passwd', 'https://x/y.png', 'a\0b', 'human', 'yes', '\ud800', '', 'Tie(A)', 'x' * 2000])
ANYTHING = LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(st.sampled_from(['id', 'x']), LEAVES, max_size=2)
MAKE = {'mmie': samples.mmie, 'interleaved_bench': samples.interleaved_bench, 'opening': samples.opening,
        'synjudge': samples.rated, 'pope': lambda folder: samples.pope(folder, ('random',)) / 'coco_pope_random.json',
        'seed_bench': samples.seed_bench, 'mm_vet': samples.mm_vet, 'geneval': samples.geneval}
ANSWERED = tuple(name for name in MAKE if name not in ('synjudge', 'geneval'))
QUIET = dict(max_examples=8, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
COUNT = itertools.count()


@st.composite
def damaged(draw, content):
  """A JSON value with something in it replaced, left out or repeated."""
  if draw(st.integers(0, 3)) == 0 or not isinstance(content, list | dict) or not content:
    return draw(ANYTHING)
  if isinstance(content, list):
    place = draw(st.integers(0, len(content) - 1))
    inner = draw(damaged(content[place]))
    return [*content[:place], *draw(st.sampled_from([[inner], [], [content[place]] * 2])), *content[place + 1:]]
  key = draw(st.sampled_from(sorted(content)))
  rest = {k: v for k, v in content.items() if k != key}
  return rest if draw(st.booleans()) and draw(st.booleans()) else rest | {key: draw(damaged(content[key]))}


def parsed(path):
  """A file of questions or answers as one JSON value."""
  text = path.read_text()
  try:
    return json.loads(text)
  except json.JSONDecodeError:
    return [json.loads(line) for line in text.splitlines()]


def tidy(error: UserError) -> None:
  assert '\n' not in str(error) and len(str(error)) < 4000


@pytest.mark.parametrize('name', MAKE)
@hypothesis.settings(**QUIET)
@hypothesis.given(data=st.data())
def test_damaged_questions(tmp_path, name, data):
  path = MAKE[name](tmp_path / f'q{next(COUNT)}')
  path = samples.put(path.with_suffix('.json'), json.dumps(data.draw(damaged(parsed(path)))))
  try:
    of = suites.opened(name, path)
  except UserError as error:
    tidy(error)
    return
  found = [conversation.id for conversation in of.conversations(suite.Look(4))]
  assert set(found) <= of.entries.keys() and len(set(found)) == len(found)
  assert set(found).isdisjoint(of.unusable) and len(found) + len(of.unusable) == len(of.entries)  # nothing is silently dropped
  assert all('\n' not in row.reason for row in of.rejected)


@pytest.mark.parametrize('name', ANSWERED)
@hypothesis.settings(**QUIET)
@hypothesis.given(data=st.data())
def test_damaged_answers(tmp_path, name, data):
  folder = tmp_path / f'a{next(COUNT)}'
  of = suites.opened(name, MAKE[name](folder / 'q'))
  answer = (Text('B'),) if name == 'seed_bench' else samples.step(1)
  (folder / 'a').mkdir()
  of.submit(folder / 'a', 'm', samples.Answers(dict.fromkeys(of.entries, answer)))
  path = sorted(folder.glob('a/*.json'))[0]
  samples.put(path, json.dumps(data.draw(damaged(parsed(path)))))
  try:
    given = of.submission(folder / 'a', suite.Look(4))
  except UserError as error:
    tidy(error)
    return
  for question in of.names():
    try:
      assert all(isinstance(s, Text | Image) for s in given.get(question))
    except (suite.Missing, suite.Unreadable) as error:
      assert 0 < len(str(error)) < 60  # a reason is a few words, since reasons are counted


@pytest.mark.parametrize('name', [n for n in MAKE if n not in ('pope', 'seed_bench')])
@hypothesis.settings(**QUIET)
@hypothesis.given(data=st.data())
def test_damaged_scores(tmp_path, name, data):
  folder = tmp_path / f's{next(COUNT)}'
  of = suites.opened(name, MAKE[name](folder / 'q'))
  official = {
      'mmie': [{'id': n, 'gpt_feedback': '### Score\n4'} for n in of.entries],
      'opening': [{'data_id': n, 'model': {'name': 'M'}, 'score': {c: {'Score': 4} for c in opening.CRITERIA}}
                  for n in of.entries],
      'synjudge': [{'id': n, 'labels': [1, 2, 3, 4]} for n in of.entries],
      'mm_vet': {n: {'score': [0.5, 1.0]} for n in of.entries},
      'geneval': [{'filename': f'x/{n}/samples/0000.png', 'correct': True} for n in of.entries]}
  plain = [{'id': n, 'scores': dict.fromkeys(of.dimensions, 1)} for n in of.entries]
  content = data.draw(st.sampled_from([plain, official.get(name, plain)]).flatmap(damaged))
  scores = samples.put(folder / 'scores.json', json.dumps(content))
  try:
    verdicts = of.verdicts_in(scores)
  except UserError as error:
    tidy(error)
    return
  assert all(v.scores is None or all(0 <= s <= of.top for s in v.scores.values()) for v in verdicts.values())
  json.dumps(of.summary(verdicts, samples.BOOT), allow_nan=False)


@hypothesis.settings(**QUIET)
@hypothesis.given(data=st.data())
def test_damaged_battles(tmp_path, data):
  rows = [{'data_id': str(n), 'model_A': {'name': 'X'}, 'model_B': {'name': 'Y'}, 'winner': 'A'} for n in range(3)]
  try:
    found = arena.read(samples.put(tmp_path / f'b{next(COUNT)}.json', json.dumps(data.draw(damaged(rows)))))
  except UserError as error:
    tidy(error)
    return
  assert all(battle.winner in ('', *arena.VERDICTS) for battle in found)
  json.dumps(arena.win_rates(found, samples.BOOT), allow_nan=False)
