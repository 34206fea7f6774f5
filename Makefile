# Everything runs in .venv; nothing here needs root.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
GALLERY ?= gallery-data/demo

.PHONY: app test check bench clean

app: $(VENV)/app.done  ## the web UI on http://127.0.0.1:7860, with a demo gallery
	$(BIN)/python app.py --gallery $(GALLERY) --demo

test: $(VENV)/dev.done  ## the whole suite, files shared among the cores
	$(BIN)/python -m pytest -n auto --dist loadfile

check: $(VENV)/dev.done  ## lint, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: $(VENV)/dev.done  ## make bench MODELS=DIR LFW=DIR: see docs/speed.md; other comparisons: benchmarks/
	$(if $(and $(MODELS),$(LFW)),,$(error name the folders of the two models and of LFW: make bench MODELS=DIR LFW=DIR))
	$(BIN)/python benchmarks/pipeline.py --models "$(MODELS)" --lfw "$(LFW)"

clean:
	rm -rf $(VENV) gallery-data .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/app.done: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) -e '.[cpu,ui]'
	touch $@

$(VENV)/dev.done: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) -e '.[dev]'
	touch $@
