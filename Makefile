# Two commands do everything on a fresh machine with Python 3.11+ and pip: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
WORKERS ?= 2

.PHONY: demo test lint bench bench-fitting docs clean setup setup-dev setup-bench

demo: setup            ## the three laws, end to end, in about ten minutes on two cores
	$(BIN)/flopwise demo $(ARGS)

test: setup-dev lint   ## lint, types, doctests, unit tests, and a shortened demo through every step
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --doctest-modules src tests $(ARGS)

lint: setup-dev        ## style and types
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

bench: setup-bench       ## side-by-side measurements against what a user would pick instead
	$(BIN)/python -m benchmarks.run $(ARGS)

bench-fitting: setup    ## the fit of a law beside other packages (DATA=folder with runs.csv)
	$(BIN)/python -m benchmarks.fitting --data $(DATA) $(ARGS)

docs: setup-dev        ## regenerate the pages that are made from the code
	$(BIN)/python docs/build.py

setup: $(VENV)/.ready
setup-dev: $(VENV)/.ready-dev
setup-bench: $(VENV)/.ready-bench

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "flopwise needs Python 3.11 or newer, this is %s: set PYTHON=..." % sys.version.split()[0])'
	@echo "Setting up $(VENV) (about a minute, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train]'
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,dev]'
	@touch $@

$(VENV)/.ready-bench: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,bench]'
	@touch $@

clean:                 ## the environment and caches, never runs/
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
