"""A work folder with every file that the report reads, filled with realistic invented content."""

import base64
import io
import json
import pathlib

import numpy as np
import PIL.Image

HOSTILE = '<script>alert(1)</script> " onload="x <img src=http://evil.example/x.png> &amp; {{ 7 * 7 }}'
DIMENSIONS = ('tcc', 'icc', 'iq', 'its')
COLOURS = ((200, 60, 60), (60, 140, 80), (60, 90, 190), (220, 170, 50))


def picture(seed: int) -> str:
  """A 32x32 scene of three coloured cells, as base64 PNG."""
  rng = np.random.default_rng(seed)
  pixels = np.full((32, 32, 3), 240, np.uint8)
  for _ in range(3):
    y, x = rng.integers(0, 4, 2) * 8
    pixels[y + 1:y + 7, x + 1:x + 7] = COLOURS[rng.integers(4)]
  return encode(pixels)


def encode(pixels: np.ndarray) -> str:
  buffer = io.BytesIO()
  PIL.Image.fromarray(pixels).save(buffer, 'PNG')
  return base64.b64encode(buffer.getvalue()).decode()


def write(path: pathlib.Path, value) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  rows = isinstance(value, list)
  path.write_text(''.join(json.dumps(v) + '\n' for v in value) if rows else json.dumps(value))


def fill(workdir: pathlib.Path, hostile: str = HOSTILE) -> None:
  """Writes the files of a finished run; `hostile` is put wherever text of a model or of data goes."""
  rng = np.random.default_rng(0)
  seconds = {'data': 9, 'tokenizer': 24, 'warmup': 171, 'judge': 96, 'synthesize': 142, 'finetune': 88, 'grpo': 240,
             'evaluate': 133}
  for stage, time in seconds.items():
    write(workdir / stage / 'summary.json', {
        'stage': stage, 'seconds': time, 'devices': '1 x cpu', 'versions': 'jax 0.10.2', 'config_hash': 'a1b2c3d4e5f6',
        'peak_rss_mib': 900.0 + 2 * time, 'note': hostile, 'loss': 0.123})
  for stage, steps in {'tokenizer': 300, 'warmup': 900, 'warmup/long': 40, 'judge': 400, 'finetune': 500, 'grpo': 150}.items():
    rows = []
    for step in range(0, steps, 2):
      t = step / steps
      row = {'step': step, 'loss': 3 * np.exp(-4 * t) + 0.3 + rng.normal() * 0.05, 'gradient_norm': 1 + rng.random(),
             'learning_rate': 3e-3 * (1 - t)}
      if stage == 'grpo':
        row |= {'reward': 1.7 + 0.6 * t + rng.normal() * 0.1, 'reward_text': 0.6 + 0.2 * t + rng.normal() * 0.04,
                'reward_image': 0.5 + 0.3 * t + rng.normal() * 0.04, 'reward_format': 0.97, 'kl': 0.02 * t, hostile: t}
      if stage in ('warmup', 'finetune'):
        row |= {'text_loss': 1.5 * np.exp(-4 * t) + 0.1, 'image_loss': 2 * np.exp(-3 * t) + 0.2}
      rows.append(row)
    write(workdir / stage / 'metrics.jsonl', rows)
  write_scores(workdir, rng)
  truth = rng.integers(0, 6, (4, 500))
  write(workdir / 'judge' / 'scatter.json', {
      d: [[float(t), float(np.clip(t + rng.normal() * 0.5, 0, 5))] for t in truth[i]] for i, d in enumerate(DIMENSIONS)})
  write(workdir / 'synthesize' / 'traces.jsonl', [trace(i, hostile) for i in range(3)])
  write(workdir / 'evaluate' / 'gallery.jsonl', [question(i, hostile) for i in range(6)])
  (workdir / 'tokenizer' / 'reconstructions.png').write_bytes(base64.b64decode(encode(np.concatenate([
      np.concatenate([np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(picture(i))))) for i in range(16)], 1)
      for _ in range(2)], 0))))
  write(workdir / 'data' / 'manifest.json', {'dataset': 'storyworld', 'splits': {
      'interleaved': {'records': 1500, 'rejected': [{'where': 'a.jsonl:3', 'id': 'x', 'reason': hostile}]},
      'understanding': {'records': 12000, 'rejected': []}}})
  write(workdir / 'synthesize' / 'shards' / 'manifest.json', {'counts': {'kept': 1490}, 'content_hashes': {'a': 'ff'}})


def write_scores(workdir: pathlib.Path, rng: np.random.Generator) -> None:
  level = {'chance': 0.9, 'warmup': 3.1, 'warmup_long': 3.2, 'finetune': 3.5, 'grpo': 3.9}

  def cell(mean):
    return {'mean': mean, 'variance': 0.8, 'ci95': [mean - 0.06, mean + 0.06], 'n': 1000}

  policies = {p: {d: {s: {k: cell(v + rng.normal() * 0.1) for k in (*DIMENSIONS, 'mean')} for s in ('judge', 'truth')}
                  for d in ('sampled', 'greedy')} for p, v in level.items()}
  pairs = (('finetune', 'grpo'), ('warmup_long', 'grpo'), ('warmup', 'finetune'), ('chance', 'warmup'))
  differences = [{'a': a, 'b': b, 'decoding': d, 'scorer': s, 'dimension': k, 'difference': level[b] - level[a] - shift,
                  'ci95': [level[b] - level[a] - shift - 0.3, level[b] - level[a] - shift + 0.3]}
                 for a, b in pairs for d, shift in (('sampled', 0.0), ('greedy', 0.25)) for s in ('truth', 'judge')
                 for k in (*DIMENSIONS, 'mean')]
  write(workdir / 'evaluate' / 'scores.json', {'policies': policies, 'differences': differences})


def trace(i: int, hostile: str) -> dict:
  scores = {d: 3.5 for d in DIMENSIONS}
  text = 'The red circle moves to the upper left. <think> The blue square turns green.'
  return {'id': f'seir-{i}', 'topic': f'garden/beds/corner {i}' if i else hostile, 'turns': [{
      'question_rounds': [{'text': 'Show two steps: move the red circle, then recolour the square.', 'decision': 'revise',
                           'critique': 'Say where the circle goes.'},
                          {'text': 'Show two steps: move the red circle up left, then recolour the square.',
                           'critique': hostile if i == 0 else '', 'decision': 'stop'}],
      'answer_rounds': [{'text': text, 'critique': 'Name the new colour.', 'decision': 'revise', 'scores': scores},
                        {'text': text, 'critique': '', 'decision': 'stop', 'scores': scores}],
      'image_rounds': [[{'caption': 'red circle up left, blue square centre', 'image': picture(10 * i + s + 3 * k),
                         'critique': 'The square is missing.' if k == 0 else '',
                         'decision': ('revise', 'rollback', 'stop')[k], 'scores': scores} for k in range(3)]
                       for s in range(2)]}]}


def question(i: int, hostile: str) -> dict:
  scores = {d: 4.0 - 0.3 * k for k, d in enumerate(DIMENSIONS)}
  return {'question': 'In the garden there is a red circle and a blue square. Show in two steps how the circle moves right '
                      'and the square turns green.' if i else hostile,
          'policies': {name: {'steps': [{'text': hostile if i == 0 and name == 'grpo' else
                                         'The circle moves one place to the right.', 'image': picture(7 * i + s)}
                                        for s in range(2)] + ([{'text': 'Only text.', 'image': hostile}] if i == 1 else []),
                              'judge': scores, 'truth': scores} for name in ('warmup', 'finetune', 'grpo')}}
