"""The page of a data set that SEIR wrote: what is in it, how it came about, conversations with their rounds side by side.

Shards and traces are read once, and every list is cut with a line that says so: the page stays small whatever the data set
holds. Text comes from models, servers and topic lists: the template escapes all of it, and only bytes that are a picture are
shown as one.
"""

from __future__ import annotations

import base64
import binascii
import collections
import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import PIL.Image
from etils import epath
from markupsafe import Markup

from intersyn_jax.data import images, manifest, shards
from intersyn_jax.errors import UserError
from intersyn_jax.stages.page import charts
from intersyn_jax.stages.page.dataset_sums import CHANGES, LETTERS, STAGES, Content, Process, Refinement, kept, shown
from intersyn_jax.synthesis import duplicates, record
from intersyn_jax.training.metrics import replace_text

PAGE = epath.resource_path('intersyn_jax') / 'stages' / 'page'
RETRY = 'retry_'
"""What begins the names of a window's counts of completions that could not be read."""
LEVELS = ('domain', 'category', 'topic')
DOMAINS, CATEGORIES, LIST, TOPICS = 20, 60, 200, 3000
"""Most domains shown, categories of each, topics of a category, and topics of all; a line counts the rest, here as below."""
REASONS, PAIRS, ROUNDS, TURNS, STEPS = 30, 12, 8, 6, 6
SIDE = 256
"""Longest side in pixels of a picture on the page; a larger one is shrunk."""


def write(folder: str | os.PathLike[str], windows: int, data: str | os.PathLike[str], target: str | os.PathLike[str], *,
          samples: int = 6) -> None:
  """Writes the page as one HTML file that loads nothing.

  Args:
    folder: of the windows.
    windows: how many there are.
    data: folder of the data set that `record.assemble` made of them.
    target: the file.
    samples: conversations shown round by round.

  Raises:
    UserError: no data set is there, or its manifest, a shard or the counts of a window are broken.
  """
  done = manifest.load(data)
  if done is None or record.SPLIT not in done.splits:
    raise UserError(f'{os.fspath(data)} holds no data set of SEIR; run the stage synthesize again')
  split = done.splits[record.SPLIT]
  repeats = {row.id: row.reason.rsplit(' ', 1)[-1] for row in split.rejected if row.where == record.LAST_PASS}
  content = Content()
  if record.SPLIT in shards.splits(data):
    for conversation in shards.open_split(data, record.SPLIT):
      content.add(conversation)
  process = Process(repeats, samples, PAIRS)
  for row in record.read_traces(folder, windows):
    process.add(row)
  load, roles = _counts(folder, windows)
  levels = min(len(LEVELS), 1 + max((topic.count('/') for topic in process.topics), default=0))
  env = jinja2.Environment(loader=jinja2.FileSystemLoader(str(PAGE)), autoescape=True, undefined=jinja2.StrictUndefined,
                           trim_blocks=True)
  env.filters |= {'count': lambda value: f'{value:,}', 'percent': _percent}
  text = env.get_template('dataset.html').render(
      title=f'Data set of SEIR, seed {shown(split.settings.get("seed", "unknown"))}',
      style=Markup((PAGE / 'style.css').read_text()),
      facts=_facts(done, content.sums, process, len(repeats), load),
      hierarchy=_hierarchy(content.topics, process.topics, levels), levels=_evenness(content.topics, levels),
      lengths=[charts.histogram(name, counts) for name, counts in content.lengths.items()],
      stages=[_stage(name, process.stages[name]) for name in STAGES], changes=_changes(process.stages),
      reasons=_reasons(process), roles=_roles(roles, process.problems),
      duplicates=_duplicates(repeats, process), repeated=process.repeated, later=process.later,
      across=content.across.read(), apart=content.apart.read(),
      samples=[_sample(row, why) for row, why in process.samples()], versions=done.versions,
      settings=[(shown(name), shown(value)) for name, value in split.settings.items()])
  replace_text(target, text)


# The parts of the page.


def _counts(folder: str | os.PathLike[str], windows: int) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
  """Over all windows: requests and rows of the batches; of each role, completions that could not be read and all of them."""
  load: collections.Counter[str] = collections.Counter(requests=0, rows=0)
  bad, asked = collections.Counter(), collections.Counter()
  for number in range(windows):
    content = record.read_window(folder, number)
    for lane in content['lanes'].values():
      load.update(lane)
    for name, (unread, count) in content['counts'].items():
      if name.startswith(RETRY):
        bad[name.removeprefix(RETRY)] += int(unread)
        asked[name.removeprefix(RETRY)] += count
  return dict(load), {role: (bad[role], asked[role]) for role in sorted(asked)}


def _facts(done: manifest.Manifest, sums: Mapping[str, int], process: Process, repeated: int,
           load: Mapping[str, int]) -> list[tuple[str, str]]:
  split = done.splits[record.SPLIT]
  size = sum(shard.bytes for each in done.splits.values() for shard in each.shards)
  twins = done.splits[record.UNREFINED].records if record.UNREFINED in done.splits else 0
  share = lambda part: f' ({_percent(part / process.made)})' if process.made else ''
  return [
      (f'conversations kept of {process.made:,}', f'{split.records:,}{share(split.records)}'),
      ('rejected', f'{process.rejected:,}{share(process.rejected)}'),
      ('near-duplicates left out', f'{repeated:,}{share(repeated)}'),
      ('unrefined twins', f'{twins:,}'), ('turns', f'{sums["turns"]:,}'), ('steps', f'{sums["steps"]:,}'),
      ('pictures', f'{sums["pictures"]:,}'),
      *((f'words of {name}', f'{sums[name]:,}') for name in ('questions', 'answers', 'captions')),
      ('shards of all splits', f'{sum(len(each.shards) for each in done.splits.values()):,}, {size / 2**20:,.1f} MiB'),
      ('requests to models', f'{load["requests"]:,}'),
      ('batch fill', _percent(load['requests'] / load['rows']) if load['rows'] else '-'),
      ('seed', shown(split.settings.get('seed', '-'))), ('configuration', shown(split.settings.get('config', '-')))]


def _path(topic: str, levels: int) -> tuple[str, ...]:
  """The names of a topic from the outermost level on; a level that it lacks is ''."""
  *outer, last = topic.split('/', levels - 1)
  return (*outer, *[''] * (levels - 1 - len(outer)), last)


def _evenness(topics: collections.Counter[str], levels: int) -> list[dict[str, Any]]:
  """How evenly the conversations lie on each level: entropy H over ln(number used), and exp(H), the effective number."""
  total = sum(topics.values())
  names = LEVELS if levels == 3 else (LEVELS[0], LEVELS[2]) if levels == 2 else LEVELS[2:]
  found = []
  for depth, name in enumerate(names if total else (), start=1):
    counts: collections.Counter[tuple[str, ...]] = collections.Counter()
    for topic, count in topics.items():
      counts[_path(topic, levels)[:depth]] += count
    entropy = -sum(count / total * math.log(count / total) for count in counts.values())
    found.append({'name': name, 'used': len(counts), 'effective': math.exp(entropy),
                  'evenness': entropy / math.log(len(counts)) if len(counts) > 1 else 1.0,
                  'least': min(counts.values()), 'most': max(counts.values())})
  return found


def _hierarchy(used: collections.Counter[str], made: collections.Counter[str], levels: int) -> dict[str, Any]:
  """The tree of all topics that were drawn; a node has its counts, its largest children, and a line about the others."""
  leaves = [(_path(topic, levels), used[topic], count) for topic, count in made.items()]
  inner = len({path[:-1] for path, _, _ in leaves}) or 1
  limits = [*(DOMAINS, CATEGORIES)[:levels - 1], max(3, min(LIST, TOPICS // inner))]
  root = _node('all topics', leaves, 0, limits)
  return root if levels > 1 else {'children': [root | {'bar': 0}], 'more': ''}


def _node(name: str, leaves: list[tuple[tuple[str, ...], int, int]], depth: int, limits: Sequence[int]) -> dict[str, Any]:
  count, drawn = sum(leaf[1] for leaf in leaves), sum(leaf[2] for leaf in leaves)
  node = {'name': shown(name) or '(none)', 'used': sum(leaf[1] > 0 for leaf in leaves), 'kept': count,
          'left_out': drawn - count, 'children': [], 'more': ''}
  if depth < len(limits):
    groups: dict[str, list] = {}
    for leaf in leaves:
      groups.setdefault(leaf[0][depth], []).append(leaf)
    order = sorted(groups, key=lambda key: (-sum(leaf[1] for leaf in groups[key]), key))
    rest = order[limits[depth]:]
    node['children'] = [_node(key, groups[key], depth + 1, limits) for key in order[:limits[depth]]]
    largest = max(child['kept'] for child in node['children']) or 1
    for child in node['children']:
      child['bar'] = round(120 * child['kept'] / largest)
    if rest:
      node['more'] = f'and {len(rest):,} more with {sum(leaf[1] for key in rest for leaf in groups[key]):,} conversations'
  return node


def _stage(name: str, found: Refinement) -> dict[str, Any]:
  """Tables of a stage: outcomes of every round, and the paired scores."""
  last = max((k for k, _ in found.outcomes), default=0)
  rounds = []
  for k in range(1, last + 1):
    said, stop, failed, held, back = (found.outcomes[k, name] for name in ('critique', 'stop', 'failed', 'kept', 'rollback'))
    entered, revised = stop + failed + held + back, held + back
    rounds.append({'k': k, 'entered': entered, 'said': said, 'stop': _share(stop, said), 'failed': _share(failed, entered),
                   'revised': revised, 'kept': _share(held, revised), 'rollback': _share(back, revised)})
  scores = [{'k': k, 'name': shown(score)} | {kind: found.scores[k, score, kind].read() for kind in CHANGES}
            for k, score, kind in sorted(found.scores) if kind == CHANGES[0]]
  return {'name': name, 'first': found.outcomes[0, 'first'], 'rounds': rounds[:ROUNDS], 'more': max(0, len(rounds) - ROUNDS),
          'scores': [row for row in scores if row['k'] <= ROUNDS]}


def _changes(stages: Mapping[str, Refinement]) -> str:
  """The mean changes of all stages as one chart."""
  rows = []
  for stage, found in stages.items():
    for k, score, kind in sorted(found.scores):
      read = found.scores[k, score, kind].read()
      if kind == 'change' and read and read['low'] is not None and k <= ROUNDS:
        rows.append({'label': f'{stage}, round {k}: {shown(score)}', **read})
  return charts.intervals(rows, label=170, width=630) if rows else ''


def _reasons(process: Process) -> dict[str, Any]:
  rows = sorted(({'reason': kind} | found for kind, found in process.reasons.items()),
                key=lambda row: (-row['rejected'], -row['dropped'], row['reason']))
  return {'rows': rows[:REASONS], 'more': max(0, len(rows) - REASONS)}


def _roles(roles: Mapping[str, tuple[int, int]], problems: Mapping[str, collections.Counter[str]]) -> list[dict[str, Any]]:
  """Completions of each role, how many could not be read, and most often why."""
  return [{'role': shown(role), 'asked': asked, 'bad': bad, 'share': bad / max(1, asked),
           'why': '; '.join(f'{why} ({count:,})' for why, count in problems[role].most_common(3))}
          for role, (bad, asked) in roles.items()]


def _duplicates(repeats: Mapping[str, str], process: Process) -> dict[str, Any]:
  pairs = []
  for name, earlier in process.pairs:
    one, other = process.questions[name], process.questions.get(earlier, '')
    alike = duplicates.similarity(*(duplicates.triples(duplicates.normalise(text)) for text in (one, other)))
    pairs.append({'id': shown(name), 'earlier': shown(earlier), 'question': shown(one, LETTERS),
                  'of': shown(other, LETTERS), 'alike': alike})
  often = collections.Counter(repeats.values()).most_common(1)
  return {'count': len(repeats), 'pairs': pairs, 'most': (shown(often[0][0]), often[0][1]) if often else None}


def _sample(row: Mapping[str, Any], why: str) -> dict[str, Any]:
  first = row['turns'][0]['question_rounds']
  return {'question': shown(first[kept(first)]['text'], LETTERS), 'id': shown(row['id']),
          'topic': shown(row['topic']), 'why': why,
          'turns': [_turn(turn) for turn in row['turns'][:TURNS]], 'more': max(0, len(row['turns']) - TURNS)}


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
  """The items of a turn as rows, their versions as columns."""
  rows = [('Question', turn['question_rounds']), ('Answer', turn['answer_rounds'])]
  rows += [(f'Picture {step}', rounds) for step, rounds in enumerate(turn['image_rounds'], start=1)]
  rows = [(name, rounds) for name, rounds in rows if rounds]
  lines = [{'name': name, 'more': max(0, len(rounds) - ROUNDS),
            'cells': [_version(entry, k == kept(rounds)) for k, entry in enumerate(rounds[:ROUNDS])]}
           for name, rounds in rows[:2 + STEPS]]
  return {'template': shown(turn['template']), 'failure': shown(turn['failure']), 'rows': lines,
          'hidden': len(rows) - len(lines), 'columns': max((len(line['cells']) for line in lines), default=0)}


def _version(entry: Mapping[str, Any], best: bool) -> dict[str, Any]:
  """One version; `image` is None for text, and '' for a picture that cannot be shown."""
  uri, small = picture(entry['image']) if 'image' in entry else (None, False)
  return {'text': shown(entry.get('text', entry.get('caption', '')), LETTERS), 'critique': shown(entry['critique'], LETTERS),
          'decision': shown(entry['decision']), 'scores': entry['scores'], 'best': best, 'image': uri, 'small': small}


def picture(text: Any) -> tuple[str, bool]:
  """A data address of base64 picture bytes, at most SIDE pixels wide and high, and whether its pixels are to be seen.

  ('', False) where the text is no picture.
  """
  try:
    data = base64.b64decode(text or '', validate=True)
    array = images.pixels(data)
  except (binascii.Error, ValueError, TypeError, UserError):
    return '', False
  side, kind = max(array.shape[:2]), images.sniff(data).lower()
  if side > SIDE or len(data) > 3 * SIDE * SIDE:
    shrunk, out = PIL.Image.fromarray(array), io.BytesIO()
    shrunk.thumbnail((SIDE, SIDE))
    shrunk.save(out, 'JPEG', quality=88)
    data, kind = out.getvalue(), 'jpeg'
  return (f'data:image/{kind};base64,{base64.b64encode(data).decode()}', side < 96) if kind else ('', False)


def _share(part: int, whole: int) -> tuple[int, float | None]:
  return part, part / whole if whole else None


def _percent(value: float) -> str:
  return f'{100 * value:.1f} %'
