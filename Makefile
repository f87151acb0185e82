# Two commands set everything up: `make demo` and `make test`. A second run reinstalls nothing.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
VENV ?= .venv
INTEROP_PYTHON ?= $(shell command -v python3.11 || echo python3.11)
INTEROP_VENV ?= .venv-interop
OLDEST_PYTHON ?= $(shell command -v python3.11 || echo python3.11)
OLDEST_VENV ?= .venv-oldest
DATA ?=
OUTPUT ?= demo-output
SITE ?= docs/_build/html
PYTEST_ARGS ?=
WORKERS ?= auto
BENCHMARKS ?=
TORTURE_ARGS ?=
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
INTEROP_BIN := $(INTEROP_VENV)/bin
INTEROP_READY := $(INTEROP_VENV)/.ready
OLDEST_READY := $(OLDEST_VENV)/.ready
# Old versions warn of newer neighbours; what this package uses is checked in the other environment.
OLDEST_WARNINGS := $(foreach kind,Deprecation PendingDeprecation Future,-W ignore::$(kind)Warning)
# As many tests at a time as there are processors, at most four: each is a TensorFlow of some 2 GB.
PARALLEL := -n $(WORKERS) --maxprocesses 4 --dist worksteal
export TF_CPP_MIN_LOG_LEVEL ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test test-fast test-long test-interop test-oldest torture torture-sample fuzz lint types format \
	docs bench hooks lock clean

help:
	@echo "make demo          train a plain and a secured model, attack both, sign, tamper, verify"
	@echo "make test          every test but the long ones and those that need tensorflow-privacy"
	@echo "make test-fast     the same without the slow ones"
	@echo "make test-long     the long ones: thousands of readings, a kill at each of many moments"
	@echo "make test-interop  parity with tensorflow-privacy, in an environment of its own (Python 3.11)"
	@echo "make test-oldest   every test on the lowest versions that pyproject.toml allows (Python 3.11)"
	@echo "make torture       the fault suite, counted: damage, kill -9, full disks (torture-sample: two minutes)"
	@echo "make fuzz          atheris on every parser of untrusted bytes (FUZZ_SECONDS=60 for each target)"
	@echo "make lint types    ruff, import-linter and mypy, as CI runs them;  make format  repairs what ruff can"
	@echo "make docs          the documentation's site, in $(SITE)"
	@echo "make bench         the README's figures, as JSON (BENCHMARKS=\"dp_step signing\" for some)"
	@echo "make hooks         run lint and types before every git commit"
	@echo "make lock          pin the newest versions that fit pyproject.toml"

# $(call install,PYTHON,VENV,CONSTRAINTS,REQUIREMENTS): pip keeps what already has the right version.
# As environment variables the constraints also hold for what builds the package (setuptools), which
# pip installs apart: the packaging that tensorflow-privacy needs is too old for it.
define install
	@echo "Setting up $(2), once; this takes a few minutes."
	$(1) -m venv $(2)
	PIP_CONSTRAINT=$(3) PIP_BUILD_CONSTRAINT=$(3) $(2)/bin/python -m pip install -q -e $(4)
	@touch $(2)/.ready
endef

$(READY): pyproject.toml requirements/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Python 3.11 to 3.13 is needed; run: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(call install,$(PYTHON),$(VENV),requirements/constraints.txt,'.[dev]')

$(INTEROP_READY): pyproject.toml requirements/constraints-interop.txt
	@$(INTEROP_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "tensorflow-privacy 0.9.0 needs Python 3.11; run: make INTEROP_PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(call install,$(INTEROP_PYTHON),$(INTEROP_VENV),requirements/constraints-interop.txt,'.[interop]')

$(OLDEST_READY): pyproject.toml requirements/constraints-oldest.txt
	@$(OLDEST_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "The oldest versions are locked for Python 3.11; run: make OLDEST_PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(call install,$(OLDEST_PYTHON),$(OLDEST_VENV),requirements/constraints-oldest.txt,'.[dev]')

install: $(READY)

demo: $(READY)
	$(BIN)/python examples/quickstart.py --output $(OUTPUT) $(if $(DATA),--data $(DATA))

test: $(READY)
	$(BIN)/python -m pytest -m "not interop and not long" $(PARALLEL) $(PYTEST_ARGS)

test-fast: $(READY)
	$(BIN)/python -m pytest -m "not interop and not slow and not long" $(PARALLEL) $(PYTEST_ARGS)

test-long: $(READY)
	$(BIN)/python -m pytest -m "long and not interop" $(PARALLEL) $(PYTEST_ARGS)

test-interop: $(INTEROP_READY)
	$(INTEROP_BIN)/python -m pytest -m interop tests/interop $(PYTEST_ARGS)

test-oldest: $(OLDEST_READY)
	$(OLDEST_VENV)/bin/python -m pytest -m "not interop" $(PARALLEL) $(OLDEST_WARNINGS) $(PYTEST_ARGS)

torture: $(READY)
	@$(BIN)/python -W ignore -m tests.torture $(TORTURE_ARGS)

torture-sample: $(READY)
	@$(BIN)/python -W ignore -m tests.torture --sample $(TORTURE_ARGS)

fuzz: $(READY)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || \
		PIP_CONSTRAINT=requirements/constraints.txt $(BIN)/python -m pip install -q -e '.[fuzz]'
	@$(BIN)/python -W ignore -m tests.fuzz --seconds $(FUZZ_SECONDS) $(FUZZ_TARGETS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/mypy

docs: $(READY)
	@$(BIN)/python -c 'import furo, myst_parser, sphinx' 2>/dev/null || \
		PIP_CONSTRAINT=requirements/constraints.txt $(BIN)/python -m pip install -q -e '.[docs]'
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet -d docs/_build/doctrees docs $(SITE)
	@echo "Built: $(SITE)/index.html"

bench: $(READY)
	@$(BIN)/python benchmarks/run_all.py $(BENCHMARKS)

hooks: $(READY)
	$(BIN)/pre-commit install

lock:
	requirements/lock.sh $(PYTHON) requirements/constraints.txt '.[dev,fuzz,docs]'
	requirements/lock.sh $(INTEROP_PYTHON) requirements/constraints-interop.txt '.[interop]'
	requirements/lock.sh --lowest $(OLDEST_PYTHON) requirements/constraints-oldest.txt '.[dev]'

clean:
	rm -rf $(VENV) $(INTEROP_VENV) $(OLDEST_VENV) $(OUTPUT) docs/_build docs/reference/api build dist \
		*.egg-info
