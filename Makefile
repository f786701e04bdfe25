# Two commands do everything: `make demo` and `make test`. Each makes its own virtual environment.

PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
WORKERS ?= 2
STEPS ?= 300
JOBS ?= 2

PIP = -m pip --disable-pip-version-check install
BIN = $(VENV)/bin

.PHONY: help demo test test-slow lint format docs oldest benchmark soak clean

help:
	@echo "make demo       train on real data with $(WORKERS) processes: one-bit votes beside DDP"
	@echo "make test       run the tests"
	@echo "make test-slow  run the tests that take minutes"
	@echo "make lint       ruff and mypy"
	@echo "make format     let ruff format the code"
	@echo "make docs       build the documentation into site/"
	@echo "make oldest     train with the oldest supported versions"
	@echo "make benchmark  time the codec, the optimizers and the monitors on this machine"
	@echo "make soak       train 20,000 steps with kills, restarts and NaN, and check all along (10 minutes)"
	@echo "make clean      remove virtual environments and logs"

$(VENV)/.ready: pyproject.toml constraints/newest.txt
	@echo "==> Making $(VENV) and installing lightning-signvr with its dependencies (first time only)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --constraint constraints/newest.txt --editable '.[test]'
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@echo "==> Adding the linters"
	$(BIN)/python $(PIP) --quiet --constraint constraints/newest.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.ready
	@echo "==> Training a small CNN on scikit-learn's digits with $(WORKERS) processes: sign_vote, then ddp"
	$(BIN)/python examples/digits.py --workers $(WORKERS) --steps $(STEPS) --strategy sign_vote ddp

test: $(VENV)/.ready
	@echo "==> Running the tests, $(JOBS) at a time"
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow"

test-slow: $(VENV)/.ready
	@echo "==> Running the slow tests, $(JOBS) at a time"
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m slow

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.ready-docs: $(VENV)/.ready
	@echo "==> Adding what builds the documentation"
	$(BIN)/python $(PIP) --quiet --constraint constraints/newest.txt --editable '.[docs]'
	@touch $@

# the variable keeps the theme's announcement of its successor out of the log
docs: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "==> Open site/index.html; for the search, serve it: python -m http.server --directory site"

$(OLDEST)/.ready: pyproject.toml constraints/oldest.txt
	@echo "==> Making $(OLDEST) with the oldest supported versions"
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(PIP) --quiet --constraint constraints/oldest.txt --editable '.[examples]' pytorch-lightning
	@touch $@

oldest: $(OLDEST)/.ready
	@echo "==> Training with the oldest supported versions"
	$(OLDEST)/bin/python examples/digits.py --workers $(WORKERS) --steps 40 --strategy sign_vote

benchmark: $(VENV)/.ready
	$(BIN)/python benchmarks/codec.py
	$(BIN)/python benchmarks/optimizers.py
	$(BIN)/python benchmarks/monitoring.py

soak: $(VENV)/.ready
	$(BIN)/python benchmarks/soak.py

clean:
	rm -rf $(VENV) $(OLDEST) logs lightning_logs site
