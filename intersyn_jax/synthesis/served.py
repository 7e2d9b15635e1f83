"""SEIR over servers that speak OpenAI's protocol: language model, vision critic and image generator, each at an endpoint.

A chat model gets the prompt of its role (`data.roles`) as the user's message, after a system message that explains it
(`instructions`). A request that fails is a Reply with the reason as its problem, or no picture; SEIR then asks again, as
often as its method allows. The seed that is sent follows from the address of the request; no server needs to honour it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps

from intersyn_jax.data import images, roles
from intersyn_jax.endpoint import Endpoint, EndpointConfig, EndpointError, picture_of, words
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import Image, Text, images_of, text_of
from intersyn_jax.synthesis.instructions import instructions
from intersyn_jax.synthesis.interfaces import Draw, Look, Reply, Ticket, Write
from intersyn_jax.synthesis.seir import Method

LANGUAGE, CRITIC, IMAGES = 'served_language', 'served_critic', 'served_images'
"""Lanes."""

BATCH = 8
"""Requests of a batch, in multiples of those that may be under way at once: the slowest of a batch holds up few others."""

DRAW = '{caption}'
"""Prompt of an image generator on a server (`Method.draw`): the caption itself."""

PICTURE_BYTES = 32 << 20
"""A reply with a picture may be so long, where the configuration does not say."""

CHARACTERS = 16
"""Of a reply, for each token that was asked for at most; a server that sends more has not kept to it."""
TOO_LONG = 'too long'

Codes = Callable[[np.ndarray], np.ndarray]
"""uint8[n,H,W,3] -> int32[n,P,D], or back."""


class ServedChat:
  """Answers Write and Look with Reply, by asking a chat model; it must be one that sees where prompts hold pictures.

  Args:
    endpoint: to ask.
    method: whose limits the model is told.
    temperature: of what is written, and of a critique that is asked for once more; it is first asked for at 0.
    max_tokens: room for a reply.
    smallest_side: pixels; smaller pictures are enlarged for the server.
    decode: int32[n,P,D] -> uint8[n,H,W,3], for pictures that are codes alone.
  """

  def __init__(self, endpoint: Endpoint, method: Method, *, temperature: float = 0.7, max_tokens: int = 1024,
               smallest_side: int = 224, decode: Codes | None = None):
    _check(endpoint, temperature=(temperature, 0), max_tokens=(max_tokens, 1), smallest_side=(smallest_side, 1))
    self.rows = BATCH * endpoint.config.max_parallel
    self._endpoint, self._decode = endpoint, decode
    self._temperature, self._max_tokens, self._smallest_side = temperature, max_tokens, smallest_side
    self._instructions = {role: instructions(role, method) for role in roles.TAGS}

  def counters(self) -> dict[str, Any]:
    """Requests, tokens, cost and failures, see `Endpoint.counters`."""
    return self._endpoint.counters()

  def prepare(self, request: Write | Look) -> Ticket:
    return Ticket(CRITIC if isinstance(request, Look) else LANGUAGE, 0, request)

  def run(self, lane: str, size: int, tickets: Sequence[Ticket]) -> list[Reply]:
    """Asks for all replies, as many at once as the endpoint allows. Raises UserError where no request can succeed."""
    del lane, size
    asked = [ticket.payload for ticket in tickets]
    bare = {id(image): image.codes for request in asked for image in images_of(request.prompt) if not image.data}
    if bare and self._decode is None:
      raise ValueError('a picture is codes alone, and there is no `decode`')
    shown = dict(zip(bare, self._decode(np.stack(list(bare.values()))), strict=True)) if bare else {}
    return self._endpoint.each(lambda request: self._ask(request, shown), asked)

  def _ask(self, request: Write | Look, shown: Mapping[int, np.ndarray]) -> Reply:
    role, prompt = request.address.role, request.prompt
    content = [words(s.text) if isinstance(s, Text) else picture_of(
        np.asarray(shown[id(s)]) if id(s) in shown else images.pixels(s.data), self._smallest_side) for s in prompt]
    messages = [{'role': 'system', 'content': self._instructions[role]},
                {'role': 'user', 'content': content if images_of(prompt) else text_of(prompt)}]
    first_look = role.endswith('_critique') and not request.address.retry
    try:
      reply = self._endpoint.chat(messages, temperature=0.0 if first_look else self._temperature,
                                  max_tokens=self._max_tokens, seed=_seed(request))
    except EndpointError as error:
      return Reply('', error.reason)
    return Reply('', TOO_LONG) if len(reply.text) > CHARACTERS * self._max_tokens else Reply(reply.text)


class ServedImages:
  """Answers Draw with Image, or None where no picture came.

  Args:
    endpoint: to ask.
    size: asked for, `WIDTHxHEIGHT`; '' leaves it to the server.
    pixels: side to which pictures are cropped at the centre and resized; 0 leaves them as they come.
    encode: uint8[n,H,W,3] -> int32[n,P,D], so that a model of ours can read the pictures; needs `pixels`.
  """

  def __init__(self, endpoint: Endpoint, *, size: str = '', pixels: int = 0, encode: Codes | None = None):
    if encode is not None and pixels < 1:
      raise ValueError('`encode` needs pictures of one size: give `pixels`')
    self.rows = BATCH * endpoint.config.max_parallel
    self._endpoint, self._size, self._pixels, self._encode = endpoint, size, pixels, encode

  def counters(self) -> dict[str, Any]:
    """Requests, pictures, cost and failures, see `Endpoint.counters`."""
    return self._endpoint.counters()

  def prepare(self, request: Draw) -> Ticket:
    return Ticket(IMAGES, 0, request)

  def run(self, lane: str, size: int, tickets: Sequence[Ticket]) -> list[Image | None]:
    """Asks for all pictures, as many at once as the endpoint allows. Raises UserError where no request can succeed."""
    del lane, size
    drawn = self._endpoint.each(self._ask, [ticket.payload for ticket in tickets])
    there = [array for array in drawn if array is not None]
    codes = iter(self._encode(np.stack(there)) if there and self._encode is not None else [None] * len(there))
    return [None if array is None else self._image(array, next(codes)) for array in drawn]

  def _ask(self, request: Draw) -> np.ndarray | None:
    """uint8[H,W,3]."""
    try:
      array = images.pixels(self._endpoint.image(text_of(request.prompt), size=self._size, seed=_seed(request)))
    except EndpointError:  # counted by the endpoint with its reason
      return None
    if not self._pixels:
      return array
    side = (self._pixels, self._pixels)
    return np.asarray(PIL.ImageOps.fit(PIL.Image.fromarray(array), side, PIL.Image.Resampling.LANCZOS))

  def _image(self, array: np.ndarray, codes: np.ndarray | None) -> Image:
    """Encoded anew, so that nothing but pixels comes from the server."""
    return Image(images.png(array), None if codes is None else np.asarray(codes, np.int32))


class Served(NamedTuple):
  """The workers on servers; None for a job that is done here."""

  language: ServedChat | None = None
  critic: ServedChat | None = None
  images: ServedImages | None = None

  def counters(self) -> dict[str, dict[str, Any]]:
    """What each endpoint counted, by the name of its section."""
    return {name: worker.counters() for name, worker in self._asdict().items() if worker is not None}


def served(section: Mapping[str, Mapping[str, Any]], method: Method, *, field: str = 'config.synthesize.endpoints',
           seed: int = 0, decode: Codes | None = None, encode: Codes | None = None, pixels: int = 0) -> Served:
  """The workers that a configuration names.

  Args:
    section: `language`, `critic` and `images`, each the fields of EndpointConfig and those of its worker; a job whose `url`
      is empty, or whose section is missing, is done by somebody else.
    method: whose limits the models are told.
    field: dotted name of the section, for messages.
    seed: of the jitter between retries.
    decode, encode, pixels: between pictures and the codes of our own models, see the workers.

  Raises:
    UserError: a field is wrong, or a key is missing.
  """
  named: dict[str, Mapping[str, Any]] = {name: section[name] for name in Served._fields
                                         if name in section and section[name]['url']}
  if 'images' in named:
    named['images'] = {'max_response_bytes': PICTURE_BYTES, **named['images']}
  endpoints = {name: Endpoint(EndpointConfig.of(part, f'{field}.{name}'), seed=seed) for name, part in named.items()}
  chat = ('temperature', 'max_tokens', 'smallest_side')
  own = {'language': chat, 'critic': chat, 'images': ('size',)}
  options = {name: {n: part[n] for n in own[name] if n in part} for name, part in named.items()}
  workers: dict[str, Any] = {
      name: ServedImages(endpoint, pixels=pixels, encode=encode, **options[name]) if name == 'images' else
      ServedChat(endpoint, method, decode=decode, **options[name]) for name, endpoint in endpoints.items()}
  return Served(**workers)


def _seed(request: Write | Look | Draw) -> int:
  """31 bits, which every server takes."""
  return request.address.number() >> 1


def _check(endpoint: Endpoint, **least: tuple[float, float]) -> None:
  for name, (value, low) in least.items():
    if not value >= low:
      raise UserError(f'{endpoint.config.field}.{name} is {value}; make it at least {low}')
