# jaxinterp from a clean checkout: `make demo` shows a real language model at work, `make test` runs the suite.
# Both make the environment they need in .venv; a second run starts at once.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := $(BIN)/python -m pytest

JAXINTERP_CACHE ?= $(HOME)/.cache/jaxinterp
JAX_COMPILATION_CACHE_DIR ?= $(JAXINTERP_CACHE)/compiled
export JAXINTERP_CACHE JAX_COMPILATION_CACHE_DIR

.PHONY: help demo test notebooks parity bench lint format types wheel clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## a real language model solves a task and shows how
	@$(BIN)/jaxinterp demo

test: $(VENV)/.installed-dev ## the whole suite: offline, without torch
	@$(PYTEST) -n 2 $(ARGS)

notebooks: $(VENV)/.installed-dev ## run the lessons of the course in fresh kernels; NAMES=01 for one of them
	@$(BIN)/python -m notebooks.execute --check $(NAMES)

parity: $(VENV)/.installed-parity ## compare every site of every family with the torch references
	@$(PYTEST) -m parity $(ARGS)

bench: $(VENV)/.installed-dev ## times and memory, beside the peers
	@$(BIN)/python -m benchmarks $(ARGS)

lint: $(VENV)/.installed-dev ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev ## ruff: format, and fix what can be fixed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(VENV)/.installed-dev ## pyright
	@$(BIN)/pyright --pythonpath $(BIN)/python

wheel: $(VENV)/.installed ## build the wheel into dist/
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean: ## remove the environment and what tools left; downloaded weights stay in the cache folder
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "jaxinterp needs Python 3.11 or newer: install it, or name one: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing jaxinterp into $(VENV) (once, about a minute) ..."
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the development tools ..."
	@$(PIP) --editable ".[dev]"
	@touch $@

$(VENV)/.installed-parity: $(VENV)/.installed-dev
	@echo "Installing the references (torch, transformers) ..."
	@$(PIP) --editable ".[parity]"
	@touch $@
