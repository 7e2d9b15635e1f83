"""Image tokenizer: shapes, quantisation, codebook start and revival, and that it learns to keep pictures readable."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from intersyn_jax.data.storyworld import render
from intersyn_jax.data.storyworld.world import CELLS, COLOURS, GROUNDS, SHAPES, SIZES, Object, scene
from intersyn_jax.errors import UserError
from intersyn_jax.models import image_tokenizer as tokenizer
from intersyn_jax.models.image_tokenizer import ImageTokenizer, ImageTokenizerConfig, ImageTraining
from intersyn_jax.sharding import make_mesh
from intersyn_jax.training.loop import Indexed, fit, init_state
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer

SMALL = ImageTokenizerConfig(pixels=16, downsample=8, channels=16, codebook=8, code_dim=4)


def model_of(**fields):
  return ImageTokenizer(dataclasses.replace(SMALL, **fields), rngs=nnx.Rngs(0))


def pictures(count, seed, kinds=10, side=2):
  """Pictures of side x side patches, each one of a few random patches."""
  patches = np.random.default_rng(0).integers(0, 256, (kinds, 8, 8, 3), np.uint8)
  chosen = np.random.default_rng(seed).integers(0, kinds, (count, side, side))
  return patches[chosen].transpose(0, 1, 3, 2, 4, 5).reshape(count, side * 8, side * 8, 3)


@pytest.mark.parametrize('depth', [1, 4])
@pytest.mark.parametrize('kernel', [1, 3])
def test_shapes_types_and_gradients(depth, kernel):
  model = model_of(depth=depth, kernel=kernel)
  codes = jax.jit(tokenizer.encode)(model, pictures(3, 1))
  assert codes.shape == (3, 4, depth) and codes.dtype == jnp.int32
  assert codes.min() >= 0 and codes.max() < 8
  back = jax.jit(tokenizer.decode)(model, codes)
  assert back.shape == (3, 16, 16, 3) and back.dtype == jnp.uint8
  gradient = jax.grad(lambda m: jnp.mean(m.pixels(m.latents(tokenizer.from_bytes(pictures(3, 1)))) ** 2))(model)
  assert np.abs(gradient.patch_kernel[...]).max() > 0 and np.abs(gradient.pixel_kernel[...]).max() > 0


def test_convolution_of_one_pixel_is_the_matrix_product():
  block = model_of().encoder[0]
  x = jax.random.normal(jax.random.key(0), (2, 2, 2, 16))
  y = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)
  y = jax.lax.conv_general_dilated(y, block.conv_kernel[...], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  np.testing.assert_allclose(block(x), x + jax.nn.silu(y) @ block.mix_kernel[...], rtol=1e-4, atol=1e-5)


def test_with_kernel_1_a_code_changes_its_own_patch_only():
  model = model_of()
  codes = np.zeros((1, 4, 1), np.int32)
  other = codes.copy()
  other[0, 1] = 5  # place 1: top right
  changed = np.any(np.asarray(tokenizer.decode(model, codes)) != np.asarray(tokenizer.decode(model, other)), axis=-1)[0]
  assert changed[:8, 8:].any() and not changed[:, :8].any() and not changed[8:].any()


def test_residual_quantisation_sums_nearest_codes():
  latents = jax.random.normal(jax.random.key(0), (50, 4))
  codebook = jax.random.normal(jax.random.key(1), (64, 4)) * jnp.linspace(0.05, 1.5, 64)[:, None]
  errors = []
  for depth in (1, 2, 4):
    codes, vectors, rests = tokenizer.quantise(latents, codebook, depth)
    np.testing.assert_allclose(vectors, codebook[codes].sum(-2), rtol=1e-4, atol=1e-5)
    for i in range(depth):
      distance = jnp.sum((rests[:, i, None] - codebook) ** 2, -1)
      np.testing.assert_array_equal(codes[:, i], distance.argmin(-1))
    errors.append(float(jnp.mean((latents - vectors) ** 2)))
  assert errors[0] > errors[1] > errors[2]


def test_k_means_finds_separate_clusters_of_any_size():
  centres = jax.random.normal(jax.random.key(0), (12, 3)) * 10
  sizes = jnp.array([200] * 4 + [20] * 4 + [4] * 4)
  points = jnp.repeat(centres, sizes, axis=0) + 0.01 * jax.random.normal(jax.random.key(1), (896, 3))
  found, count = jax.jit(lambda p: tokenizer.k_means(p, 12, jax.random.key(2)))(points)
  match = jnp.argmin(jnp.sum((centres[:, None] - found) ** 2, -1), -1)
  assert sorted(match.tolist()) == list(range(12))
  np.testing.assert_allclose(found[match], centres, atol=0.05)
  np.testing.assert_array_equal(count[match], sizes)


def train(config, training, batch_of, learning_rate=3e-3, steps=None):
  optimizer = make_optimizer(OptimizerConfig(learning_rate=learning_rate, schedule='cosine', floor=0.05, warmup=20),
                             training.steps)
  definition = tokenizer.define(config)
  params = definition.init(jax.random.key(0), make_mesh({}, jax.devices()[:1]))
  state = init_state(params, optimizer, codes=tokenizer.fresh_codes(config, training))
  state, last = fit(tokenizer.make_step(config, training, optimizer), state, Indexed(batch_of),
                    steps=steps or training.steps, seed=0, metrics_every=20)
  return definition.bind(state['params']), state, last


QUICK = ImageTraining(steps=240, autoencoder=80, batch=32, recent=1024)


@pytest.mark.parametrize('depth, codebook', [(1, 16), (4, 16)])
def test_learns_pictures_of_few_patches(depth, codebook):
  config = dataclasses.replace(SMALL, depth=depth, codebook=codebook, channels=64, code_dim=16)
  model, state, last = train(config, QUICK, lambda i: pictures(32, 100 + i))
  new = pictures(50, 7)
  back = np.asarray(tokenizer.decode(model, tokenizer.encode(model, new)))
  error = np.sqrt(np.mean((new / 255.0 - back / 255.0) ** 2))
  blank = np.sqrt(np.mean((new / 255.0 - new.mean((0, 1, 2)) / 255.0) ** 2))
  assert error < 0.25 * blank, (error, blank, last)
  np.testing.assert_allclose(model.codebook[...], tokenizer.centres_of(state['codes']))


def test_codebook_starts_after_the_autoencoder_and_dead_codes_live_again():
  config = dataclasses.replace(SMALL, codebook=16, channels=32)
  training = dataclasses.replace(QUICK, steps=90, autoencoder=25, revive_every=5)
  optimizer = make_optimizer(OptimizerConfig(), 90)
  step = jax.jit(tokenizer.make_step(config, training, optimizer))
  params = tokenizer.define(config).init(jax.random.key(0), make_mesh({}, jax.devices()[:1]))
  state = init_state(params, optimizer, codes=tokenizer.fresh_codes(config, training))
  for i in range(25):
    state, _ = step(state, pictures(32, i, kinds=30), jax.random.key(i))
  assert not np.any(state['codes']['count']) and np.any(state['codes']['recent'])
  np.testing.assert_array_equal(state['params']['codebook'], params['codebook'])
  state, _ = step(state, pictures(32, 25, kinds=30), jax.random.key(25))
  assert np.unique(np.asarray(state['params']['codebook']).round(5), axis=0).shape[0] == 16
  codes = state['codes'] | {'count': state['codes']['count'].at[:8].set(1e-5),  # eight codes far away and not used
                            'total': state['codes']['total'].at[:8].set(1e-2)}
  at = lambda number: state | {'codes': codes, 'step': jnp.asarray(number, jnp.int32)}
  after, metrics = step(at(30), pictures(32, 50, kinds=30), jax.random.key(0))
  assert np.abs(after['params']['codebook']).max() < 100 and metrics['used'] == 1
  late, metrics = step(at(85), pictures(32, 50, kinds=30), jax.random.key(0))  # codes settle at the end
  assert np.abs(late['params']['codebook']).max() > 100 and metrics['used'] <= 0.5


def dense(count, seed, share):
  """Storyworld pictures with objects in `share` of the cells."""
  draw = np.random.default_rng(seed)
  found = []
  for _ in range(count):
    cells = np.nonzero(draw.random(CELLS) < share)[0].tolist()
    found.append(render.render(scene(int(draw.integers(len(GROUNDS))), [
        Object(*(int(draw.integers(len(n))) for n in (COLOURS, SHAPES, SIZES)), cell) for cell in cells])))
  return np.stack(found)


def test_storyworld_objects_stay_readable():
  """A third of the training of the `tiny` configuration must keep 97 % of all objects (all of it: 100 %)."""
  data = dense(1500, 0, 0.8)
  training = ImageTraining(steps=300, autoencoder=120, batch=64)
  model, _, last = train(ImageTokenizerConfig(channels=96), training,
                         lambda i: data[np.random.default_rng(i).integers(0, len(data), 64)])
  new = dense(200, 1, 0.25)
  codes = tokenizer.in_chunks(jax.jit(lambda x: tokenizer.encode(model, x)), new, 64)
  back = tokenizer.in_chunks(jax.jit(lambda c: tokenizer.decode(model, c)), codes, 64)
  assert len(back) == 200 and codes.shape == (200, 16, 1)
  (ground, wanted, _), (seen_ground, seen, _) = render.read_arrays(new), render.read_arrays(back)
  assert np.mean(ground == seen_ground) > 0.99
  assert np.mean(wanted[wanted > 0] == seen[wanted > 0]) >= 0.97, last
  assert last['used'] > 0.4


def test_mistakes_in_sizes_are_told():
  with pytest.raises(UserError, match='image.pixels 30 is no multiple of image.downsample 8'):
    ImageTokenizerConfig(pixels=30)
  with pytest.raises(UserError, match='image.kernel 2 is even'):
    ImageTokenizerConfig(kernel=2)
