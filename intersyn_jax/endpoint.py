"""A client of servers that speak OpenAI's protocol (OpenAI, vLLM, SGLang, llama.cpp, transformers serve, ...): chat, with
pictures or without, and image generation.

What such a server says is never trusted: a reply is read up to a limit, must be JSON of the expected shape, and nothing in
it is followed or fetched. A request that fails raises `EndpointError` with a short reason, which whoever asked counts; only
what no later request could mend (a refused key, an unknown model, no server at all) is a `UserError`. The key comes from an
environment variable and stands in no message, log or file.
"""

from __future__ import annotations

import base64
import binascii
import collections
import concurrent.futures
import dataclasses
import datetime
import email.utils
import importlib
import io
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import PIL.Image

from intersyn_jax.data import images
from intersyn_jax.errors import UserError

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds before the first retry (doubled each time), and the most that is ever waited, whatever the server asks for."""

MOST_IN_A_ROW = 12
"""Chats or pictures that may fail one after the other. Then the server counts as gone: one in LONGEST_WAIT still tries it,
and the others fail at once, so that a long job does not wait for every timeout of a server that has died."""

RATE_LIMITED, TIMED_OUT, UNREACHED, LOST = 'rate limited', 'timed out', 'no connection', 'connection lost'
REFUSED, REDIRECTED, TOO_LARGE, COMPRESSED = 'refused', 'redirected', 'too large', 'compressed'
GONE = 'server gone'
NO_JSON, WRONG_TYPE, WRONG_SHAPE, CUT, EMPTY = 'no JSON', 'wrong content type', 'wrong shape', 'cut short', 'empty'
NO_TEXT = 'no valid text'
ADDRESS, SEVERAL, NO_PICTURE, BOMB = 'address for a picture', 'several pictures', 'no picture', 'too many pixels'
"""Reasons of failure. A server error has its status in the reason: `server error 503`."""

MOST_PIXELS = 4096 * 4096
"""Of a picture from a server; a small file may unfold to any number."""

CHAT, IMAGES = 'chat', 'image generation'
"""What a server can be asked for."""

_SIGNATURES = ((b'\x89PNG\r\n\x1a\n', 'png'), (b'\xff\xd8\xff', 'jpeg'), (b'RIFF', 'webp'))

Item, Result = TypeVar('Item'), TypeVar('Result')


class EndpointError(Exception):
  """A request that brought no usable reply.

  Attributes:
    reason: a few words, the same for all failures of one kind.
    retriable: whether the same request may succeed later.
    detail: what the server said about it, in one short line without the key; '' where it said nothing.
    wait: seconds that the server asked to wait, None where it did not.
  """

  def __init__(self, reason: str, retriable: bool, detail: str = '', wait: float | None = None):
    super().__init__(f'{reason}: {detail}' if detail else reason)
    self.reason, self.retriable, self.detail, self.wait = reason, retriable, detail, wait


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
  """Where a server is, and how it is asked.

  Attributes:
    url: up to and with the version, `http://localhost:8000/v1`.
    model: as the server calls it.
    key_variable: environment variable that holds the key, '' for a server that wants none.
    timeout: seconds for a reply to begin, and again for it to be complete.
    retries: of a request that failed for a reason that may pass.
    requests_per_minute: sent at most, evenly spaced; 0 for no limit.
    max_parallel: requests under way at once.
    max_response_bytes: a longer reply is given up while it is read.
    structured: replies are asked for with a JSON schema where the caller has one; a server that refuses that is asked
      without.
    input_price, output_price: of a million tokens, in whatever currency; only the cost counter uses them.
    picture_price: of one picture that the server makes, the same.
    field: dotted name of the configuration section, for messages.
  """

  url: str
  model: str
  key_variable: str = ''
  timeout: float = 60.0
  retries: int = 3
  requests_per_minute: float = 0.0
  max_parallel: int = 4
  max_response_bytes: int = 1 << 20
  structured: bool = True
  input_price: float = 0.0
  output_price: float = 0.0
  picture_price: float = 0.0
  field: str = 'endpoint'

  def __post_init__(self):
    parts = urlsplit(self.url)
    if parts.scheme not in ('http', 'https') or not parts.hostname or parts.query or parts.fragment:
      raise UserError(f'{self.field}.url is {self.url!r}; write it like http://localhost:8000/v1')
    if parts.username or parts.password:
      raise UserError(f'{self.field}.url holds a name or password; put the key into an environment variable and name '
                      f'that in {self.field}.key_variable')
    if not self.model:
      raise UserError(f'{self.field}.model is empty; name the model as {self.url} calls it')
    # What is no name of a variable may be the key itself, so that it is not repeated.
    if self.key_variable and not re.fullmatch('[A-Z_][A-Z0-9_]*', self.key_variable):
      raise UserError(f'{self.field}.key_variable must be the name of an environment variable in capitals, such as '
                      'OPENAI_API_KEY, and never the key itself')
    for name, least in (('timeout', 1e-3), ('retries', 0), ('requests_per_minute', 0), ('max_parallel', 1),
                        ('max_response_bytes', 1), ('input_price', 0), ('output_price', 0),
                        ('picture_price', 0)):
      if not getattr(self, name) >= least:
        raise UserError(f'{self.field}.{name} is {getattr(self, name)}; make it at least {least:g}')

  @classmethod
  def of(cls, section: Mapping[str, Any], field: str) -> EndpointConfig:
    """From a section of a configuration whose dotted name is `field`; what else is in it is left alone."""
    names = {f.name for f in dataclasses.fields(cls)} - {'field'}
    return cls(**{name: section[name] for name in names if name in section}, field=field)


@dataclasses.dataclass(frozen=True)
class Reply:
  """Text of a reply, and the tokens that it cost (0 where the server did not say)."""

  text: str
  input_tokens: int = 0
  output_tokens: int = 0


class Endpoint:
  """A server, ready to be asked from several threads.

  Args:
    config: of the server.
    seed: of the jitter between retries.

  Raises:
    UserError: the key's variable is not set, or the extra `endpoint` is not installed.
  """

  def __init__(self, config: EndpointConfig, *, seed: int = 0):
    self.config = config
    self._key = self._read_key()
    self._jitter = random.Random(f'{seed}/endpoint')
    self._lock = threading.Lock()
    self._next = 0.0  # when the next request may be sent
    self._reached = False
    self._in_a_row, self._try_at = 0, 0.0  # failures, and when a server that is gone is tried again
    self._structured = config.structured
    self._unknown: frozenset[str] = frozenset()  # fields that this server does not take
    self._count: collections.Counter[str] = collections.Counter()
    self._failures: collections.Counter[str] = collections.Counter()
    self._details: dict[str, str] = {}
    self._openai, self._client = self._connect()

  def chat(self, messages: Sequence[Mapping[str, Any]], *, schema: Mapping[str, Any] | None = None,
           temperature: float = 0.0, max_tokens: int = 512, seed: int | None = None) -> Reply:
    """Asks for the next message of a chat.

    Args:
      messages: in OpenAI's form; pictures from `picture`, never addresses.
      schema: JSON schema of the reply. A server may ignore it, so that the reply is still to be checked.
      temperature, max_tokens, seed: of the reply. A server that refuses one of them by name is asked without.

    Raises:
      EndpointError: there is no usable reply, after all retries.
      UserError: the key is refused, the model is unknown, or there is no such server.
    """
    _check_pictures(messages)
    fields = dict(model=self.config.model, messages=list(messages))
    extras = dict(temperature=temperature, max_tokens=max_tokens) | ({} if seed is None else {'seed': seed})
    return self._counted(lambda: self._reply(self._ask_structured(fields, extras, schema)))

  def image(self, prompt: str, *, size: str = '', seed: int | None = None) -> bytes:
    """Asks for one picture, in the reply itself (base64); nothing is ever fetched from an address.

    Args:
      prompt: what it shows.
      size: `WIDTHxHEIGHT` in pixels, or another word that the server knows; '' leaves it to the server.
      seed: of the picture. A server that refuses it by name is asked without.

    Returns:
      PNG, JPEG or WebP bytes that can be decoded, of at most MOST_PIXELS pixels.

    Raises:
      EndpointError, UserError: as `chat`.
    """
    fields = dict(model=self.config.model, prompt=prompt, n=1) | ({'size': size} if size else {})
    extras = dict(response_format='b64_json') | ({} if seed is None else {'seed': seed})
    return self._counted(lambda: self._picture(self._ask_flexible(IMAGES, fields, extras)))

  def each(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """[function(item), ...] in the order of the items, `max_parallel` at once. The first exception ends it."""
    with concurrent.futures.ThreadPoolExecutor(self.config.max_parallel) as pool:
      futures = [pool.submit(function, item) for item in items]
      try:
        done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
        for future in done:
          future.result()
      except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
      return [future.result() for future in futures]

  def counters(self) -> dict[str, Any]:
    """What was done so far: requests, retries, replies, pictures that could be used, tokens, cost, failures by reason, and
    the last detail of each.

    The cost is a lower bound where `unmetered`, the replies whose tokens the server did not tell, is not 0.
    """
    with self._lock:
      names = ('requests', 'retries', 'replies', 'pictures', 'unmetered', 'input_tokens', 'output_tokens')
      found: dict[str, Any] = {name: self._count[name] for name in names}
      prices = (self.config.input_price, self.config.output_price)
      cost = (found['input_tokens'] * prices[0] + found['output_tokens'] * prices[1]) / 1e6
      cost += self._count['drawn'] * self.config.picture_price
      return found | {'cost': cost, 'failures': dict(sorted(self._failures.items())), 'details': dict(self._details)}

  # Connection.

  def _read_key(self) -> str:
    name = self.config.key_variable
    if not name:
      return ''
    key = os.environ.get(name, '').strip()
    if not key:
      raise UserError(f'{self.config.field}.key_variable names {name}, which is not set in the environment; set it, or make '
                      "the field '' for a server without keys")
    return key

  def _connect(self) -> tuple[Any, Any]:
    try:
      import openai
    except ImportError:
      raise UserError(f'{self.config.field}.url is set, but the openai client is not installed: '
                      "pip install 'intersyn_jax[endpoint]'") from None
    # The client's first versions stand on httpx, later ones on httpx2.
    self._http = importlib.import_module(openai.DefaultHttpxClient.__mro__[1].__module__.partition('.')[0])
    self._capped = _capped(self._http.SyncByteStream)
    http_client = openai.DefaultHttpxClient(
        follow_redirects=False, timeout=self.config.timeout,
        event_hooks={'request': [self._before], 'response': [self._after]})
    # A server without keys gets a word in the key's place, which the client insists on.
    return openai, openai.OpenAI(
        api_key=self._key or 'none', base_url=self.config.url, timeout=self.config.timeout, max_retries=0,
        default_headers={'Accept-Encoding': 'identity'}, http_client=http_client)

  def _before(self, request: Any) -> None:
    if self.config.key_variable != 'OPENAI_API_KEY':  # account names that the client takes from the environment
      for name in ('OpenAI-Organization', 'OpenAI-Project'):
        request.headers.pop(name, None)

  def _after(self, response: Any) -> None:
    """Looks at the head of a reply, and bounds how much of its body is read, and for how long."""
    if 300 <= response.status_code < 400:
      raise EndpointError(REDIRECTED, False, f'HTTP {response.status_code}')
    if response.headers.get('content-encoding', 'identity') != 'identity':  # a few bytes could unfold to any number
      raise EndpointError(COMPRESSED, False)
    length = response.headers.get('content-length', '')
    if length.isdecimal() and int(length) > self.config.max_response_bytes:
      raise EndpointError(TOO_LARGE, False, f'{length} bytes')
    response.stream = self._capped(response.stream, self.config.max_response_bytes, time.monotonic() + self.config.timeout)

  # Requests.

  def _counted(self, ask: Callable[[], Result]) -> Result:
    """What `ask` gives, with its failure on record; a server that is gone is not asked."""
    try:
      self._check_gone()
      found = ask()
    except EndpointError as error:
      with self._lock:
        self._failures[error.reason] += 1
        if error.detail:
          self._details[error.reason] = error.detail
        if error.reason != GONE:
          self._in_a_row = self._in_a_row + 1 if error.retriable else 0
      raise
    with self._lock:
      self._in_a_row = 0
    return found

  def _ask_structured(self, fields: Mapping[str, Any], extras: Mapping[str, Any], schema: Mapping[str, Any] | None) -> Any:
    if schema is None or not self._structured:
      return self._ask_flexible(CHAT, fields, extras)
    form = {'type': 'json_schema', 'json_schema': {'name': 'answer', 'strict': True, 'schema': dict(schema)}}
    try:
      return self._ask_flexible(CHAT, {**fields, 'response_format': form}, extras)
    except EndpointError as error:
      if error.reason != REFUSED:
        raise
    body = self._ask_flexible(CHAT, fields, extras)
    self._structured = False  # the same request without a schema was taken, so that it was the schema
    return body

  def _ask_flexible(self, route: str, fields: Mapping[str, Any], extras: Mapping[str, Any]) -> Any:
    """Asks with extras that not every server takes: what a refusal names is left out, and for good once that has helped."""
    without = self._unknown
    while True:
      sent = {name: value for name, value in extras.items() if name not in without}
      if 'max_tokens' in without and 'max_tokens' in extras:  # newer models of OpenAI know it by this name alone
        sent['max_completion_tokens'] = extras['max_tokens']
      try:
        body = self._ask(route, fields, sent)
      except EndpointError as error:
        named = {name for name in sent.keys() & extras.keys() if re.search(f'[\'"`]{name}[\'"`]', error.detail)}
        if error.reason != REFUSED or not named:
          raise
        without |= named
      else:
        self._unknown |= without
        return body

  def _ask(self, route: str, fields: Mapping[str, Any], extras: Mapping[str, Any]) -> Any:
    """The body of the reply, retried as often as the configuration allows."""
    for attempt in range(self.config.retries + 1):
      self._wait_turn()
      with self._lock:
        self._count['requests'] += 1
        self._count['retries'] += attempt > 0
      try:
        return self._once(route, fields, extras)
      except EndpointError as error:
        with self._lock:
          self._reached |= error.reason != UNREACHED
          wait = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt * self._jitter.uniform(0.5, 1.5))
        last = attempt == self.config.retries
        if last and not self._reached:
          raise UserError(f'{self.config.field}.url is {self.config.url}, where no server answers'
                          f'{f" ({error.detail})" if error.detail else ""}; start it, or set the field right') from None
        # Whoever wants a longer rest than we would wait is not asked again before it.
        if last or not error.retriable or (error.wait or 0) > LONGEST_WAIT:
          raise
        wait = max(wait, error.wait or 0)
        if error.reason == RATE_LIMITED:
          self._rest(wait)
        time.sleep(wait)
    raise AssertionError('no attempt was made')

  def _check_gone(self) -> None:
    with self._lock:
      now = time.monotonic()
      if self._in_a_row < MOST_IN_A_ROW:
        return
      if now < self._try_at:
        raise EndpointError(GONE, False, f'{self._in_a_row} failures in a row')
      self._try_at = now + LONGEST_WAIT

  def _wait_turn(self) -> None:
    with self._lock:
      now = time.monotonic()
      mine = max(now, self._next)
      self._next = mine + (60.0 / self.config.requests_per_minute if self.config.requests_per_minute else 0.0)
    time.sleep(mine - now)

  def _rest(self, seconds: float) -> None:
    """Nobody asks for a while: the limit is the server's, and other threads would run into it as well."""
    with self._lock:
      self._next = max(self._next, time.monotonic() + seconds)

  def _once(self, route: str, fields: Mapping[str, Any], extras: Mapping[str, Any]) -> Any:
    openai, client = self._openai, self._client
    create = client.chat.completions.with_raw_response.create if route == CHAT else client.images.with_raw_response.generate
    try:
      response = create(**fields, extra_body=dict(extras))
    except openai.APITimeoutError:
      raise EndpointError(TIMED_OUT, True) from None
    except openai.APIConnectionError as error:
      cause = error.__cause__
      if isinstance(cause, EndpointError):  # from `_after`: some versions of the client wrap what a hook raises
        raise cause from None
      reason = UNREACHED if isinstance(cause, self._http.ConnectError) else LOST
      raise EndpointError(reason, True, self._brief(str(cause or ''))) from None
    except openai.APIStatusError as error:
      raise self._refusal(route, error.response) from None
    kind = response.headers.get('content-type', '').partition(';')[0].strip().lower()
    if kind != 'application/json':
      raise EndpointError(WRONG_TYPE, False, self._brief(kind))
    with self._lock:
      self._reached = True
    return _json(response.content)

  def _refusal(self, route: str, response: Any) -> Exception:
    """What an HTTP status from 400 on means."""
    status, config = response.status_code, self.config
    if status in (401, 403):
      what = f'the key in the environment variable {config.key_variable}' if config.key_variable else (
          'requests without a key')
      return UserError(f'{config.url} does not take {what} (HTTP {status}); set {config.field}.key_variable to the variable '
                       'that holds a key for it')
    if status == 404:
      return UserError(f'{config.url} knows no {route} with the model {config.model!r} (HTTP 404); set '
                       f'{config.field}.model and {config.field}.url right')
    detail = self._brief(response.text)
    if status == 429:
      return EndpointError(RATE_LIMITED, True, detail, _retry_after(response.headers.get('retry-after', '')))
    if status >= 500:
      return EndpointError(f'server error {status}', True, detail, _retry_after(response.headers.get('retry-after', '')))
    return EndpointError(REFUSED, status in (408, 409), f'HTTP {status} {detail}'.strip())

  def _brief(self, text: str) -> str:
    text = ' '.join(text.split())
    return (text.replace(self._key, '***') if self._key else text)[:200]

  # Replies.

  def _meter(self, body: Any, names: tuple[str, str], priced: bool = False) -> list[int]:
    """Counts a reply and gives its tokens. One that cannot be used costs as much as any other."""
    usage = body.get('usage') if isinstance(body, dict) else None
    tokens = [usage.get(name) if isinstance(usage, dict) else None for name in names]
    known = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in tokens)
    spent = tokens if known else [0, 0]
    with self._lock:
      self._count.update({'replies': 1, 'unmetered': not known and not priced, 'input_tokens': spent[0],
                          'output_tokens': spent[1]})
    return spent

  def _picture(self, body: Any) -> bytes:
    self._meter(body, ('input_tokens', 'output_tokens'), self.config.picture_price > 0)
    data = body.get('data') if isinstance(body, dict) else None
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
      raise EndpointError(WRONG_SHAPE, False)
    with self._lock:
      self._count['drawn'] += len(data)
    if len(data) > 1:
      raise EndpointError(SEVERAL, False, str(len(data)))
    if any(entry.get('url') for entry in data):
      raise EndpointError(ADDRESS, False, self._brief(str(data[0]['url'])))
    text = data[0].get('b64_json') if data else None
    if not text or not isinstance(text, str):
      raise EndpointError(EMPTY if not text else WRONG_SHAPE, False)
    try:
      found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
      raise EndpointError(NO_PICTURE, False, 'no base64') from None
    _check_picture(found)
    with self._lock:
      self._count['pictures'] += 1
    return found

  def _reply(self, body: Any) -> Reply:
    spent = self._meter(body, ('prompt_tokens', 'completion_tokens'))
    try:
      choice = body['choices'][0]
      message, finish = choice['message'], choice.get('finish_reason')
      text, refusal = message.get('content'), message.get('refusal')
    except (TypeError, KeyError, IndexError, AttributeError):
      raise EndpointError(WRONG_SHAPE, False) from None
    if refusal or finish == 'content_filter':
      raise EndpointError(REFUSED, False, self._brief(str(refusal or finish)))
    if finish == 'length':
      raise EndpointError(CUT, False)
    if text is not None and not isinstance(text, str):
      raise EndpointError(WRONG_SHAPE, False)
    if not (text or '').strip():
      raise EndpointError(EMPTY, False)
    if '\0' in text or re.search('[\ud800-\udfff]', text):  # half a character can be written to no file
      raise EndpointError(NO_TEXT, False)
    return Reply(text, *spent)


def picture(data: bytes) -> dict[str, Any]:
  """A picture (PNG, JPEG or WebP bytes) as a part of a message. Raises ValueError on other bytes."""
  kind = next((kind for start, kind in _SIGNATURES if data.startswith(start)), '')
  if not kind:
    raise ValueError('the bytes are no PNG, JPEG or WebP picture')
  return {'type': 'image_url', 'image_url': {'url': f'data:image/{kind};base64,{base64.b64encode(data).decode()}'}}


def picture_of(pixels: np.ndarray, smallest_side: int = 1) -> dict[str, Any]:
  """Pixels uint8[H,W,3] as a part of a message; a smaller side is enlarged to `smallest_side`, by a whole factor."""
  factor = max(1, -(-smallest_side // min(pixels.shape[:2])))
  return picture(images.png(pixels.repeat(factor, axis=0).repeat(factor, axis=1)))  # repeating adds no blur of its own


def words(text: str) -> dict[str, Any]:
  """A text as a part of a message."""
  return {'type': 'text', 'text': text}


def one_object(text: str) -> dict[str, Any]:
  """The one JSON object in a reply; words or a fence around it may be there, another object may not.

  Raises:
    EndpointError: there is none, there are several, or it names something twice.
  """
  start, stop = text.find('{'), text.rfind('}') + 1
  found = _json(text[start:stop]) if 0 <= start < stop else None
  if not isinstance(found, dict):
    raise EndpointError(NO_JSON, True)
  return found


def _json(text: bytes | str) -> Any:
  """JSON, strictly: no NaN, no name twice in an object."""

  def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
      raise ValueError('a name stands twice')
    return found

  def refuse(constant: str) -> None:
    raise ValueError(f'{constant} is no JSON')

  try:
    return json.loads(text, object_pairs_hook=once, parse_constant=refuse)
  except (ValueError, RecursionError):
    raise EndpointError(NO_JSON, True) from None


def _check_pictures(messages: Sequence[Mapping[str, Any]]) -> None:
  """An address would make the server fetch it. Raises ValueError."""
  for message in messages:
    for part in message['content'] if isinstance(message['content'], list | tuple) else ():
      if part['type'] == 'image_url' and not part['image_url']['url'].startswith('data:image/'):
        raise ValueError('a picture in a message must be from endpoint.picture, not an address')


def _check_picture(data: bytes) -> None:
  """Raises EndpointError where the bytes are no picture, or one that is too large."""
  try:
    with PIL.Image.open(io.BytesIO(data), formats=images.FORMATS) as opened:  # reads the head alone
      if opened.width * opened.height > MOST_PIXELS:
        raise EndpointError(BOMB, False, f'{opened.width}x{opened.height}')
    images.pixels(data)
  except PIL.Image.DecompressionBombError:
    raise EndpointError(BOMB, False) from None
  except (UserError, OSError, ValueError, SyntaxError):
    raise EndpointError(NO_PICTURE, False, 'bytes that are no PNG, JPEG or WebP') from None


def _retry_after(text: str) -> float | None:
  """Seconds of the header Retry-After, which holds seconds or a date."""
  if text.strip().isdecimal():
    return float(text)
  try:
    date = email.utils.parsedate_to_datetime(text)
    return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())
  except (TypeError, ValueError, OverflowError):  # also a date without a zone
    return None


def _capped(base: type) -> type:
  """A stream that ends with EndpointError after so many bytes, or so late."""

  class Capped(base):

    def __init__(self, inner: Any, most: int, deadline: float):
      self._inner, self._most, self._deadline = inner, most, deadline

    def __iter__(self) -> Iterator[bytes]:
      size = 0
      for chunk in self._inner:
        size += len(chunk)
        if size > self._most:
          raise EndpointError(TOO_LARGE, False, f'more than {self._most} bytes')
        if time.monotonic() > self._deadline:
          raise EndpointError(TIMED_OUT, True)
        yield chunk

    def close(self) -> None:
      self._inner.close()

  return Capped
