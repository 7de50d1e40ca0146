# Every target does all the set-up that a fresh machine needs; everything lands in $(VENV).
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin

# Without this, running from the checkout would put the top-level folders on the import path.
export PYTHONSAFEPATH := 1

# One process a core, each with servers and databases of its own; a file's tests stay together.
RUN    := $(BIN)/python
PYTEST  = $(RUN) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all clients coverage check format bench clean

demo: $(VENV)/.engine
	$(BIN)/trunkline demo

test: $(VENV)/.dev clients
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: $(VENV)/.dev clients
	$(PYTEST) $(PYTEST_ARGS)

# Programs of others that the tests let talk to the server; kept in the cache, by their locks.
clients: $(VENV)/.dev
	PYTHONPATH=. $(BIN)/python -m tests.clients.environments

# COVERAGE_OF=test or test-all
COVERAGE_OF ?= test-all
coverage: $(VENV)/.dev
	$(BIN)/coverage erase
	$(MAKE) $(COVERAGE_OF) RUN="$(BIN)/coverage run"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# BENCH_ARGS=--peers runs other engines too; they are installed in environments of their own.
bench: $(VENV)/.engine
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/cpu.py $(BENCH_ARGS)

clean:
	rm -rf $(VENV) build dist .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.engine: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[engine]'
	touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.engine
	$(BIN)/python -m pip install --quiet --editable '.[engine,dev]'
	touch $@
