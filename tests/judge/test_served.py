"""The judge on a server: what it shows and asks, what counts as a judgement, failures as a state, and its log."""

import base64
import io
import json
import math
import types

import numpy as np
import PIL.Image
import pytest

from intersyn_jax import endpoint
from intersyn_jax.data import images
from intersyn_jax.endpoint import Endpoint, EndpointConfig
from intersyn_jax.errors import UserError
from intersyn_jax.interleave import layout
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn
from intersyn_jax.judge import rubric, served
from intersyn_jax.judge.served import Judgement, ServedJudge
from tests import small_model
from tests.loopback import Answer, Server, completion

NAMES = list(rubric.NAMES.values())


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(endpoint, 'FIRST_WAIT', 0.01)


def array(seed, height=32, width=32):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def shown(seed, **shape):
  return Image(images.png(array(seed, **shape)))


def conversation(*answer, name='c'):
  return Conversation(name, '', (Turn((Text('draw a red circle'),), answer),))


BOTH = conversation(Text('a circle'), shown(0), Text('it is red'), shown(1))


def scores(*values, names=NAMES):
  return completion(json.dumps(dict(zip(names, values, strict=True))))


def judge(server, log=None, samples=3, **fields):
  config = EndpointConfig(server.url, 'm', **dict(timeout=5.0, retries=1) | fields)
  return ServedJudge(Endpoint(config), samples=samples, log=log)


def alone(play, conversation=BOTH, **options):
  """The judgement of one conversation, the judge, and the requests."""
  with Server(play) as server:
    one = judge(server, **options)
    return one.judgements([conversation])[0], one, server.requests


def pictures_in(request):
  """The pictures of a request, decoded."""
  urls = [part['image_url']['url'] for part in request.body['messages'][1]['content'] if part['type'] == 'image_url']
  assert all(url.startswith('data:image/png;base64,') for url in urls)
  opened = [PIL.Image.open(io.BytesIO(base64.b64decode(url.split(',')[1]))) for url in urls]
  assert all(picture.format == 'PNG' for picture in opened)
  return [np.asarray(picture) for picture in opened]


def texts_in(request):
  return [part.get('text', '<picture>') for part in request.body['messages'][1]['content']]


def test_samples_are_averaged_and_have_seeds_of_their_own():
  found, one, requests = alone([scores(5, 4, 3, 2), scores(4, 4, 3, 0), scores(3, 4, 0, 1)])
  assert found.scores == pytest.approx((4, 4, 2, 1)) and found.reason == ''
  assert found.spread == pytest.approx((math.sqrt(2 / 3), 0, math.sqrt(2), math.sqrt(2 / 3)))
  assert len({request.body['seed'] for request in requests}) == 3
  assert one.summary() | {'cost': 0} == dict(
      judged=1, failed=0, reasons={}, bad_replies={}, from_log=0, log_ignored=0, requests_failed={}, requests=3, retries=0,
      replies=3, pictures=0, unmetered=0, input_tokens=300, output_tokens=30, cost=0, details={})


def test_the_request_holds_texts_and_pictures_in_order_and_the_schema():
  big = Image(images.png(array(5, 300, 224)))
  asked = Conversation('c', '', (
      Turn((Text('first'), shown(2)), (Text('only words'),)),
      Turn((Text('now draw'),), (Text('a circle'), shown(0), Text('it is red'), big))))
  _, _, requests = alone([scores(1, 1, 1, 1)], asked, samples=1)
  (request,) = requests
  assert texts_in(request)[1:-1] == [
      '[Question 1]', 'first', '<picture>', '[Answer 1]', 'only words', '[this answer has no picture]',
      '[Question 2]', 'now draw', '[Answer 2, to be graded]', 'a circle', '<picture>', 'it is red', '<picture>']
  context, circle, last = pictures_in(request)
  # Small pictures are enlarged by a whole factor, pixel by pixel.
  assert context.shape == circle.shape == (224, 224, 3)
  np.testing.assert_array_equal(circle[::7, ::7], array(0))
  np.testing.assert_array_equal(circle, array(0).repeat(7, axis=0).repeat(7, axis=1))
  np.testing.assert_array_equal(context[::7, ::7], array(2))
  np.testing.assert_array_equal(last, array(5, 300, 224))
  form = request.body['response_format']['json_schema']['schema']
  assert form['required'] == list(form['properties']) == NAMES and form['additionalProperties'] is False
  assert all(p == {'type': 'integer', 'enum': [0, 1, 2, 3, 4, 5]} for p in form['properties'].values())
  task = request.body['messages'][0]['content']
  assert all(f'{name}:' in task and f'"{name}": 0-5' in task for name in NAMES)
  mark = texts_in(request)[0]
  assert mark in task and texts_in(request)[-1] == mark.replace('<', '</')


def test_the_rubrics_zeros_are_not_asked_for():
  found, _, (request,) = alone([scores(4, names=NAMES[:1])], conversation(Text('only words')), samples=1)
  assert found.scores == (4, 0, 0, 0)
  assert list(request.body['response_format']['json_schema']['schema']['properties']) == NAMES[:1]
  assert '[this answer has no picture]' in texts_in(request)
  found, _, (request,) = alone([scores(3, 2, names=NAMES[1:3])], conversation(Text('  '), shown(0)), samples=1)
  assert found.scores == (0, 3, 2, 0) and '[this answer has no text]' in texts_in(request)
  assert 'text_content' not in request.body['messages'][0]['content']
  found, _, requests = alone([scores(5, 5, 5, 5)], conversation())
  assert found == Judgement((0, 0, 0, 0), (0, 0, 0, 0)) and not requests
  # A number that was not asked for is no reply.
  assert alone([scores(4, 4, 4, 4)], conversation(Text('only words')))[0].reason == 'unknown names'


@pytest.mark.parametrize(('answer', 'reason', 'requests'), [
    (scores(5, 6, 1, 1), 'score out of range', 9), (scores(5, -1, 1, 1), 'score out of range', 9),
    (scores(5, 4.0, 1, 1), 'score is no whole number', 9), (scores(5, True, 1, 1), 'score is no whole number', 9),
    (scores(5, '4', 1, 1), 'score is no whole number', 9), (scores(5, None, 1, 1), 'score is no whole number', 9),
    (scores(5, 4, 3, names=NAMES[:3]), 'scores missing', 9), (scores(1, 2, 3, 4, names='abcd'), 'scores missing', 9),
    (scores(1, 2, 3, 4, 5, names=(*NAMES, 'total')), 'unknown names', 9),
    (completion('5; 2; 1; 5'), 'no JSON', 9), (completion('https://example.com/scores.json'), 'no JSON', 9),
    (completion('{"text_content": "https://example.com/"}'), 'scores missing', 9),
    (completion('{"text_content": 5, ', finish='length'), 'cut short', 9), (completion(''), 'empty', 9),
    (Answer(b'', 429), 'rate limited', 6), (Answer(b'', 500), 'server error 500', 6),
    (Answer(json.dumps(scores(1, 1, 1, 1).body).encode()[:50]), 'no JSON', 6),
    (Answer(b'sorry', kind='text/html'), 'wrong content type', 3), (Answer(b'x' * 5000), 'too large', 3),
    (Answer(status=302, headers={'Location': 'http://127.0.0.1:1/'}), 'redirected', 3),
])
def test_failures_are_a_state_with_a_reason(answer, reason, requests):
  found, one, sent = alone([answer], max_response_bytes=2000)
  assert found == Judgement(None, None, reason)
  assert len(sent) == requests
  assert one.summary()['failed'] == 1 and one.summary()['reasons'] == {reason: 1}
  if requests == 9:
    assert one.summary()['bad_replies'] == {reason: 9} and len({r.body['seed'] for r in sent}) == 9


def test_a_bad_reply_is_asked_for_again_and_a_majority_decides():
  bad, good = completion('no'), scores(2, 2, 2, 2)
  assert alone([bad, bad, good], samples=1)[0].scores == (2, 2, 2, 2)
  assert alone([bad, bad, bad, good], samples=1)[0].reason == 'no JSON'
  assert alone([*[bad] * 3, good, good], max_parallel=1)[0].scores == (2, 2, 2, 2)
  assert alone([*[bad] * 6, good], max_parallel=1)[0].reason == 'no JSON'
  assert alone([*[bad] * 3, good], max_parallel=1, samples=2)[0].reason == 'no JSON'  # a half is no majority


def test_pictures_that_cannot_be_shown_are_failures_and_nothing_is_asked():
  for image, reason in ((Image(b'\x89PNG broken'), 'picture cannot be read'), (Image(), 'picture without pixels')):
    found, one, requests = alone([scores(5, 5, 5, 5)], conversation(Text('a circle'), image))
    assert found == Judgement(None, None, reason) and not requests and one.summary()['failed'] == 1


def test_arrays_order_and_counts():
  """Every answer gets its own score, whatever comes back first; failures are NaN there and counted."""
  def play(request):
    number = int(texts_in(request)[4].split()[-1])
    return Answer(b'', 500) if number == 3 else Answer(scores(number % 6, 0, 0, 0).body, delay=0.01 * (number % 3))

  asked = [conversation(Text(f'number {i}'), shown(0), name=str(i)) for i in range(8)]
  with Server(play) as server:
    one = judge(server, samples=2, max_parallel=4, input_price=1.0, output_price=10.0)
    ticks = []
    values, reasons = one.judge([*asked, asked[1]], ticks.append)
    assert values.dtype == np.float32 and values.shape == (9, 4)
    np.testing.assert_array_equal(values[:, 0], [0, 1, 2, np.nan, 4, 5, 0, 1, 1])
    assert reasons == ['', '', '', 'server error 500', *[''] * 5]
    assert ticks == list(range(1, 17))  # the answer that came twice was asked about once
    found = one.summary()
    assert (found['judged'], found['failed'], found['retries']) == (9, 1, 2)
    assert found['cost'] == pytest.approx(14 * (100 + 10 * 10) / 1e6)
    assert one.judge([])[0].shape == (0, 4)


def test_a_restarted_job_pays_for_nothing_twice(tmp_path):
  log = tmp_path / 'endpoint' / 'judgements.jsonl'
  asked = [conversation(Text(f'number {i}'), shown(i)) for i in range(4)]
  # The key runs out.
  with Server([*[scores(1, 2, 3, 4)] * 5, Answer(status=401)]) as server, pytest.raises(UserError):
    judge(server, log, samples=2, max_parallel=1).judge(asked)
  lines = log.read_bytes().splitlines()
  assert len(lines) == 5 and set(json.loads(lines[0])) == {'key', 'model', 'scores'}
  log.write_bytes(log.read_bytes()[:-20])  # killed while it wrote the last line
  with Server([scores(1, 2, 3, 4)]) as server:
    one = judge(server, log, samples=2)
    values, _ = one.judge(asked)
    assert len(server.requests) == 4 and one.summary()['from_log'] == 4 and one.summary()['log_ignored'] == 1
    np.testing.assert_array_equal(values, [[1, 2, 3, 4]] * 4)
    again = judge(server, log, samples=2)
    np.testing.assert_array_equal(again.judge(asked)[0], values)
    assert len(server.requests) == 4
    # Another model, other samples or another answer are other questions.
    other = ServedJudge(Endpoint(EndpointConfig(server.url, 'n')), samples=2, log=log)
    other.judge(asked[:1])
    judge(server, log, samples=3).judge(asked[:1])
    judge(server, log, samples=2).judge([conversation(Text('number 0'), shown(9))])
    assert len(server.requests) == 4 + 2 + 1 + 2


def test_what_stands_in_the_log_is_checked(tmp_path):
  log = tmp_path / 'log.jsonl'
  with Server([scores(1, 2, 3, 4)]) as server:
    judge(server, log, samples=1).judge([BOTH])
    row = json.loads(log.read_text())
    for change in ({'scores': row['scores'] | {'tcc': 9}}, {'scores': row['scores'] | {'tcc': '1'}}, {'scores': {'tcc': 5}},
                   {'scores': {}}, {'scores': [5, 5, 5, 5]}, {'scores': row['scores'] | {'total': 5}},
                   {'key': 7}, {'key': 'x.0'}):
      good = json.dumps(row | {'key': f'{"0" * 64}.0'})
      log.write_text(json.dumps(row | change) + f'\n[1]\nnull\n{good}\n')
      before = len(server.requests)
      assert judge(server, log, samples=1).judgements([BOTH])[0].scores == (1, 2, 3, 4)
      assert len(server.requests) == before + 1, change
    log.write_text('{"a": 1}\n{"a": 2}\n')
    with pytest.raises(UserError, match='holds no judgements'):
      judge(server, log)
    assert log.read_text() == '{"a": 1}\n{"a": 2}\n'


def test_from_a_configuration(monkeypatch):
  section = dict(url='http://127.0.0.1:1/v1', model='m', key_variable='', samples=5, prompts=64, timeout=3.0, bad_replies=1)
  one = ServedJudge.of(section, field='config.evaluate.endpoint')
  assert one.samples == 5 and one.bad_replies == 1 and one.endpoint.config.timeout == 3.0
  with pytest.raises(UserError, match=r'config\.evaluate\.endpoint\.samples is 0'):
    ServedJudge.of(section | {'samples': 0}, field='config.evaluate.endpoint')
  with pytest.raises(UserError, match=r'config\.evaluate\.endpoint\.model is empty'):
    ServedJudge.of(section | {'model': ''}, field='config.evaluate.endpoint')


def test_labelled_answers_as_conversations():
  written = small_model.plain()
  made = [small_model.conversation(written, seed) for seed in (0, 5)]
  documents = [layout.tokenise(c, written) for c in made]
  rows = types.SimpleNamespace(ids=['a', 'b'], generators=['gold', 'flaws'], documents=documents)
  calls = []

  def decode(codes):
    calls.append(len(codes))
    return codes.astype(np.uint8).reshape(-1, 2, 2, 1).repeat(3, axis=3)

  found = served.conversations_of(rows, written, decode)
  assert [c.id for c in found] == ['a', 'b'] and [c.generator for c in found] == ['gold', 'flaws'] and calls == [6]
  for mine, theirs in zip(found, made, strict=True):
    assert len(mine.turns) == 2
    for a, b in zip(mine.turns[0].answer, theirs.turns[0].answer, strict=True):
      if isinstance(a, Text):
        assert a.text.strip() == b.text.strip()
      else:
        np.testing.assert_array_equal(images.pixels(a.data)[..., 0].ravel(), b.codes.ravel())
