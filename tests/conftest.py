"""Tests run on eight virtual CPU devices, on every machine, so that sharding is always tested."""

import os
import pathlib

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


LONG = ('tests/stages/test_kill.py', 'tests/multiprocess', 'tests/families', 'tests/decoding', 'tests/grpo')
"""What `make test` begins with: files of many minutes that came last would leave one worker without work."""


def pytest_collection_modifyitems(config, items):
  def order(item):
    path = pathlib.Path(item.path).relative_to(config.rootpath).as_posix()
    return next((number for number, start in enumerate(LONG) if path.startswith(start)), len(LONG))

  items.sort(key=order)
