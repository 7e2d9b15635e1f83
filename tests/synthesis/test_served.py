"""SEIR over servers: what each role is told and shown, whole conversations, and failures that become retries."""

import base64
import dataclasses
import io
import itertools
import json

import ml_collections
import numpy as np
import PIL.Image
import pytest

from intersyn_jax import endpoint
from intersyn_jax.data import images, roles
from intersyn_jax.data.roles import AnswerStep
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Image, Text, images_of, steps_of, text_of
from intersyn_jax.synthesis import engine, seir, served
from intersyn_jax.synthesis.instructions import instructions
from intersyn_jax.synthesis.interfaces import Address, Crew, Draw, Look, Reply, Write
from intersyn_jax.synthesis.seir import Rounds
from tests.loopback import Answer, Server, completion, generation
from tests.synthesis import fake

SIDE = 16
METHOD = fake.method(draw=served.DRAW, rounds=Rounds(1, 1, 1))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(endpoint, 'FIRST_WAIT', 0.01)
  for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
    monkeypatch.delenv(name, raising=False)


def encode(pictures):
  """Codes that are the mean colours of quarters, so that tests can tell which picture they are of."""
  assert pictures.shape[1:] == (SIDE, SIDE, 3) and pictures.dtype == np.uint8
  half = SIDE // 2
  return pictures.reshape(-1, 2, half, 2, half, 3).mean((2, 4)).reshape(-1, 4, 3).astype(np.int64)


def decode(codes):
  return np.repeat(np.repeat(codes.reshape(-1, 2, 2, 3), SIDE // 2, 1), SIDE // 2, 2).astype(np.uint8)


def section(url, **fields):
  common = dict(url=url, model='m', key_variable='', timeout=5.0, retries=1, max_parallel=2) | fields
  return {'language': common | dict(temperature=0.9, max_tokens=300),
          'critic': common | dict(temperature=0.5, smallest_side=64),
          'images': common | dict(size='64x32', picture_price=0.5)}


def build(server, method=METHOD, fields=None, **options):
  return served.served(section(server.url, **(fields or {})), method, **(
      dict(decode=decode, encode=encode, pixels=SIDE) | options))


def drawing(seed):
  """PNG bytes of 64 x 32 pixels of one colour."""
  return images.png(np.full((32, 64, 3), np.random.default_rng(seed).integers(0, 256, 3), np.uint8))


def line_of(request):
  """The prompt of the role in a chat request."""
  content = request.body['messages'][1]['content']
  return content if isinstance(content, str) else content[0]['text']


def role_of(request):
  if request.path.endswith('/images/generations'):
    return 'draw'
  return next(role for role, tag in roles.TAGS.items() if line_of(request).startswith(tag))


def usual(request):
  """All three servers: critics ask for one change and the writers make it."""
  role = role_of(request)
  if role == 'draw':
    padding = {'padding': 'x' * (2 << 20)}  # no more than a large picture
    return Answer(generation(drawing(len(request.body['prompt']))).body | padding)
  if role.endswith('critique'):
    return completion('mend it')
  if role.startswith('question'):
    return completion(f'{fake.QUESTION} {role}')
  if role.startswith('answer'):
    return completion(roles.write_answer([AnswerStep(f'{step.text} {role}', step.caption) for step in fake.STEPS]))
  return completion('large green cross top left on sand')


def converse(play, method=METHOD, fields=None, **options):
  """One conversation, the crew's counters, and what the server was asked."""
  with Server(play) as server:
    made = build(server, method, fields, **options)
    product = engine.advance(Crew(*made), {0: seir.converse(seir.plan(method, 0), method)})[0]
    return product, made.counters(), server.requests


def test_a_whole_conversation():
  method = dataclasses.replace(METHOD, turns=(2,))
  product, counters, requests = converse(usual, method)
  assert product.reason == '' and len(product.conversation.turns) == 2
  first = product.conversation.turns[0]
  assert text_of(first.question) == f'{fake.QUESTION} question_revise'
  assert [text for text, _ in steps_of(first.answer)] == [f'{step.text} answer_revise' for step in fake.STEPS]
  for image in images_of(first.answer):
    assert image.caption == 'large green cross top left on sand'
    pixels = images.pixels(image.data)
    assert pixels.shape == (SIDE, SIDE, 3) and image.codes.dtype == np.int32
    np.testing.assert_array_equal(decode(image.codes[None])[0], pixels)
  for rounds in (product.turns[0].questions, product.turns[0].answers, *product.turns[0].images):
    assert [entry.decision for entry in rounds] == ['revise', 'last']
  asked = [role_of(request) for request in requests]
  assert {role: asked.count(role) for role in asked} == {
      **{role: 2 for role in roles.TAGS if not role.startswith(('image', 'caption'))}, 'draw': 8, 'image_critique': 4,
      'caption_revise': 4}
  # One endpoint for each job, with counts of its own.
  assert [counters[name]['replies'] for name in ('language', 'critic', 'images')] == [16, 4, 8]
  assert counters['language']['input_tokens'] == 1600 and counters['images']['cost'] == pytest.approx(4.0)
  json.dumps(counters, allow_nan=False)


def test_each_request_is_told_its_role_and_carries_its_own_seed():
  _, _, requests = converse(usual)
  seeds = [request.body['seed'] for request in requests]
  assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**31 for seed in seeds)
  again = [request.body['seed'] for request in converse(usual)[2]]
  assert sorted(again) == sorted(seeds)
  for request in requests:
    role, body = role_of(request), request.body
    if role == 'draw':
      assert body['size'] == '64x32' and body['prompt'].startswith('large ')  # the caption and nothing else
      continue
    assert [message['role'] for message in body['messages']] == ['system', 'user']
    assert body['messages'][0]['content'] == instructions(role, METHOD)
    assert body['temperature'] == (0.0 if role.endswith('critique') else 0.9)
    assert body['max_tokens'] == (1024 if role == 'image_critique' else 300)
  write = next(request for request in requests if role_of(request) == 'question_write')
  assert line_of(write).startswith('write question : ') and ' like : ' in line_of(write)


@pytest.mark.parametrize('bare', [True, False])
def test_the_critic_sees_the_picture_as_base64_and_enlarged(bare):
  codes = np.random.default_rng(0).integers(0, 256, (4, 3)).astype(np.int32)
  pixels = decode(codes[None])[0]
  image = Image(codes=codes) if bare else Image(images.png(pixels))
  with Server([completion('none')]) as server:
    critic = build(server).critic
    request = Look(Address('c', 0, 'image_critique', 0, 1), roles.image_critique('draw it', 'here', 'a red cross', image))
    assert critic.run('', 0, [critic.prepare(request)] * 2) == [Reply('none')] * 2
    content = server.requests[0].body['messages'][1]['content']
  assert content[0]['text'] == 'critique image : draw it answer : here caption : a red cross'
  head, data = content[1]['image_url']['url'].split(',')
  assert head == 'data:image/png;base64' and len(content) == 2
  seen = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(data))))
  np.testing.assert_array_equal(seen, pixels.repeat(4, 0).repeat(4, 1))


def test_pictures_stand_where_the_prompt_has_them():
  """A history may carry its pictures; a language model is then shown them as well."""
  pictures = [Image(drawing(seed)) for seed in range(2)]
  prompt = (Text('write question : a topic after : x shown : y'), pictures[0], Text('now :'), pictures[1])
  with Server([completion('a question')]) as server:
    worker = build(server).language
    assert worker.run('', 0, [worker.prepare(Write(Address('c', 1, 'question_write'), prompt))]) == [Reply('a question')]
    content = server.requests[0].body['messages'][1]['content']
  assert [part.get('text') for part in content] == [prompt[0].text, None, 'now :', None]
  sent = [images.pixels(base64.b64decode(content[i]['image_url']['url'].split(',')[1])) for i in (1, 3)]
  for image, array in zip(pictures, sent, strict=True):
    assert (images.pixels(image.data)[0, 0] == array).all()


def test_a_critique_that_is_asked_for_again_is_drawn():
  with Server([completion('none')]) as server:
    critic = build(server).critic
    requests = [Look(Address('c', 0, 'image_critique', 0, 1, retry), (Text('critique image : x'),)) for retry in range(2)]
    for request in requests:
      critic.run('', 0, [critic.prepare(request)])
    assert [request.body['temperature'] for request in server.requests] == [0.0, 0.5]


def test_instructions_name_limits_labels_and_forms_that_the_parsers_read():
  method = dataclasses.replace(METHOD, question_words=33, caption_words=44, max_steps=3)
  told = {role: instructions(role, method) for role in roles.TAGS}
  assert all(roles.TAGS[role] in text and '{' not in text for role, text in told.items())
  for role in ('question_write', 'question_revise'):
    assert '33 words' in told[role]
  for role in ('answer_write', 'answer_revise'):
    assert '44 words' in told[role] and '3 steps' in told[role].replace('more than 3', '3 steps')
    example = next(line for line in told[role].splitlines() if line.startswith('answer :'))
    assert roles.parse_answer(example) == [AnswerStep('the text of the step', 'the caption of its picture')]
  assert '44 words' in told['caption_revise']
  for role in ('question_critique', 'answer_critique', 'image_critique'):
    word = told[role].split('reply with the single word ')[1].split('.')[0]
    assert roles.parse_critique(word).stop
  # Every label that a prompt holds is explained.
  history, steps, image = [roles.Shown('q', 'c')], fake.STEPS, Image(b'x')
  prompts = [roles.question_write('t', 'x', history), roles.question_critique('t', 'q', history),
             roles.question_revise('q', 's'), roles.answer_write('q', history), roles.answer_critique('q', steps, history),
             roles.answer_revise('q', steps, 's'), roles.image_critique('q', 'a', 'c', image),
             roles.caption_revise('c', 's')]
  for (role, tag), prompt in zip(roles.TAGS.items(), prompts, strict=True):
    labels = {label for label in ('after :', 'shown :', 'now :', 'like :', 'question :', 'answer :', 'caption :', 'but :')
              if label in text_of(prompt).removeprefix(tag)}
    assert labels and all(label in told[role] for label in labels), role


BAD = {
    'server error 500': Answer(b'', 500), 'rate limited': Answer(b'', 429), 'no JSON': Answer(b'{"choices": [{"mess'),
    'timed out': Answer(completion('late').body, delay=20.0), 'wrong content type': Answer(b'<html>', kind='text/html'),
    'too large': Answer(b'x' * 30_000), 'cut short': completion('half', finish='length'), 'empty': completion(''),
    'refused': completion(None, refusal='no'), 'no valid text': completion('\ud800'), 'too long': completion('word ' * 2000),
    'redirected': Answer(status=307, headers={'Location': 'http://127.0.0.1:1/v1/chat/completions'})}


@pytest.mark.parametrize('reason', BAD)
def test_a_bad_reply_is_asked_for_again_and_then_rejected_with_its_reason(reason):
  script = itertools.chain([BAD[reason]] * 4, itertools.repeat(None))
  with Server(lambda request: next(script) or usual(request)) as server:
    config = section(server.url, timeout=0.3, retries=0, max_response_bytes=20_000)
    writer, others = served.served({'language': config['language']}, METHOD).language, fake.Actor()
    crew = Crew(writer, others, others)
    failed, mended = (engine.advance(crew, {0: seir.converse(seir.plan(METHOD, i), METHOD)})[0] for i in range(2))
    assert failed.conversation is None and failed.reason == f'question_write: {reason}'
    assert [call.problem for call in failed.turns[0].calls] == [reason] * 3 and failed.turns[0].calls[0].output == ''
    assert len({request.body['seed'] for request in server.requests[:3]}) == 3
    assert mended.reason == '' and [call.problem for call in mended.turns[0].calls[:2]] == [reason, '']


BAD_PICTURES = {
    'rate limited': Answer(b'', 429), 'server error 500': Answer(b'', 500), 'no JSON': Answer(b'{"data": [{"b64'),
    'timed out': Answer(b'', delay=20.0), 'wrong content type': Answer(drawing(0), kind='image/png'),
    'too large': Answer(b'x', promised=33 << 20),
    'address for a picture': Answer({'data': [{'url': 'http://127.0.0.1:1/a.png'}]}),
    'redirected': Answer(status=307, headers={'Location': 'http://127.0.0.1:1/a.png'}),
    'no picture': generation(b'<svg/>'), 'several pictures': generation(drawing(0), drawing(1))}


def test_every_bad_picture_is_asked_for_again_and_none_becomes_data():
  """A server that plays every failure once, then draws."""
  script, turn = list(BAD_PICTURES.values()), itertools.count()

  def play(request):
    number = next(turn) if role_of(request) == 'draw' else len(script)
    return script[number] if number < len(script) else usual(request)

  method = dataclasses.replace(METHOD, retries=len(script))
  product, counters, _ = converse(play, method, dict(timeout=0.5, retries=0, max_parallel=1))
  assert product.reason == '' and counters['images']['failures'] == dict.fromkeys(sorted(BAD_PICTURES), 1)
  assert counters['images']['pictures'] == 4 and not counters['language']['failures']
  problems = [call.problem for call in product.turns[0].calls if call.address.role == 'draw']
  assert problems == ['no picture'] * len(script) + [''] * 4
  for image in images_of(product.conversation.turns[0].answer):
    np.testing.assert_array_equal(decode(image.codes[None])[0], images.pixels(image.data))


def test_without_a_picture_the_conversation_is_rejected():
  play = lambda request: BAD_PICTURES['no picture'] if role_of(request) == 'draw' else usual(request)
  product, counters, _ = converse(play)
  assert product.conversation is None and product.reason == 'draw: no picture'
  assert counters['images']['failures'] == {'no picture': 3}


def test_a_batch_with_and_without_pictures_keeps_its_order_and_pictures_their_codes():
  def play(request):
    number = int(request.body['prompt'])
    return generation(b'junk') if number % 3 == 0 else Answer(generation(drawing(number)).body, delay=0.02 * (number % 2))

  with Server(play) as server:
    images_ = build(server).images
    found = images_.run('', 0, [images_.prepare(Draw(Address('c', i, 'draw'), (Text(str(i)),))) for i in range(7)])
    assert [image is None for image in found] == [i % 3 == 0 for i in range(7)]
    for i, image in enumerate(found):
      if image is not None:
        colour = images.pixels(drawing(i))[0, 0]
        assert (images.pixels(image.data) == colour).all() and (image.codes == colour).all()
    raw = build(server, encode=None, pixels=0).images
    whole = raw.run('', 0, [raw.prepare(Draw(Address('c', 0, 'draw'), (Text('1'),)))])[0]
    assert images.pixels(whole.data).shape == (32, 64, 3) and whole.codes is None
    none = images_.run('', 0, [images_.prepare(Draw(Address('c', 0, 'draw'), (Text('0'),)))])
    assert none == [None]


def test_pictures_are_encoded_anew():
  out = io.BytesIO()
  PIL.Image.new('RGB', (SIDE, SIDE), 'red').save(out, 'JPEG', comment=b'GPS of the studio')
  with Server([generation(out.getvalue())]) as server:
    worker = build(server).images
    image = worker.run('', 0, [worker.prepare(Draw(Address('c', 0, 'draw'), (Text('x'),)))])[0]
  assert images.sniff(image.data) == 'PNG' and b'GPS' not in image.data


def test_only_the_jobs_with_an_address_are_served():
  config = section('http://127.0.0.1:1/v1')
  config['critic']['url'] = ''
  del config['images']
  found = served.served(ml_collections.ConfigDict(config), METHOD)
  assert found.language and found.critic is None and found.images is None
  assert list(found.counters()) == ['language'] and served.served({}, METHOD) == (None, None, None)


def test_mistakes():
  config = section('http://127.0.0.1:1/v1')
  for name, field, value in (('language', 'temperature', -1.0), ('critic', 'max_tokens', 0), ('images', 'url', 'ftp://x'),
                             ('images', 'model', ''), ('critic', 'smallest_side', 0),
                             ('language', 'key_variable', 'NOT_SET')):
    wrong = config | {name: config[name] | {field: value}}
    with pytest.raises(UserError, match=rf'config\.synthesize\.endpoints\.{name}\.{field} '):
      served.served(wrong, METHOD)
  with Server([Answer(b'', 401)]) as server:
    worker = build(server).language
    with pytest.raises(UserError, match=r'endpoints\.language\.key_variable'):
      worker.run('', 0, [worker.prepare(Write(Address('c', 0, 'question_write'), (Text('x'),)))] * 9)
