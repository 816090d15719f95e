# Everything a newcomer or a robot needs. `make demo` and `make test` set themselves up.
PYTHON ?= python3
VENV ?= .venv
CXX ?= g++
# Not in constraints.txt: CUDA builds of torch bring the Triton they need.
TRITON ?= triton==3.6.0
BIN := $(VENV)/bin
BUILD := build
PIP := $(BIN)/python -m pip --disable-pip-version-check

# What an installed environment depends on: a change of any of these installs again.
SETUP := pyproject.toml setup.py constraints.txt $(shell find csrc -type f -not -name '*.pyc')
INSTALLED := $(VENV)/.fastpure-installed
INSTALLED_DEV := $(VENV)/.fastpure-installed-dev
INSTALLED_BENCH := $(VENV)/.fastpure-installed-bench
INSTALLED_DOCS := $(VENV)/.fastpure-installed-docs

.PHONY: help setup demo test lint sanitize isa-check cuda-check triton-check gpu bench docs wheel-check clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## attack digits classifiers with and without purification; prints a table, writes demo.png
	$(BIN)/fastpure demo

test: $(INSTALLED)  ## all tests that need no GPU
	$(BIN)/python -m pytest -m "not gpu" $(PYTEST_ARGS)

lint: $(INSTALLED_DEV)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy fastpure

sanitize: | $(BIN)/python  ## all kernels, the GPU's too, on the CPU under sanitizers
	@$(BIN)/python -c "import ninja" 2>/dev/null || $(PIP) install -q -c constraints.txt ninja
	CXX="$(CXX)" $(BIN)/python csrc/ninja_build.py sanitize

isa-check: $(INSTALLED)  ## the numerical tests again, with fewer of the processor's instructions
	PYTHON=$(BIN)/python bash .ci/isa_check

cuda-check: $(INSTALLED)  ## compile the CUDA half for every architecture, inspect it, import it (needs nvcc)
	PYTHON=$(BIN)/python bash .ci/cuda_check

setup: $(INSTALLED_DEV)  ## install everything that the other targets need, but for a GPU
	@$(BIN)/python -c "import triton" 2>/dev/null || $(PIP) install -q -c constraints.txt $(TRITON)

triton-check: $(INSTALLED)  ## the Triton kernels in Triton's interpreter, then compiled for two architectures
	@$(BIN)/python -c "import triton" 2>/dev/null || $(PIP) install -q -c constraints.txt $(TRITON)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q tests/kernels/triton
	$(BIN)/python -m pytest -q tests/kernels/test_machine_code.py tests/kernels/test_launches.py \
	tests/kernels/test_triton_support.py

gpu:  ## on a machine with a GPU, torch and nvcc: figures and gpu tests in 9 minutes (no network needed)
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m bench.gpu $(or $(OUT),build/gpu) $(addprefix --commit ,$(COMMIT)) \
	$(addprefix --stages ,$(STAGES))

bench: $(INSTALLED_BENCH)  ## every benchmark, as tables of ratios
	@for name in $(basename $(notdir $(wildcard bench/bench_*.py))); do \
	echo "== $$name"; $(BIN)/python -m bench.$$name || exit 1; done

docs: $(INSTALLED_DOCS)  ## the site, built strictly into build/site
	PYTHON=$(BIN)/python bash .ci/docs_check

wheel-check: $(INSTALLED)  ## build a wheel without torch, install it elsewhere, test it there
	PYTHON=$(BIN)/python bash .ci/wheel_check

clean:  ## remove what was built (the environment stays)
	rm -rf $(BUILD) dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f fastpure/_C*.so fastpure/_build_report.json $(INSTALLED) $(INSTALLED_DEV) $(INSTALLED_BENCH) $(INSTALLED_DOCS)

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	echo "make: $(PYTHON) -m venv failed; Python 3.10 or newer with venv is needed (on Debian: apt install python3-venv)"; \
	exit 1; }

# The extension first, by itself: pip would compile in silence. Interrupted, ninja goes on where it was; pip then finds
# everything compiled, because it uses the same tools in the same environment.
define install
	@echo "== tools that compile the extension"
	$(PIP) install -q -c constraints.txt 'setuptools>=77' 'pybind11>=2.12' 'ninja>=1.11'
	@echo "== compiling the extension (a few minutes the first time)"
	$(BIN)/python setup.py -q build_ext --inplace
	@echo "== installing fastpure and what it needs, PyTorch above all"
	$(PIP) install --no-build-isolation -c constraints.txt -e '.[$(1)]'
	@$(BIN)/python -c "from fastpure.kernels import backend_report as r; e = r()['extension']; \
	print('fastpure: compiled extension:', 'yes' if e['available'] else 'NO, ' + e['reason'])"
	@touch $@
endef

$(INSTALLED): $(SETUP) | $(BIN)/python
	$(call install,test)

$(INSTALLED_DEV): $(SETUP) | $(BIN)/python
	$(call install,dev)
	@touch $(INSTALLED) $(INSTALLED_BENCH)

$(INSTALLED_BENCH): $(SETUP) | $(BIN)/python
	$(call install,bench)

$(INSTALLED_DOCS): $(SETUP) | $(BIN)/python
	$(call install,docs)
	@touch $(INSTALLED)
