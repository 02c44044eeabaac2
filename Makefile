# Each target does its own set-up; a second call installs nothing and needs no network.
SHELL := /bin/sh
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
# One thread a worker: the threads of two workers on two cores would wait for work by spinning, and take it from each other.
TEST = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not slow and not gpu"
SOURCES := smallview tests $(wildcard benchmarks examples experiments)
SIZE := installs about 5.5 GB (PyTorch with CUDA; works on CPU) into $(VENV)

# A stamp stands for a finished installation. Where the environment's Python is gone, the stamps say nothing.
DEMO_STAMP := $(VENV)/.installed-demo
DEV_STAMP := $(VENV)/.installed-dev
ifneq ($(shell $(BIN)/python -c "print('works')" 2>/dev/null),works)
$(DEMO_STAMP) $(DEV_STAMP): lost-environment
endif

.PHONY: help demo test check soak clean lost-environment

help:
	@echo "make demo    train, judge and report on pictures that come with a dependency (a few minutes on 2 cores)"
	@echo "make test    the fast tests"
	@echo "make check   format, lint, types, import law and the fast tests"
	@echo "make soak    kills, full disks, dead processes: docs/reliability.md anew (half an hour)"
	@echo "make clean   remove caches and build results (the environment stays: rm -r $(VENV) removes it)"
	@echo "The first of them $(SIZE)."

demo: $(DEMO_STAMP)
	@$(BIN)/smallview demo

test: $(DEV_STAMP)
	@$(TEST)

check: $(DEV_STAMP)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_import_law.py
	@$(TEST)

soak: $(DEV_STAMP)
	@$(BIN)/python benchmarks/soak.py

clean:
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find smallview tests -type d -name __pycache__ -prune -exec rm -rf {} +

lost-environment:

# Writes one line and stops where there is no Python 3.11+ that can make an environment. PYTHON=/path/to/python chooses one.
define ENVIRONMENT
if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
    found=""; bare=""; \
    for p in $(PYTHON) python3.14 python3.13 python3.12 python3.11 python3 python; do \
        "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
        if "$$p" -c 'import ensurepip, venv' >/dev/null 2>&1; then found="$$p"; break; fi; \
        bare="$${bare:-$$p}"; \
    done; \
    if [ -z "$$found" ] && [ -n "$$bare" ]; then \
        echo "$$bare has no venv module; install it (Debian, Ubuntu: the package python3-venv) and run make again" >&2; exit 1; \
    elif [ -z "$$found" ]; then \
        echo "Python 3.11 or newer was not found; install it and run make again, or name it: make PYTHON=/path/to/python" >&2; exit 1; \
    fi; \
    echo "$(SIZE); this takes some minutes"; \
    "$$found" -m venv --clear $(VENV) || { echo "$$found could not make $(VENV); see above" >&2; exit 1; }; \
else \
    echo "$(SIZE), less what is there already"; \
fi
endef
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

$(DEMO_STAMP): pyproject.toml
	@$(ENVIRONMENT)
	@rm -f $@
	@$(PIP) .
	@touch $@

$(DEV_STAMP): pyproject.toml
	@$(ENVIRONMENT)
	@rm -f $@ $(DEMO_STAMP)
	@$(PIP) ".[dev]"
	@touch $@ $(DEMO_STAMP)
