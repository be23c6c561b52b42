# The commands of the README. Each installs what it needs first.
#   make demo          make a small synthetic world, pretrain on it, leave the run in runs/demo
#   make test          run lint, type checks and all tests with the newest versions that pip installs
#   make test-oldest   run all tests with the oldest versions that pyproject.toml allows, in a separate environment
#   make docs          build the documentation into build/docs

PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest

.PHONY: help demo test test-oldest docs clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,5s/^# *//p' Makefile

# Mapping new memory is slow on some machines: make the C library keep freed memory (steps on a CPU were 1.5 to 1.9 times
# faster in one trial). Python's own behaviour does not change.
demo test test-oldest: export MALLOC_MMAP_MAX_ = 0
demo test test-oldest: export MALLOC_TRIM_THRESHOLD_ = 2147483647
demo test test-oldest: export MALLOC_ARENA_MAX = 1

# Idle OpenMP threads spin before they sleep. Next to four busy processes on two cores, 20 steps of the demo took 384 s (247 s
# of CPU time) with OpenMP's default spin count and 145 s (62 s) with 1000; on an idle machine, the time is about the same.
demo: export GOMP_SPINCOUNT ?= 1000

# Two processes with one thread each are faster than one process with two.
PYTEST := -m pytest --numprocesses 2 --dist loadfile
test test-oldest: export OMP_NUM_THREADS = 1

# Install only what a command needs: the demo needs no test tools.
$(VENV)/pretrain $(VENV)/dev: $(VENV)/%: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 13) else "mim4d needs Python 3.10 to 3.12 here (the nuscenes-devkit has no newer release), but $(PYTHON) is %d.%d: run make PYTHON=python3.11 ..." % v[:2])'
	@echo "Installing mim4d[$*] into $(VENV) (about 6.5 GB, mostly PyTorch with CUDA). This takes a few minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --editable '.[$*]'
	touch $@

demo: $(VENV)/pretrain
	@echo "Making the demo world (once: 5 minutes on two cores, 0.2 GB), then training on it (10 minutes)."
	$(VENV)/bin/mim4d-pretrain --preset demo --data synthetic --out runs/demo $(if $(wildcard runs/demo/checkpoints),--resume)

test: $(VENV)/dev
	$(VENV)/bin/python -m pip install --quiet --no-deps -r tests/integrations/requirements.txt
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python $(PYTEST)

# Lint and type checks run with the newest versions only.
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
	@echo "Open build/docs/index.html in a browser."

clean:
	rm -rf $(VENV) $(OLDEST) runs build
