"""The study of rounds: its settings on a scripted crew, random critics, rows of roles, verdicts and page."""

import json
import types

import ml_collections
import numpy as np
import pytest

from intersyn_jax.data import roles
from intersyn_jax.data.storyworld import story
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import text_of
from intersyn_jax.studies import STUDIES, seir_rounds
from intersyn_jax.synthesis.interfaces import Address, Draw, Look, Rate, Reply, Write
from tests.synthesis import fake

CONFIG = ml_collections.ConfigDict(dict(
    seed=0, warmup=dict(long_steps=5), data=dict(source='storyworld', pixels=32, jitter=0, steps=(1, 2), objects=2),
    synthesize=dict(in_flight=8), evaluate=dict(bootstrap=50)))


class Parts:
  """Pictures as the tokenizer would give them: flat ones."""

  def conversations(self, split):
    return [story.conversation(0, i, split) for i in range(6)]

  def encode(self, pictures):
    return np.zeros((len(pictures), 4, 1), np.int32)

  def decode(self, codes):
    return np.zeros((len(codes), 32, 32, 3), np.uint8)


@pytest.fixture
def run():
  return types.SimpleNamespace(config=CONFIG, reporter=lambda stage, unit: lambda label, done, total: None)


def test_settings_differ_as_they_say_and_share_what_they_have_in_common(run):
  method, actor = fake.method(), fake.Actor(rows=8)
  rows = {row['setting']: row for row in seir_rounds.answer_rows(run, Parts(), fake.crew(actor), method, 0)}
  assert set(rows) == {*seir_rounds.settings(method), seir_rounds.RANDOM, seir_rounds.GATED_RANDOM}
  assert {'both,K=0', 'both,K=5', 'ar,K=3', 'ir,K=5', 'resample,K=3', 'gated,K=1', 'gated_ar,K=3', 'best,K=3'} <= set(rows)
  assert all(row['n'] == 6 and row['icc'] >= 0 and len(row['mean.ci95']) == 2 for row in rows.values())
  assert set(rows[seir_rounds.BOTH]['differences']) == {seir_rounds.FIRST, seir_rounds.RANDOM, seir_rounds.RESAMPLE}
  keys = [r for r in actor.requests if not isinstance(r, Rate)]
  # Once for all settings with critics of their own, and once more where random critics led elsewhere.
  assert sum(r.address.role == 'answer_write' and r.address.round == 0 for r in keys) == 6
  assert not [r for r in keys if r.address.role.startswith('question')]


def test_random_critics_say_what_was_right_elsewhere_or_nothing():
  inner = fake.Actor()
  wild = seir_rounds.RandomCritics(inner, {'answer_critique': ['a', 'b'], 'image_critique': ['c']})
  said = []
  for i in range(200):
    ticket = wild.prepare(Write(Address(str(i), 0, 'answer_critique'), ()))
    said += [reply.text for reply in wild.run(ticket.lane, ticket.size, [ticket])]
  assert set(said) == {'a', 'b', roles.STOP} and 70 < said.count(roles.STOP) < 130
  look = wild.prepare(Look(Address('0', 0, 'image_critique'), ()))
  assert wild.run(look.lane, 0, [look])[0].text in ('c', roles.STOP)
  assert not inner.requests
  other = wild.prepare(Write(Address('0', 0, 'answer_write'), ()))
  assert roles.parse_answer(wild.run(other.lane, other.size, [other])[0].text) and len(inner.requests) == 1


def test_suggestions_come_from_flawed_examples():
  found = seir_rounds.suggestions(CONFIG, 5)
  assert set(found) == {'question_critique', 'answer_critique', 'image_critique'}
  assert all(len(texts) == 5 and roles.STOP not in texts for texts in found.values())


def test_questions_are_scored_version_by_version(run, monkeypatch):
  monkeypatch.setattr(seir_rounds, 'QUESTIONS', 12)
  gold = 'show a red circle top left on sand . use one picture .'

  def answer(request):
    if request.address.role == 'question_write':
      return Reply('what')
    return Reply(gold) if request.address.role == 'question_revise' else fake.usual(request)

  rows = list(seir_rounds.question_rows(run, fake.crew(fake.Actor(answer)), fake.method(), 0))
  assert [row['setting'] for row in rows] == [f'question,K={k}' for k in range(6)]
  assert rows[0]['change'] == 0 and rows[1]['score'] > rows[0]['score'] and rows[5]['score'] == rows[1]['score']


def test_roles_are_counted_by_flaw(run, monkeypatch):
  monkeypatch.setattr(seir_rounds, 'EXAMPLES', 40)
  wanted = {}
  examples = seir_rounds._examples

  def remembered(config, role, count, split):
    made = examples(config, role, count, split)
    wanted.update({f'{role}-{i}': text_of(e.turns[0].answer) for i, e in enumerate(made)})
    return made

  monkeypatch.setattr(seir_rounds, '_examples', remembered)
  perfect = fake.Actor(lambda request: None if isinstance(request, Draw) else Reply(wanted[request.address.conversation]))
  for row in seir_rounds.role_rows(run, Parts(), fake.crew(perfect), 0):
    if row['setting'].endswith('critique'):
      assert row['flagged'] == float(row['flaw'] != '') and row['right'] == (1.0 if row['flaw'] else None)
    else:
      assert row['flagged'] is None and row['right'] == 1.0 and row['flaw']
  lazy = fake.Actor(lambda request: Reply('none'))
  rows = list(seir_rounds.role_rows(run, Parts(), fake.crew(lazy), 0))
  assert {row['flagged'] for row in rows if row['setting'].endswith('critique')} == {0.0}
  assert {row['right'] for row in rows if row['setting'].endswith('revise')} == {0.0}


def made_up(seed, gain):
  near = lambda value: {'difference': value, 'ci95': [value - 0.1, value + 0.1]}
  names = [*seir_rounds.settings(fake.method()), seir_rounds.RANDOM, seir_rounds.GATED_RANDOM]
  values = {d: 3.0 for d in ('tcc', 'icc', 'iq', 'its', 'mean')}
  rows = [{'setting': name, 'seed': seed, 'n': 5, **values, **{f'{d}.ci95': [2.9, 3.1] for d in values},
           'differences': {a: {d: near(gain) for d in values} for a, b in seir_rounds.PAIRS if b == name}} for name in names]
  rows += [{'setting': f'question,K={k}', 'seed': seed, 'n': 5, 'score': 8.0 + k, 'score.ci95': [7.0 + k, 9.0 + k],
            'change': gain * k, 'change.ci95': [gain * k - 0.1, gain * k + 0.1]} for k in range(6)]
  return [*rows, {'setting': 'role,answer_critique', 'seed': seed, 'flaw': '', 'n': 9, 'flagged': 0.25, 'right': None}]


def test_verdicts_and_page():
  lines = seir_rounds.verdicts(made_up(0, 0.2) + made_up(1, 0.2))
  assert len(lines) == sum(len(dimensions) for *_, dimensions in seir_rounds.CLAIMS) + 1
  assert all(line.startswith('holds') for line in lines)
  lines = seir_rounds.verdicts(made_up(0, 0.2) + made_up(1, 0.05))
  of = lambda text: [line for line in lines if text in line]
  assert all(line.startswith('DOES NOT HOLD') for line in of('above resample')) and of('above gated_resample')
  assert all(line.startswith('holds') for line in of('not below'))
  run = types.SimpleNamespace(summary=lambda stage: {'devices': '1 x cpu', 'versions': 'v'})
  text = seir_rounds.page(json.loads(json.dumps(made_up(0, 0.2))), run, 'the command')
  for part in ('the command', '| gated,K=3 | 0 | 5 | 3.00 ±0.10 |', '| question,K=3 | 0 | 5 | 11.00 ±1.00 |',
               '| answer_critique | (none) | 0 | 9 | 25% | - |'):
    assert part in text, part


def test_configuration_of_a_seed():
  mine = seir_rounds.of_seed(CONFIG, 2)
  assert (mine.seed, mine.warmup.long_steps) == (2, 5) and 'seir_rounds' in STUDIES
  other = ml_collections.ConfigDict(CONFIG.to_dict())
  other.data.source = 'opening'
  with pytest.raises(UserError, match=r'data\.source is storyworld'):
    seir_rounds.run(other, 'nowhere', (0,), 'x')
