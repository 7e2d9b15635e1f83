"""The page of a data set: its numbers agree with what SEIR counts, it is safe to open, and it stays small."""

import base64
import collections
import html.parser
import io
import json
import random
import re

import numpy as np
import PIL.Image
import pytest
import scipy.stats

from intersyn_jax.data import images
from intersyn_jax.errors import UserError
from intersyn_jax.stages.page import charts, dataset
from intersyn_jax.stages.page.dataset_sums import Mean, Process, changes, kept, outcomes
from intersyn_jax.synthesis import engine, record, seir
from intersyn_jax.synthesis.interfaces import Draw, Rate, Rating, Reply
from tests.synthesis import fake

HOSTILE = '<script>alert(1)</script> " onload="x <img src=http://evil.example/x.png> {{ 7 * 7 }}'
TOPICS = ('painting/crosses/a red cross', 'painting/crosses/a blue cross', 'painting/rings/a ring', f'adding/{HOSTILE}/x',
          'bare')


def answer(request):
  """A writer that repeats itself, fails now and then, and whose judge now and then prefers the version before."""
  if isinstance(request, Rate):
    chance = random.Random(str(request.conversation))
    scores = lambda: tuple(round(chance.uniform(1, 5), 2) for _ in range(4))
    return Rating(scores(), tuple(scores() for _ in range(4)))
  at = request.address
  chance = random.Random(repr(at))
  if isinstance(request, Draw):
    return None if chance.random() < 0.25 else fake.picture(at.number())
  if at.role.endswith('critique'):
    return Reply('none' if chance.random() < 0.3 else f'mend it {HOSTILE}')
  if at.role.startswith('question') and chance.random() < 0.2:
    return Reply(fake.QUESTION)
  if chance.random() < {'answer_write': 0.35, 'answer_revise': 0.7}.get(at.role, 0):
    return Reply(HOSTILE, f'cut at 56 positions {HOSTILE}')
  return fake.usual(request)


def decode(codes):
  return np.broadcast_to(codes.astype(np.uint8)[:, :, :, None], (len(codes), 4, 1, 3)).copy()


def make(base, accept='gated', act=answer, windows=2, size=20, enough=0.0):
  method = fake.method(topics=TOPICS, turns=(1, 2), accept=accept, enough=enough, retries=1)
  plain = method.unrefined()
  for number in range(windows):
    ids, loads = range(number * size, (number + 1) * size), {}
    samples = {(m is plain, i): seir.converse(seir.plan(m, i), m) for i in ids for m in (method, plain)}
    made = engine.advance(fake.crew(fake.Actor(act)), samples, loads=loads)
    products, twins = ([made[twin, i] for i in ids] for twin in (False, True))
    record.write_window(base / 'windows', number, products, twins, loads, decode, similarity=0.9)
  record.assemble(base / 'windows', windows, base / 'data', similarity=0.95, shard_records=9,
                  settings={'seed': 7, 'config': 'a1b2c3'})
  dataset.write(base / 'windows', windows, base / 'data', base / 'dataset.html')
  return (base / 'dataset.html').read_text()


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  base = tmp_path_factory.mktemp('gated')
  return make(base), list(record.read_traces(base / 'windows', 2)), record.metrics(base / 'windows', 2, base / 'data')


class Tags(html.parser.HTMLParser):
  """Tags of a page with their attributes, and its words."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.words = [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.words.append(data)


def section(text, name):
  return text.split(f'<h2 id="{name}">')[1].split('<h2')[0]


def cells(row):
  return [re.sub(r'<[^>]*>', '', cell) for cell in re.findall(r'<td[^>]*>(.*?)</td>', row, re.DOTALL)]


def test_the_facts_agree_with_the_metrics_of_the_stage(run):
  text, rows, metrics = run
  facts = {name: value for value, name in re.findall(r'<div><b>(.*?)</b><span>(.*?)</span>', text)}
  assert metrics['rejected'] and metrics['duplicates'] and metrics['dropped_turns']  # the run has some of everything
  assert facts['conversations kept of 40'].split()[0] == str(metrics['conversations'])
  assert facts['rejected'].split()[0] == str(metrics['rejected'])
  assert facts['near-duplicates left out'].split()[0] == str(metrics['duplicates'])
  assert facts['seed'] == '7' and facts['configuration'] == 'a1b2c3' and '<td>version of numpy</td>' in text
  repeats = set(re.findall(r'seir-0-\d+', section(text, 'repeats')))
  assert len(repeats) > 1 and repeats <= {row['id'] for row in rows if row['accepted']}


@pytest.mark.parametrize(('accept', 'enough'), [*((name, 0.0) for name in seir.ACCEPT), ('gated', 4.5), ('best', 4.5)])
def test_rounds_agree_with_the_counts_of_seir(accept, enough, run, tmp_path):
  if (accept, enough) == ('gated', 0.0):
    text, rows, metrics = run
  else:
    text = make(tmp_path, accept, windows=1, size=12, enough=enough)
    rows = list(record.read_traces(tmp_path / 'windows', 1))
    metrics = record.metrics(tmp_path / 'windows', 1, tmp_path / 'data')
  process = Process({}, 0, 0)
  for row in rows:
    process.add(row)
  rounds = section(text, 'rounds')
  for stage, found in process.stages.items():
    count = found.outcomes
    for k in (1, 2):
      assert count[k, 'stop'] / count[k, 'critique'] == pytest.approx(metrics[f'{stage}_stop_{k}'])
      assert sum(count[k, name] for name in ('stop', 'failed', 'kept', 'rollback')) <= count[0, 'first']
    revised = {name: sum(count[k, name] for k in (1, 2)) for name in ('kept', 'rollback')}
    assert revised['kept'] / sum(revised.values()) == pytest.approx(metrics[f'{stage}_accept'])
    assert cells(rounds.split(f'<h3>{stage}</h3>')[1].split('<tr>')[2])[2] == str(count[1, 'critique'])
  assert process.stages['answer'].outcomes[1, 'failed'] > 0 and (metrics['answer_again'] > 0) == (enough > 0)
  assert ('No judge scored' in rounds) == (accept == 'always') and ('<svg' in rounds) == (accept != 'always')


def test_a_revision_is_compared_with_what_it_was_made_from():
  version = lambda score, decision, critique='mend': {'decision': decision, 'critique': critique, 'scores': {'tcc': score}}
  gated = [version(3, 'revise'), version(1, 'rollback', ''), version(4, 'last', '')]
  assert kept(gated) == 2 and sorted(outcomes(gated)) == [(0, 'first'), (1, 'critique'), (1, 'rollback'), (2, 'kept')]
  found = dict(changes(gated))
  assert found[2, 'tcc', 'before'] == 3 and found[2, 'tcc', 'after'] == 4 and found[2, 'tcc', 'change'] == 1
  assert found[1, 'tcc', 'change'] == -2 and found[1, 'tcc', 'standing'] == 0 and found[2, 'tcc', 'standing'] == 1
  # Of all versions the best: each is made from the one before, and what comes after the best is taken back in the end.
  best = [version(3, 'revise'), version(1, 'rollback'), version(2, 'rollback', 'none')]
  assert kept(best) == 0 and (3, 'stop') in set(outcomes(best))
  found = dict(changes(best))
  assert found[2, 'tcc', 'change'] == 1 and found[2, 'tcc', 'standing'] == 0
  unread = [version(3, 'failed')]
  assert sorted(outcomes(unread)) == [(0, 'first'), (1, 'critique'), (1, 'failed')] and not list(changes(unread))


def test_the_mean_has_an_interval_over_conversations():
  values = [1.0, 4.0, 2.0, 2.5, 5.0]
  one, three, alone = Mean(), Mean(), Mean()
  for value in values:
    one.add([value])
    three.add([value] * 3)  # three equal items tell no more than one
  alone.add([1.0, 2.0])
  read = one.read()
  expected = scipy.stats.t.interval(0.95, 4, np.mean(values), scipy.stats.sem(values))
  assert (read['low'], read['high']) == pytest.approx(expected) and read['value'] == pytest.approx(2.9) and read['n'] == 5
  assert three.read() == pytest.approx(read | {'n': 15})
  assert alone.read() == {'value': 1.5, 'low': None, 'high': None, 'n': 2} and Mean().read() is None


def test_hostile_text_is_shown_and_does_nothing(run):
  text, _, _ = run
  page = Tags(text)
  assert not {tag for tag, _ in page.tags} & {'script', 'iframe', 'link', 'object', 'form'} and '<script' not in text
  for _, attributes in page.tags:
    assert not [name for name in attributes if name.startswith('on')]
    for name in ('src', 'href'):
      assert re.match(r'data:image/png;base64,[A-Za-z0-9+/=]+$|#', attributes.get(name) or '#')
  assert "default-src 'none'" in text
  for part in ('topics', 'left-out', 'samples'):
    assert '&lt;script&gt;alert(1)' in section(text, part), part
  assert '{{ 7 * 7 }}' in section(text, 'samples') and 'x.png&gt; 49' not in text


def test_samples_show_all_versions_and_mark_the_one_that_stands(run):
  text, rows, _ = run
  samples = section(text, 'samples')
  names = re.findall(r'<div class="topic">(seir-0-\d+)', samples)
  assert len(names) == len(set(names)) == 6
  turns = [turn for row in rows if row['id'] in names for turn in row['turns']]
  pictures = [rounds for turn in turns for rounds in turn['image_rounds'] if rounds]
  items = [rounds for turn in turns for rounds in (turn['question_rounds'], turn['answer_rounds']) if rounds] + pictures
  assert samples.count('<div class="cell') == sum(map(len, items)) and samples.count('<img') == sum(map(len, pictures))
  assert samples.count('>kept</span>') == len(items)


def test_topics_are_counted_on_every_level():
  topics = collections.Counter({'a/b/x': 3, 'a/b/y': 1, 'a/c/z': 4, 'flat': 8})
  tree = dataset._hierarchy(topics, topics + collections.Counter({'a/b/x': 2, 'a/d/never': 1}), 3)
  bare, a = tree['children']
  assert (bare['name'], bare['kept'], bare['children'][0]['name']) == ('(none)', 8, '(none)')
  assert (a['kept'], a['left_out'], a['used']) == (8, 3, 3) and [c['name'] for c in a['children']] == ['b', 'c', 'd']
  domain, category, topic = dataset._evenness(topics, 3)
  assert domain['evenness'] == pytest.approx(1) and category['used'] == 3 and category['effective'] == pytest.approx(2**1.5)
  assert (topic['used'], topic['least'], topic['most']) == (4, 1, 8)
  flat = dataset._hierarchy(collections.Counter(x=2, y=1), collections.Counter(x=2, y=1), 1)
  assert [c['name'] for c in flat['children'][0]['children']] == ['x', 'y']


def test_long_lists_are_cut_and_say_so():
  many = collections.Counter({f'd{i % 50}/c{i % 700}/t{i}': 2 for i in range(21000)})
  tree = dataset._hierarchy(many, many, 3)
  def shown(node):
    return 1 + sum(map(shown, node['children']))
  assert shown(tree) < 4500 and tree['more'] == f'and 30 more with {42000 * 30 // 50:,} conversations'
  assert tree['kept'] == 42000 and dataset._evenness(many, 3)[0]['used'] == 50
  process = Process({}, 6, 0)
  for i in range(3000):
    letters = ''.join(chr(97 + i // 26**k % 26) for k in range(3))
    process.add({'id': f'x{i}', 'topic': 't', 'turns': [], 'accepted': False, 'reason': f'{letters}: {"long " * 200}{i}'})
  found = dataset._reasons(process)
  assert len(found['rows']) == dataset.REASONS and len(process.reasons) <= 1001 and len(json.dumps(found)) < 20_000
  assert sum(row['rejected'] for row in process.reasons.values()) == 3000


def test_pictures_are_checked_and_shrunk():
  noise = np.random.default_rng(0).integers(0, 256, (600, 300, 3)).astype(np.uint8)
  small, large = (base64.b64encode(images.png(pixels)).decode() for pixels in (noise[:32, :32], noise))
  assert dataset.picture(small) == (f'data:image/png;base64,{small}', True)
  uri, pixelated = dataset.picture(large)
  assert not pixelated and uri.startswith('data:image/jpeg;base64,') and len(uri) < 60_000
  with PIL.Image.open(io.BytesIO(base64.b64decode(uri.split(',')[1]))) as shrunk:
    assert shrunk.size == (128, 256)
  for broken in ('', None, 'x"><script>', base64.b64encode(b'<svg onload="x"/>').decode(), small[:40]):
    assert dataset.picture(broken) == ('', False)


def test_half_a_character_does_not_stop_the_page(tmp_path):
  make(tmp_path, act=lambda request: Reply('half \ud800 a character', 'cut') if not isinstance(request, Rate) else None,
       windows=1, size=3)
  text = (tmp_path / 'dataset.html').read_text()
  assert 'half ? a character' in section(text, 'left-out') and 'No conversation was kept.' in text


def test_without_a_data_set_the_error_says_so(tmp_path):
  with pytest.raises(UserError, match='holds no data set of SEIR'):
    dataset.write(tmp_path / 'windows', 0, tmp_path / 'data', tmp_path / 'dataset.html')


def test_a_histogram_counts_every_value():
  chart = str(charts.histogram('words', {2: 300, 3: 500, 9: 199, 5000: 1}))
  assert 'median 3' in chart and 'most 5,000' in chart
  bars = [int(found.replace(',', '')) for found in re.findall(r': ([\d,]+) \(', chart)]
  assert bars == [300, 500, 0, 0, 0, 0, 0, 200] and '9 to 5,000: 200' in chart  # one stray value leaves the others apart
  assert 'none' in charts.histogram('words', {})
