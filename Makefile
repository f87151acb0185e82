# Two commands set everything up: `make demo` and `make test`. A second run reinstalls nothing.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV ?= .venv
INTEROP_VENV ?= .venv-interop
INTEROP_PYTHON ?= $(shell command -v python3.11)
DATA ?=
OUTPUT ?= demo-output

BIN := $(VENV)/bin
READY := $(VENV)/.ready
INTEROP_READY := $(INTEROP_VENV)/.ready
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help demo test test-fast test-interop lint types format bench install clean

help:
	@echo "make demo          train a plain and a secured model, attack both, sign, tamper, verify"
	@echo "make test          every test but those that need tensorflow-privacy"
	@echo "make test-fast     the same without the slow ones"
	@echo "make test-interop  parity with tensorflow-privacy, in an environment of its own (Python 3.11)"
	@echo "make lint types    ruff and mypy, as CI runs them"
	@echo "make bench         the README's figures, as JSON"

$(READY): pyproject.toml requirements/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Python 3.11 to 3.13 is needed; run: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements/constraints.txt -e '.[dev]'
	@touch $@

$(INTEROP_READY): pyproject.toml requirements/constraints-interop.txt
	@test -n "$(INTEROP_PYTHON)" || { echo "tensorflow-privacy 0.9.0 needs Python 3.11; run: make INTEROP_PYTHON=/path/to/python3.11 $@"; exit 1; }
	$(INTEROP_PYTHON) -m venv $(INTEROP_VENV)
	$(INTEROP_VENV)/bin/python -m pip install -q --disable-pip-version-check -c requirements/constraints-interop.txt -e '.[tensorflow-privacy]' pytest hypothesis
	@touch $@

install: $(READY)

demo: $(READY)
	$(BIN)/python examples/quickstart.py --output $(OUTPUT) $(if $(DATA),--data $(DATA))

test: $(READY)
	$(BIN)/python -m pytest -m "not interop"

test-fast: $(READY)
	$(BIN)/python -m pytest -m "not interop and not slow"

test-interop: $(INTEROP_READY)
	$(INTEROP_VENV)/bin/python -m pytest -m interop tests/interop

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/run_all.py $(if $(DATA),--data $(DATA))

clean:
	rm -rf $(VENV) $(INTEROP_VENV) $(OUTPUT) build dist *.egg-info
