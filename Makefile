# The one way to build, try and check batchd. `make` alone lists what there is.
# Every target sets up .venv by itself: the first time takes about 3 minutes, later runs a second.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# cpu or gpu: which build of vLLM to install. Set ENGINE to decide it yourself. (Not BATCHD_ENGINE: variables with that
# prefix are settings, and batchd refuses those that it does not know.)
ifndef ENGINE
ENGINE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
endif
ifeq ($(filter cpu gpu,$(ENGINE)),)
$(error ENGINE is "$(ENGINE)"; it can be cpu or gpu)
endif

# The Python that makes .venv: the first of these that has a supported version. PYTHON=... decides it yourself.
ifndef PYTHON
PYTHON := $(shell for name in python3 python3.12 python3.13 python3.11; do \
  $$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1 && \
  { echo $$name; break; }; done)
endif

# An environment is ready when the file named after all that went into it stands in it, which is written last. So an
# interrupted install counts as none, and another lock, engine or place (a venv cannot be moved) means a new one.
VENV := .venv
BIN := $(VENV)/bin
hash = $(shell { echo "$(CURDIR) $(ENGINE) $(PYTHON)"; cat $(1); } | sha256sum | cut -c1-16)
LOCKED := $(VENV)/.locked-$(call hash,requirements/install.sh requirements/$(ENGINE).lock requirements/dev.lock)
READY := $(VENV)/.ready-$(call hash,pyproject.toml)

# Everything is installed here, so a test that needs vLLM may not be skipped (tests/conftest.py).
export REQUIRE_ENGINE := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help
help: ## List these targets
	@echo "batchd: drop a batch file into a folder, read the results from another. Start with \`make demo\`."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "The first of them sets up $(VENV) (about 3 minutes). Engine: $(ENGINE); ENGINE=cpu|gpu decides."

.PHONY: demo
demo: $(READY) ## Run a real batch from start to end and show what happens
	@$(BIN)/python examples/demo.py

.PHONY: demo-cluster
demo-cluster: $(READY) ## The same on a Ray cluster of three nodes on this machine
	@$(BIN)/python examples/demo.py --cluster

.PHONY: test
test: check ## Everything before a push: check, then integration, acceptance and two minutes of fault tests
	$(BIN)/pytest tests/integration tests/acceptance tests/faults

.PHONY: check
check: $(READY) ## Format, lint, types and unit tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest tests/unit

.PHONY: test-all
test-all: check ## Like test, with the slow tests as well
	$(BIN)/pytest -m "" tests

# Of `make faults`: minutes of its longest part, the first seed (random if empty), FULL=1 for every N-th system call.
MINUTES ?= 60
SEED ?=
FULL ?=

.PHONY: faults
faults: $(READY) ## Kill, crowd, starve and fuzz daemons for MINUTES=60 and more; prints a table of what was lost, if anything
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install -qq --disable-pip-version-check \
	  --no-deps --only-binary :all: atheris==3.0.0 || echo "faults: no atheris for this Python, so no fuzzing"
	$(BIN)/python -m tests.faults.campaign --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(FULL),--full)

# Of `make bench`: which workloads (none: all) and options, such as ARGS="--quick" or ARGS="--config FILE".
W ?=
ARGS ?=

.PHONY: bench
bench: $(READY) ## Compare batchd with its peers (W=steady: one workload; ARGS=--help); prints a table
	@$(BIN)/python -m benchmarks.run $(W) $(ARGS)

.PHONY: picture
picture: $(READY) ## Make docs/terminal.svg anew, from real commands on a real spool
	@$(BIN)/python docs/picture.py

.PHONY: format
format: $(READY) ## Let ruff put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: install
install: $(READY) ## Set up .venv and the command .venv/bin/batchd
	@echo "Ready: $(BIN)/batchd --help"

.PHONY: lock
lock: require-python ## Resolve pyproject.toml into requirements/*.lock (UPGRADE=1: newest versions)
	@UPGRADE=$(UPGRADE) requirements/lock.sh $(PYTHON)

.PHONY: clean
clean: ## Remove .venv, caches and builds
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: require-python
require-python:
	@test -n "$(PYTHON)" || { echo "batchd needs Python 3.11, 3.12 or 3.13; python3 here is" \
	  "$$(python3 --version 2>&1). PYTHON=/path/to/python3.12 names another." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "batchd needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module:" \
	  "apt-get install $$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" >&2; exit 1; }
	@test "$$(uname -s)" = Linux || { echo "batchd needs Linux (vLLM has no other wheels);" \
	  "on macOS and Windows use the Dockerfile" >&2; exit 1; }

$(LOCKED): | require-python
	@echo "Setting up $(VENV) for $(ENGINE) with $$($(PYTHON) --version): about 3 minutes, once."
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@requirements/install.sh $(CURDIR)/$(BIN)/python $(ENGINE) dev
	@touch $@

$(READY): $(LOCKED)
	@rm -f $(VENV)/.ready-*
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
