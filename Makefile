# Everything a person runs. `make up` and `make test` need Python 3.11, make and a C++ compiler, and nothing else.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
KERNELS := $(wildcard inference/kernels/cpu/*)
PROCESSES ?= 2
PYTEST := $(BIN)/python -m pytest -q -n $(PROCESSES) --dist loadgroup --no-loadscope-reorder
SOURCES := adapters benchmarks demo docker inference platform tests manage.py

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: up test check soak bench install develop lock clean
.DEFAULT_GOAL := up

up: install
	@exec $(BIN)/python manage.py up

# In so many processes at once, each with its own PostgreSQL, Redis and engine; PROCESSES=0 is one after the other.
test: develop
	$(PYTEST)

check: develop
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	PYTHONPATH=platform $(BIN)/lint-imports
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(PYTEST)

# Slow load and fault runs; SOAK_SECONDS says how long each takes.
soak: develop
	$(BIN)/python -m pytest -q -s -m soak

bench: develop
	$(BIN)/python -m benchmarks

install: $(VENV)/.installed $(VENV)/.built

# And what tests, checks and training need besides.
develop: install $(VENV)/.developed

# torch comes with the rest in one resolution, by pip: a range for it would pull CUDA packages where none are wanted.
$(VENV)/.installed: requirements.lock
	@test -x $(BIN)/python || { echo "Making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the locked dependencies (about 1.5 GB on disk; a few minutes the first time)"
	$(BIN)/python -m pip install --progress-bar on -r requirements.lock
	@touch $@

$(VENV)/.developed: $(VENV)/.installed requirements-dev.lock
	@echo "Installing what tests need"
	$(BIN)/python -m pip install --progress-bar on -r requirements-dev.lock
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(KERNELS) inference/kernels/build.py
	@echo "Building the CPU kernels"
	@$(BIN)/python -m inference.kernels.build || echo "Without them the engine runs on plain torch, and slowly"
	@touch $@

# Resolves pyproject.toml anew, in a virtual environment of its own: first what runs, then what is added for tests.
FREEZE := build/lock/bin/python -m pip freeze --exclude lorayard | sed 's/+[a-z0-9.]*$$//' | sort
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --progress-bar on '.[demo]'
	$(FREEZE) > requirements.lock
	build/lock/bin/python -m pip install --progress-bar on '.[demo,dev]' -c requirements.lock
	(echo "-r requirements.lock"; $(FREEZE) | comm -13 requirements.lock -) > requirements-dev.lock

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
