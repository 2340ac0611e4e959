# One place to set up, run and check Headroom. `make help` lists the targets.
PYTHON ?= python3
# Fixed, since the hooks of .pre-commit-config.yaml look for their tools there.
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# A machine with an NVIDIA driver gets torch's CUDA build, any other the CPU build.
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -c '^GPU')
ifneq ($(filter-out 0,$(HAS_GPU)),)
TORCH_INSTALL := torch
CONSTRAINTS   :=
else
TORCH_INSTALL := --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu torch
CONSTRAINTS   := --constraint constraints/cpu.txt
endif

.PHONY: help setup demo test lint clean
help:  ## list the targets
	@awk -F ':.*## +' '/^[a-z]+:.*##/ {printf "%-7s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## create .venv with everything installed

$(READY): pyproject.toml constraints/cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) $(TORCH_INSTALL)
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --group dev --editable '.[service,worker,bench]'
	@touch $@

demo: $(READY)  ## run the main job, end to end, through the HTTP API
	@$(BIN)/headroom demo

test: $(READY)  ## run the tests, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)  ## style, types and import contracts: the checks of .pre-commit-config.yaml
	$(BIN)/pre-commit run --all-files --show-diff-on-failure

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
