"""Rows and pictures in the documented forms of the benchmarks, and answers that a test makes up."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from intersyn_jax.data import images
from intersyn_jax.evaluation.suites.suite import NO_ANSWER, Missing, Verdict
from intersyn_jax.evaluation.suites.tables import Bootstrap
from intersyn_jax.interleave.types import Image, Segment, Text

BOOT = Bootstrap(50)


def png(seed: int = 0, height: int = 12, width: int = 8) -> bytes:
  return images.png(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


def put(path: pathlib.Path, content: Any) -> pathlib.Path:
  """Writes bytes, text, a list as JSON Lines where the name ends so, or JSON."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if isinstance(content, bytes):
    path.write_bytes(content)
  elif isinstance(content, str):
    path.write_text(content)
  elif path.suffix == '.jsonl':
    path.write_text(''.join(json.dumps(row) + '\n' for row in content))
  else:
    path.write_text(json.dumps(content))
  return path


class Answers:
  """Answers in memory."""

  def __init__(self, answers: Mapping[str, tuple[Segment, ...]]):
    self.answers = dict(answers)

  def get(self, name: str) -> tuple[Segment, ...]:
    if name not in self.answers:
      raise Missing(NO_ANSWER)
    return self.answers[name]


def step(number: int) -> tuple[Segment, Segment]:
  return Text(f'step {number}'), Image(png(100 + number))


def same(one: tuple[Segment, ...], other: tuple[Segment, ...]) -> bool:
  """Whether texts, and pixels of pictures, are equal."""
  plain = lambda s: s.text if isinstance(s, Text) else images.pixels(s.data).tobytes()
  return [plain(s) for s in one] == [plain(s) for s in other]


def scored(**scores: float) -> Verdict:
  return Verdict(scores)


FAILED, GONE = Verdict(None, 'no JSON'), Verdict(None, NO_ANSWER, True)


# Questions.


def mmie(folder: pathlib.Path, names=('SA-1', 'PBL-1', 'MSR-1'), **more: Any) -> pathlib.Path:
  put(folder / 'images' / 'q.png', png(1))
  put(folder / 'images' / 'a.png', png(2, 6, 20))
  rows = [{'id': name, 'conversations': [
      {'from': 'human', 'content': [{'text': f'do {name}', 'image': None}, {'text': 'like this', 'image': 'images/q.png'}]},
      {'from': 'gpt', 'content': [{'text': f'done {name}', 'image': 'images/a.png'}]}]} | more for name in names]
  return put(folder / 'mmie.json', rows)


def interleaved_bench(folder: pathlib.Path, tasks=('story_completion', 'image_editing', 'subject_driven_generation')):
  put(folder / 'q.png', png(1))
  return put(folder / 'interleaved_bench.json', [
      {'id': f'{task}_0', 'task_name': task, 'image': ['q.png'],
       'conversations': [{'from': 'human', 'value': f'<BEGIN> do {task} <image>'}]} for task in tasks])


def opening(folder: pathlib.Path, names=('0101001', '0101002')) -> pathlib.Path:
  put(folder / 'images' / 'i.png', png(3))
  return put(folder / 'test_data.jsonl', [
      {'total_uid': name, 'meta_task_id': '1', 'meta_task_name': 'Story Making', 'subtask_id': '1', 'subtask_name': 'Plots',
       'data_id': name[-3:], 'conversations': [
           {'input': [{'image': './images/i.png', 'text': f'<BEGIN> tell {name} <image>'}]},
           {'output': [{'image': None, 'text': 'once upon a time'}]}]} for name in names])


def pope(folder: pathlib.Path, settings=('random', 'popular', 'adversarial'), labels=('yes', 'no')) -> pathlib.Path:
  put(folder / 'p.png', png(4))
  for setting in settings:
    put(folder / f'coco_pope_{setting}.json', ''.join(json.dumps(
        {'question_id': number, 'image': 'p.png', 'text': f'Is there a thing {number} in the image?', 'label': label}) + '\n'
        for number, label in enumerate(labels, start=1)))
  return folder


def seed_bench(folder: pathlib.Path, answers='AB') -> pathlib.Path:
  put(folder / 'seed_0', png(5))
  row = lambda number, answer: {
      'question_id': f'{number}', 'question_type_id': number % 2 + 1, 'data_type': 'image', 'data_id': 'seed_0',
      'question': f'how many {number}?', 'answer': answer, **{f'choice_{c}': f'{c} red' for c in 'abcd'}}
  rows = [row(number, answer) for number, answer in enumerate(answers)]
  return put(folder / 'SEED-Bench.json', {
      'questions': [*rows, row(99, 'A') | {'data_type': 'video'}],
      'question_type': {'Scene Understanding': 1, 'Instance Identity': 2}})


def mm_vet(folder: pathlib.Path) -> pathlib.Path:
  put(folder / 'images' / 'v.png', png(6))
  row = lambda answer, *capability: {'imagename': 'v.png', 'question': 'What is x?', 'answer': answer, 'imagesource': 'url',
                                     'capability': list(capability)}
  return put(folder / 'mm-vet.json', {
      'v1_0': row('-1<AND>-5', 'ocr', 'math'), 'v1_1': row('four', 'math'), 'v1_2': row('a dog<OR>a puppy', 'rec')})


def geneval(folder: pathlib.Path) -> pathlib.Path:
  rows = [{'tag': 'single_object', 'include': [{'class': 'bench', 'count': 1}], 'prompt': 'a photo of a bench'},
          {'tag': 'counting', 'include': [{'class': 'cow', 'count': 2}], 'exclude': [{'class': 'cow', 'count': 3}],
           'prompt': 'a photo of two cows'},
          {'tag': 'counting', 'include': [{'class': 'cat', 'count': 3}], 'prompt': 'a photo of three cats'}]
  return put(folder / 'evaluation_metadata.jsonl', rows)


def rated(folder: pathlib.Path) -> pathlib.Path:
  put(folder / 'r.png', png(7))
  row = lambda name, generator, labels: {'id': name, 'generator': generator, 'question': f'draw {name}', 'answer': 'here',
                                         'image': 'r.png', 'labels': labels}
  return put(folder / 'rated.jsonl', [row('a', 'one', [5, 4, 3, 2]), row('b', 'one', [1, 1, 1, 1]),
                                      row('c', 'two', [[4, 4, 4, 4], [2, 2, 2, 2]])])
