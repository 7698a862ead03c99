# A thin layer over pip, pytest and the study runner. Everything runs from .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: scales test quick lint clean

scales: .venv/ready
	$(BIN)/python studies/run.py --grid scales

# Two processes of one thread each: many tests wait, for Ray or for another Python.
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

quick: .venv/ready
	$(BIN)/python -m pytest -m "not slow"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Rebuilt whenever the declared dependencies change.
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
