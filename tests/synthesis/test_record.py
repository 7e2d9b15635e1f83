"""Windows, traces and the last pass."""

import json

import numpy as np
import pytest

from intersyn_jax.data import images, manifest, shards
from intersyn_jax.errors import UserError
from intersyn_jax.interleave.types import images_of, text_of
from intersyn_jax.synthesis import engine, record, seir
from intersyn_jax.synthesis.interfaces import Reply
from tests.synthesis import fake


def decode(codes: np.ndarray) -> np.ndarray:
  return np.broadcast_to(codes.astype(np.uint8)[:, :, :, None], (len(codes), 4, 1, 3)).copy()


def faulty(request):
  """Every fifth conversation has no picture; every third writes the same question."""
  number = int(request.address.conversation[-2:])
  if request.address.role == 'draw' and number % 5 == 0:
    return None
  if request.address.role == 'question_write' and number % 3 == 0:
    return Reply(fake.QUESTION)
  return fake.usual(request)


def write(folder, windows=3, size=10, rows=8):
  method = fake.method(turns=(1, 2), rounds=seir.Rounds(0, 2, 2))
  plain = method.unrefined()
  for number in range(windows):
    if record.window_folder(folder, number).exists():
      continue
    ids, loads = range(number * size, (number + 1) * size), {}
    samples = {(m is plain, i): seir.converse(seir.plan(m, i), m) for i in ids for m in (method, plain)}
    made = engine.advance(fake.crew(fake.Actor(faulty, rows)), samples, loads=loads)
    products, twins = ([made[twin, i] for i in ids] for twin in (False, True))
    record.write_window(folder, number, products, twins, loads, decode, similarity=0.9)


def assemble(folder, windows=3):
  return record.assemble(folder / 'windows', windows, folder / 'data', similarity=1.0, shard_records=7, settings={'seed': 0})


def test_the_data_set_has_both_splits_with_the_same_ids_and_what_is_missing_is_listed(tmp_path):
  write(tmp_path / 'windows')
  assert assemble(tmp_path) == 30 - 6 - 7  # 6 rejected; of the 8 equal questions that are left one stays
  refined, unrefined = (list(shards.open_split(tmp_path / 'data', split)) for split in ('refined', 'unrefined'))
  assert [c.id for c in refined] == [c.id for c in unrefined] == sorted(c.id for c in refined)
  assert [c.topic for c in refined] == [c.topic for c in unrefined]
  listed = manifest.verify(tmp_path / 'data').splits['refined']
  assert listed.records + len(listed.rejected) == 30 and len(listed.shards) == 3
  reasons = [row.reason.split(':')[0] for row in listed.rejected]
  assert reasons.count('draw') == 6 and sum(r.startswith('repeats the question of seir-0-00000003') for r in reasons) == 7
  for conversation in refined:
    for image in images_of(conversation.turns[-1].answer):
      assert (images.pixels(image.data)[:, :, 0] == image.codes).all() and image.caption
  assert refined[0].generator == 'seir' and refined[0].seed == 0 and refined[0].trace == refined[0].id
  assert refined[0] != unrefined[0] and text_of(refined[0].turns[0].question) == text_of(unrefined[0].turns[0].question)


def test_metrics_add_up(tmp_path):
  write(tmp_path / 'windows')
  assemble(tmp_path)
  metrics = record.metrics(tmp_path / 'windows', 3, tmp_path / 'data')
  assert metrics['conversations'] + metrics['rejected'] + metrics['duplicates'] == 30
  assert metrics['rejected_draw'] == metrics['rejected'] == 6 and metrics['unrefined'] == metrics['conversations']
  assert metrics['answer_stop_1'] == 0 and metrics['answer_stop_2'] == 1 and metrics['image_accept'] == 1
  assert 0 < metrics['batch_fill'] <= 1 and 0 < metrics['retry_draw'] < 1


def test_a_cut_window_is_made_again_and_everything_is_the_same_to_the_bit(tmp_path):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  write(whole / 'windows')
  write(cut / 'windows', windows=1)
  left = cut / 'windows' / '.window-00001.part'
  left.mkdir()
  (left / 'traces.jsonl.gz').write_bytes(b'half')
  write(cut / 'windows')
  for folder in (whole, cut):
    assemble(folder)
  files = lambda folder: {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}
  one, two = files(whole), files(cut)
  assert one.keys() == two.keys()
  assert [name for name in one if one[name] != two[name]] == []


def test_the_trace_holds_every_version_and_every_call(tmp_path):
  write(tmp_path, windows=1)
  rows = list(record.read_traces(tmp_path, 1))
  assert [row['id'] for row in rows] == [f'seir-0-{i:08d}' for i in range(10)]
  assert [row['accepted'] for row in rows] == [i % 5 != 0 for i in range(10)] and rows[0]['reason'] == 'draw: no picture'
  turn = rows[1]['turns'][0]
  assert set(turn) >= {'question_rounds', 'answer_rounds', 'image_rounds', 'calls', 'template', 'failure'}
  first, second = turn['image_rounds'][1]
  assert first['critique'] == 'mend it' and first['decision'] == 'revise' and second['critique'] == 'none'
  assert first['caption'] != second['caption'] and first['image'] != second['image']
  roles = [call['role'] for call in turn['calls']]
  assert roles.count('draw') == 4 and all(call['request'] > 0 and call['prompt'] for call in turn['calls'])
  json.dumps(rows)


def test_a_broken_window_is_named(tmp_path):
  write(tmp_path, windows=1)
  (record.window_folder(tmp_path, 0) / 'window.json').write_text('{')
  with pytest.raises(UserError, match='window-00000/window.json cannot be read'):
    record.read_window(tmp_path, 0)


def test_nothing_left_is_a_manifest_without_shards(tmp_path):
  method = fake.method()
  made = engine.advance(fake.crew(fake.Actor(lambda request: Reply(''))), {0: seir.converse(seir.plan(method, 0), method)})
  record.write_window(tmp_path / 'windows', 0, [made[0]], [made[0]], {}, decode)
  assert assemble(tmp_path, 1) == 0
  assert manifest.load(tmp_path / 'data').splits['refined'].rejected[0].reason == 'question_write: empty question'
