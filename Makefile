# Two commands set everything up: 'make demo' runs the main job, 'make test' the tests.
# 'make demo-real' is the demo on a real language model. 'make dev' builds .venv with all tools; 'make docs' the
# documentation; 'make check' adds the slow tests (one of which builds the documentation), the numerical tests on an old
# processor's instructions, lint, types and import contracts.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile --constraint constraints.txt
# pip compiles one file after another, 45 seconds of 150; here all processors do. What does not compile, nobody imports.
COMPILE := $(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true

# Without a GPU, a CPU build of torch: from the configured index if it has one, else from
# PyTorch's own. With one, the ordinary build. Never CUDA libraries by accident.
CPU_INDEX := https://download.pytorch.org/whl/cpu
ifeq ($(shell command -v nvidia-smi 2>/dev/null),)
INSTALL_TORCH = $(PIP) torch==2.13.0+cpu 2>/dev/null || $(PIP) --index-url $(CPU_INDEX) torch==2.13.0
else
INSTALL_TORCH = $(PIP) torch==2.13.0
endif

.PHONY: demo demo-real test check all-tests lint processors docs dev bench clean

demo: $(VENV)/run
	$(BIN)/logitcask demo

# The demo on SmolLM2-135M-Instruct: downloads 92 MB; 15 minutes on two cores with AMX, setting up included.
demo-real: $(VENV)/gguf
	$(BIN)/logitcask demo --real

# Compiled files are kept, whatever the shell says: without them every process of the tests compiles its files anew.
export PYTHONDONTWRITEBYTECODE :=

# Three processes for two processors, which otherwise wait a seventh of the time: for browsers, servers and other programs.
# Files are shared whole, in the order of tests/conftest.py: the heaviest first.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test: $(VENV)/dev
	$(PYTEST) -m "not slow"

# What the linters take is time of a processor that the tests leave idle at their end.
check: $(VENV)/dev
	$(MAKE) --jobs 2 all-tests lint

all-tests: $(VENV)/dev
	$(PYTEST)
	$(MAKE) processors SETTINGS='--setting all-oldest'

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

SETTINGS := --setting all-avx2 --setting all-oldest

processors: $(VENV)/dev
	$(BIN)/python -m benchmarks.processors $(SETTINGS) --threads 1 --processes 2

docs: $(VENV)/dev
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs docs/_build/html

dev: $(VENV)/dev

bench: $(VENV)/dev
	$(BIN)/python -m benchmarks.store
	$(BIN)/python -m benchmarks.hidden
	$(BIN)/python -m benchmarks.bucket
	$(BIN)/python -m benchmarks.damage
	$(BIN)/python -m benchmarks.encode
	$(BIN)/python -m benchmarks.capture
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.kills
	$(BIN)/python -m benchmarks.losses
	$(BIN)/python -m benchmarks.processors
	$(BIN)/python -m benchmarks.kills --executor ray
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.quality
	$(BIN)/logitcask demo
	$(BIN)/python -m benchmarks.large_cache runs/demo/cache runs/large/cache
	$(BIN)/python -m benchmarks.inspection runs/large/cache
	$(BIN)/python -m benchmarks.viewing runs/large/cache

clean:
	rm -rf $(VENV) runs dist docs/_build docs/_generated

$(VENV)/torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("logitcask needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL_TORCH)
	touch $@

$(VENV)/run: $(VENV)/torch pyproject.toml
	$(PIP) --editable '.[view,plots]'
	$(COMPILE)
	touch $@

$(VENV)/gguf: $(VENV)/run
	$(PIP) --editable '.[gguf]'
	$(COMPILE)
	touch $@

$(VENV)/dev: $(VENV)/torch pyproject.toml
	$(PIP) --editable '.[dev]'
	$(COMPILE)
	touch $@ $(VENV)/run $(VENV)/gguf
