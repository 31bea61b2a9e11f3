# Two commands for a fresh machine: `make demo` installs and runs the main job on photos it renders itself; `make test` installs and
# passes the tests. Both work in .venv and touch nothing outside this folder. PYTHON picks the interpreter (3.11 or later).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint types unit clean

demo: $(VENV)/.base
	$(BIN)/reid demo demo

test: lint types unit

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto -q --durations=30

clean:
	rm -rf $(VENV) demo build dist *.egg-info

$(VENV)/.base: pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --quiet --editable .
	touch $@

# torch first and by version: a range would let pip fetch several gigabytes of GPU libraries where a CPU build is at hand.
$(VENV)/.dev: $(VENV)/.base
	$(PIP) install --quiet torch==2.13.0
	$(PIP) install --quiet torchvision==0.28.0
	$(PIP) install --quiet --editable '.[train,dev]'
	touch $@
