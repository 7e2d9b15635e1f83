"""The world that every test of a launcher begins with."""

import pytest

from tests.launch.world import World


@pytest.fixture
def world(tmp_path):
  world = World(tmp_path)
  yield world
  world.close()
