# The commands of the README: each sets up what is missing and does its work.
#   make demo   makes a small world, pretrains on it, leaves its run in runs/demo
#   make test   lint, types and all tests
#   make docs   builds the documentation into build/docs

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test docs clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,4s/^# *//p' Makefile

# Fresh memory is slow to map on some machines: let the C library keep what it has (1.5 to 1.9 times faster steps on a
# CPU in one trial). Python's own behaviour does not change.
demo test: export MALLOC_MMAP_MAX_ = 0
demo test: export MALLOC_TRIM_THRESHOLD_ = 2147483647
demo test: export MALLOC_ARENA_MAX = 1

# What a command needs and no more: the demo does without the test tools.
$(VENV)/pretrain $(VENV)/dev: $(VENV)/%: pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 13) else "mim4d needs Python 3.10 to 3.12, $(PYTHON) is %d.%d: make PYTHON=python3.11 ..." % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

demo: $(VENV)/pretrain
	$(BIN)/mim4d-pretrain --preset demo --data synthetic --out runs/demo $(if $(wildcard runs/demo/checkpoints),--resume)

test: $(VENV)/dev
	$(BIN)/python -m pip install --quiet --no-deps -r tests/integrations/requirements.txt
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

docs: $(VENV)/dev
	$(BIN)/python -m sphinx --fail-on-warning --keep-going docs build/docs
	@echo "open build/docs/index.html"

clean:
	rm -rf $(VENV) runs build
