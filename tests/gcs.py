"""A server that plays Cloud Storage's JSON API, generations and their conditions included, and refuses what it does not know.

gcp-storage-emulator from PyPI tells no generation with what is read, so that tensorstore fails (`Malformed StorageGeneration`),
and knows neither their conditions nor `moveTo`. Here is what tensorstore, gcsfs and google-cloud-storage ask for in our hands;
anything else is answered with 400 and kept in `unknown`.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.server
import itertools
import json
import os
import re
import threading
import urllib.parse

import google_crc32c

BUCKET = 'test-bucket'
PAGE = 50
"""Entries of a listing that come at once; the real one gives 1000."""

_PATH = re.compile(r'(/upload|/download)?/storage/v1/b/([^/]+)(?:(/o)(?:/([^/]+)(?:/(moveTo|copyTo|rewriteTo)/(.+))?)?)?')
_HARMLESS = {'alt', 'projection', 'prettyPrint', 'fields', 'uploadType', 'name', 'prefix', 'delimiter', 'pageToken', 'maxResults',
             'upload_id', 'ifGenerationMatch', 'ifGenerationNotMatch', 'generation', 'startOffset', 'endOffset', 'neededAcl',
             'rewriteToken', 'includeTrailingDelimiter', 'versions', 'tensorstore'}  # the last is there against caches on the way


@dataclasses.dataclass(frozen=True)
class Stored:
  data: bytes
  generation: int
  kind: str

  def resource(self, name: str, url: str) -> dict:
    media = f'{url}/download/storage/v1/b/{BUCKET}/o/{urllib.parse.quote(name, safe="")}'
    return {'kind': 'storage#object', 'id': f'{BUCKET}/{name}/{self.generation}', 'name': name, 'bucket': BUCKET,
            'generation': str(self.generation), 'metageneration': '1', 'size': str(len(self.data)), 'contentType': self.kind,
            'md5Hash': base64.b64encode(hashlib.md5(self.data).digest()).decode(), 'crc32c': _crc(self.data),
            'etag': f'e{self.generation}', 'storageClass': 'STANDARD', 'timeCreated': '2026-01-01T00:00:00.000Z',
            'updated': '2026-01-01T00:00:00.000Z', 'mediaLink': f'{media}?generation={self.generation}&alt=media'}


def _crc(data: bytes) -> str:
  return base64.b64encode(google_crc32c.value(data).to_bytes(4, 'big')).decode()


class Refused(Exception):
  """An answer that is no success: (status, text)."""


class Server:
  """One bucket in memory, while the `with` block lasts.

  Attributes:
    objects: what is in it, by name.
    log: (method, name of the object) of every change, in order.
    unknown: requests that the server does not know.
    refuse: answers a status instead of doing what (method, name) asks for, where it returns one.
  """

  def __init__(self):
    self.objects: dict[str, Stored] = {}
    self.log: list[tuple[str, str]] = []
    self.unknown: list[str] = []
    self.refuse = lambda method, name: None
    self._uploads: dict[str, tuple[str, dict, str, bytearray]] = {}
    self._numbers, self._lock = itertools.count(1), threading.Lock()

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self._server.server_address[1]}'

  @property
  def environment(self) -> dict[str, str]:
    """What sends Google's client, gcsfs and tensorstore here, with a token that is none."""
    return {'STORAGE_EMULATOR_HOST': self.url, 'TENSORSTORE_GCS_HTTP_URL': self.url, 'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none',
            'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false', 'NO_PROXY': '127.0.0.1'}

  def put(self, name: str, data: bytes, kind: str = 'application/octet-stream') -> Stored:
    with self._lock:
      self.objects[name] = Stored(bytes(data), 1700000000000000 + next(self._numbers), kind)
      self.log.append(('PUT', name))
      return self.objects[name]

  def save(self, folder: os.PathLike) -> None:
    """Writes all objects as files."""
    for name, stored in self.objects.items():
      path = os.path.join(folder, name)
      os.makedirs(os.path.dirname(path), exist_ok=True)
      with open(path, 'wb') as file:
        file.write(stored.data)

  # Requests: (status, headers, body).

  def answer(self, method: str, path: str, query: dict[str, str], headers, body: bytes):
    unquoted = urllib.parse.unquote
    if foreign := query.keys() - _HARMLESS:
      raise NotImplementedError(f'parameters {sorted(foreign)}')
    if path == '/batch/storage/v1':
      return self._batch(headers, body)
    match = _PATH.fullmatch(path)
    if not match:
      raise NotImplementedError(path)
    service, bucket, objects, name, verb, target = match.groups()
    if bucket != BUCKET:
      raise Refused(404, 'The specified bucket does not exist.')
    name = unquoted(name) if name else name
    if status := self.refuse(method, name or query.get('name', '')):
      raise Refused(status, 'refused by the test')
    if service == '/upload' and objects and not name and method in ('POST', 'PUT'):
      return self._upload(method, query, headers, body)
    if verb and method == 'POST':
      return self._copy(name, verb, unquoted(target), query)
    if not objects and method == 'GET':
      return _json({'kind': 'storage#bucket', 'name': BUCKET, 'id': BUCKET, 'location': 'US', 'storageClass': 'STANDARD',
                    'metageneration': '1'})
    if objects and not name and method == 'GET':
      return self._list(query)
    if name and method == 'DELETE':
      with self._lock:
        self._conditions(name, query)
        if name not in self.objects:
          raise Refused(404, f'No such object: {name}')
        del self.objects[name]
        self.log.append(('DELETE', name))
      return 204, {}, b''
    if name and method == 'GET':
      return self._get(name, query, headers, service)
    raise NotImplementedError(f'{method} {path}')

  def _conditions(self, name: str, query: dict[str, str], reading: bool = False) -> None:
    found = self.objects[name].generation if name in self.objects else 0
    if 'ifGenerationMatch' in query and int(query['ifGenerationMatch']) != found:
      raise Refused(412, 'conditionNotMet')
    if 'ifGenerationNotMatch' in query and int(query['ifGenerationNotMatch']) == found:
      raise Refused(304 if reading else 412, '')
    if 'generation' in query and int(query['generation']) != found:
      raise Refused(404, f'No such object: {name}#{query["generation"]}')

  def _get(self, name: str, query: dict[str, str], headers, service: str | None):
    with self._lock:
      if name not in self.objects:
        raise Refused(404, f'No such object: {BUCKET}/{name}')
      self._conditions(name, query, reading=True)
      stored = self.objects[name]
    if query.get('alt') != 'media' and service != '/download':
      return _json(stored.resource(name, self.url))
    told = {'Content-Type': stored.kind, 'x-goog-generation': str(stored.generation), 'x-goog-metageneration': '1',
            'x-goog-hash': f'crc32c={_crc(stored.data)}', 'x-goog-stored-content-encoding': 'identity',
            'x-goog-stored-content-length': str(len(stored.data)), 'ETag': f'e{stored.generation}'}
    asked = re.fullmatch(r'bytes=(\d*)-(\d*)', headers.get('Range', ''))
    if not asked:
      return 200, told, stored.data
    size = len(stored.data)
    first = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
    last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
    if first >= size:
      raise Refused(416, 'range')
    return 206, told | {'Content-Range': f'bytes {first}-{last}/{size}'}, stored.data[first:last + 1]

  def _list(self, query: dict[str, str]):
    prefix, delimiter = query.get('prefix', ''), query.get('delimiter', '')
    entries: dict[str, Stored | None] = {}
    with self._lock:
      for name, stored in self.objects.items():
        if not name.startswith(prefix) or name < query.get('startOffset', '') or name >= query.get('endOffset', '\U0010ffff'):
          continue
        cut = name.find(delimiter, len(prefix)) if delimiter else -1
        if cut >= 0:
          entries[name[:cut + len(delimiter)]] = None
        else:
          entries[name] = stored
    names = [name for name in sorted(entries) if name > query.get('pageToken', '')]
    page = names[:min(PAGE, int(query.get('maxResults', PAGE)))]
    body = {'kind': 'storage#objects', 'items': [entries[name].resource(name, self.url) for name in page if entries[name]],
            'prefixes': [name for name in page if not entries[name]]}
    return _json(body | ({'nextPageToken': page[-1]} if len(page) < len(names) else {}))

  def _upload(self, method: str, query: dict[str, str], headers, body: bytes):
    kind = headers.get('Content-Type', '')
    if method == 'POST' and query.get('uploadType') == 'media':
      return self._insert(query['name'], body, query, kind)
    if method == 'POST' and query.get('uploadType') == 'multipart':
      about, (kind, data) = _multipart(kind, body)
      about = json.loads(about[1])
      return self._insert(query.get('name') or about['name'], data, query, about.get('contentType', kind))
    if method == 'POST' and query.get('uploadType') == 'resumable' and 'upload_id' not in query:
      name = query.get('name') or json.loads(body)['name']
      number = str(next(self._numbers))
      self._uploads[number] = name, query, headers.get('X-Upload-Content-Type', ''), bytearray()
      return 200, {'Location': f'{self.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&upload_id={number}'}, b''
    if query.get('upload_id') in self._uploads:
      name, begun, kind, data = self._uploads[query['upload_id']]
      whole = f'bytes 0-{len(body) - 1}/{len(body)}'
      span = re.fullmatch(r'bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)', headers.get('Content-Range', whole))
      if span[1] is not None and int(span[1]) != len(data):
        raise Refused(400, 'chunks out of order')
      data += body
      if span[3] == '*' or int(span[3]) > len(data):
        return 308, {'Range': f'bytes=0-{len(data) - 1}'} if data else {}, b''
      del self._uploads[query['upload_id']]
      return self._insert(name, data, begun, kind)
    raise NotImplementedError(f'upload {query}')

  def _insert(self, name: str, data: bytes, query: dict[str, str], kind: str):
    if status := self.refuse('PUT', name):
      raise Refused(status, 'refused by the test')
    with self._lock:
      self._conditions(name, query)
    return _json(self.put(name, data, kind).resource(name, self.url))

  def _copy(self, source: str, verb: str, target: str, query: dict[str, str]):
    bucket, _, name = target.rpartition('o/') if verb == 'moveTo' else target.removeprefix('b/').partition('/o/')
    if verb != 'moveTo' and bucket != BUCKET:
      raise NotImplementedError(target)
    if source not in self.objects:
      raise Refused(404, f'No such object: {source}')
    self._conditions(name, query)
    found = self.objects[source]
    new = self.put(name, found.data, found.kind).resource(name, self.url)
    if verb == 'moveTo':
      del self.objects[source]
    size = str(len(found.data))
    return _json(new if verb != 'rewriteTo' else {'kind': 'storage#rewriteResponse', 'done': True, 'resource': new,
                                                  'totalBytesRewritten': size, 'objectSize': size})

  def _batch(self, headers, body: bytes):
    parts = []
    for number, (_, text) in enumerate(_multipart(headers['Content-Type'], body), start=1):
      method, path = text.decode().splitlines()[0].split()[:2]
      url = urllib.parse.urlsplit(path)
      status, told, data = self.respond(method, url.path, url.query, {}, b'')
      lines = [f'HTTP/1.1 {status} X', *(f'{k}: {v}' for k, v in told.items()), '', data.decode()]
      parts.append(f'--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{number}>\r\n\r\n' + '\r\n'.join(lines))
    return 200, {'Content-Type': 'multipart/mixed; boundary=batch'}, ('\r\n'.join([*parts, '--batch--'])).encode()

  def respond(self, method: str, path: str, query: str, headers, body: bytes):
    try:
      return self.answer(method, path, dict(urllib.parse.parse_qsl(query, keep_blank_values=True)), headers, body)
    except Refused as e:
      status, text = e.args
      return _json({'error': {'code': status, 'message': text, 'errors': [{'message': text}]}} if status != 304 else None, status)
    except Exception as e:  # a server must answer; the test that looks at `unknown` fails
      self.unknown.append(f'{method} {path}?{query}: {e!r}')
      return _json({'error': {'code': 400, 'message': repr(e)}}, 400)

  def __enter__(self) -> Server:
    outer = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = 'HTTP/1.1'
      wbufsize = -1
      disable_nagle_algorithm = True

      def _any(self):
        if self.headers.get('Transfer-Encoding') == 'chunked':
          body = b''
          while size := int(self.rfile.readline().split(b';')[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
          self.rfile.readline()
        else:
          body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        url = urllib.parse.urlsplit(self.path)
        status, told, data = outer.respond(self.command, url.path, url.query, self.headers, body)
        self.send_response(status)
        for key, value in told.items():
          self.send_header(key, value)
        if status not in (204, 304):
          self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        if status not in (204, 304):
          self.wfile.write(data)

      do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _any

      def log_message(self, *args):
        pass

    class Threads(http.server.ThreadingHTTPServer):
      daemon_threads = True
      request_queue_size = 128

      def handle_error(self, *args):  # a client that was killed
        pass

    self._server = Threads(('127.0.0.1', 0), Handler)
    threading.Thread(target=self._server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
    return self

  def __exit__(self, *error) -> None:
    self._server.shutdown()
    self._server.server_close()


def _json(value, status: int = 200):
  return status, {'Content-Type': 'application/json; charset=UTF-8'}, json.dumps(value).encode() if value is not None else b''


def _multipart(kind: str, body: bytes) -> list[tuple[str, bytes]]:
  """(content type, bytes) of the parts."""
  boundary = re.search(r'boundary="?\'?([^"\';]+)', kind)[1].encode()
  parts = []
  for part in body.split(b'--' + boundary)[1:-1]:
    head, _, data = part.removeprefix(b'\r\n').removeprefix(b'\n').partition(b'\r\n\r\n' if b'\r\n\r\n' in part else b'\n\n')
    found = re.search(rb'(?im)^content-type:\s*(.+?)\s*$', head)
    parts.append((found[1].decode() if found else '', data.removesuffix(b'\n').removesuffix(b'\r')))
  return parts
