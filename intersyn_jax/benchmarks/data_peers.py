"""The peers of benchmark `data`: Hugging Face `datasets` and webdataset under torch's DataLoader, as their documentation
sets them up.

Each reads the same conversations as ours, written once in its own format: Arrow files on the disk, or tar files. Workers
stay alive between passes and fetch four batches ahead. What a pass gives goes to jax's device, as ours does.

`documents` do what ours does: documents that are tokenised already are shuffled and packed anew in every pass. `rows` do less:
packed beforehand, once, and kept as arrays of a fixed length, of which a pass changes no more than the order.

Needs the extra `peers`.

Letters: B rows of a batch, T positions, n pictures of a batch.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from intersyn_jax.data import plan
from intersyn_jax.data.pipeline import Documents
from intersyn_jax.interleave.layout import FILL, Layout, TokenBatch
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn, images_of

WORKERS = (0, 1, 2)
SHARDS = 4
"""Tar files of a set, so that every worker has some."""
AHEAD = 4
SHUFFLED = 1000
"""Samples among which webdataset shuffles."""

Pass = Callable[[], None]
"""Reads everything once."""

FIELDS = tuple(field.name for field in dataclasses.fields(TokenBatch))


def to_device(batches: Iterable[Any]) -> None:
  """Sends every batch (a torch tensor, or a dictionary of them) to the device, and waits for the last one."""
  last = None
  for batch in batches:
    last = jax.device_put(jax.tree.map(lambda tensor: tensor.numpy(), dict(batch) if isinstance(batch, dict) else batch))
  jax.block_until_ready(last)


def passes(name: str, loader: Callable[[int], Iterable[Any]]) -> dict[str, Pass]:
  """One pass a number of workers; `loader` makes what DataLoader is for that many."""
  made = {f'{name}, {workers} workers': loader(workers) for workers in WORKERS}
  return {label: functools.partial(to_device, found) for label, found in made.items()}


def _torch(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
  import torch
  return {name: torch.from_numpy(array) for name, array in arrays.items()}


# Conversations as both formats hold them: one turn, an answer of texts, each with a picture after it.


def _parts(conversation: Conversation) -> tuple[str, list[str], list[Image]]:
  (turn,) = conversation.turns
  return turn.question[0].text, [s.text for s in turn.answer if isinstance(s, Text)], images_of(turn.answer)


def _conversation(name: str, question: str, texts: Sequence[str], codes: np.ndarray) -> Conversation:
  """`codes` int32[pictures,P]."""
  answer = [s for text, code in zip(texts, codes, strict=True) for s in (Text(text), Image(codes=code[:, None]))]
  return Conversation(name, '', (Turn((Text(question),), tuple(answer)),))


def packed(layout: Layout, length: int, conversations: Sequence[Conversation]) -> dict[str, Any]:
  """Tokenises a window of conversations and packs it into rows [R,T], with the same functions as ours."""
  documents = Documents({'all': conversations}, layout, length=length)
  rows = documents.rows(plan.best_fit(np.arange(len(documents.lengths)), documents.lengths, length), length)
  return _torch({name: getattr(rows, name) for name in FIELDS})


def single(documents: Documents) -> Iterator[dict[str, np.ndarray]]:
  """The fields of each document by itself, [L]."""
  for number, size in enumerate(documents.lengths.tolist()):
    one = documents.rows([[number]], size)
    yield {name: getattr(one, name)[0] for name in FIELDS}


def filled(values: Mapping[str, np.ndarray], lengths: np.ndarray, length: int) -> dict[str, Any]:
  """Packs documents that lie end to end, [N,...] each field, into rows [R,T], with the packing of ours."""
  rows = plan.best_fit(np.arange(len(lengths)), lengths, length)
  order = np.concatenate(rows)
  sizes = lengths[order]
  before = np.cumsum(sizes) - sizes
  firsts = np.concatenate([length * number + np.cumsum(lengths[row]) - lengths[row] for number, row in enumerate(rows)])
  step = np.arange(sizes.sum())
  source = np.repeat((np.cumsum(lengths) - lengths)[order] - before, sizes) + step
  target = np.repeat(firsts - before, sizes) + step
  out = {}
  for name, value in values.items():
    whole = np.full((len(rows) * length, *value.shape[1:]), FILL.get(name, 0), value.dtype)
    whole[target] = value[source]
    out[name] = whole
  out['document'][target] = np.repeat(np.concatenate([np.arange(1, len(row) + 1) for row in rows]), sizes)
  return _torch({name: whole.reshape(len(rows), length, *whole.shape[1:]) for name, whole in out.items()})


# datasets.


class HuggingFace:
  """`datasets`, memory-mapped Arrow files, read by index through DataLoader."""

  name = 'datasets + DataLoader'

  def __init__(self, folder: pathlib.Path):
    import datasets
    datasets.disable_progress_bars()
    self._datasets, self._folder = datasets, folder / 'datasets'

  def pictures(self, conversations: Sequence[Conversation], batch: int) -> dict[str, Pass]:
    """Decodes the pictures of `batch` records at a time."""
    d = self._datasets
    text = d.Value('string')
    features = d.Features({'id': text, 'question': text, 'texts': d.List(text), 'images': d.List(d.Image())})
    rows = [(c.id, *_parts(c)) for c in conversations]
    saved = self._saved('pictures', features, {
        'id': [row[0] for row in rows], 'question': [row[1] for row in rows], 'texts': [row[2] for row in rows],
        'images': [[{'bytes': image.data, 'path': None} for image in row[3]] for row in rows]})
    collate = lambda records: _stacked([np.asarray(image) for record in records for image in record['images']])
    return passes(self.name, lambda workers: self._loader(saved, workers, batch_size=batch, collate_fn=collate))

  def records(self, conversations: Sequence[Conversation], layout: Layout, length: int) -> dict[str, Pass]:
    """Tokenises and packs while it reads."""
    d = self._datasets
    text = d.Value('string')
    features = d.Features({'id': text, 'question': text, 'texts': d.List(text), 'codes': d.List(d.Value('int32'))})
    rows = [(c.id, *_parts(c)) for c in conversations]
    saved = self._saved('records', features, {
        'id': [row[0] for row in rows], 'question': [row[1] for row in rows], 'texts': [row[2] for row in rows],
        'codes': [np.concatenate([image.codes[:, 0] for image in row[3]]) for row in rows]})
    places = layout.block.places

    def collate(records: list[dict[str, Any]]) -> dict[str, Any]:
      return packed(layout, length, [
          _conversation(r['id'], r['question'], r['texts'], np.asarray(r['codes'], np.int32).reshape(-1, places))
          for r in records])

    return passes(self.name, lambda workers: self._loader(
        saved, workers, batch_size=plan.WINDOW, shuffle=True, collate_fn=collate))

  def documents(self, documents: Documents, length: int) -> dict[str, Pass]:
    """Packs documents that are tokenised."""
    d = self._datasets
    each = list(single(documents))
    features = d.Features({name: d.List(d.Value(str(array.dtype))) for name, array in each[0].items()})
    saved = self._saved('documents', features, {name: [one[name].reshape(-1) for one in each] for name in FIELDS})
    shapes = {name: array.shape[1:] for name, array in each[0].items()}

    def tensors(table: Any) -> dict[str, Any]:
      columns = {name: table.column(name).combine_chunks() for name in FIELDS}
      values = {name: column.flatten().to_numpy(zero_copy_only=False).reshape(-1, *shapes[name])
                for name, column in columns.items()}
      return filled(values, columns['text'].value_lengths().to_numpy(zero_copy_only=False), length)

    return self._tables('packing documents', saved, plan.WINDOW, tensors)

  def rows(self, rows: TokenBatch, batch: int) -> dict[str, Pass]:
    """Reads rows that are packed, [R,T] each field."""
    d = self._datasets
    arrays = {name: np.asarray(getattr(rows, name)) for name in FIELDS}
    features = d.Features({name: d.List(d.Value(str(array.dtype)), length=array[0].size) for name, array in arrays.items()})
    saved = self._saved('rows', features, {name: list(array.reshape(len(array), -1)) for name, array in arrays.items()})
    shapes = {name: array.shape[1:] for name, array in arrays.items()}

    def tensors(table: Any) -> dict[str, Any]:
      values = {name: table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False) for name in FIELDS}
      return _torch({name: values[name].reshape(-1, *shapes[name]) for name in FIELDS})

    return self._tables('rows packed before', saved, batch, tensors)

  def _tables(self, what: str, saved: Any, batch: int, tensors: Callable[[Any], dict[str, Any]]) -> dict[str, Pass]:
    """Whole batches as Arrow tables: quicker than the numpy format, which makes int64 of all whole numbers."""
    tables = saved.with_format('arrow')

    def loader(workers: int) -> Any:
      from torch.utils.data import BatchSampler, RandomSampler
      order = BatchSampler(RandomSampler(tables), batch, drop_last=False)
      return self._loader(tables, workers, sampler=order, batch_size=None, collate_fn=tensors)

    return passes(f'{self.name}, {what}', loader)

  def _saved(self, name: str, features: Any, columns: dict[str, list]) -> Any:
    folder = str(self._folder / name)
    self._datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder)
    return self._datasets.load_from_disk(folder)

  def _loader(self, source: Any, workers: int, **options: Any) -> Any:
    import torch
    return torch.utils.data.DataLoader(source, num_workers=workers, persistent_workers=workers > 0,
                                       prefetch_factor=AHEAD if workers else None, **options)


# webdataset.


class WebDataset:
  """webdataset, tar files read from start to end."""

  name = 'webdataset'

  def __init__(self, folder: pathlib.Path):
    import webdataset
    self._wds, self._folder = webdataset, folder / 'webdataset'
    self._folder.mkdir()

  def pictures(self, conversations: Sequence[Conversation], batch: int) -> dict[str, Pass]:
    """As `HuggingFace.pictures`."""
    files = self._write('pictures', ({'__key__': c.id, 'json': {'question': question, 'texts': texts}}
                                     | {f'{i}.jpg': image.data for i, image in enumerate(found)}
                                     for c in conversations for question, texts, found in [_parts(c)]))
    collate = lambda records: _stacked([v for record in records for name, v in record.items() if name.endswith('.jpg')])
    return passes(self.name, lambda workers: self._loader(
        self._open(files).decode('rgb8').batched(batch, collation_fn=collate), workers))

  def records(self, conversations: Sequence[Conversation], layout: Layout, length: int) -> dict[str, Pass]:
    """As `HuggingFace.records`."""
    files = self._write('records', ({'__key__': c.id, 'json': {'question': question, 'texts': texts},
                                     'npy': np.stack([image.codes[:, 0] for image in found])}
                                    for c in conversations for question, texts, found in [_parts(c)]))

    def collate(records: list[dict[str, Any]]) -> dict[str, Any]:
      return packed(layout, length, [_conversation(r['__key__'], r['json']['question'], r['json']['texts'], r['npy'])
                                     for r in records])

    return passes(self.name, lambda workers: self._loader(
        self._open(files).shuffle(SHUFFLED).decode().batched(plan.WINDOW, collation_fn=collate), workers))

  def documents(self, documents: Documents, length: int) -> dict[str, Pass]:
    """As `HuggingFace.documents`; a document is one array of bytes, so that a sample is one file of the tar."""
    each = list(single(documents))
    kinds = _kinds(each[0])
    files = self._structured('documents', (self._joined(kinds, one) for one in each))

    def collate(records: list[dict[str, Any]]) -> dict[str, Any]:
      joined = np.concatenate([record['npy'] for record in records]).view(kinds)
      lengths = np.asarray([record['npy'].size // kinds.itemsize for record in records])
      return filled({name: joined[name] for name in FIELDS}, lengths, length)

    return passes(f'{self.name}, packing documents', lambda workers: self._loader(
        self._open(files).shuffle(SHUFFLED).decode().batched(plan.WINDOW, collation_fn=collate), workers))

  def rows(self, rows: TokenBatch, batch: int) -> dict[str, Pass]:
    """As `HuggingFace.rows`, in the files of `documents`."""
    arrays = {name: np.asarray(getattr(rows, name)) for name in FIELDS}
    kinds = _kinds({name: array[0] for name, array in arrays.items()})
    shape = rows.text.shape[1]
    files = self._structured('rows', (self._joined(kinds, {name: array[number] for name, array in arrays.items()})
                                      for number in range(len(rows.text))))

    def collate(records: list[dict[str, Any]]) -> dict[str, Any]:
      joined = np.concatenate([record['npy'] for record in records]).view(kinds).reshape(len(records), shape)
      return _torch({name: np.ascontiguousarray(joined[name]) for name in FIELDS})

    return passes(f'{self.name}, rows packed before', lambda workers: self._loader(
        self._open(files).shuffle(SHUFFLED).decode().batched(batch, collation_fn=collate), workers))

  @staticmethod
  def _joined(kinds: np.dtype, fields: Mapping[str, np.ndarray]) -> np.ndarray:
    """The fields of each position together, as `kinds` has them."""
    whole = np.empty(len(fields['text']), kinds)
    for name, array in fields.items():
      whole[name] = array
    return whole

  def _structured(self, name: str, samples: Iterable[np.ndarray]) -> list[str]:
    return self._write(name, ({'__key__': f'{number:06d}', 'npy': np.frombuffer(sample.tobytes(), np.uint8)}
                              for number, sample in enumerate(samples)))

  def _write(self, name: str, samples: Iterator[dict[str, Any]]) -> list[str]:
    files = [str(self._folder / f'{name}-{shard}.tar') for shard in range(SHARDS)]
    writers = [self._wds.TarWriter(file) for file in files]
    for number, sample in enumerate(samples):
      writers[number % SHARDS].write(sample)
    for writer in writers:
      writer.close()
    return files

  def _open(self, files: list[str]) -> Any:
    return self._wds.WebDataset(files, shardshuffle=False, empty_check=False)

  def _loader(self, source: Any, workers: int) -> Any:
    return self._wds.WebLoader(source, batch_size=None, num_workers=workers, persistent_workers=workers > 0,
                               prefetch_factor=AHEAD if workers else None)


def _kinds(one: Mapping[str, np.ndarray]) -> np.dtype:
  """A position with all its fields; `one` has arrays [L,...]."""
  return np.dtype([(name, array.dtype, array.shape[1:]) for name, array in one.items()])


def _stacked(arrays: Sequence[np.ndarray]) -> Any:
  import torch
  return torch.from_numpy(np.stack(arrays))


PEERS = (HuggingFace, WebDataset)


def installed(folder: pathlib.Path) -> list[HuggingFace | WebDataset]:
  """The peers that this machine has; none without torch."""
  try:
    import torch  # noqa: F401
  except ImportError:
    return []
  # Workers are forked, as torch does by default, and never touch jax; what Arrow holds is read and not written.
  warnings.filterwarnings('ignore', r'os\.fork\(\) was called', RuntimeWarning)
  warnings.filterwarnings('ignore', 'The given NumPy array is not writable', UserWarning)
  found = []
  for peer in PEERS:
    try:
      found.append(peer(folder))
    except ImportError:
      continue
  return found
