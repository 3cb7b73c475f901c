# Every target sets itself up: on a fresh machine `make demo` or `make test` is all it takes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.everymask-setup

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format bench slow faults gpu scale clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv with the pinned packages (done once; choose the Python with PYTHON=...)

# A .venv that exists is kept, so the system's Python is looked at only when a new one is needed.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Everymask needs Python 3.11 or newer; '$(PYTHON)' is not: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Install one and name it: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments: its venv or ensurepip module is missing." >&2; \
	  echo "On Debian and Ubuntu: apt install python3-venv. Or name another Python: make setup PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# The constraints pin torch and all else, so pip has nothing to choose.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the pinned packages into $(VENV) (once; some minutes on a new machine) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]" || { \
	  echo "The installation failed; pip says why above. Mend that (or delete $(VENV)) and run the same command again." >&2; exit 1; }
	@touch $@

demo: $(STAMP) ## segment the bundled photos with the bundled model into demo/
	@$(BIN)/everymask demo --out demo

test: $(STAMP) ## the tests that need nothing special
	@$(BIN)/python -m pytest -n 2 -q

check: $(STAMP) ## formatting, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(STAMP) ## format and mend what the linter can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP) ## the benchmarks
	@$(BIN)/python -m benchmarks

# One process: these take the machine's memory, disk or accelerator for themselves.
slow: $(STAMP) ## tests that take long
	@$(BIN)/python -m pytest -m slow

faults: $(STAMP) ## tests that kill, truncate and fill disks
	@$(BIN)/python -m pytest -m faults

gpu: $(STAMP) ## tests that need an accelerator
	@$(BIN)/python -m pytest -m gpu

scale: $(STAMP) ## tests with large inputs or many workers
	@$(BIN)/python -m pytest -m scale

clean: ## delete caches, builds and demo/; .venv and runs/ stay
	@rm -rf build dist site docs/_build demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
