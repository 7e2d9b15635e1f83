"""The report: whole, escaped, self-contained, and honest about what is missing."""

import html.parser
import json
import pathlib
import re
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import folder

from intersyn_jax.stages import report, run
from intersyn_jax.stages.page import charts


class Tags(html.parser.HTMLParser):
  """Collects the tags of a page and where they point."""

  def __init__(self, text: str):
    super().__init__()
    self.tags: set[str] = set()
    self.attributes: set[str] = set()
    self.addresses: list[str] = []
    self.words: list[str] = []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    for name, value in attrs:
      self.attributes.add(name)
      if name in ('src', 'href', 'srcset', 'data', 'action', 'poster'):
        self.addresses.append(value)

  def handle_data(self, data):
    self.words.append(data)


@pytest.fixture(scope='module')
def filled(tmp_path_factory):
  path = tmp_path_factory.mktemp('runs') / 'tiny'
  folder.fill(path)
  return path


@pytest.fixture(scope='module')
def page(filled):
  return report.page(filled, {'seed': 0, 'data': {'note': folder.HOSTILE}})


def test_everything_is_there(page):
  text, missing = page
  assert missing == []
  parsed = Tags(text)
  words = ' '.join(parsed.words)
  for part in ('Scores', 'Paired differences', 'Gallery', 'SEIR, round by round', 'Judge against truth', 'Curves',
               'warmup/long', 'Image tokenizer', '12,000 records',
               '1,500 records; 1 rejected: <script>', 'counts.kept', 'warmup_long', 'rollback', 'RMSE', '15:03'):
    assert part in words, part
  assert sum(a.startswith('data:image/png;base64,') for a in parsed.addresses) == 6 * 6 + 3 * 6 + 1
  # Scatter, intervals, and curves of tokenizer, judge, warmup/long, warmup, finetune, grpo.
  assert text.count('<svg') == 4 + 1 + 3 + 3 + 3 + 5 + 5 + 9


def test_hostile_text_is_escaped(page):
  text, _ = page
  parsed = Tags(text)
  assert 'script' not in parsed.tags and 'onload' not in parsed.attributes
  assert '<script>' not in text and '49' not in re.findall(r'\{\{ 7 \* 7 \}\}|alert\(1\)[^<]{0,80}\b(49)\b', text)
  # It is shown as it was written, in every part that shows text.
  assert ' '.join(parsed.words).count('<script>alert(1)</script>') >= 6


def test_nothing_is_loaded(page):
  text, _ = page
  parsed = Tags(text)
  assert all(a.startswith(('#', 'data:image/png;base64,')) for a in parsed.addresses)
  assert not re.search(r'@import|url\(', text)
  assert "default-src 'none'" in text
  assert not parsed.tags & {'link', 'iframe', 'object', 'embed', 'form', 'base'}


def test_an_empty_folder_names_what_is_missing(tmp_path):
  text, missing = report.page(tmp_path / 'empty', {'seed': 0})
  for name in ('evaluate/scores.json', 'evaluate/gallery.jsonl', 'synthesize/traces.jsonl', 'judge/scatter.json',
               'warmup/metrics.jsonl', 'grpo/metrics.jsonl', 'tokenizer/reconstructions.png'):
    assert name in missing and f'Missing: {name}' in text


def test_broken_files_are_named_not_fatal(tmp_path):
  work = tmp_path / 'w'
  folder.fill(work, hostile='plain')
  (work / 'judge' / 'scatter.json').write_text('{"tcc": [[1')
  (work / 'evaluate' / 'gallery.jsonl').write_text('{"question": "q", "policies": {}}\nnot json\n')
  (work / 'tokenizer' / 'reconstructions.png').write_bytes(b'GIF89a')
  text, missing = report.page(work, {})
  assert len(missing) == 3
  assert any('scatter.json (not JSON' in m for m in missing) and any('line 2' in m for m in missing)
  assert 'Missing: judge/scatter.json' in text


def test_only_png_becomes_a_picture():
  assert report._png(folder.picture(0)).startswith('data:image/png;base64,')
  for bad in (None, '', 'PHN2Zz4=', folder.HOSTILE, 3, 'ünicode'):
    assert report._png(bad) == ''


def test_ticks_are_round_and_inside():
  assert charts.ticks(0, 5, 5) == [0, 1, 2, 3, 4, 5]
  assert np.allclose(charts.ticks(0.31, 0.92, 4), [0.4, 0.6, 0.8])
  assert charts.ticks(2, 2) == [2]


def test_a_curve_of_one_point_and_of_many():
  assert 'step 3: 7' in charts.curve('loss', [(3, 7.0)])
  assert charts.curve('loss', [(i, 1.0) for i in range(5000)]).count('<circle') == charts.POINTS


def test_the_closing_table(filled):
  lines = run.score_table(json.loads((filled / 'evaluate' / 'scores.json').read_text()))
  assert any(line.startswith('grpo') and 'truth' in line and '±0.06' in line and line.endswith('1000') for line in lines)
  assert 'grpo - finetune (sampled, truth, mean): +0.400 [+0.100, +0.700]' in lines
