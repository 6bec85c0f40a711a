# make demo      pre-train a tiny VideoMAE on real motion, in minutes on two CPU cores
# make test      lint and the tests of every change
# make test-all  the slow tests too
# make bounds    every command with the oldest and newest dependencies, on each Python found
# make study     do the claims of the paper hold here? FORM=short, full (a night) or gpu
# Each sets up .venv first.

PYTHON ?= python3
BIN := .venv/bin

# make demo DATA=FOLDER pre-trains on your own videos (or on a manifest of them).
DATA ?=
WORKDIR ?= runs/demo$(if $(DATA),-$(notdir $(patsubst %/,%,$(DATA))))
VIDEO ?= $(if $(DATA),,data/mocap_studio/val/walk/walk_003.mp4)

FORM ?= short

.PHONY: demo test test-all bounds study lint clean

demo: $(BIN)/.installed
	$(BIN)/videomae train --config=configs/demo.py --workdir="$(WORKDIR)" \
	  $(if $(DATA),--config.data.train="$(DATA)" --config.data.eval= --config.data.holdout=0.1)
	for ending in gif png; do $(BIN)/videomae visualize $(VIDEO) --checkpoint "$(WORKDIR)" \
	  --out "$(WORKDIR)/reconstruction.$$ending" || exit; done

test: lint
	$(BIN)/python -m pytest -n auto --dist loadscope -m "not slow"

study: $(BIN)/.installed
	$(BIN)/python -m experiments.study.run --form $(FORM)
	$(BIN)/python -m experiments.study.report runs/study-$(FORM)

test-all: lint
	$(BIN)/python -m pytest -n auto --dist loadscope

bounds: $(BIN)/.installed
	$(BIN)/python -m pytest -rs tests/package/test_bounds.py

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@

clean:
	rm -rf .venv runs
