"""The client of servers: what it sends, which failures it retries, what ends the job, and that the key stays secret."""

import base64
import email.utils
import io
import json
import logging
import struct
import time
import zlib

import numpy as np
import PIL.Image
import pytest

from intersyn_jax import endpoint
from intersyn_jax.data import images
from intersyn_jax.endpoint import Endpoint, EndpointConfig, EndpointError
from intersyn_jax.errors import UserError
from tests.loopback import Answer, Server, completion, generation

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
    assert one.counters() == dict(requests=2, retries=0, replies=2, pictures=0, unmetered=1, input_tokens=1000,
                                  output_tokens=20, cost=pytest.approx(0.0022), failures={}, details={})


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
    (completion('half a \ud83d'), 'no valid text', 1),
    (completion('an end\0'), 'no valid text', 1),
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


@pytest.mark.parametrize(('name', 'told'), [
    ('seed', {'message': "Unknown parameter: 'seed'."}),
    ('temperature', {'loc': ['body', 'temperature'], 'msg': 'forbidden'}),
    ('max_tokens', {'message': "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."})])
def test_a_field_that_the_server_refuses_by_name_is_left_out(name, told):
  def play(request):
    return Answer({'error': told}, 400) if name in request.body else completion('hello')

  with Server(play) as server:
    one = client(server)
    assert [one.chat(ASK, seed=3, max_tokens=7).text for _ in range(2)] == ['hello'] * 2
    asked = [request.body for request in server.requests]
    assert [name in body for body in asked] == [True, False, False] and not one.counters()['failures']
    assert asked[1].keys() == {'model', 'messages', 'temperature', 'max_tokens', 'seed'} - {name} | (
        {'max_completion_tokens'} if name == 'max_tokens' else set())
    assert asked[1].get('max_completion_tokens', 7) == 7


def test_a_refusal_that_lasts_leaves_nothing_out_later():
  play = [Answer({'error': {'message': "'max_tokens' is too large"}}, 400)] * 2 + [completion('hello')]
  with Server(play) as server:
    one = client(server)
    with pytest.raises(EndpointError, match='refused'):
      one.chat(ASK)
    assert one.chat(ASK).text == 'hello' and 'max_tokens' in server.requests[-1].body


# Pictures.


def shown(format='PNG', size=(48, 32)):
  out = io.BytesIO()
  array = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
  PIL.Image.fromarray(array).save(out, format)
  return out.getvalue()


def bomb(width, height):
  """A PNG of a few kB that claims, and holds, so many white pixels."""
  chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
  packer = zlib.compressobj(9)
  rows = packer.compress(b'\0' + b'\xff' * width)  # one row will do: it is never decoded
  return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)) +
          chunk(b'IDAT', rows + packer.flush()) + chunk(b'IEND', b''))


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'WEBP'])
def test_a_picture_is_asked_for_in_the_reply(format):
  with Server([generation(shown(format), url=None)]) as server:
    one = client(server, picture_price=0.04)
    found = one.image('a red cross', size='512x512', seed=3)
    assert found == shown(format) and images.pixels(found).shape == (32, 48, 3)
    assert server.requests[0].path == '/v1/images/generations'
    assert server.requests[0].headers['authorization'] == f'Bearer {KEY}'
    assert server.requests[0].body == {'model': 'm', 'prompt': 'a red cross', 'n': 1, 'size': '512x512',
                                       'response_format': 'b64_json', 'seed': 3}
    counted = one.counters()
    assert counted['pictures'] == 1 and counted['unmetered'] == 0 and counted['cost'] == pytest.approx(0.04)
    one.image('a red cross')
    assert server.requests[1].body.keys() == {'model', 'prompt', 'n', 'response_format'}


def test_a_server_that_always_sends_base64_is_asked_without_the_form():
  def play(request):
    for name in ('response_format', 'seed'):
      if name in request.body:
        return Answer({'error': {'message': f"Unknown parameter: '{name}'."}}, 400)
    return Answer(generation(shown()).body | {'usage': {'input_tokens': 50, 'output_tokens': 4000}})

  with Server(play) as server:
    one = client(server, output_price=10.0)
    assert [one.image('x', seed=1) for _ in range(2)] == [shown()] * 2
    assert len(server.requests) == 4 and one.counters()['cost'] == pytest.approx(0.08)


@pytest.mark.parametrize(('answer', 'reason', 'requests'), [
    (Answer(b'', 429), 'rate limited', 2),
    (Answer(b'', 500), 'server error 500', 2),
    (Answer(generation(shown()).body, delay=30.0), 'timed out', 2),
    (Answer(json.dumps(generation(shown()).body).encode()[:60]), 'no JSON', 2),
    (Answer(json.dumps(generation(shown()).body).encode()[:60], promised=5000), 'connection lost', 2),
    (Answer(shown(), kind='image/png'), 'wrong content type', 1),
    (Answer({'error': {'message': 'against the rules'}}, 400), 'refused', 1),
    (generation('A' * 60_000), 'too large', 1),
    (Answer(generation('A' * 60_000).body, promised=0), 'too large', 1),
    (Answer({'data': 'https://elsewhere/a.png'}), 'wrong shape', 1),
    (Answer({'data': ['https://elsewhere/a.png']}), 'wrong shape', 1),
    (Answer([]), 'wrong shape', 1),
    (Answer({'data': []}), 'empty', 1),
    (generation(''), 'empty', 1),
    (generation(shown(), shown()), 'several pictures', 1),
    (generation('no base64 at all!'), 'no picture', 1),
    (generation('https://elsewhere/a.png'), 'no picture', 1),
    (generation(b'<svg/>'), 'no picture', 1),
    (generation(shown('GIF')), 'no picture', 1),
    (generation(shown()[:-500]), 'no picture', 1),
    (generation(shown('JPEG')[:200]), 'no picture', 1),
    (generation(bomb(8000, 8000)), 'too many pixels', 1),
    (generation(bomb(60_000, 60_000)), 'too many pixels', 1),
])
def test_pictures_that_are_none(answer, reason, requests):
  with Server([answer]) as server:
    one = client(server, retries=1, timeout=0.3, max_response_bytes=20_000)
    with pytest.raises(EndpointError) as caught:
      one.image('a red cross')
    counted = one.counters()
  assert caught.value.reason == reason
  assert counted['requests'] == requests and counted['failures'] == {reason: 1} and counted['pictures'] == 0


def test_an_address_in_a_reply_is_a_failure_and_never_fetched():
  with Server([Answer(shown(), kind='image/png')]) as other:
    for answer in (Answer({'data': [{'url': f'{other.url}/a.png'}]}), generation(shown(), url=f'{other.url}/a.png')):
      with Server([answer]) as server:
        one = client(server)
        with pytest.raises(EndpointError, match='address for a picture'):
          one.image('a red cross')
        assert one.counters()['failures'] == {'address for a picture': 1}
    moved = Answer(status=302, headers={'Location': f'{other.url}/images/generations'})
    with Server([moved]) as server, pytest.raises(EndpointError, match='redirected'):
      client(server).image('a red cross')
    assert not other.requests


def test_a_server_that_draws_nothing_ends_the_job():
  gone = Answer({'detail': 'Not Found'}, 404)
  with Server([gone]) as server, pytest.raises(UserError, match='knows no image generation with the model'):
    client(server).image('a red cross')


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
