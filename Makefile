# The commands of the README: each sets up what is missing and does its work.
#   make demo          makes a small world, pretrains on it, leaves its run in runs/demo
#   make test          lint, types and all tests, with the newest versions that pip gives
#   make test-oldest   all tests with the oldest versions that pyproject.toml allows, in an environment of its own
#   make docs          builds the documentation into build/docs

PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest

.PHONY: help demo test test-oldest docs clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,5s/^# *//p' Makefile

# Fresh memory is slow to map on some machines: let the C library keep what it has (1.5 to 1.9 times faster steps on a
# CPU in one trial). Python's own behaviour does not change.
demo test test-oldest: export MALLOC_MMAP_MAX_ = 0
demo test test-oldest: export MALLOC_TRIM_THRESHOLD_ = 2147483647
demo test test-oldest: export MALLOC_ARENA_MAX = 1

# Idle OpenMP threads spin for a while before they sleep. Beside four busy processes on two cores, 20 steps of the demo took
# 384 s and 247 s of CPU time with OpenMP's own count and 145 s and 62 s with 1000; on the quiet machine about as long.
demo: export GOMP_SPINCOUNT ?= 1000

# Two processes of one thread each are faster than one of two.
PYTEST := -m pytest --numprocesses 2 --dist loadfile
test test-oldest: export OMP_NUM_THREADS = 1

# What a command needs and no more: the demo does without the test tools.
$(VENV)/pretrain $(VENV)/dev: $(VENV)/%: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 13) else "This needs Python 3.10 to 3.12 (the nuscenes-devkit has no newer release) and $(PYTHON) is %d.%d: run make PYTHON=python3.11 ..." % v[:2])'
	@echo "Installing mim4d[$*] into $(VENV): about 6.5 GB, most of it PyTorch with CUDA. This takes a few minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --editable '.[$*]'
	touch $@

demo: $(VENV)/pretrain
	@echo "The demo draws its world once (5 minutes on two cores, 0.2 GB) and trains on it (10 minutes)."
	$(VENV)/bin/mim4d-pretrain --preset demo --data synthetic --out runs/demo $(if $(wildcard runs/demo/checkpoints),--resume)

test: $(VENV)/dev
	$(VENV)/bin/python -m pip install --quiet --no-deps -r tests/integrations/requirements.txt
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python $(PYTEST)

# Lint and types are for the newest versions alone.
test-oldest: $(OLDEST)/dev
	$(OLDEST)/bin/python $(PYTEST)

$(OLDEST)/dev: pyproject.toml tests/oldest.py
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet 'tomli; python_version < "3.11"'
	$(OLDEST)/bin/python tests/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --constraint $(OLDEST)/constraints.txt --editable '.[dev]'
	$(OLDEST)/bin/python -m pip install --quiet --no-deps -r tests/integrations/requirements.txt
	touch $@

docs: $(VENV)/dev
	$(VENV)/bin/python -m sphinx --fail-on-warning --keep-going docs build/docs
	@echo "open build/docs/index.html"

clean:
	rm -rf $(VENV) $(OLDEST) runs build
