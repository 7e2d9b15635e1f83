"""What SEIR leaves on disk: windows while it runs, and the data set made of them at the end.

A window is a folder with its conversations, their unrefined twins, the whole trace, and counts. It is written under a
temporary name and renamed, so that it is complete or absent, and a killed run does only the cut window again.
"""

from __future__ import annotations

import base64
import dataclasses
import gzip
import itertools
import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from intersyn_jax.data import builders, images, manifest, roles, shards
from intersyn_jax.data.manifest import Rejected
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import DIMENSIONS, Conversation, Image, Segment
from intersyn_jax.synthesis import duplicates
from intersyn_jax.synthesis.engine import Load
from intersyn_jax.synthesis.seir import Picture, Product, Round, TurnTrace, counts_of

SPLIT, UNREFINED = 'refined', 'unrefined'
"""Names of the splits: refined conversations, and the same ones as they were first written."""

LAST_PASS = 'last pass'

_SCORES = {'answer': DIMENSIONS, 'image': DIMENSIONS[1:]}

Decode = Callable[[np.ndarray], np.ndarray]
"""int32[n,P,D] -> uint8[n,H,W,3]."""


class Album:
  """PNG bytes of pictures that models left as codes; each different picture is decoded once."""

  def __init__(self, decode: Decode):
    self._decode = decode
    self._known: dict[bytes, bytes] = {}

  def fill(self, pictures: Iterable[Image]) -> None:
    """Decodes what is not known yet, all at once."""
    new = {image.codes.tobytes(): image.codes for image in pictures if not image.data and image.codes is not None}
    new = {key: codes for key, codes in new.items() if key not in self._known}
    if new:
      for key, pixels in zip(new, self._decode(np.stack(list(new.values()))), strict=True):
        self._known[key] = images.png(np.asarray(pixels))

  def png(self, image: Image) -> bytes:
    return image.data or self._known[image.codes.tobytes()]

  def developed(self, conversation: Conversation) -> Conversation:
    """The conversation with the bytes of every picture."""
    def with_bytes(segments: Sequence[Segment]) -> tuple[Segment, ...]:
      return tuple(dataclasses.replace(s, data=self.png(s)) if isinstance(s, Image) else s for s in segments)

    turns = tuple(dataclasses.replace(turn, question=with_bytes(turn.question), answer=with_bytes(turn.answer))
                  for turn in conversation.turns)
    return dataclasses.replace(conversation, turns=turns)


def pictures_of(product: Product) -> Iterator[Image]:
  """Every picture drawn for a product, kept or not."""
  for turn in product.turns:
    for entry in itertools.chain.from_iterable(turn.images):
      yield entry.version.image


def trace_row(product: Product, album: Album, repeated: Sequence[int] = ()) -> dict[str, Any]:
  """A trace as JSON; also what the report shows.

  Each turn has `question_rounds`, `answer_rounds` (text, critique, decision, scores), `image_rounds` by step (caption and
  a base64 PNG as well) and every completion under `calls`. `repeats` says that its question repeats an earlier turn's.
  """
  turns = [_turn_row(turn, album) | {'repeats': number in repeated} for number, turn in enumerate(product.turns)]
  return {'id': product.job.id, 'topic': product.job.topic, 'accepted': product.conversation is not None,
          'reason': product.reason, 'turns': turns}


def _turn_row(turn: TurnTrace, album: Album) -> dict[str, Any]:
  return {
      'template': turn.template,
      'question_rounds': [_round_row('question', entry, album) for entry in turn.questions],
      'answer_rounds': [_round_row('answer', entry, album) for entry in turn.answers],
      'image_rounds': [[_round_row('image', entry, album) for entry in rounds] for rounds in turn.images],
      'calls': [{'role': call.address.role, 'step': call.address.step, 'round': call.address.round,
                 'retry': call.address.retry, 'request': call.address.number(), 'prompt': call.prompt,
                 'output': call.output, 'problem': call.problem} for call in turn.calls],
      'failure': turn.failure}


def _round_row(stage: str, entry: Round, album: Album) -> dict[str, Any]:
  row: dict[str, Any] = {
      'decision': entry.decision,
      'critique': '' if entry.critique is None else roles.write_critique(entry.critique),
      'scores': {name: round(value, 4) for name, value in zip(_SCORES.get(stage, ()), entry.scores or (), strict=False)}}
  if isinstance(entry.version, Picture):
    row |= {'caption': entry.version.caption, 'image': base64.b64encode(album.png(entry.version.image)).decode()}
  else:
    row['text'] = entry.version if isinstance(entry.version, str) else roles.write_answer(entry.version)
  return row


# Windows.


def window_folder(folder: str | os.PathLike[str], number: int) -> pathlib.Path:
  return pathlib.Path(folder) / f'window-{number:05d}'


def is_complete(folder: str | os.PathLike[str], number: int) -> bool:
  """Whether a window is there; of one that was cut on its way to a bucket the file that was written last is missing."""
  return (window_folder(folder, number) / 'window.json').exists()


def write_window(folder: str | os.PathLike[str], number: int, products: Sequence[Product], twins: Sequence[Product],
                 loads: Mapping[str, Load], decode: Decode, *, similarity: float = 1.0) -> None:
  """Writes a window, whole or not at all.

  Args:
    folder: of all windows.
    number: of this one.
    products: of its ids, in order.
    twins: their unrefined versions.
    loads: of the engine.
    decode: turns codes into pixels.
    similarity: from which questions of one conversation count as repeated, see `duplicates.Seen`.
  """
  album = Album(decode)
  album.fill(itertools.chain.from_iterable(pictures_of(product) for product in (*products, *twins)))
  target = window_folder(folder, number)
  part = target.with_name(f'.{target.name}.part')
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir(parents=True)
  for split, made in ((SPLIT, products), (UNREFINED, twins)):
    shards.write_split(part, split, [album.developed(p.conversation) for p in made if p.conversation is not None])
  repeated = {p.job.id: duplicates.repeated_turns(p.conversation, similarity) for p in products if p.conversation}
  rows = [trace_row(product, album, repeated.get(product.job.id, ())) for product in products]
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (part / 'traces.jsonl.gz').write_bytes(gzip.compress(text.encode(), compresslevel=6, mtime=0))
  counts: dict[str, list[float]] = {}
  for product in products:
    for name, (total, count) in counts_of(product).items():
      entry = counts.setdefault(name, [0.0, 0])
      entry[0], entry[1] = entry[0] + total, entry[1] + count
  content = {
      'counts': counts,
      'rejected': [[p.job.id, p.reason] for p in products if p.conversation is None],
      'rejected_unrefined': [[p.job.id, p.reason] for p in twins if p.conversation is None],
      'dropped_turns': [[p.job.id, p.reason] for p in products if p.conversation is not None and p.reason],
      'repeated_turns': sum(map(len, repeated.values())),
      'lanes': {lane: {'batches': load.batches, 'requests': load.requests, 'rows': load.rows}
                for lane, load in sorted(loads.items())}}
  (part / 'window.json').write_text(json.dumps(content, indent=1, sort_keys=True))
  for path in part.iterdir():
    manifest.flush(path)
  shutil.rmtree(target, ignore_errors=True)
  part.rename(target)
  manifest.flush(target.parent)


def read_window(folder: str | os.PathLike[str], number: int) -> dict[str, Any]:
  """Counts of a window. Raises UserError where it is not there or broken."""
  path = window_folder(folder, number) / 'window.json'
  try:
    return json.loads(path.read_text())
  except (OSError, json.JSONDecodeError) as error:
    raise UserError(f'{path} cannot be read ({error}); remove its folder and run the stage again') from error


def read_conversations(folder: str | os.PathLike[str], windows: int, split: str) -> Iterator[Conversation]:
  """The conversations of all windows, in id order."""
  for number in range(windows):
    path = window_folder(folder, number)
    if split in shards.splits(path):
      yield from shards.open_split(path, split)


def read_traces(folder: str | os.PathLike[str], windows: int) -> Iterator[dict[str, Any]]:
  """The traces of all windows, in id order."""
  for number in range(windows):
    path = window_folder(folder, number) / 'traces.jsonl.gz'
    try:
      rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    except (OSError, EOFError, zlib.error, ValueError) as error:
      raise UserError(f'{path} cannot be read ({error}); remove its folder and run the stage again') from error
    yield from rows


# The data set.


def assemble(folder: str | os.PathLike[str], windows: int, target: str | os.PathLike[str], *, similarity: float,
             shard_records: int, settings: Mapping[str, Any]) -> int:
  """The last pass, in id order: leaves out repeated questions and writes both splits with a manifest.

  A conversation whose first question repeats that of an earlier id is left out. The unrefined split has the ids that
  the refined one has, as far as their first version could be read.

  Args:
    folder: of the windows.
    windows: how many there are.
    target: folder of the data set.
    similarity: see `duplicates.Seen`.
    shard_records: records a shard.
    settings: what the content depends on, for the manifest.

  Returns:
    records of the refined split. A split of no records has no shard, only its entry in the manifest with all reasons.
  """
  found = duplicates.repeats(read_conversations(folder, windows, SPLIT), similarity)
  kept: set[str] = set()

  def refined() -> Iterator[Conversation]:
    for conversation in read_conversations(folder, windows, SPLIT):
      if conversation.id not in found:
        kept.add(conversation.id)
        yield conversation

  def unrefined() -> Iterator[Conversation]:
    return (c for c in read_conversations(folder, windows, UNREFINED) if c.id in kept)

  rejected = {SPLIT: [], UNREFINED: []}
  for number in range(windows):
    content = read_window(folder, number)
    rejected[SPLIT] += [Rejected(f'window {number}', *row) for row in content['rejected']]
    rejected[UNREFINED] += [Rejected(f'window {number}', *row) for row in content['rejected_unrefined']]
  rejected[SPLIT] += [Rejected(LAST_PASS, name, f'repeats the question of {earlier}') for name, earlier in found.items()]
  done = manifest.Manifest('seir')
  for split, items in ((SPLIT, refined()), (UNREFINED, unrefined())):
    written = shards.write_split(target, split, items, records_per_shard=shard_records)
    done = done.with_split(split, manifest.Split(tuple(written), tuple(rejected[split]), dict(settings)))
  builders.save(target, done)
  return done.splits[SPLIT].records


def window_metrics(content: Mapping[str, Any]) -> dict[str, float]:
  """Rates and means of one window, or of several whose contents were added up."""
  metrics = {name: total / count for name, (total, count) in sorted(content['counts'].items())}
  rejected: dict[str, int] = {}
  for _, reason in content['rejected']:
    name = f'rejected_{reason.split(":")[0]}'
    rejected[name] = rejected.get(name, 0) + 1
  lanes = content['lanes'].values()
  fill = sum(lane['requests'] for lane in lanes) / max(1, sum(lane['rows'] for lane in lanes))
  return {'rejected': len(content['rejected']), 'rejected_unrefined': len(content['rejected_unrefined']),
          'dropped_turns': len(content['dropped_turns']), 'repeated_turns': content['repeated_turns'],
          'batches': sum(lane['batches'] for lane in lanes), 'batch_fill': fill} | dict(sorted(rejected.items())) | metrics


def metrics(folder: str | os.PathLike[str], windows: int, target: str | os.PathLike[str]) -> dict[str, float]:
  """The numbers of the whole run.

  Conversations kept, rejected by role, stop rates by stage and round (`image_stop_1`), share of revisions kept
  (`image_accept`), judge scores by version (`image_icc_0`), unreadable completions by role (`retry_draw`), batch fill,
  and the judge's mean score of the finished answers of each split.
  """
  contents = [read_window(folder, number) for number in range(windows)]
  counts: dict[str, tuple[float, int]] = {}
  lanes: dict[str, dict[str, int]] = {}
  for content in contents:
    for name, (total, count) in content['counts'].items():
      before = counts.get(name, (0.0, 0))
      counts[name] = (before[0] + total, before[1] + count)
    for lane, load in content['lanes'].items():
      lanes[lane] = {key: value + lanes.get(lane, {}).get(key, 0) for key, value in load.items()}
  whole = {'counts': counts, 'lanes': lanes, 'repeated_turns': sum(content['repeated_turns'] for content in contents)}
  whole |= {key: [row for content in contents for row in content[key]]
            for key in ('rejected', 'rejected_unrefined', 'dropped_turns')}
  done = manifest.load(target)
  found: dict[str, float] = {'conversations': done.splits[SPLIT].records, 'unrefined': done.splits[UNREFINED].records,
                             'duplicates': sum(row.where == LAST_PASS for row in done.splits[SPLIT].rejected)}
  for split in (SPLIT, UNREFINED):
    scores = [np.mean(score.values()) for c in read_conversations(folder, windows, split) for score in c.scores if score.step < 0]
    if scores:
      found[f'judge_mean_{split}'] = float(np.mean(scores))
  return found | window_metrics(whole)
