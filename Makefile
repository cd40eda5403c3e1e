# The two commands of a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests run in so many processes; a number, or auto: one a core.
WORKERS ?= auto
PEER_TESTS := tests/robustness/test_corruptions_peers.py tests/robustness/attacks/test_pgd.py tests/models/test_pretrained.py

.PHONY: demo test check peers docs wheel clean

demo: $(VENV)/installed
	$(BIN)/python tools/study.py configs/studies/demo.yaml --jobs 2

test: $(VENV)/installed-test check
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

# Held against torchattacks, imagecorruptions and transformers. They ask for old versions of what we
# need, so they have an environment of their own, which sees that of the tests.
peers: $(VENV)/installed-peers
	$(VENV)/peers/bin/python -m pytest -p no:cacheprovider -rs $(PEER_TESTS)

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

$(VENV)/installed-peers: $(VENV)/installed-test
	$(BIN)/python -m venv $(VENV)/peers
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $(VENV)/peers/parent
	cp $(VENV)/peers/parent $$($(VENV)/peers/bin/python -c "import site; print(site.getsitepackages()[0])")/parent.pth
	$(VENV)/peers/bin/python -m pip install --quiet torchattacks imagecorruptions transformers
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
