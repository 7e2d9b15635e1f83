"""Tests run on eight virtual CPU devices, on every machine, so that sharding is always tested."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
# Most of the time of a test is LLVM optimising a program that then runs for milliseconds.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')

import jax

jax.config.update('jax_num_cpu_devices', 8)

import pytest


@pytest.fixture(scope='session', autouse=True)
def eight_devices():
  """Fails at once if something used jax before the setting above could count."""
  assert os.environ['JAX_PLATFORMS'] != 'cpu' or len(jax.devices()) == 8
