# Every target makes .venv where it is missing, installs only when pyproject.toml or constraints.txt
# changed, and asks for nothing that is already there.

PYTHON ?= python3
WORKERS ?= 2
RESULTS ?= results
SECONDS_TO_MEASURE ?= 240
INPUTS ?= normal,smooth,peaky,captured
FAMILIES ?= full,memory_efficient,local_window,linear_scan,blockwise_low_rank
comma := ,
# asv starts a process for each benchmark, variant and length that this matches, n/a or not.
ASV_BENCHMARKS ?= $(if $(wildcard /dev/nvidia0),,Cpu).*'($(subst $(comma),|,$(FAMILIES)))/
LOG_LOG := index.html\#attention.Cpu.track_runtime?x-axis=log2(length)&y-axis-scale=log&p-variant='full/matmul'&p-variant='linear_scan/chunked'&p-variant='local_window/tiled'&p-variant='memory_efficient/sdpa_flash'

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# A machine with a card may have no way to install anything: then its own Python, with torch and the rest, must do.
GPU_PYTHON ?= $(if $(wildcard $(INSTALLED)),$(BIN)/python,$(PYTHON))
GPU_RESULTS ?= results-gpu
GPU_SECONDS ?= 500

.PHONY: help bench test test-slow check wheel-check docs gpu

help:
	@echo "make bench        measure, track, publish and choose on this machine"
	@echo "make test         the tests; make test-slow: those that take minutes"
	@echo "make check        format, lint, types, generated documents"
	@echo "make wheel-check  build the wheel and import it in a fresh environment"
	@echo "make gpu          check and measure everything on a CUDA card, within ten minutes; again to go on"
	@echo "make docs         write the generated documents"

# pip builds in an environment of its own, which obeys these and not `-c`; from pip 25.3 on, the second alone.
$(INSTALLED): export PIP_CONSTRAINT := constraints.txt
$(INSTALLED): export PIP_BUILD_CONSTRAINT := constraints.txt
$(INSTALLED): export PIP_DISABLE_PIP_VERSION_CHECK := 1
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

bench: $(INSTALLED)
	$(BIN)/attnscape run --skip-compiled --variants $(FAMILIES) --tokens 256:4096 --inputs $(INPUTS) --seconds $(SECONDS_TO_MEASURE) --out $(RESULTS) || test $$? -eq 1
	$(BIN)/attnscape report --results $(RESULTS)
	grep -qs '"$(shell uname -n)"' $(HOME)/.asv-machine.json || $(BIN)/asv machine --yes
	git diff --quiet HEAD || echo "note: there are changes since HEAD, and asv files their figures under HEAD"
	ATTNSCAPE_ASV_SECONDS=30 ATTNSCAPE_ASV_VARIANTS=$(FAMILIES) \
		$(BIN)/asv run -E existing --set-commit-hash $$(git rev-parse HEAD) \
		--skip-existing --bench "$(ASV_BENCHMARKS)"
	$(BIN)/asv publish
	$(BIN)/python -m reports.asv_site .asv/html
	@echo "time against length, both logarithmic: $(LOG_LOG)"
	$(BIN)/attnscape choose --results $(RESULTS) --tokens 3000 --causal --max-ms 40 --max-error 0.5 || test $$? -eq 1

# One thread in each worker: two workers with two threads each would wait for one another.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

gpu:
	$(GPU_PYTHON) -m attnscape gpu --out $(GPU_RESULTS) --seconds $(GPU_SECONDS)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow --timeout 1800

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/attnscape docs --check

wheel-check: $(INSTALLED)
	$(BIN)/python .ci/check_wheel.py

docs: $(INSTALLED)
	$(BIN)/python -m attnscape docs
