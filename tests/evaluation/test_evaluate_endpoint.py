"""The stage `evaluate` with a judge on a server: the first prompts alone, failures counted apart from what was not asked."""

import json

import ml_collections
import numpy as np
import pytest

from intersyn_jax import endpoint
from intersyn_jax.errors import UserError
from intersyn_jax.stages import evaluate
from intersyn_jax.stages.common import Run
from tests.evaluation import test_evaluate_stage as plain
from tests.loopback import Answer, Server, completion

ENDPOINT = dict(model='m', key_variable='', samples=2, prompts=4, retries=0, bad_replies=0, max_parallel=2, input_price=1.0)


@pytest.fixture
def start(monkeypatch):
  monkeypatch.setattr(evaluate, 'Parts', plain.Parts)
  monkeypatch.setattr(Run, 'require', lambda self, *stages: None)
  monkeypatch.setattr(evaluate, 'trained', lambda run, policy: policy == 'warmup')
  monkeypatch.setattr(evaluate, 'identity', lambda folder: folder.parent.name)
  monkeypatch.setattr(evaluate.Work, 'skills', lambda self, policy: {})  # they cost programs and have no part in this
  monkeypatch.setattr(endpoint, 'FIRST_WAIT', 0.01)

  def run(workdir, **fields):
    section = plain.CONFIG['evaluate'] | {'decodings': ('greedy',), 'endpoint': ENDPOINT | fields}
    return evaluate.run(Run(ml_collections.ConfigDict(plain.CONFIG | {'evaluate': section}).lock(), workdir))

  return run


def _good(request):
  """Scores that depend on the answer, for whatever dimensions are asked for."""
  names = request.body['response_format']['json_schema']['schema']['required']
  return completion(json.dumps(dict.fromkeys(names, len(json.dumps(request.body['messages'][1])) % 4 + 1)))


def test_the_first_prompts_are_judged_and_only_they_can_fail(start, tmp_path):
  asked = []

  def play(request):
    asked.append(json.dumps(request.body['messages'][1]))
    return Answer(b'', 503) if asked[-1] == asked[0] else _good(request)  # the first answer is never judged

  with Server(play) as server:
    metrics = start(tmp_path, url=server.url)
    count = len(asked)
    table = json.loads((tmp_path / 'evaluate' / 'scores.json').read_text())
    kept = json.loads((tmp_path / 'evaluate' / 'endpoint.json').read_text())
    assert set(kept) == {'chance.greedy', 'warmup.greedy'} and {len(rows) for rows in kept.values()} == {4}
    bad = [row for rows in kept.values() for row in rows if row['scores'] is None]
    assert bad and {row['reason'] for row in bad} == {'server error 503'}
    for policy in ('chance', 'warmup'):
      rows = kept[f'{policy}.greedy']
      good = [row['scores'] for row in rows if row['scores'] is not None]
      found = table['policies'][policy]['greedy']['endpoint']
      assert found['tcc']['n'] == len(good)  # not 6
      np.testing.assert_allclose([found[d]['mean'] for d in ('tcc', 'icc', 'iq', 'its')], np.mean(good, axis=0), rtol=1e-6)
      assert metrics.get(f'{policy}.greedy.endpoint.failures', 0) == 4 - len(good)
    assert any(d['scorer'] == 'endpoint' for d in table['differences'])
    assert metrics['endpoint.judged'] == 8 and metrics['endpoint.failed'] == len(bad)
    assert metrics['endpoint.reasons.server error 503'] == len(bad)
    assert metrics['endpoint.requests'] == count and metrics['endpoint.cost'] > 0
    json.dumps(metrics, allow_nan=False)
    # Made again, for the report say, only the failures are asked about once more.
    server._play = _good
    again = start(tmp_path, url=server.url)
    assert 0 < again['endpoint.requests'] <= 2 * len(bad) < count and again['endpoint.failed'] == 0
    total = lambda found: found['endpoint.requests'] + found['endpoint.from_log']
    assert total(again) == total(metrics)


def test_without_an_address_nothing_is_asked(start, tmp_path):
  metrics = start(tmp_path, url='')
  assert not any('endpoint' in name for name in metrics)
  assert not (tmp_path / 'endpoint').exists()
  assert 'endpoint' not in (tmp_path / 'evaluate' / 'scores.json').read_text()


def test_a_mistake_is_found_before_any_answer_is_written(start, tmp_path):
  with pytest.raises(UserError, match=r'config\.evaluate\.endpoint\.model is empty'):
    start(tmp_path, url='http://127.0.0.1:1/v1', model='')
  assert not (tmp_path / 'evaluate').exists()
