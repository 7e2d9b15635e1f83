"""Stage `report`: one HTML page that holds all it shows. Every part that is not there yet is named as missing.

Text comes from models, data and configurations: the template escapes all of it, and pictures are only taken when their bytes
begin like a PNG. The page forbids itself to load anything (Content-Security-Policy).
"""

from __future__ import annotations

import base64
import binascii
import collections
import json
from collections.abc import Mapping
from typing import Any

import jinja2
from etils import epath
from markupsafe import Markup

from intersyn_jax.interleave.types import DIMENSIONS
from intersyn_jax.stages import PIPELINE
from intersyn_jax.stages.common import Run, leaves, plain
from intersyn_jax.stages.page import charts
from intersyn_jax.stages.page import judge as judge_part
from intersyn_jax.training.metrics import read_rows, replace_text
from intersyn_jax.training.progress import duration

PAGE = epath.resource_path('intersyn_jax') / 'stages' / 'page'
ALL_DIMENSIONS = (*DIMENSIONS, 'mean')
PNG = b'\x89PNG\r\n\x1a\n'
FIRST_CHARTS = 6
TRAINING = ('tokenizer', 'warmup', 'judge', 'finetune', 'grpo')
UPKEEP = ('learning_rate', 'gradient_norm', 'seconds', 'skipped', 'skipped_in_a_row', 'device_gib', 'device_peak_gib')
"""Curves that say little about the result: they come last, folded away."""
CARDS = 12
"""Most gallery questions shown."""


def run(run: Run) -> dict[str, Any]:
  """Writes WORKDIR/report/index.html; the metrics say how large it is and how many parts are missing."""
  text, missing = page(run.workdir, plain(run.config))
  if run.active:
    replace_text(run.directory('report') / 'index.html', text)
  if missing:
    run.say(f'report: without {", ".join(missing)}')
  return {'page_kib': round(len(text) / 1024, 1), 'parts_missing': len(missing)}


def page(workdir: epath.PathLike, config: Mapping[str, Any]) -> tuple[str, list[str]]:
  """The page of a work folder and the list of what is missing there."""
  workdir = epath.Path(workdir)
  traces = _fields(config.get('report')).get('conversations', 4)
  missing: list[str] = []
  stages = [_stage(workdir, name) for name in PIPELINE if name != 'report']
  longest = max([s['summary']['seconds'] for s in stages if s['summary']], default=0) or 1
  for s in stages:
    s['bar'] = round(220 * s['summary']['seconds'] / longest) if s['summary'] else 0
  done = [s['summary'] for s in stages if s['summary']]
  last = done[-1] if done else {}
  scores = _scores(workdir, missing)
  env = jinja2.Environment(loader=jinja2.FileSystemLoader(str(PAGE)), autoescape=True,
                           undefined=jinja2.StrictUndefined, trim_blocks=True)
  env.filters['number'] = lambda v: f'{v:.2f}' if isinstance(v, (int, float)) and not isinstance(v, bool) else str(v)
  template = env.get_template('page.html')
  text = template.render(
      title=f'{config.get("name") or "intersyn_jax"}: {workdir.name}',
      lead='One model that reads and writes text and images in one token stream: trained, given its own data by SEIR, and '
           'improved by unified GRPO.',
      style=Markup((PAGE / 'style.css').read_text()),
      facts=[*scores['facts'],
             ('time of all stages', duration(sum(s['seconds'] for s in done))),
             ('devices', last.get('devices', 'none yet')),
             ('configuration', last.get('config_hash', '-'))],
      dataset_page=(workdir / 'synthesize' / 'dataset.html').exists(),
      dimensions=ALL_DIMENSIONS, scores=scores, gallery=_gallery(workdir, missing), traces=_traces(workdir, traces, missing),
      judge=_judge(workdir, missing), curves=_curves(workdir, missing), tokenizer=_reconstructions(workdir, missing),
      manifests=_manifests(workdir, missing), stages=stages, config=list(leaves(config)),
      versions=last.get('versions', ''))
  return text, missing


# Reading, with what is missing noted.


def _load(path: epath.Path, missing: list[str]) -> Any:
  """JSON of a file, None (and a note) where it is missing or broken."""
  name = f'{path.parent.name}/{path.name}'
  if not path.exists():
    missing.append(name)
    return None
  try:
    return json.loads(path.read_text())
  except json.JSONDecodeError as e:
    missing.append(f'{name} (not JSON: {e.msg} in line {e.lineno})')
    return None


def _load_lines(path: epath.Path, limit: int, missing: list[str]) -> list[dict[str, Any]]:
  """The first JSON objects of a file, one a line; broken lines are noted."""
  name = f'{path.parent.name}/{path.name}'
  if not path.exists():
    missing.append(name)
    return []
  rows = []
  for number, line in enumerate(path.read_text().splitlines(), start=1):
    if len(rows) == limit:
      break
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      row = None
    if isinstance(row, dict):
      rows.append(row)
    else:
      missing.append(f'{name}, line {number} (not a JSON object)')
  return rows


def _png(text: Any) -> str:
  """A data address of base64 PNG bytes, '' where the text is no such thing."""
  try:
    data = base64.b64decode(text or '', validate=True)
  except (binascii.Error, ValueError, TypeError):
    return ''
  return _data_uri(data)


def _data_uri(data: bytes) -> str:
  return 'data:image/png;base64,' + base64.b64encode(data).decode() if data.startswith(PNG) else ''


def _words(value: Any) -> str:
  """Free text of a file as text; other JSON values in their written form."""
  return value if isinstance(value, str) else '' if value is None else json.dumps(value, ensure_ascii=False)


def _fields(value: Any) -> dict[str, Any]:
  return value if isinstance(value, dict) else {}


# The parts of the page.


def _stage(workdir: epath.Path, name: str) -> dict[str, Any]:
  summary = _load(workdir / name / 'summary.json', [])
  if not isinstance(summary, dict):
    return {'name': name, 'summary': None, 'figures': []}
  usual = ('stage', 'seconds', 'devices', 'processes', 'versions', 'config_hash', 'peak_rss_mib', 'finished', 'made_from')
  values = [(k, charts.number(v) if isinstance(v, float) else str(v)) for k, v in summary.items() if k not in usual]
  memory = summary.get('peak_rss_mib')
  return {'name': name, 'summary': summary, 'time': duration(summary['seconds']), 'figures': values,
          'memory': f'{memory / 1024:.2f} GiB' if memory else ''}


def _scores(workdir: epath.Path, missing: list[str]) -> dict[str, Any]:
  notes: list[str] = []
  data = _load(workdir / 'evaluate' / 'scores.json', notes)
  missing += notes
  part: dict[str, Any] = {'tables': [], 'differences': [], 'chart': '', 'facts': [], 'missing': notes}
  if data is None:
    return part
  policies = data['policies']
  kinds = sorted({(scorer, decoding) for d in policies.values() for decoding, s in d.items() for scorer in s},
                 key=lambda k: (k[0] != 'truth', k[1] != 'sampled'))
  for scorer, decoding in kinds:
    rows = []
    for policy, decodings in policies.items():
      found = decodings.get(decoding, {}).get(scorer)
      if found:
        cells = [_cell(found.get(d)) for d in ALL_DIMENSIONS]
        rows.append({'policy': policy, 'cells': cells, 'n': next((v['n'] for v in found.values()), '')})
    for column in zip(*(row['cells'] for row in rows)):
      known = [c for c in column if c['mean'] is not None]
      if known:
        max(known, key=lambda c: c['mean'])['best'] = True
    part['tables'].append({'name': f'{scorer}, {decoding}', 'rows': rows})
  part['differences'] = data.get('differences', [])
  shown = [d for d in part['differences'] if d['dimension'] == 'mean']
  if shown:
    part['chart'] = charts.intervals([
        {'label': f'{d["b"]} − {d["a"]} ({d["scorer"]}, {d["decoding"]})', 'value': d['difference'],
         'low': d['ci95'][0], 'high': d['ci95'][1]} for d in shown])
  for d in shown:
    if d['scorer'] == 'truth' and d['b'] == 'grpo':
      low, high = d['ci95']
      part['facts'].append((f'grpo − {d["a"]}, truth, {d["decoding"]} [{low:+.2f}, {high:+.2f}]', f'{d["difference"]:+.2f}'))
  part['facts'] = part['facts'][:3]
  return part


def _cell(value: Mapping[str, Any] | None) -> dict[str, Any]:
  if not value or value.get('mean') is None:
    return {'mean': None, 'low': 0.0, 'high': 0.0, 'best': False}
  return {'mean': value['mean'], 'low': value['ci95'][0], 'high': value['ci95'][1], 'best': False}


def _gallery(workdir: epath.Path, missing: list[str]) -> dict[str, Any]:
  notes: list[str] = []
  cards = []
  for row in _load_lines(workdir / 'evaluate' / 'gallery.jsonl', CARDS, notes):
    policies = []
    for name, answer in _fields(row.get('policies')).items():
      steps = [{'text': _words(s.get('text')), 'image': _png(s.get('image'))} for s in answer.get('steps', [])]
      policies.append({'name': name, 'steps': steps, 'judge': _fields(answer.get('judge')),
                       'truth': _fields(answer.get('truth'))})
    cards.append({'question': _words(row.get('question')), 'policies': policies})
  missing += notes
  return {'cards': cards, 'missing': notes}


def _round(entry: Mapping[str, Any]) -> dict[str, Any]:
  return {'text': _words(entry.get('text', entry.get('caption'))), 'critique': _words(entry.get('critique')),
          'decision': _words(entry.get('decision')), 'scores': _fields(entry.get('scores')),
          'image': _png(entry.get('image'))}


def _traces(workdir: epath.Path, limit: int, missing: list[str]) -> dict[str, Any]:
  notes: list[str] = []
  cards = []
  for row in _load_lines(workdir / 'synthesize' / 'traces.jsonl', limit, notes):
    turns = [{'question': [_round(r) for r in turn.get('question_rounds', [])],
              'answer': [_round(r) for r in turn.get('answer_rounds', [])],
              'images': [[_round(r) for r in step] for step in turn.get('image_rounds', [])]}
             for turn in row.get('turns', [])]
    cards.append({'id': _words(row.get('id')), 'topic': _words(row.get('topic')), 'turns': turns})
  missing += notes
  return {'cards': cards, 'missing': notes}


def _judge(workdir: epath.Path, missing: list[str]) -> dict[str, Any]:
  notes: list[str] = []
  files = {name: _load(workdir / 'judge' / f'{name}.json', notes) for name in judge_part.FILES}
  missing += notes
  return judge_part.part(files, _load(workdir / 'judge' / 'summary.json', [])) | {'missing': notes}


def _curves(workdir: epath.Path, missing: list[str]) -> list[dict[str, Any]]:
  """Charts of every stage that trains: losses and rewards first, the rest folded away."""
  stages = []
  files: list[tuple[str, epath.Path]] = []
  for name in PIPELINE:
    here = workdir / name / 'metrics.jsonl'
    if here.exists() or name in TRAINING:
      files.append((name, here))
    # A stage that trains several models keeps the rows of the others one folder down.
    files += [(f'{name}/{path.parent.name}', path) for path in sorted((workdir / name).glob('*/metrics.jsonl'))]
  for name, path in files:
    if not path.exists():
      missing.append(f'{name}/metrics.jsonl')
      stages.append({'name': name, 'first': [], 'more': [], 'missing': f'{name}/metrics.jsonl'})
      continue
    series: dict[str, list[tuple[float, float]]] = {}
    for row in read_rows(path):
      for key, value in row.items():
        if key != 'step' and isinstance(value, (int, float)):
          series.setdefault(key, []).append((row['step'], value))
    order = sorted(series, key=_rank)
    drawn = [charts.curve(key, series[key], charts.COLOURS[min(_rank(key)[0], 2)]) for key in order]
    first = min(FIRST_CHARTS, sum(not _upkeep(key) for key in order) or len(order))
    stages.append({'name': name, 'first': drawn[:first], 'more': drawn[first:], 'missing': ''})
  return stages


def _rank(name: str) -> tuple[int, int, str]:
  for place, word in enumerate(('reward', 'loss')):
    if word in name and not _upkeep(name):
      return place, len(name), name
  return 2, _upkeep(name), name


def _upkeep(name: str) -> bool:
  """Whether a metric is about how the run goes and not about what is learnt."""
  return name in UPKEEP or name.split('.')[0].endswith(('_read', 'seconds'))


def _reconstructions(workdir: epath.Path, missing: list[str]) -> str:
  path = workdir / 'tokenizer' / 'reconstructions.png'
  uri = _data_uri(path.read_bytes()) if path.exists() else ''
  if not uri:
    missing.append('tokenizer/reconstructions.png')
  return uri


def _manifests(workdir: epath.Path, missing: list[str]) -> list[dict[str, Any]]:
  """What every manifest below `data` and `synthesize` counts."""
  found = []
  for stage in ('data', 'synthesize'):
    # Shards lie one or two folders down (dataset, version); a deeper search would be slow in a bucket.
    for path in sorted(p for depth in ('', '*/', '*/*/', '*/*/*/') for p in (workdir / stage).glob(f'{depth}manifest.json')):
      data = _load(path, missing)
      if not isinstance(data, dict):
        continue
      splits = data.get('splits')
      rows = [(name, _split(split)) for name, split in splits.items()] if isinstance(splits, dict) else _plain_rows(data)
      found.append({'name': '/'.join(path.parent.parts[len(workdir.parts):]) or stage, 'rows': rows[:60]})
  if not found:
    missing.append('data manifests')
  return found


def _split(split: Mapping[str, Any]) -> str:
  """`1,500 records; 2 rejected: no turns (2)` of one split of a manifest."""
  rejected = split.get('rejected') or []
  reasons = collections.Counter(_words(_fields(r).get('reason')) for r in rejected)
  told = ', '.join(f'{reason} ({n})' for reason, n in reasons.most_common(3))
  return f'{split.get("records", 0):,} records' + (f'; {len(rejected)} rejected: {told}' if rejected else '')


def _plain_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Single values of any other manifest; hashes and versions are left out, lists are told by their length."""
  rows = []
  for name, value in leaves(manifest):
    if isinstance(value, list):
      rows.append((name, f'{len(value)} {"entry" if len(value) == 1 else "entries"}'))
    elif 'hash' not in name and not name.startswith('versions'):
      rows.append((name, f'{value:,}' if isinstance(value, int) else str(value)))
  return rows
