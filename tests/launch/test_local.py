"""launch/local.sh: what a stage is told about the machine it runs on."""

import hashlib
import pathlib

import pytest


def program(path: pathlib.Path, line: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/bin/sh\n{line}\n')
  path.chmod(0o755)


@pytest.mark.parametrize('extra, cores, given, devices', [
    ('cpu', 2, {}, '2'), ('cpu', 16, {}, '2'), ('cpu', 1, {}, 'unset'), ('cpu', 8, {'JAX_NUM_CPU_DEVICES': '4'}, '4'),
    ('cuda', 16, {}, 'unset')])
def test_a_cpu_of_more_than_one_core_is_two_devices(world, extra, cores, given, devices):
  program(world.checkout / '.venv/bin/python', 'echo "${JAX_NUM_CPU_DEVICES-unset}" "$@"')
  program(world.folder.parent / 'bin/nproc', f'echo {cores}')
  text = (world.checkout / 'setup.cfg').read_bytes() + (world.checkout / 'pyproject.toml').read_bytes()
  (world.checkout / '.venv/.installed').write_text(f'{hashlib.sha256(text).hexdigest()} {extra}\n')
  code, out, err = world.run('local.sh', 'warmup', '--workdir=runs/x y', EXTRA=extra, **given)
  assert (code, out) == (0, f'{devices} -m intersyn_jax warmup --workdir=runs/x y\n'), err
