"""The image tokenizer: pictures to codes and back, a convolutional VQ autoencoder trained by us.

A picture is cut into patches of `downsample` pixels (a convolution whose stride is its kernel), residual convolution blocks
work on the patch grid, and each latent is replaced by D codes of one codebook: the nearest, then the nearest to what is
left, and so on (VQ-VAE, van den Oord et al. 2017, for D = 1; residual quantisation with a shared codebook, Lee et al. 2022).

Training has two phases (`make_step`): a plain autoencoder, then, from a k-means++ start on its latents, quantisation with a
straight-through gradient, codebook by moving averages, dead codes moved to badly served latents. A codebook that starts at
random uses a tenth of its codes on small data; this start uses all.

Letters: B pictures, H W pixels, S patch side, P places of a picture (row by row), D codes per place, C codebook,
d latent width, w channels, N latents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from intersyn_jax import sharding
from intersyn_jax.errors import UserError
from intersyn_jax.models.definition import Definition, Params, constant, normal, param


@dataclasses.dataclass(frozen=True)
class ImageTokenizerConfig:
  """Sizes of an image tokenizer.

  Attributes:
    pixels: side of a picture.
    downsample: S, pixels per place along each side.
    channels: w. blocks: residual blocks on each side.
    kernel: side of the convolutions on the patch grid; 1 keeps places apart, so a changed code changes its patch only.
    codebook: C. depth: D. code_dim: d.
  """

  pixels: int = 32
  downsample: int = 8
  channels: int = 128
  blocks: int = 1
  kernel: int = 1
  codebook: int = 512
  depth: int = 1
  code_dim: int = 32

  def __post_init__(self) -> None:
    if self.pixels % self.downsample:
      raise UserError(f'image.pixels {self.pixels} is no multiple of image.downsample {self.downsample}')
    if self.kernel % 2 == 0:
      raise UserError(f'image.kernel {self.kernel} is even: use 1 or 3')

  @property
  def side(self) -> int:
    """Places along each side."""
    return self.pixels // self.downsample

  @property
  def places(self) -> int:
    """P."""
    return self.side ** 2


class Block(nnx.Module):
  """Residual block on the patch grid: normalise, convolve, SiLU, mix channels."""

  def __init__(self, config: ImageTokenizerConfig, rngs: nnx.Rngs):
    k, w = config.kernel, config.channels
    self.conv_kernel = param(rngs, (k, k, w, w), ('width',) * 4, normal((k * k * w) ** -0.5))
    self.conv_bias = param(rngs, (w,), ('width',), constant(0.0))
    self.mix_kernel = param(rngs, (w, w), ('width', 'width'), normal(0.3 * w ** -0.5))

  def __call__(self, x: jax.Array) -> jax.Array:
    """[B,h,w,channels] -> the same."""
    y = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)
    kernel = self.conv_kernel[...]
    if kernel.shape[0] == 1:
      y = y @ kernel[0, 0]  # several times faster on CPU than a convolution of one pixel
    else:
      y = jax.lax.conv_general_dilated(y, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return x + jax.nn.silu(y + self.conv_bias[...]) @ self.mix_kernel[...]


class ImageTokenizer(nnx.Module):
  """Encoder, codebook and decoder."""

  def __init__(self, config: ImageTokenizerConfig, rngs: nnx.Rngs):
    self.config = config
    patch, w, d = config.downsample ** 2 * 3, config.channels, config.code_dim
    self.patch_kernel = param(rngs, (patch, w), ('width', 'width'))
    self.encoder = nnx.List([Block(config, rngs) for _ in range(config.blocks)])
    self.latent_kernel = param(rngs, (w, d), ('width', 'width'))
    self.codebook = param(rngs, (config.codebook, d), ('width', 'width'))
    self.code_kernel = param(rngs, (d, w), ('width', 'width'))
    self.decoder = nnx.List([Block(config, rngs) for _ in range(config.blocks)])
    self.pixel_kernel = param(rngs, (w, patch), ('width', 'width'))
    self.pixel_bias = param(rngs, (patch,), ('width',), constant(0.0))

  def latents(self, pixels: jax.Array) -> jax.Array:
    """Pictures in -1..1, [B,H,W,3] -> latents [B,P,d] before quantisation."""
    c = self.config
    b, n, s = pixels.shape[0], c.side, c.downsample
    patches = pixels.reshape(b, n, s, n, s, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, n, n, s * s * 3)
    x = patches @ self.patch_kernel[...]
    for block in self.encoder:
      x = block(x)
    return (x @ self.latent_kernel[...]).reshape(b, c.places, c.code_dim)

  def pixels(self, latents: jax.Array) -> jax.Array:
    """Latents [B,P,d] -> pictures [B,H,W,3], about -1..1."""
    c = self.config
    b, n, s = latents.shape[0], c.side, c.downsample
    x = latents.reshape(b, n, n, c.code_dim) @ self.code_kernel[...]
    for block in self.decoder:
      x = block(x)
    patches = x @ self.pixel_kernel[...] + self.pixel_bias[...]
    return patches.reshape(b, n, n, s, s, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, n * s, n * s, 3)


def define(config: ImageTokenizerConfig) -> Definition:
  """The tokenizer's structure and parameter shapes."""
  return Definition(lambda rngs: ImageTokenizer(config, rngs))


def encode(model: ImageTokenizer, pictures: jax.Array) -> jax.Array:
  """Codes int32[B,P,D] of pictures uint8[B,H,W,3]. Pure; jit it."""
  return quantise(model.latents(from_bytes(pictures)), model.codebook[...], model.config.depth)[0]


def decode(model: ImageTokenizer, codes: jax.Array) -> jax.Array:
  """Pictures uint8[B,H,W,3] of codes int32[B,P,D]. Pure; jit it."""
  pixels = model.pixels(jnp.sum(model.codebook[...][codes], axis=-2))
  return jnp.round(jnp.clip(pixels * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)


def in_chunks(function: Callable[[Any], jax.Array], rows: np.ndarray, chunk: int = 256) -> np.ndarray:
  """Runs a jitted function over rows [n,...] on the host in chunks of one static shape; the last is padded."""
  parts = []
  for start in range(0, len(rows), chunk):
    part = rows[start:start + chunk]
    padded = np.concatenate([part, np.zeros((chunk - len(part), *part.shape[1:]), part.dtype)])
    parts.append(sharding.host(function(padded))[:len(part)])
  return np.concatenate(parts)


def from_bytes(pictures: jax.Array) -> jax.Array:
  """uint8 0..255 to float32 -1..1."""
  return pictures.astype(jnp.float32) / 127.5 - 1.0


def nearest(points: jax.Array, codebook: jax.Array) -> jax.Array:
  """Index int32[...] of the code nearest to each point [...,d]."""
  return jnp.argmin(jnp.sum(codebook ** 2, axis=-1) - 2 * points @ codebook.T, axis=-1).astype(jnp.int32)


def quantise(latents: jax.Array, codebook: jax.Array, depth: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Codes int32[...,D] of latents [...,d], the sum of their vectors [...,d], and what each depth had left [...,D,d]."""
  left, codes, rests = latents, [], []
  for _ in range(depth):
    rests.append(left)
    codes.append(nearest(left, codebook))
    left = left - codebook[codes[-1]]
  return jnp.stack(codes, axis=-1), latents - left, jnp.stack(rests, axis=-2)


def k_means(points: jax.Array, clusters: int, key: jax.Array, rounds: int = 10) -> tuple[jax.Array, jax.Array]:
  """k-means with the k-means++ start: centres [clusters,d] and how many of the points [N,d] each has."""
  first, rest = jax.random.split(key)
  start = points[jax.random.randint(first, (), 0, len(points))]

  def add(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    centres, distance = carry
    new = points[jax.random.categorical(jax.random.fold_in(rest, i), jnp.log(distance + 1e-12))]
    return centres.at[i].set(new), jnp.minimum(distance, jnp.sum((points - new) ** 2, axis=-1))

  centres = jnp.zeros((clusters, points.shape[-1])).at[0].set(start)
  centres, _ = jax.lax.fori_loop(1, clusters, add, (centres, jnp.sum((points - start) ** 2, axis=-1)))

  def lloyd(_: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    centres, _ = carry
    count, total = tally(points, nearest(points, centres), clusters)
    return jnp.where(count[:, None] > 0, total / jnp.maximum(count, 1)[:, None], centres), count

  return jax.lax.fori_loop(0, rounds, lloyd, (centres, jnp.zeros(clusters)))


def tally(points: jax.Array, codes: jax.Array, clusters: int) -> tuple[jax.Array, jax.Array]:
  """How many points [N,d] each code has, [C], and their sum, [C,d]."""
  return (jax.ops.segment_sum(jnp.ones(len(codes)), codes, clusters), jax.ops.segment_sum(points, codes, clusters))


@dataclasses.dataclass(frozen=True)
class ImageTraining:
  """How a tokenizer is trained.

  Attributes:
    steps: all updates. autoencoder: updates before the codebook starts.
    batch: pictures per update.
    recent: latents of the last updates kept for the start of the codebook and for dead codes.
    decay: of the moving averages of the codebook.
    commitment: weight of the pull of latents to their codes.
    revive_every: updates between looks at dead codes; none in the last third of the training, so that codes settle.
    dead: a code is dead when it is used less than this share of the mean.
  """

  steps: int = 900
  autoencoder: int = 250
  batch: int = 64
  recent: int = 8192
  decay: float = 0.99
  commitment: float = 0.25
  revive_every: int = 25
  dead: float = 0.03


def fresh_codes(config: ImageTokenizerConfig, training: ImageTraining) -> dict[str, jax.Array]:
  """The `codes` entry of a training state: moving averages of the codebook, and recent latents."""
  return {'count': jnp.zeros(config.codebook), 'total': jnp.zeros((config.codebook, config.code_dim)),
          'recent': jnp.zeros((training.recent, config.code_dim))}


def make_step(config: ImageTokenizerConfig, training: ImageTraining, optimizer: Any) -> Callable[..., Any]:
  """The update of a tokenizer: (state, pictures uint8[B,H,W,3], key) -> (state, metrics).

  The state holds `params`, `opt_state`, `step` and `codes` (`fresh_codes`); `optimizer` has `update`. Metrics: `pixels`
  (mean squared error, pixels in 0..1), `commit`, `used` (share of the codebook used lately).
  """
  definition = define(config)
  c, d = config.codebook, config.depth

  def loss(params: Params, pictures: jax.Array, quantised: jax.Array) -> tuple[jax.Array, Any]:
    model = definition.bind(params)
    pixels = from_bytes(pictures)
    latents = model.latents(pixels)
    codebook = jax.lax.stop_gradient(model.codebook[...])  # the moving averages move it, no gradient does
    codes, vectors, rests = quantise(jax.lax.stop_gradient(latents), codebook, d)
    through = jnp.where(quantised, latents + jax.lax.stop_gradient(vectors - latents), latents)
    error = jnp.mean((model.pixels(through) - pixels) ** 2)
    commit = jnp.where(quantised, jnp.mean((latents - vectors) ** 2), 0.0)
    return error + training.commitment * commit, (error / 4, commit, latents, codes, rests)

  def begin(codes: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    """Codebook from recent latents; with several depths an equal part of it from what each depth leaves."""
    sizes = [c // d + (i < c % d) for i in range(d)]
    left, centres, counts = codes['recent'], [], []
    for i, size in enumerate(sizes):
      found, count = k_means(left, size, jax.random.fold_in(key, i))
      left = left - found[nearest(left, found)]
      centres.append(found)
      counts.append(count)
    count = jnp.concatenate(counts) * (training.batch * config.places / training.recent)
    return codes | {'count': count, 'total': count[:, None] * jnp.concatenate(centres)}

  def revive(codes: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    """Puts dead codes on latents (or what a depth leaves of them) that the codebook serves badly."""
    codebook = centres_of(codes)
    rests = quantise(codes['recent'], codebook, d)[2].reshape(-1, config.code_dim)
    error = jnp.sum((rests - codebook[nearest(rests, codebook)]) ** 2, axis=-1)
    picks = jax.random.categorical(key, jnp.log(error + 1e-12), shape=(c,))
    mean = jnp.mean(codes['count'])
    dead = codes['count'] < training.dead * mean
    return codes | {'count': jnp.where(dead, mean, codes['count']),
                    'total': jnp.where(dead[:, None], mean * rests[picks], codes['total'])}

  def follow(codes: dict[str, jax.Array], rests: jax.Array, chosen: jax.Array) -> dict[str, jax.Array]:
    """Moving averages of use and of what each code stands for."""
    count, total = tally(rests.reshape(-1, config.code_dim), chosen.reshape(-1), c)
    mix = lambda old, new: training.decay * old + (1 - training.decay) * new
    return codes | {'count': mix(codes['count'], count), 'total': mix(codes['total'], total)}

  def step(state: dict[str, Any], pictures: jax.Array, key: jax.Array) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    number, codes, params = state['step'], state['codes'], state['params']
    quantised = number >= training.autoencoder
    codes = jax.lax.cond(number == training.autoencoder, begin, lambda codes, _: codes, codes, key)
    params = params | {'codebook': jnp.where(quantised, centres_of(codes), params['codebook'])}
    gradients, (error, commit, latents, chosen, rests) = jax.grad(loss, has_aux=True)(params, pictures, quantised)
    updates, opt_state = optimizer.update(gradients, state['opt_state'], params)
    params = jax.tree.map(jnp.add, params, updates)
    flat = latents.reshape(-1, config.code_dim)
    codes = codes | {'recent': jnp.concatenate([codes['recent'], flat])[-training.recent:]}
    codes = jax.tree.map(lambda new, old: jnp.where(quantised, new, old), follow(codes, rests, chosen), codes)
    look = quantised & (number % training.revive_every == 0) & (number < training.steps * 2 // 3)
    codes = jax.lax.cond(look, revive, lambda codes, _: codes, codes, jax.random.fold_in(key, 1))
    params = params | {'codebook': jnp.where(quantised, centres_of(codes), params['codebook'])}
    used = jnp.mean(codes['count'] > training.dead * jnp.mean(codes['count']))
    new = state | {'params': params, 'opt_state': opt_state, 'step': number + 1, 'codes': codes}
    return new, {'pixels': error, 'commit': commit, 'used': used}

  return step


def centres_of(codes: dict[str, jax.Array]) -> jax.Array:
  """Codebook [C,d] that the moving averages stand for."""
  return codes['total'] / jnp.maximum(codes['count'], 1e-6)[:, None]
