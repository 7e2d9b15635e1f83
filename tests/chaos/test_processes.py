"""The whole of `run` shared out to four processes, more than this machine may have cores."""

import pytest

from tests.multiprocess.test_run import finished, same_losses


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  return tmp_path_factory.mktemp('processes')


def test_losses_are_those_of_one_process(base):
  same_losses(finished(base, 4, 1), finished(base, 1, 4))
