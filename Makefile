# Two commands for a machine that has Python 3.10 or newer, and make:
#
#     make demo    answer a question about a picture through LangChain and through LlamaIndex
#     make test    lint, formatting, types, import contracts, tests
#
# Both make .venv on their first run and share it. PYTHON=python3.12 chooses the interpreter,
# and .venv remembers it.

STAMP := .venv/.installed

PYTHON ?= $(or $(shell sed -n 2p $(STAMP) 2>/dev/null),python3)

# What .venv was made for. It names its own folder in many places, so a moved one is made anew;
# so is one of another Python.
MADE_FOR := $(CURDIR) $(PYTHON)
ifneq ($(MADE_FOR),$(shell cat $(STAMP) 2>/dev/null))
.PHONY: $(STAMP)
endif

RUN := .venv/bin/python -m

.PHONY: help
help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 \t\2/p' Makefile | expand -t 20

.PHONY: demo
demo: $(STAMP)  ## Ask about a picture through both frameworks, against a local server
	@.venv/bin/phospho-multimodal demo

.PHONY: test
test: lint types $(STAMP)  ## Run every check and the tests, with branch coverage
	@echo "== tests"
	@$(RUN) pytest --cov --cov-report=term

.PHONY: lint
lint: $(STAMP)  ## Check style, formatting and the import contracts
	@echo "== lint"
	@$(RUN) ruff check
	@echo "== format"
	@$(RUN) ruff format --check
	@echo "== import contracts"
	@.venv/bin/lint-imports

.PHONY: types
types: $(STAMP)  ## Check the types
	@echo "== types"
	@$(RUN) mypy

.PHONY: test-browser
test-browser: $(STAMP)  ## Test the server's page in the system's Chromium
	@$(RUN) pip install -qq --disable-pip-version-check --group browser
	@$(RUN) pytest --override-ini 'norecursedirs=.*' tests/browser

.PHONY: test-engines
test-engines: $(STAMP)  ## Test the engine that runs a model, with PyTorch and a tiny one
	@$(RUN) pip install -qq --disable-pip-version-check --group engines
	@TEST_ENGINES=1 $(RUN) pytest --override-ini 'norecursedirs=.*' tests/engines\
	 tests/server/test_held_questions.py

.PHONY: test-ray
test-ray: $(STAMP)  ## Test the batch over a Ray cluster: three nodes on this machine, one killed
	@$(RUN) pip install -qq --disable-pip-version-check --editable ".[all,ray]"
	@$(RUN) pytest --override-ini 'norecursedirs=.*' tests/over_ray

# The peers are installed when somebody measures, and only then: no check needs them.
.PHONY: bench
bench: .venv/.bench  ## Measure beside the peers, some minutes; WRITE=1 keeps the table and the plot
	@.venv/bin/python tests/benchmarks $(if $(SCALE),--scale $(SCALE)) $(if $(WRITE),--write)

.PHONY: wheel-test
wheel-test: $(STAMP)  ## Build, then test the wheel with the source out of reach
	@.ci/wheel-test $(PARTS)

.PHONY: clean
clean:  ## Remove .venv and everything that was built
	rm -rf .venv .benchmarks .coverage .hypothesis .import_linter_cache .mypy_cache .ruff_cache .schemathesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is the last thing written and the first thing removed: an install that was broken off
# starts over. A changed pyproject.toml or version is installed on top of what is there.
$(STAMP): pyproject.toml shared/phospho_multimodal/_version.py
	@command -v $(PYTHON) >/dev/null || { echo "There is no '$(PYTHON)' here. Install Python 3.10\
	 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or\
	 newer is needed, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another one:\
	 make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "'$(PYTHON)' cannot make virtual\
	 environments: its venv or ensurepip module is missing. Install it (on Debian and Ubuntu:\
	 apt install python3-venv) or name another one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@if [ "$(MADE_FOR)" != "$$(paste -sd ' ' $@ 2>/dev/null)" ]; then\
	 echo "Making .venv with $$($(PYTHON) -V)"; rm -f $@; $(PYTHON) -m venv --clear .venv; fi
	@rm -f $@
	@echo "Installing into .venv: once, a minute or two"
	@$(RUN) pip install -qq --disable-pip-version-check --upgrade "pip>=25.1"
	@$(RUN) pip install -qq --disable-pip-version-check --group dev --editable ".[all]"
	@printf '%s\n%s\n' "$(CURDIR)" "$(PYTHON)" > $@

.venv/.bench: $(STAMP)
	@$(RUN) pip install -qq --disable-pip-version-check --editable ".[all,bench]"
	@touch $@
