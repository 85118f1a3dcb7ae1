# make demo     a first result, with pictures        make test   everything that must hold
# make napari   the window
# They install what they need into .venv; system libraries are installed with apt when root, else named.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo napari test lint bench install system clean

demo: $(STAMP)
	$(BIN)/mepdiff demo

napari: $(STAMP)
	$(BIN)/napari

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -m alone tests/test_window.py
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not alone" --numprocesses auto --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/forward.py
	xvfb-run -a -s "-screen 0 1600x1000x24" $(BIN)/python benchmarks/heartbeat.py

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mepdiff needs Python 3.11 or newer; run make PYTHON=/path/to/python3"; exit 1; }
	@sh tools/system-libraries.sh
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,dev]"
	@touch $@

system:
	@sh tools/system-libraries.sh

clean:
	rm -rf $(VENV) demo-run build *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
