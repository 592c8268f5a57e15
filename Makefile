# The seven verbs. Each builds .venv when it is not there and installs what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check lanes mutants bench docs clean

# What the demo is to be told, as in: make demo ARGS="--faults 0.1"
ARGS ?=

demo: $(VENV)/.demo
	@$(BIN)/rerank-async demo $(ARGS)

# How many processes share the tests; 0 runs them in this one, as a debugger needs it.
WORKERS ?= 3

test: $(VENV)/.dev
# Hundreds of tests start a program: compiled once, also where the environment forbids to write what is.
	@-$(BIN)/python -m compileall -qq rerank_async
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
# What users' editors see: every public type is written down, none is guessed. It asks the Python that
# is first on PATH where packages are.
	PATH="$(CURDIR)/$(BIN):$$PATH" basedpyright --verifytypes rerank_async --ignoreexternal

# Which lanes: all, core (the core's tests alone), quick, or names with commas between, as in: make lanes LANES=lowest-3.11,bare-3.11
LANES ?= all

# Interpreters are found on PATH and among pyenv's; PYTHONS="/a/python /b/python" names others.
lanes: $(VENV)/.lanes
	@$(BIN)/python -m lanes $(LANES)

# Ten minutes on two cores; ARGS="--seed 2" is another sample, ARGS=_flow/hints all of one module.
mutants: $(VENV)/.dev
	@$(BIN)/python -m mutants $(ARGS)

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.importing
	$(BIN)/python -m benchmarks.pieces
	$(BIN)/python -m benchmarks.stalls
	$(BIN)/python -m benchmarks.flow
	$(BIN)/python -m benchmarks.server_exposed
	$(BIN)/python -m benchmarks.bulk
	$(BIN)/python -m benchmarks.bulk_ray
	$(BIN)/python -m benchmarks.peers

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

clean:
	rm -rf $(VENV) .lanes docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis

# pip before 25.1 does not know dependency groups.
$(VENV)/.pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rerank_async needs Python 3.11 or later; name one with make PYTHON=...")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@touch $@

$(VENV)/.demo: $(VENV)/.pip pyproject.toml
	@$(BIN)/python -m pip install --quiet --editable ".[cli,server,speed]"
	@touch $@

$(VENV)/.dev: $(VENV)/.pip pyproject.toml
	@$(BIN)/python -m pip install --quiet --editable ".[all]" --group dev
	@touch $@

$(VENV)/.lanes: $(VENV)/.pip pyproject.toml
	@$(BIN)/python -m pip install --quiet --group lanes
	@touch $@

$(VENV)/.docs: $(VENV)/.dev
	@$(BIN)/python -m pip install --quiet --group docs
	@touch $@
