# Everything from a clean clone: `make demo` and `make test` set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUNS ?= runs
DATA ?= ../shared/data

.PHONY: help demo test test-all lint bench bench-all audit pictures metadb clean

help:                ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	rm -rf *.egg-info  # of an earlier pyproject.toml: it would hide the entry points of this one
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	touch $@

demo: $(READY)       ## from scikit-learn's digits to a trained, explained model in a minute
	$(BIN)/automl-tl fit digits --budget 1m --out $(RUNS)/demo

test: $(READY)       ## the tests that take less than ten minutes together
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not gpu"

test-all: $(READY)   ## all tests, those on Ray and MLflow included
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[ray,mlflow]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(READY)       ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(READY)      ## speed against peers, faults, hostile input; then docs/benchmarks.md from their figures (about an hour)
	$(BIN)/python benchmarks/speed.py --json benchmarks/results/speed.json
	$(BIN)/python benchmarks/hostile.py --json benchmarks/results/faults.json
	$(BIN)/python benchmarks/faults.py --json benchmarks/results/faults.json
	$(BIN)/python benchmarks/page.py

bench-all: bench     ## the other programs of benchmarks/ as well, with their figures into benchmarks/results (many hours)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	for program in $(filter-out %/speed.py %/hostile.py %/faults.py %/page.py,$(wildcard benchmarks/[a-z]*.py)); do \
		$(BIN)/python $$program --json benchmarks/results/$$(basename $$program .py).json || exit 1; \
	done

audit: $(READY)      ## known vulnerabilities of what is pinned (needs an index that tells of them); licences are a test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip-audit
	$(BIN)/python -m pip_audit --requirement constraints.txt --no-deps --disable-pip

pictures: $(READY)   ## every picture of docs/images that shows the terminal, a report or the page (needs Chromium)
	mkdir -p $(RUNS)
	rm -rf $(RUNS)/pictures  # a run that is there would go on where it ended
	$(BIN)/python docs/terminal_picture.py $(RUNS)/pictures
	$(BIN)/python docs/report_pictures.py $(RUNS)/pictures/digits
	$(BIN)/python docs/screenshots.py

metadb: $(READY)     ## run what metadb/plan*.json ask for and the history lacks, and write it as text (DATA: unpacked images)
	for plan in metadb/plan*.json; do $(BIN)/automl-tl history build $$plan --data $(DATA) || exit; done
	$(BIN)/automl-tl history export metadb --names

clean:               ## remove what was built here
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
