# `make run` trains and reports the main job on this machine; `make test` checks the code. Folders and flags can be named:
#   make run CONFIG=configs/storyworld.py:smoke WORKDIR=runs/smoke ARGS=--config.seed=1
#   make test PYTHON=python3.12 VENV=.venv312 TESTS=tests/interleave

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/storyworld.py:tiny
WORKDIR ?= runs/tiny
ARGS ?=
TESTS ?= tests
# Large pages for large arrays, see launch/local.sh.
GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
export PYTHON VENV GLIBC_TUNABLES

.PHONY: run test test-peers test-slow test-aot test-chaos lint clean

run:
	@launch/local.sh run --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

# Two workers: compilation is mostly one thread, and a file stays in one worker so that its fixtures are made once. The order is
# that of tests/conftest.py.
test:
	@launch/local.sh install test
	@$(VENV)/bin/python -m pytest -q -n 2 --dist=loadfile --no-loadscope-reorder -m 'not slow' --ignore=tests/peers --ignore=tests/aot --ignore=tests/chaos $(TESTS)

# Comparisons with other libraries; pytest fails where it finds no test, so that an empty folder is told before.
test-peers:
ifeq ($(wildcard tests/peers/test_*.py),)
	@echo 'tests/peers holds no test: nothing to compare'
else
	@launch/local.sh install test,peers
	@$(VENV)/bin/python -m pytest -q -m 'not slow' tests/peers
endif

# Tests that take longer than `make test` may, such as every public family on eight devices.
test-slow:
	@launch/local.sh install test
	@$(VENV)/bin/python -m pytest -q -n 2 -m slow --ignore=tests/peers --ignore=tests/aot --ignore=tests/chaos tests

# Programs for TPU pods, compiled ahead of time with libtpu; no TPU is needed.
test-aot:
	@launch/local.sh install test,tpu
	@$(VENV)/bin/python -m pytest -q tests/aot

# Real runs killed at random moments or shared out to several processes; about ten minutes.
test-chaos:
	@launch/local.sh install test
	@$(VENV)/bin/python -m pytest -q tests/chaos

lint:
	@launch/local.sh install test
	@$(VENV)/bin/ruff check --quiet --output-format=concise .

clean:
	@rm -rf .venv* runs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
