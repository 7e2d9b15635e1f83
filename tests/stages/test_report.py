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

from intersyn_jax.judge import metrics
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


def fill_judge(workdir: pathlib.Path, hostile: str = folder.HOSTILE) -> None:
  """The files of the judge's section, from an invented judge measured with the project's own functions."""
  rng = np.random.default_rng(1)
  truth = np.clip(np.round(rng.normal(3.6, 1.3, (300, 4)) * 2) / 2, 0, 5)
  judge = np.clip(truth + rng.normal(0, 0.5, truth.shape), 0, 5)
  blind = judge.copy()
  blind[:, 1:] = np.clip(truth[:, 1:] + rng.normal(0, 1.2, (300, 3)), 0, 5)
  noisy = np.clip(truth + rng.normal(0, 0.55, truth.shape), 0, 5)
  noisy[:7] = np.nan
  settings = {'synjudge': judge, 'mean': np.tile(truth.mean(0), (300, 1)), 'without_image': blind, hostile: noisy}
  rows = metrics.compare(truth, settings, samples=40)
  work = workdir / 'judge'
  (work / 'table.json').write_text(json.dumps(rows))
  summary = json.loads((work / 'summary.json').read_text())
  groups = metrics.by_group(truth, noisy, [('gold', 'sampled', hostile)[i % 3] for i in range(300)], samples=20)
  summary |= {f'{group}.{key}': value for group, found in groups.items() for key, value in found.items()}
  (work / 'summary.json').write_text(json.dumps(summary | {'failed': 0, 'steps.tcc.rmse': 0.5}))
  points = [[(b + 0.5) / 15, float(np.clip((b + 0.5) / 15 + rng.normal(0, 0.03), 0, 1)), 900 if b in (0, 14) else 60]
            for b in range(15)]
  (work / 'calibration.json').write_text(json.dumps({d: {
      'ece': 0.021, 'ece_uncalibrated': 0.083, 'temperature': 1.37, 'bins': points} for d in folder.DIMENSIONS}))
  cases = {hostile: 0.0, 'fluent text off topic': 0.9, 'blank picture': 0.51, 'answer repeated': 0.5, 'tags only': -0.4}
  (work / 'adversarial.json').write_text(json.dumps([
      {'case': case, 'n': 64} | {kind: dict.fromkeys(folder.DIMENSIONS, value) for kind, value in
                                 (('truth', 1.25), ('judge', 1.25 + gap), ('gap', gap))} for case, gap in cases.items()]))


@pytest.fixture(scope='module')
def filled(tmp_path_factory):
  path = tmp_path_factory.mktemp('runs') / 'tiny'
  folder.fill(path)
  fill_judge(path)
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
  # Scatter, reliability, intervals, and curves of tokenizer, judge, warmup/long, warmup, finetune, grpo.
  assert text.count('<svg') == 4 + 4 + 1 + 3 + 3 + 3 + 5 + 5 + 9


def section(text: str, name: str) -> str:
  """The HTML between the heading of a section and the next heading of a section."""
  return text.split(f'<h2 id="{name}">')[1].split('<h2')[0]


def row_of(text: str, name: str) -> str:
  """The first table row that begins with a name."""
  return next(row for row in text.split('<tr>') if row.startswith(f'<td>{name}</td>'))


def test_the_judge_beside_its_baselines(page):
  judge = section(page[0], 'judge')
  for title in ('RMSE', 'A@1', 'RMSE by answer generator', 'Reliability', 'Adversarial answers'):
    assert f'<h3>{title}</h3>' in judge, title
  for title in ('exact agreement', 'Pearson', 'Kendall tau-b', 'mean', 'variance'):
    assert f'<summary>{title}</summary>' in judge, title
  rmse = judge.split('<h3>RMSE</h3>')[1]
  assert row_of(rmse, 'mean').count('>beaten<') == 4 and 'tag' not in row_of(rmse, 'synjudge')
  # Without pictures the text's completeness stays bit for bit what it was, and the rest does not.
  assert row_of(rmse, 'without_image').count('>equal<') == 1 and row_of(rmse, 'without_image').count('>beaten<') == 3
  pearson = judge.split('<summary>Pearson</summary>')[1]
  assert row_of(pearson, 'mean').count('&ndash;</td>') == 4  # a constant has none
  generators = judge.split('<h3>RMSE by answer generator</h3>')[1].split('<h3>')[0]
  assert '<td>gold</td>' in generators and '<td>steps</td>' not in generators and generators.count('<tr>') == 1 + 3
  assert '>7</td>' in judge  # failures are counted
  assert 'ECE 0.021, uncalibrated 0.083, T 1.37' in judge


def test_adversarial_cases_that_the_judge_likes_too_much_are_marked(page):
  cases = section(page[0], 'judge').split('<h3>Adversarial answers</h3>')[1]
  marked = [row_of(cases, name).count('n over') for name in
            ('fluent text off topic', 'blank picture', 'answer repeated', 'tags only')]
  assert marked == [4, 4, 0, 0]


def test_judge_files_of_another_form_are_not_fatal(tmp_path):
  work = tmp_path / 'w'
  folder.fill(work, hostile='plain')
  fill_judge(work, hostile='plain')
  (work / 'judge' / 'table.json').write_text('{"setting": 3}')
  (work / 'judge' / 'calibration.json').write_text(
      '{"tcc": {"ece": null, "bins": [[0.1, null, 3], [0.5], 4]}, "icc": 3, "iq": {"bins": 1}}')
  (work / 'judge' / 'adversarial.json').write_text('[{"case": null, "judge": {"tcc": "high"}}, 7]')
  judge = section(report.page(work, {})[0], 'judge')
  assert 'Reliability' not in judge and '>beaten<' not in judge and 'high' not in judge


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
               'judge/table.json', 'judge/calibration.json', 'judge/adversarial.json', 'warmup/metrics.jsonl',
               'grpo/metrics.jsonl', 'tokenizer/reconstructions.png'):
    assert name in missing and f'Missing: {name}' in text


def test_broken_files_are_named_not_fatal(tmp_path):
  work = tmp_path / 'w'
  folder.fill(work, hostile='plain')
  fill_judge(work, hostile='plain')
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
