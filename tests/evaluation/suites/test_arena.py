"""Battles: the four verdicts, four rules for ties on a case worked out by hand, agreement, and no verdicts by lot."""

import json

import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.evaluation.suites import arena, opening, suite
from intersyn_jax.evaluation.suites.arena import Battle
from intersyn_jax.interleave.types import Text
from intersyn_jax.judge.served import Judgement
from tests.evaluation.suites import samples

# Worked out by hand: X won one and lost one against Y and tied three (ahead in two of them), and lost one against Z.
BATTLES = [Battle('1', 'X', 'Y', 'A'), Battle('2', 'X', 'Y', 'B'), Battle('3', 'X', 'Y', 'Tie(A)'),
           Battle('4', 'Y', 'X', 'Tie(B)'), Battle('5', 'Y', 'X', 'Tie(A)'), Battle('6', 'Z', 'X', 'A'),
           Battle('7', 'X', 'Z', '', 'no verdict')]


def row(battle, **more):
  return {'data_id': battle.question, 'model_A': {'id': '1', 'name': battle.a}, 'model_B': {'id': '2', 'name': battle.b},
          'winner': battle.winner} | more


def test_win_rates_by_hand():
  found = arena.win_rates(BATTLES, samples.BOOT)
  x = {rule: (found[f'X.{rule}'], found[f'X.{rule}.n']) for rule in arena.RULES}
  assert x == {'fdt': (3 / 6, 6), 'without_ties': (1 / 3, 3), 'ties_0': (1 / 6, 6), 'ties_05': (2.5 / 6, 6)}
  y = {rule: (found[f'Y.{rule}'], found[f'Y.{rule}.n']) for rule in arena.RULES}
  assert y == {'fdt': (2 / 5, 5), 'without_ties': (1 / 2, 2), 'ties_0': (1 / 5, 5), 'ties_05': (2.5 / 5, 5)}
  assert found['Z.fdt'] == 1 and found['Z.fdt.n'] == 1
  assert (found['X.battles'], found['X.failed'], found['Y.failed'], found['Z.failed']) == (7, 1, 0, 1)
  only_ties = arena.win_rates([Battle('1', 'X', 'Y', 'Tie(A)')], samples.BOOT)
  assert only_ties['X.without_ties'] is None and only_ties['X.without_ties.n'] == 0  # no battle without ties: no zero


def test_agreement_by_hand():
  people = [Battle('1', 'X', 'Y', 'A'),  # the same
            Battle('2', 'X', 'Y', 'A'),  # the opposite
            Battle('3', 'Y', 'X', 'Tie(B)'),  # a tie with X ahead, as the judge says
            Battle('4', 'Y', 'X', 'B'),  # X, where the judge says a tie with X ahead
            Battle('5', 'Y', 'X', 'Tie(B)'),  # a tie with X ahead, where the judge has Y ahead
            Battle('8', 'X', 'Y', 'A'),  # the judge has not seen it
            Battle('7', 'Z', 'X', 'A')]  # the judge has no verdict
  found = arena.agreement(BATTLES, people, samples.BOOT)
  assert (found['agreement.battles'], found['agreement.failed']) == (6, 1)
  assert (found['agreement.fdt'], found['agreement.fdt.n']) == (3 / 5, 5)
  assert (found['agreement.with_ties'], found['agreement.with_ties.n']) == (3 / 5, 5)
  assert (found['agreement.without_ties'], found['agreement.without_ties.n']) == (1 / 2, 2)


def test_an_unreadable_verdict_is_no_tie_by_lot(tmp_path):
  path = samples.put(tmp_path / 'b.json', [row(BATTLES[0]), row(BATTLES[1], winner='Neither'), row(BATTLES[2], winner=None),
                                           row(BATTLES[3], winner='Tie')])
  found = arena.read(path)
  assert [b.winner for b in found] == ['A', '', '', ''] and [b.reason for b in found] == ['', *['no verdict'] * 3]
  assert arena.win_rates(found, samples.BOOT)['X.fdt.n'] == 1


def test_files_of_battles(tmp_path):
  path = samples.put(tmp_path / 'b.json', [row(b) for b in BATTLES[:3]])
  assert arena.read(path) == BATTLES[:3] and arena.is_file_of_battles(path)
  assert not arena.is_file_of_battles(samples.put(tmp_path / 's.json', [{'data_id': '1', 'score': {}}]))
  swapped = Battle('1', 'Y', 'X', 'A')
  for rows, words in (([row(BATTLES[0]), row(swapped)], 'b.json, entry 2: question 1 has a verdict on Y and X already'),
                      ([row(BATTLES[0], model_A={})], 'entry 1: field model_A has no name'), ([], 'holds no battle'),
                      ([row(Battle('1', 'X', 'X', 'A'))], 'X fights itself'),
                      ([row(BATTLES[0], data_id=None)], 'field data_id')):
    with pytest.raises(UserError, match=words):
      arena.read(samples.put(tmp_path / 'b.json', rows))


def test_votes_need_a_plurality():
  rules = opening.PairRubric()
  judged = lambda *shares: rules.verdict(Judgement(shares, (0.0,) * 4))
  assert judged(2 / 3, 0, 1 / 3, 0).scores['A'] == 2 / 3
  assert judged(0.5, 0.5, 0, 0) == (None, 'replies disagree', False)
  assert rules.verdict(Judgement(None, None, 'no JSON')).scores is None


@pytest.mark.parametrize('found, reason', [
    ({}, 'verdict missing'), ({'verdict': 'C'}, 'none of the four'), ({'verdict': None}, 'none of the four'),
    ({'verdict': 'A', 'why': 'x'}, 'unknown names'), ({'verdict': ['A']}, 'none of the four')])
def test_replies_that_are_no_verdict(found, reason):
  with pytest.raises(ValueError, match=reason):
    opening.PairRubric().scores_in(found, arena.VERDICTS)


def test_what_the_log_holds_is_checked():
  rules = opening.PairRubric()
  good = rules.scores_in({'verdict': 'Tie(B)'}, arena.VERDICTS)
  assert good == {'A': 0, 'B': 0, 'Tie(A)': 0, 'Tie(B)': 1} and rules.kept(good) == good
  for bad in ({}, {**good, 'A': 1}, {'A': 1}, dict.fromkeys(arena.VERDICTS, 0)):
    with pytest.raises(ValueError, match='no verdict'):
      rules.kept(bad)


def test_places_are_drawn_and_undone():
  names = [str(n) for n in range(200)]
  drawn = [arena.swapped(n, 0) for n in names]
  assert 60 < sum(drawn) < 140 and drawn == [arena.swapped(n, 0) for n in names] != [arena.swapped(n, 1) for n in names]
  told = samples.scored(**{'A': 1.0, 'B': 0.0, 'Tie(A)': 0.0, 'Tie(B)': 0.0})
  assert arena.battle_of('1', ('X', 'Y'), told, swap=False) == Battle('1', 'X', 'Y', 'A')
  assert arena.battle_of('1', ('X', 'Y'), told, swap=True) == Battle('1', 'Y', 'X', 'A')
  lost = arena.battle_of('1', ('X', 'Y'), samples.FAILED, swap=False)
  assert lost.winner == '' and json.loads(json.dumps(arena.rows_of([lost])))[0]['winner'] is None


def test_both_answers_are_shown_in_their_order(tmp_path):
  of = opening.Opening(samples.opening(tmp_path, ('0101001',)))
  (conversation,) = of.conversations(suite.KEEP)
  item = suite.Asked(of.entries['0101001'], suite.answered(conversation, (Text('mine'),)))
  system, user = opening.PairRubric().messages(arena.Pair(item, (Text('mine'),), samples.step(2)), arena.VERDICTS, 224)
  told = [part.get('text', '<picture>') for part in user['content']]
  assert told[1:-1] == ['[Question 1]', 'tell 0101001', '<picture>', '[Answer of A]', 'mine', '[this answer has no picture]',
                        '[Answer of B]', 'step 2', '<picture>']
  assert 'correctness' in system['content'] and 'Tie(A)' in system['content']
