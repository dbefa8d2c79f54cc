# make demo | test | check | bench. The first of them makes the virtual environment, .venv, with what it needs.

PYTHON ?= python3
PIP_FLAGS ?= --quiet --quiet --disable-pip-version-check --progress-bar off --no-compile
TEST_ARGS ?=
TEST_PROCESSES ?= 2
DEMO_ARGS ?=
BENCH_ARGS ?=

BIN := .venv/bin
STAMP := .venv/.stamp

# What is made here starts many processes, and each of them would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check bench venv clean

# The tutorial: four trials of a small ConvNet on real MNIST digits share this machine; about four minutes on two CPUs.
demo: $(STAMP)
	@$(BIN)/python examples/hyperopt_example.py $(DEMO_ARGS)

# All of them in files side by side (a test that starts processes keeps one CPU busy, rarely two), and then those that need quiet.
test: $(STAMP)
ifeq ($(strip $(TEST_ARGS)),)
	@$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder -m "not quiet"
	@$(BIN)/python -m pytest -q -m quiet
else
	@$(BIN)/python -m pytest -q $(TEST_ARGS)
endif

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_layers.py

bench: $(STAMP)
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file $(BENCH_ARGS); done

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "making .venv (about 2 GB; a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, but this is %d.%d: set PYTHON=..." % sys.version_info[:2])'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt torch==2.13.0
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@# On all processors, where pip would use one; not what only its own makers run, nor files that are no modules.
	@$(BIN)/python -m compileall -q -j 0 -x '/(tests?|rllib)/' .venv/lib > /dev/null || true
	@touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build src/*.egg-info
