"""A server on this machine that speaks just enough of OpenAI's protocol, and plays whatever a test scripts."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Answer:
  """One HTTP answer.

  Attributes:
    body: sent as JSON where it is no bytes.
    promised: content length that is told; None tells the true one, 0 sends the body in chunks without a length.
    delay: seconds before the head. pause: seconds between chunks of a body without a length.
  """

  body: Any = b''
  status: int = 200
  kind: str = 'application/json'
  headers: dict[str, str] = dataclasses.field(default_factory=dict)
  promised: int | None = None
  delay: float = 0.0
  pause: float = 0.0


@dataclasses.dataclass(frozen=True)
class Request:
  """What was asked; `body` is the JSON object."""

  path: str
  headers: dict[str, str]
  body: dict[str, Any]
  time: float


def completion(text: str | None, *, tokens: tuple[int, int] | None = (100, 10), finish: str = 'stop', **message) -> Answer:
  """A chat completion, as OpenAI's servers write it."""
  body: dict[str, Any] = {
      'id': 'c', 'object': 'chat.completion', 'created': 0, 'model': 'm',
      'choices': [{'index': 0, 'finish_reason': finish, 'message': {'role': 'assistant', 'content': text} | message}]}
  if tokens is not None:
    body['usage'] = {'prompt_tokens': tokens[0], 'completion_tokens': tokens[1], 'total_tokens': sum(tokens)}
  return Answer(body)


def generation(*pictures: bytes | str, **entry) -> Answer:
  """An answer of image generation: pictures as base64 (text is sent as it is), and whatever else each entry shall hold."""
  encoded = [p if isinstance(p, str) else base64.b64encode(p).decode() for p in pictures]
  return Answer({'created': 0, 'data': [{'b64_json': text} | entry for text in encoded]})


class Server:
  """Answers POST requests on a free port of loopback while the `with` block lasts.

  Args:
    play: gives the answer to a request, or answers in turn, of which the last one is repeated.

  Attributes:
    requests: all that came, in order.
    most: the largest number of requests that were under way at once.
  """

  def __init__(self, play: Callable[[Request], Answer] | Iterable[Answer]):
    self._play = play if callable(play) else self._in_turn(list(play))
    self.requests: list[Request] = []
    self.most = self._now = 0
    self._lock, self._end = threading.Lock(), threading.Event()
    self._open: set[socket.socket] = set()

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self._server.server_address[1]}/v1'

  def _in_turn(self, answers: list[Answer]) -> Callable[[Request], Answer]:
    def play(request: Request) -> Answer:
      del request
      return answers.pop(0) if len(answers) > 1 else answers[0]
    return play

  def _answer(self, request: Request) -> Answer:
    with self._lock:
      self.requests.append(request)
      self._now += 1
      self.most = max(self.most, self._now)
      return self._play(request)

  def _over(self) -> None:
    with self._lock:
      self._now -= 1

  def __enter__(self) -> Server:
    outer = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = 'HTTP/1.1'

      def setup(self):
        super().setup()
        outer._open.add(self.connection)

      def finish(self):
        outer._open.discard(self.connection)
        with contextlib.suppress(OSError):
          super().finish()

      def do_POST(self):
        body = self.rfile.read(int(self.headers['content-length']))
        answer = outer._answer(Request(self.path, {k.lower(): v for k, v in self.headers.items()}, json.loads(body),
                                       time.monotonic()))
        try:
          self._send(answer)
        except OSError:  # the client has had enough
          self.close_connection = True
        finally:
          outer._over()

      do_GET = do_POST

      def _send(self, answer: Answer) -> None:
        outer._end.wait(answer.delay)
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        self.send_header('Content-Type', answer.kind)
        for name, value in answer.headers.items():
          self.send_header(name, value)
        if answer.promised == 0:
          self.send_header('Transfer-Encoding', 'chunked')
          self.end_headers()
          for start in range(0, len(body), 1024):
            piece = body[start:start + 1024]
            self.wfile.write(b'%x\r\n%s\r\n' % (len(piece), piece))
            self.wfile.flush()
            outer._end.wait(answer.pause)
          self.wfile.write(b'0\r\n\r\n')
          return
        self.send_header('Content-Length', str(len(body) if answer.promised is None else answer.promised))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = answer.promised is not None

      def log_message(self, *args):
        pass

    self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self._server.daemon_threads = True
    self._thread = threading.Thread(target=self._server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *error) -> None:
    self._end.set()
    self._server.shutdown()
    for connection in list(self._open):  # those that are kept alive would be answered still
      with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    self._server.server_close()
    self._thread.join()
