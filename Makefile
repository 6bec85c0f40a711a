# make demo      pre-train a tiny VideoMAE on real motion and classify with it, in minutes
# make test      lint and the tests of every change
# make test-all  the slow tests too
# make bounds    every command with the oldest and newest dependencies, on each Python found
# make docs      the site of the documentation, docs/_build/html/index.html
# make study     do the claims of the paper hold here? FORM=short, main, evening, full (a night) or gpu
# Each sets up .venv first.

PYTHON ?= python3
BIN := .venv/bin

# uv compiles no Python. Where this is set, every process would compile 3,000 modules again.
unexport PYTHONDONTWRITEBYTECODE

# make demo DATA=FOLDER runs it on your own videos.
DATA ?= data/mocap_studio
WORKDIR ?= runs/demo$(if $(filter-out data/mocap_studio,$(DATA)),-$(notdir $(DATA:/=)))

FORM ?= short
# make docs NOTEBOOKS=off does not run the tutorials.
NOTEBOOKS ?= cache

.PHONY: demo test test-all bounds docs study lint clean

demo: $(BIN)/.installed
	$(BIN)/videomae demo "$(DATA)" --workdir "$(WORKDIR)"

test: lint
	$(BIN)/python -m pytest -n auto --dist loadscope -m "not slow"

study: $(BIN)/.installed
	$(BIN)/python -m experiments.study.run --form $(FORM)
	$(BIN)/python -m experiments.study.report runs/study-$(FORM)

test-all: lint
	$(BIN)/python -m pytest -n auto --dist loadscope

bounds: $(BIN)/.installed
	$(BIN)/python -m pytest -rs tests/package/test_bounds.py

docs: $(BIN)/.documents
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m sphinx --fresh-env --fail-on-warning \
	  --keep-going --quiet -D nb_execution_mode=$(NOTEBOOKS) --conf-dir docs \
	  --doctree-dir docs/_build/doctrees . docs/_build/html

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# uv chooses the versions in seconds, pip in minutes; where uv finds no index, pip may.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python

$(BIN)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) uv
	$(UV) --editable ".[test]" || $(PIP) --editable ".[test]"
	touch $@

$(BIN)/.documents: $(BIN)/.installed
	$(UV) --editable ".[docs]" || $(PIP) --editable ".[docs]"
	touch $@

clean:
	rm -rf .venv docs/_build runs
