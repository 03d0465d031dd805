# Two commands do all the set-up on a machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

DEFAULT := not slow and not tf and not torch and not sklearn

.PHONY: help demo docs test test-slow test-sources lint clean

help:
	@echo "make demo       VGG16 on a device with too little memory for it, and accuracy before and after"
	@echo "make test       lint, types, layers and the tests (under 20 minutes)"
	@echo "make test-slow  large models and many generated cases"
	@echo "make test-sources  conversion from every framework (installs TensorFlow, torch, ...)"
	@echo "make docs       the documentation as a site, in site/"
	@echo "make lint       formatting, lint, types and layers alone"

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[compiler,dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python bench/demo.py

docs: $(STAMP)
	$(BIN)/mkdocs build --strict

test: lint
	$(BIN)/pytest -n 2 --dist worksteal -m '$(DEFAULT) and not alone'
	$(BIN)/pytest -m '$(DEFAULT) and alone'

test-slow: $(STAMP)
	$(BIN)/pytest -m slow

test-sources: $(STAMP)
	$(BIN)/pip install --quiet --editable '.[sklearn,tf,torch]'
	$(BIN)/pytest -m 'tf or torch or sklearn'

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
