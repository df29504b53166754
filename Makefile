# make demo: everything, from nothing to a report. make test: the fast tests. See CONTRIBUTING.md.

VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# The first Python that is new enough; or say: make PYTHON=/path/to/python
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$python; break; }; done)
endif

.PHONY: install optimum test test-e2e test-slow demo docs fuzz lint format clean
.DELETE_ON_ERROR:

install: $(VENV)/.installed

# Three steps, each with a stamp file. llama.cpp comes between the base and the extras, so that
# pip finds it there, built for this CPU, and does not build a wrong one itself.
$(VENV)/.base: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; say: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.llama-cpp: $(VENV)/.base
	PIP_CONSTRAINT=constraints.txt $(BIN)/edgeadapt setup llama-cpp
	@touch $@

$(VENV)/.installed: $(VENV)/.llama-cpp
	$(PIP) install --quiet -c constraints.txt -e '.[all,dev]'
	@touch $@

# The second environment, for `export --exporter optimum`; its tests are skipped without it.
optimum: install
	$(BIN)/edgeadapt setup optimum

# Two at a time: much of a test is one thread that loads libraries. One at a time where engines run
# the real model with a thread on each core, which they wait for in a loop.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest

test: install
	$(PYTEST) -n $(WORKERS) --dist loadgroup -m "not e2e"

test-e2e: install
	$(PYTEST) -m e2e

# What takes many minutes more: full disks, inputs that go away, each extra from the wheel, boards.
test-slow: install
	EDGEADAPT_TEST_SLOW=1 $(PYTEST) -m e2e tests/faults tests/e2e/test_wheel.py \
		tests/e2e/test_board.py

demo: install
	$(BIN)/edgeadapt run demo

# Damaged files for every reader of files that others made; hours for a million. Linux alone.
CASES ?= 1000000
fuzz: install
	$(PIP) install --quiet -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz --cases $(CASES)

docs: install
	$(BIN)/python docs/generate.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Keeps runs/ and the cache of built wheels.
clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
