# `make demo` and `make test` do all the set-up a fresh machine needs; everything lands in $(VENV).
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin

# Without this, running from the checkout would put the top-level folders on the import path.
export PYTHONSAFEPATH := 1

.PHONY: demo test check format bench clean

demo: $(VENV)/.engine
	$(BIN)/trunkline demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

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
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.engine: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[engine]'
	touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.engine
	$(BIN)/python -m pip install --quiet --editable '.[engine,dev]'
	touch $@
