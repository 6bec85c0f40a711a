# make demo: pre-train a tiny VideoMAE on real video, in minutes on two CPU cores.
# make test: the checks of every change. make test-all: the slow ones too.
# Each sets up .venv first.

PYTHON ?= python3
BIN := .venv/bin
WORKDIR ?= runs/demo
# make demo DATA=FOLDER uses your own videos, or a manifest of them.
DATA ?=

.PHONY: demo test test-all lint clean

demo: $(BIN)/.installed
	$(BIN)/videomae train --config=configs/demo.py --workdir=$(WORKDIR) \
	    $(if $(DATA),"--config.data.train=$(DATA)" --config.data.eval= --config.data.holdout=0.1)
	$(BIN)/python launch/demo_pictures.py

test: $(BIN)/.installed lint
	$(BIN)/python -m pytest -m "not slow"

test-all: $(BIN)/.installed lint
	$(BIN)/python -m pytest

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(BIN)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@

clean:
	rm -rf .venv runs
