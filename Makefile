# Everything a person runs. `make up` and `make test` need Python 3.11, make and a C++ compiler, and nothing else.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
KERNELS := $(wildcard inference/kernels/cpu/*)
SOURCES := adapters benchmarks demo docker inference platform tests manage.py

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: up test check soak bench install lock clean
.DEFAULT_GOAL := up

up: install
	@exec $(BIN)/python manage.py up

test: install
	$(BIN)/python -m pytest -q

check: install
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	PYTHONPATH=platform $(BIN)/lint-imports
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/python -m pytest -q

# Slow load and fault runs; SOAK_SECONDS says how long each takes.
soak: install
	$(BIN)/python -m pytest -q -s -m soak

bench: install
	$(BIN)/python -m benchmarks

install: $(VENV)/.installed $(VENV)/.built

# torch comes with the rest in one resolution, by pip: a range for it would pull CUDA packages where none are wanted.
$(VENV)/.installed: requirements.lock
	@test -x $(BIN)/python || { echo "Making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the locked dependencies (about 2 GB on disk; a few minutes the first time)"
	$(BIN)/python -m pip install --progress-bar on -r requirements.lock
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(KERNELS) inference/kernels/build.py
	@echo "Building the CPU kernels"
	$(BIN)/python -m inference.kernels.build
	@touch $@

# Resolves pyproject.toml anew, in a virtual environment of its own.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --progress-bar on '.[dev]'
	build/lock/bin/python -m pip freeze --all --exclude pip --exclude lorayard | sed 's/+[a-z0-9.]*$$//' > requirements.lock

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
