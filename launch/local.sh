#!/usr/bin/env bash
# Runs the project on this machine. Makes the virtual environment first where it is missing or setup.cfg has changed.
#
#   launch/local.sh STAGE [FLAGS]       python -m intersyn_jax STAGE FLAGS, with the extra that fits the machine
#   launch/local.sh install [EXTRAS]    only the environment, with EXTRAS (comma-separated) besides that extra
#
# Environment: PYTHON (default python3) makes the environment, VENV (default .venv) is its folder,
# EXTRA (cpu, cuda, tpu) overrides what the machine seems to be, JAX_NUM_CPU_DEVICES (default 2) into how many devices a CPU is cut.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${VENV:-.venv}
python=${PYTHON:-python3}

machine() {
  if [[ -n ${EXTRA:-} ]]; then echo "$EXTRA"
  elif command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then echo cuda
  # Cloud TPU VMs show /dev/accel0 (v4 and before) or /dev/vfio/0 (v5e and later); other machines may have an empty vfio.
  elif compgen -G '/dev/accel[0-9]*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null; then echo tpu
  else echo cpu
  fi
}

install() {
  local extras=$1 have='' sum stamp=$venv/.installed
  if [[ ! -x $venv/bin/python ]]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
      echo "error: $python is missing or older than Python 3.11; name a newer one: PYTHON=python3.12 make run" >&2
      exit 2
    }
    echo "making $venv with $("$python" --version)"
    "$python" -m venv "$venv"
  fi
  sum=$(cat setup.cfg pyproject.toml | sha256sum | cut -d' ' -f1)
  # The stamp keeps the sum and every extra installed so far, so that `make run` after `make test` installs nothing.
  if [[ -f $stamp ]]; then
    read -r old have <"$stamp"
    [[ $old == "$sum" ]] || { extras=$have,$extras; have=''; }
  fi
  local missing=''
  for extra in ${extras//,/ }; do
    [[ ",$have,$missing," == *",$extra,"* ]] || missing=${missing:+$missing,}$extra
  done
  [[ -n $missing ]] || return 0
  echo "installing intersyn_jax[$missing] into $venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$missing]"
  echo "$sum ${have:+$have,}$missing" >"$stamp"
}

if [[ ${1:-} == install ]]; then
  install "$(machine),${2:-}"
else
  install "$(machine)"
  # glibc gives large pages to large arrays: on a CPU a quarter of the time goes to page faults otherwise.
  export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
  # Two devices share the rows of a batch, where two threads would share each small product (docs/performance.md).
  if [[ $(machine) == cpu ]] && (($(nproc) > 1)); then export JAX_NUM_CPU_DEVICES=${JAX_NUM_CPU_DEVICES:-2}; fi
  exec "$venv/bin/python" -m intersyn_jax "$@"
fi
