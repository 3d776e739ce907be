# Each target does all its own set-up, in .venv.
PYTHON ?= python3
BIN := .venv/bin
# Threads that spin while they wait slow each other down on small or busy machines.
export GOMP_SPINCOUNT := 0

.PHONY: demo test lint format clean

demo: .venv/installed
	$(BIN)/blemish demo

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv demo
