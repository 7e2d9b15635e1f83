"""From tensors to parameters and back: every complaint in one message, every bit in its place."""

import jax
import ml_dtypes
import numpy as np
import pytest

from intersyn_jax.errors import UserError
from intersyn_jax.models.families import entries, folder, weights

ENTRIES = [
    entries.rows({'text_embedding': slice(4, None), 'code_embedding': slice(0, 4)}, 'embed.weight', 10),
    entries.stacked(entries.linear, 'layers/query', 'layers.{}.q.weight', 2),
    entries.stacked(entries.same, 'layers/norm', 'layers.{}.norm.weight', 2),
    entries.conv('patch/kernel', 'patch.weight'),
]
SHAPES = {'text_embedding': (6, 3), 'code_embedding': (4, 3), 'layers/query': (2, 3, 5), 'layers/norm': (2, 3),
          'patch/kernel': (2, 2, 3, 7)}


def part(found=ENTRIES, dtype=np.float32, **changes):
  return folder.Part({path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in (SHAPES | changes).items()}, found)


def tensors(arrays):
  kinds = {np.dtype(kind): name for name, kind in weights.KINDS.items()}
  return {name: weights.Tensor('file', name, kinds[a.dtype], a.shape, lambda a=a: a) for name, a in arrays.items()}


def drawn(shapes, dtype=np.float32):
  rng = np.random.default_rng(0)
  return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def nothing(name):
  return False


def test_what_is_written_back_is_what_was_read():
  theirs = drawn(part().theirs(), ml_dtypes.bfloat16)
  ours = {path: source.make() for path, source in folder.sources(part(dtype=ml_dtypes.bfloat16), tensors(theirs)).items()}
  assert {path: a.shape for path, a in ours.items()} == SHAPES
  np.testing.assert_array_equal(ours['layers/query'][1], theirs['layers.1.q.weight'].T)
  np.testing.assert_array_equal(ours['text_embedding'], theirs['embed.weight'][4:])
  specs = {name: weights.Spec('BF16', a.shape) for name, a in theirs.items()}
  again = dict(folder.written(part().entries, iter(ours.values()), specs))
  assert again.keys() == theirs.keys()
  assert all(again[name].tobytes() == a.tobytes() for name, a in theirs.items())


def test_new_rows_are_means_and_are_not_written():
  grown = [entries.grown(ENTRIES[0], 'text_embedding', [(0, 2), (5,)]), *ENTRIES[1:]]
  mine = part(grown, text_embedding=(8, 3))
  assert mine.theirs() == part().theirs()
  theirs = drawn(mine.theirs())
  ours = {path: source.make() for path, source in folder.sources(mine, tensors(theirs)).items()}
  words = theirs['embed.weight'][4:]
  np.testing.assert_allclose(ours['text_embedding'], np.stack([*words, words[[0, 2]].mean(0), words[5]]), rtol=1e-6)
  specs = {name: weights.Spec('F32', a.shape) for name, a in theirs.items()}
  again = dict(folder.written(grown, iter(ours.values()), specs))
  np.testing.assert_array_equal(again['embed.weight'], theirs['embed.weight'])


def test_new_columns_of_a_head():
  entry = entries.grown(entries.linear('head', 'lm_head.weight'), 'head', [(1,)], axis=1)
  theirs = np.arange(6.0).reshape(2, 3)
  (ours,) = entry.read([theirs])
  np.testing.assert_array_equal(ours, [[0, 3, 3], [1, 4, 4], [2, 5, 5]])
  np.testing.assert_array_equal(entry.write([ours])[0], theirs)


def test_all_complaints_come_in_one_message():
  theirs = tensors(drawn(part().theirs()))
  folder.check('here', [part()], theirs, nothing)
  wrong = dict(theirs)
  del wrong['embed.weight']
  wrong['layers.0.q.weight'] = wrong['layers.0.q.weight']._replace(shape=(3, 5))
  wrong['layers.1.norm.weight'] = wrong['layers.1.norm.weight']._replace(dtype='I8')
  wrong |= {f'rotary.{i}.inv_freq': theirs['layers.0.norm.weight'] for i in range(6)}
  with pytest.raises(UserError) as error:
    folder.check('here', [part()], wrong, nothing)
  text = str(error.value)
  for words in ('here: ', '1 missing (embed.weight)', '6 unexpected (rotary.0.inv_freq', '...)', '--family',
                '1 of another shape (layers.0.q.weight is [3, 5] and should be [5, 3])',
                '1 not of type F32, F16, BF16 (layers.1.norm.weight is I8)'):
    assert words in text
  assert '\n' not in text
  known = lambda name: name.startswith('rotary.')
  with pytest.raises(UserError) as error:
    folder.check('here', [part()], wrong, known)
  assert 'unexpected' not in str(error.value)


def test_one_type_for_a_part():
  theirs = drawn(part().theirs(), np.float16)
  assert folder.dtype_of(part(), tensors(theirs), 'here') == 'F16'
  theirs['patch.weight'] = theirs['patch.weight'].astype(np.float32)
  with pytest.raises(UserError, match=r'several types \(embed\.weight as F16, patch\.weight as F32\); .* --dtype=float32'):
    folder.dtype_of(part(), tensors(theirs), 'here')
  ours = {path: source.make() for path, source in folder.sources(part(), tensors(theirs)).items()}  # cast: no bit is lost
  np.testing.assert_array_equal(ours['text_embedding'], theirs['embed.weight'][4:].astype(np.float32))


def test_every_parameter_has_one_entry():
  with pytest.raises(ValueError, match='layers/norm'):
    part([e for e in ENTRIES if e.ours != ('layers/norm',)])
  with pytest.raises(ValueError, match='patch/kernel'):
    part([*ENTRIES, ENTRIES[-1]])
