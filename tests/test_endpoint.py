"""The client of chat servers: what it sends, which failures it retries, what ends the job, and that the key stays secret."""

import base64
import email.utils
import json
import logging
import time

import pytest

from intersyn_jax import endpoint
from intersyn_jax.endpoint import Endpoint, EndpointConfig, EndpointError
from intersyn_jax.errors import UserError
from tests.loopback import Answer, Server, completion

KEY = 'sk-very-Secret-0123456789'
ASK = [{'role': 'user', 'content': 'say hello'}]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(endpoint, 'FIRST_WAIT', 0.01)
  monkeypatch.setenv('TEST_KEY', KEY)
  for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
    monkeypatch.delenv(name, raising=False)


def client(server, **fields):
  return Endpoint(EndpointConfig(**dict(url=server.url, model='m', key_variable='TEST_KEY', timeout=5.0) | fields))


def failure(play, **fields):
  """The error of one chat, and what the endpoint counted."""
  with Server(play) as server:
    one = client(server, **fields)
    with pytest.raises(EndpointError) as caught:
      one.chat(ASK)
    return caught.value, one.counters()


def test_what_is_sent_and_counted(monkeypatch):
  monkeypatch.setenv('OPENAI_API_KEY', 'sk-another')
  monkeypatch.setenv('OPENAI_ADMIN_KEY', 'sk-admin')
  monkeypatch.setenv('OPENAI_ORG_ID', 'org-private')
  monkeypatch.setenv('OPENAI_PROJECT_ID', 'project-private')
  with Server([completion('hello', tokens=(1000, 20)), completion('again', tokens=None)]) as server:
    one = client(server, input_price=2.0, output_price=10.0)
    reply = one.chat(ASK, temperature=0.5, max_tokens=7, seed=3)
    assert (reply.text, reply.input_tokens, reply.output_tokens) == ('hello', 1000, 20)
    assert one.chat(ASK).input_tokens == 0
    sent = server.requests[0]
    assert sent.path == '/v1/chat/completions'
    assert sent.body == {'model': 'm', 'messages': ASK, 'temperature': 0.5, 'max_tokens': 7, 'seed': 3}
    assert 'seed' not in server.requests[1].body
    assert sent.headers['authorization'] == f'Bearer {KEY}' and sent.headers['accept-encoding'] == 'identity'
    assert not any(word in str(sent.headers) for word in ('sk-another', 'sk-admin', 'org-private', 'project-private'))
    assert one.counters() == dict(requests=2, retries=0, replies=2, unmetered=1, input_tokens=1000, output_tokens=20,
                                  cost=pytest.approx(0.0022), failures={}, details={})


def test_a_server_without_keys_gets_none(monkeypatch):
  monkeypatch.setenv('OPENAI_API_KEY', KEY)
  with Server([completion('hello')]) as server:
    client(server, key_variable='').chat(ASK)
    assert KEY not in str(server.requests[0].headers)


def test_failures_that_pass_are_retried():
  play = [Answer(status=429, headers={'Retry-After': '1'}), Answer(status=500), completion('at last')]
  with Server(play) as server:
    one = client(server)
    assert one.chat(ASK).text == 'at last'
    times = [request.time for request in server.requests]
    assert times[1] - times[0] >= 1.0
    assert one.counters()['requests'] == 3 and one.counters()['retries'] == 2 and not one.counters()['failures']


@pytest.mark.parametrize(('answer', 'reason', 'requests'), [
    (Answer(b'busy', 429, 'text/plain'), 'rate limited', 3),
    (Answer(b'', 503), 'server error 503', 3),
    (Answer(completion('late').body, delay=30.0), 'timed out', 3),
    (Answer(json.dumps(completion('cut').body).encode()[:60]), 'no JSON', 3),
    (Answer(json.dumps(completion('cut').body).encode()[:60], promised=500), 'connection lost', 3),
    (Answer(b'{"choices": [], "choices": NaN}'), 'no JSON', 3),
    (Answer(b'<html>hello</html>', kind='text/html'), 'wrong content type', 1),
    (Answer({'choices': []}), 'wrong shape', 1),
    (Answer(['a list']), 'wrong shape', 1),
    (completion([{'type': 'image_url', 'image_url': {'url': 'http://elsewhere/'}}]), 'wrong shape', 1),
    (completion(None), 'empty', 1),
    (completion('half an ans', finish='length'), 'cut short', 1),
    (completion(None, refusal='I would rather not'), 'refused', 1),
    (Answer({'error': {'message': 'context is too long'}}, 400), 'refused', 1),
    (Answer(b'x' * 5000), 'too large', 1),
    (Answer(b'x' * 5000, promised=0), 'too large', 1),
    (Answer(b'x' * 5000, status=500, promised=0), 'too large', 1),
    (Answer(b'x' * 900, promised=0, headers={'Content-Encoding': 'gzip'}), 'compressed', 1),
    (Answer(b'', 429, headers={'Retry-After': '100000'}), 'rate limited', 1),
])
def test_reasons(answer, reason, requests):
  error, counted = failure([answer], retries=2, timeout=0.3, max_response_bytes=2000)
  assert error.reason == reason
  assert counted['requests'] == requests and counted['failures'] == {reason: 1}


def test_a_body_that_drips_is_given_up():
  begun = time.monotonic()
  error, _ = failure([Answer(b'x' * 400_000, promised=0, pause=0.1)], retries=0, timeout=0.3)
  assert error.reason == 'timed out' and time.monotonic() - begun < 20


def test_redirects_are_not_followed():
  with Server([completion('stolen')]) as other:
    error, counted = failure([Answer(status=307, headers={'Location': f'{other.url}/chat/completions'})])
    assert error.reason == 'redirected' and counted['requests'] == 1
    assert not other.requests


def test_dates_in_retry_after():
  soon = email.utils.formatdate(time.time() + 30, usegmt=True)
  assert 25 < endpoint._retry_after(soon) <= 30
  assert endpoint._retry_after('soon') is None and endpoint._retry_after('') is None


@pytest.mark.parametrize('status', [401, 403, 404])
def test_what_no_retry_mends_ends_the_job_without_telling_the_key(status, caplog):
  caplog.set_level(logging.DEBUG)
  with Server([Answer({'error': {'message': f'wrong key {KEY}'}}, status)]) as server:
    one = client(server, field='config.evaluate.endpoint')
    with pytest.raises(UserError) as caught:
      one.chat(ASK)
    assert len(server.requests) == 1
  message = str(caught.value)
  assert ('config.evaluate.endpoint.model' if status == 404 else 'TEST_KEY') in message
  assert '\n' not in message and 'config.evaluate.endpoint.' in message
  assert KEY not in message and KEY not in caplog.text and caught.value.__cause__ is None


def test_what_a_server_echoes_is_told_without_the_key(caplog):
  caplog.set_level(logging.DEBUG)
  error, counted = failure([Answer({'error': {'message': f'no such field; your key is {KEY}'}}, 400)])
  assert 'no such field' in str(error) and KEY not in f'{error} {error!r} {caplog.text} {counted}'
  assert 'HTTP 400' in counted['details']['refused']


def test_no_server_ends_the_job_and_one_that_dies_does_not(monkeypatch):
  monkeypatch.setattr(endpoint, 'MOST_IN_A_ROW', 2)
  with Server([completion('hello')]) as server:
    one, fresh = client(server, retries=1), client(server, retries=1)
    one.chat(ASK)
  with pytest.raises(UserError, match='no server answers'):
    fresh.chat(ASK)
  reasons = []
  for _ in range(5):
    with pytest.raises(EndpointError) as caught:
      one.chat(ASK)
    reasons.append(caught.value.reason)
  # One more try of a server that is gone, then no more for a minute.
  assert reasons == ['no connection'] * 3 + ['server gone'] * 2
  assert one.counters()['requests'] == 1 + 3 * 2


def test_schema_and_a_server_that_knows_none():
  schema = {'type': 'object', 'properties': {'a': {'type': 'integer'}}, 'required': ['a']}

  def play(request):
    refused = Answer({'error': {'message': 'extra field'}}, 400)
    return refused if 'response_format' in request.body else completion('{"a": 1}')

  with Server(play) as server:
    one = client(server)
    assert [one.chat(ASK, schema=schema).text for _ in range(2)] == ['{"a": 1}'] * 2
    form = server.requests[0].body['response_format']
    assert form['type'] == 'json_schema' and form['json_schema']['schema'] == schema and form['json_schema']['strict']
    assert ['response_format' in r.body for r in server.requests] == [True, False, False]
    assert one.counters()['failures'] == {}


def test_parallel_requests_are_bounded_and_in_order():
  def play(request):
    text = request.body['messages'][0]['content']
    return Answer(completion(text).body, delay=0.02 * (5 - int(text) % 5))

  with Server(play) as server:
    one = client(server, max_parallel=3)
    texts = [str(i) for i in range(12)]
    said = one.each(lambda text: one.chat([{'role': 'user', 'content': text}]).text, texts)
    assert said == texts and 2 <= server.most <= 3


def test_the_first_exception_ends_the_rest():
  with Server([Answer(status=401)]) as server:
    one = client(server, max_parallel=2)
    with pytest.raises(UserError):
      one.each(lambda _: one.chat(ASK), range(50))
    assert len(server.requests) < 10


def test_rate_limit():
  with Server([completion('hello')]) as server:
    one = client(server, requests_per_minute=600)
    begun = time.monotonic()
    one.each(lambda _: one.chat(ASK), range(5))
    assert time.monotonic() - begun > 0.4


def test_pictures_are_never_addresses():
  with Server([completion('hello')]) as server:
    one = client(server)
    address = {'type': 'image_url', 'image_url': {'url': 'https://example.com/a.png'}}
    with pytest.raises(ValueError, match='not an address'):
      one.chat([{'role': 'user', 'content': [address]}])
    assert not server.requests
  for start, kind in ((b'\x89PNG\r\n\x1a\n', 'png'), (b'\xff\xd8\xff', 'jpeg'), (b'RIFF0000WEBP', 'webp')):
    url = endpoint.picture(start + b'rest')['image_url']['url']
    head, data = url.split(',')
    assert head == f'data:image/{kind};base64' and base64.b64decode(data) == start + b'rest'
  with pytest.raises(ValueError, match='no PNG'):
    endpoint.picture(b'GIF89a')


@pytest.mark.parametrize(('text', 'found'), [
    ('{"a": 1}', {'a': 1}), ('```json\n{"a": {"b": 2}}\n```', {'a': {'b': 2}}), ('Here: {"a": 1}. Bye', {'a': 1}),
    ('{"a": 1} or {"a": 2}', None), ('{"a": 1, "a": 2}', None), ('{"a": NaN}', None), ('[1, 2]', None), ('', None),
    ('https://example.com/answer.json', None), ('} {', None), ('{"a": ' * 5000 + '1' + '}' * 5000, None)])
def test_one_object(text, found):
  if found is not None:
    assert endpoint.one_object(text) == found
    return
  with pytest.raises(EndpointError) as caught:
    endpoint.one_object(text)
  assert caught.value.reason == 'no JSON'


@pytest.mark.parametrize(('fields', 'words'), [
    (dict(url='localhost:8000'), 'endpoint.url'), (dict(url='file:///etc/passwd'), 'endpoint.url'),
    (dict(url='http://me:secret@host/v1'), 'holds a name or password'), (dict(model=''), 'endpoint.model is empty'),
    (dict(key_variable='NOT_SET_AT_ALL'), 'not set in the environment'), (dict(key_variable=KEY), 'never the key itself'),
    (dict(timeout=0.0), 'endpoint.timeout'), (dict(max_parallel=0), 'endpoint.max_parallel'),
    (dict(input_price=float('nan')), 'endpoint.input_price')])
def test_mistakes(fields, words):
  with pytest.raises(UserError, match=words) as caught:
    Endpoint(EndpointConfig(**dict(url='http://127.0.0.1:1/v1', model='m', key_variable='TEST_KEY') | fields))
  assert KEY not in str(caught.value) and 'secret@' not in str(caught.value)


def test_the_missing_extra_is_named(monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'openai', None)
  with pytest.raises(UserError, match=r'intersyn_jax\[endpoint\]'):
    Endpoint(EndpointConfig('http://127.0.0.1:1/v1', 'm'))
