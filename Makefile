# The two commands of a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests run in so many processes; a number, or auto: one a core.
WORKERS ?= auto

.PHONY: demo test check docs wheel clean

demo: $(VENV)/installed
	$(BIN)/python tools/train_net.py --cfg configs/demo.yaml --resume

test: $(VENV)/installed-test check
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-docs
	$(BIN)/mkdocs build --strict

wheel:
	tools/check_wheel.sh $(PYTHON)

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
