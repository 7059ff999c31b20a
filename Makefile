SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# pyenv offers only those interpreters that are chosen: here all may be wanted. Where there is no pyenv, this is nothing.
NOX = PYENV_VERSION="$$(pyenv versions --bare 2>/dev/null | grep -E '^3\.[0-9.]+$$' | paste -sd:)" \
	$(BIN)/uv tool run --quiet nox@2026.10.20
BENCH_VENV := .venv-bench
BENCH_INSTALLED := $(BENCH_VENV)/.installed

.PHONY: help
help: ## Say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# Made anew when what it holds is asked for anew: an environment that was only added to proves nothing.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "constraints.txt is for Python 3.11 and up; \
	give another one: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

.PHONY: demo
demo: $(INSTALLED) ## Kill a Flower server in the middle of a round, start it again, compare with a run that was left alone
	$(BIN)/python scripts/demo.py

.PHONY: test
test: $(INSTALLED) ## All tests but the slow ones
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

.PHONY: test-slow
test-slow: $(INSTALLED) ## The slow tests: real Flower runs, killed and resumed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,examples]"
	$(BIN)/python -m pytest -q -m slow

FUZZ_SECONDS ?= 300
.PHONY: fuzz
fuzz: $(INSTALLED) ## Feed the readers with bytes that follow their coverage, FUZZ_SECONDS long; a finding is a file crash-*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,fuzz]"
	PYTHONPATH=. $(BIN)/python tests/fuzz/fuzz_readers.py -max_total_time=$(FUZZ_SECONDS) -len_control=0 -max_len=2048

.PHONY: test-matrix
test-matrix: $(INSTALLED) ## The tests of the core with each Python and each Flower that go together; finds python3.10 to python3.13
	$(NOX) --sessions matrix

.PHONY: test-packages
test-packages: $(INSTALLED) ## Build wheel and source distribution, install each extra in an empty environment, test what is installed
	$(NOX) --sessions packages

.PHONY: docs
docs: $(INSTALLED) ## The documentation, into docs/_build/html; a warning is an error
	$(BIN)/sphinx-build -q -W --keep-going -n -b html docs docs/_build/html

# An environment of its own: the libraries that are compared with are nobody else's business.
$(BENCH_INSTALLED): pyproject.toml constraints.txt benchmarks/constraints.txt
	$(PYTHON) -m venv --clear $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--constraint benchmarks/constraints.txt --editable ".[bench]"
	touch $@

.PHONY: bench
bench: $(BENCH_INSTALLED) ## Measure against a raw write and other libraries, half an hour; tables and a picture
	$(BENCH_VENV)/bin/python -m benchmarks

.PHONY: bench-quick
bench-quick: $(BENCH_INSTALLED) ## The same, so small that the figures say nothing: whether it all works
	$(BENCH_VENV)/bin/python -m benchmarks --plan smoke --out build/benchmarks

.PHONY: lint
lint: $(INSTALLED) ## Style, types, and which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: clean
clean: ## Remove the environment and every cache
	rm -rf $(VENV) $(BENCH_VENV) .nox build dist docs/_build .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
