"""What trains and what stands still: LoRA over a base that is never copied, frozen parts, float32 masters, and what is kept."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intersyn_jax import sharding
from intersyn_jax.errors import UserError
from intersyn_jax.interleave import layout
from intersyn_jax.models import lora, unified
from intersyn_jax.models.trunk import KERNELS, TrunkConfig
from intersyn_jax.training import checkpoints, loop
from intersyn_jax.training.optimizer import OptimizerConfig
from intersyn_jax.training.supervised import next_token_loss
from intersyn_jax.training.trees import flat
from intersyn_jax.training.tuning import Tuned, TuningConfig, fingerprint
from tests import small_model as small

WRITTEN = small.plain()
BLOCK = WRITTEN.block
MODEL = unified.ModelConfig(TrunkConfig(16, 2, 2, 2, 8, 16), WRITTEN.tokenizer.size, BLOCK.places, 1, BLOCK.codebook)
LORA = TuningConfig(lora_rank=2, lora_alpha=4.0)
STEPS = 6


def drawn(model=MODEL, seed=0):
  """A plain policy, without the compilation that `init` costs."""
  rng, definition = np.random.default_rng(seed), unified.define(model)
  params = jax.tree.map(lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype), definition.shapes)
  return jax.device_put(params, definition.shardings(small.one_device()))


def tuned_of(config=LORA, model=MODEL, **optimizer):
  return Tuned(model, config, OptimizerConfig(**dict(learning_rate=2e-2) | optimizer), STEPS, small.one_device())


@functools.cache
def batch():
  documents = [layout.tokenise(small.conversation(WRITTEN, s), WRITTEN) for s in range(2)]
  return layout.stack([jax.tree.map(lambda a: a[:16], d) for d in documents], 16, left=True)


@functools.cache
def compiled(quantise=''):
  """A LoRA training and its update, compiled once."""
  tuned = tuned_of(dataclasses.replace(LORA, quantise=quantise))
  step = jax.jit(loop.make_step(next_token_loss(tuned.definition), tuned.optimizer), donate_argnums=0)
  return tuned, step.lower(tuned.begin(drawn(), 0), batch(), jax.random.key(0)).compile()


def same(one, other):
  one, other = flat(one), flat(other)
  return one.keys() == other.keys() and all(np.array_equal(a, other[path]) for path, a in one.items())


@pytest.mark.parametrize('quantise', [pytest.param('', marks=pytest.mark.slow), 'int8'])
def test_adapters_train_over_a_base_that_is_never_copied(quantise):
  if quantise:
    pytest.importorskip('qwix')
  tuned, step = compiled(quantise)
  state = tuned.begin(drawn(), 0)
  assert {path: a.shape for path, a in flat(state['params']).items()} == {
      f'backbone/trunk/layers/{name}_lora_{side}': (2, 16, 2) if side == 'in' else (2, 2, 16)
      for name in KERNELS for side in ('in', 'out')}, 'factors of each layer and kernel, and nothing else'
  held = [path for path in flat(state['opt_state']) if '/mu/' in path or '/nu/' in path]
  assert len(held) == 2 * len(flat(state['params'])) and all('_lora_' in path for path in held)
  start, reference = tuned.kept(state), tuned.reference(state)
  if not quantise:
    assert same(start, drawn())
  size = lambda tree: sum(a.nbytes for a in jax.tree.leaves(tree))
  places = lambda state: [a.unsafe_buffer_pointer() for a in jax.tree.leaves(state['base'])]
  before, base = places(state), jax.tree.map(jnp.copy, state['base'])

  used = step.memory_analysis()
  assert used.alias_size_in_bytes == size(state), 'what is given in is given back in the same memory'
  assert used.output_size_in_bytes < size(state) + 1000, 'beside metrics'
  losses = []
  for _ in range(STEPS):
    state, metrics = step(state, batch(), jax.random.key(0))
    losses.append(float(metrics['loss']))
  assert losses[-1] < losses[0] - 0.05
  assert places(state) == before and same(state['base'], base)
  assert all(np.any(np.asarray(a)) for a in jax.tree.leaves(state['params']))

  # The reference is the start, over the same base; what is kept computes what has been trained.
  run = jax.jit(lambda params: tuned.definition.bind(params)(batch()))
  plain = jax.jit(lambda params: tuned.plain.bind(params)(batch()))
  np.testing.assert_allclose(run(loop.whole(state | {'params': reference})), plain(start), atol=1e-5)
  trained = run(loop.whole(state))
  np.testing.assert_allclose(plain(tuned.kept(state)), trained, atol=1e-4)
  assert np.abs(trained - plain(start)).max() > 0.01


def test_a_run_that_was_cut_off_goes_on_with_the_same_bits_over_the_same_base(tmp_path):
  tuned, step = compiled()

  def go(state, steps):
    for number in range(int(state['step']), steps):
      state, _ = step(state, batch(), jax.random.fold_in(jax.random.key(0), number))
    return state

  whole = go(tuned.begin(drawn(), 0), STEPS)
  cut = go(tuned.begin(drawn(), 0), 2)
  tuned.checkpoints(cut, tmp_path, 'mine').save(cut, data={'next': 2})
  assert checkpoints.latest_step(tmp_path / 'checkpoints') is None, 'no policy before the end'
  assert checkpoints.param_shapes(tmp_path / 'resume').keys() == flat(whole['params']).keys(), 'adapters alone'

  state = tuned.begin(drawn(), 0)
  state, meta = tuned.checkpoints(state, tmp_path, 'mine').restore(state)
  state = go(state, STEPS)
  assert meta['data'] == {'next': 2} and same(state, whole)
  tuned.keep(state, tmp_path, 'mine')
  like = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), tuned.plain.shapes,
                      tuned.plain.shardings(small.one_device()))
  assert same(checkpoints.load_params(tmp_path / 'checkpoints', like), tuned.kept(whole))
  listing = (tmp_path / 'checkpoints' / f'{STEPS}.files.json').stat().st_mtime_ns
  tuned.keep(state, tmp_path, 'mine')
  assert (tmp_path / 'checkpoints' / f'{STEPS}.files.json').stat().st_mtime_ns == listing, 'written once'

  state = tuned.begin(drawn(seed=1), 0)
  with pytest.raises(UserError, match='resume was trained on top of weights .* bring back the policy'):
    tuned.checkpoints(state, tmp_path, 'mine').restore(state)


def test_frozen_parts_stand_still_and_a_bfloat16_model_trains_in_float32(tmp_path):
  model = dataclasses.replace(MODEL, param_dtype='bfloat16', trunk=dataclasses.replace(MODEL.trunk, dtype='bfloat16'))
  # Too small to be seen in bfloat16, as the rates are that large models are tuned with.
  tuned = tuned_of(TuningConfig(), model, learning_rate=1e-6, frozen=('^backbone/',))
  params = drawn(model)
  before = jax.tree.map(jnp.copy, params)
  state = tuned.begin(params, 0)
  reference = tuned.reference(state)
  assert flat(state['params']).keys() == {'text_head', 'image_head/head'}
  assert len([path for path in flat(state['opt_state']) if '/mu/' in path]) == 2
  step = loop.make_step(next_token_loss(tuned.definition), tuned.optimizer)
  state, metrics = loop.fit(step, state, loop.Indexed(lambda i: batch()), steps=STEPS, seed=0,
                            checkpoints=tuned.checkpoints(state, tmp_path, 'mine'))
  assert np.isfinite(metrics['loss'])
  assert {str(a.dtype) for a in jax.tree.leaves((state['params'], state['opt_state']))} == {'float32', 'int32'}
  moved = np.abs(np.asarray(state['params']['text_head']) - np.asarray(before['text_head'].astype(np.float32))).max()
  assert 3e-6 < moved <= 7e-6, 'six steps of the rate'
  assert same(loop.whole(state | {'params': reference}), before)
  kept = tuned.kept(state)
  assert {str(a.dtype) for a in jax.tree.leaves(kept)} == {'bfloat16'}
  assert same(kept['backbone'], before['backbone'])


def test_where_all_trains_as_it_is_held_the_state_is_the_policy(tmp_path):
  tuned = tuned_of(TuningConfig())
  params = drawn()
  state = tuned.begin(params, 0)
  assert 'base' not in state and tuned.kept(state)['text_head'] is params['text_head']
  assert tuned.checkpoints(state, tmp_path, '').folder.name == 'checkpoints'
  tuned.keep(state, tmp_path, '')
  assert not (tmp_path / 'resume').exists()


def test_lean_masters_are_bfloat16_and_what_is_kept_is_not():
  tuned = tuned_of(TuningConfig(), precision='lean')
  state = tuned.begin(drawn(), 0)
  assert {str(a.dtype) for a in jax.tree.leaves((state['params'], state['opt_state']))} == {'bfloat16', 'int32'}
  assert {str(a.dtype) for a in jax.tree.leaves(tuned.kept(state))} == {'float32'}


def test_factors_may_be_frozen_and_misspelt_patterns_are_told():
  tuned = tuned_of(frozen=('/(gate|up|down)_lora_', '^text_head$'))
  state = tuned.begin(drawn(), 0)
  assert {path.split('/')[-1].split('_')[0] for path in flat(state['params'])} == {'query', 'key', 'value', 'out'}
  assert same(tuned.kept(state), drawn())
  with pytest.raises(UserError, match="'text_haed' finds no parameter"):
    tuned_of(frozen=('text_haed',)).begin(drawn(), 0)
  with pytest.raises(UserError, match='leaves no parameter to train'):
    tuned_of(frozen=('_lora_',)).begin(drawn(), 0)
  with pytest.raises(UserError, match="quantise is 'int8' and lora_rank 0"):
    TuningConfig(quantise='int8')


def test_a_section_gives_its_fields():
  assert TuningConfig.of({'lora_rank': 4, 'steps': 3}) == TuningConfig(4)
  assert TuningConfig.of({'lora_rank': 4, 'lora_alpha': 1.0, 'quantise': 'nf4'}) == TuningConfig(4, 1.0, 'nf4')


def test_the_fingerprint_tells_weights_apart_however_they_are_spread():
  params = {'a': jax.random.normal(jax.random.key(0), (8, 16)), 'b': jnp.arange(8.0, dtype=jnp.bfloat16)}
  mesh = sharding.make_mesh({'fsdp': 4, 'tensor': 2})
  spread = jax.device_put(params, jax.tree.map(lambda a: jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec(*('fsdp', 'tensor')[:a.ndim])), params))
  name = fingerprint(params)
  assert fingerprint(spread) == name and len(name) == 12
  swapped = params['a'].at[0, 0].set(params['a'][3, 5]).at[3, 5].set(params['a'][0, 0])
  nudged = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(params['a'], jnp.uint32).at[7, 15].add(1), jnp.float32)
  others = [params | {'a': swapped}, params | {'a': nudged}, params | {'a': params['a'][::-1]},
            {'c': params['a'], 'b': params['b']}]
  assert len({name, *map(fingerprint, others)}) == 5


def test_fresh_factors_are_small_in_and_nothing_out():
  definition = unified.define(dataclasses.replace(MODEL, trunk=dataclasses.replace(MODEL.trunk, lora_rank=64)))
  factors = lora.fresh(definition, jax.random.key(5), small.one_device())
  shapes = {path: a for path, a in flat(definition.shapes).items() if lora.is_factor(path)}
  assert {path: (a.shape, a.dtype) for path, a in flat(factors).items()} == {p: (s.shape, s.dtype) for p, s in shapes.items()}
  drawn_ = {path: np.asarray(a) for path, a in flat(factors).items() if path.endswith('_in')}
  assert all(0.9 < np.std(a) * 16 ** 0.5 < 1.1 for a in drawn_.values())
  assert len({a.tobytes() for value in drawn_.values() for a in value}) == 2 * len(KERNELS), 'each layer and kernel its own'
  assert not any(np.any(a) for path, a in flat(factors).items() if path.endswith('_out'))
