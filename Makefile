# Everything happens in .venv; PYTHON and TORCH_INDEX choose where it comes from.
PYTHON ?= python3
PYTHON_OLDEST ?= python3.12
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
DEMO_OUT ?= mixout-demo
BENCH ?=
MATRIX ?=

.PHONY: help demo test test-repeats test-all test-oldest test-servers gpu-kit bench matrix lint format clean

help:
	@echo "make demo   run the complete workflow on a small real model, into $(DEMO_OUT)/"
	@echo "make test   run the tests"
	@echo "make test-all  run the tests, and those that repeat a check on other models and options"
	@echo "make test-oldest  run all tests with the oldest supported versions, in build/oldest"
	@echo "make test-servers  serve bundles with real servers, each in an environment of its own"
	@echo "make gpu-kit  fill gpu-kit/ for python -m gpu on a GPU machine without a network"
	@echo "make bench  all benchmarks; BENCH=\"--device cuda\", or \"strategies --rounds 5\" for example"
	@echo "make matrix run the workflow on every architecture family; writes docs/architectures.md"
	@echo "make lint   ruff and mypy"
	@echo "make clean  remove .venv and build files"

$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mixout-export needs Python 3.11 or newer; make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[demo,dev]'
	@touch $@

demo:
	@started=$$(date +%s); $(MAKE) --no-print-directory $(VENV)/.demo && \
	installed=$$(date +%s); echo "installed in $$((installed - started)) s"; \
	$(BIN)/mixout-export demo $(DEMO_OUT) --overwrite && \
	echo "demo in $$(($$(date +%s) - installed)) s"

test: $(VENV)/.dev
	$(PYTEST) -m "not servers and not repeats"

# the same checks on other architectures, dtypes and options, and on a real checkpoint
test-repeats: $(VENV)/.dev
	$(PYTEST) -m "repeats and not servers"

test-all: test test-repeats

OLDEST := build/oldest
PIP_OLDEST := $(OLDEST)/bin/pip install --quiet --constraint constraints-oldest.txt

$(OLDEST)/.installed: constraints-oldest.txt pyproject.toml
	rm -rf $(@D)
	$(PYTHON_OLDEST) -m venv $(@D)
	$(PIP_OLDEST) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP_OLDEST) --editable '.[demo,dev]'
	@touch $@

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -n 2 --dist loadfile

SERVERS := build/servers

# one environment a server, as their pins exclude one another's and ours
$(SERVERS)/%/.installed: tests/servers/requirements-%.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --requirement $<
	@touch $@

# onnxruntime-node would fetch binaries for GPUs
$(SERVERS)/node/.installed: tests/servers/package.json
	rm -rf $(@D)
	mkdir -p $(@D)
	cp $< $(@D)
	cd $(@D) && ONNXRUNTIME_NODE_INSTALL=skip npm install --no-audit --no-fund --loglevel=error
	@touch $@

test-servers: $(VENV)/.dev $(SERVERS)/triton/.installed $(SERVERS)/mlserver/.installed \
		$(SERVERS)/openvino/.installed $(SERVERS)/optimum/.installed \
		$(SERVERS)/onnxruntime/.installed $(SERVERS)/node/.installed
	$(BIN)/python -m pytest -m servers tests/servers

# real data for the kit where there are some, else the demo's
GPU_DATA ?= $(wildcard ../shared/data/glue/CoLA)

gpu-kit: $(VENV)/.dev
	$(BIN)/python -m gpu.pack $(if $(GPU_DATA),--data $(GPU_DATA))

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(BENCH)

matrix: $(VENV)/.dev
	$(BIN)/python -m matrix --document docs/architectures.md $(MATRIX)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p build/typing && ln -sfn ../../cli build/typing/mixout_export_cli
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
