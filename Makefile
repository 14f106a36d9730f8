# make help lists what there is. The virtual environment lies in .venv; PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := .ci/constraints.txt
export OMP_WAIT_POLICY ?= PASSIVE

MINIMUM := tests/test_config.py tests/test_cli.py tests/test_flow.py tests/core tests/imagery tests/data tests/losses tests/baselines tests/trust/test_versions.py \
	tests/data_prep/records/test_records_files.py tests/data_prep/records/test_grid_references.py tests/evaluation/test_scores.py \
	tests/mapping/test_options.py tests/models/test_presence_net.py

.PHONY: help demo test check slow coverage minimum audit licences docs clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14

$(VENV)/.core: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint $(CONSTRAINTS) --compile-bytecode --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint $(CONSTRAINTS) --compile-bytecode --editable '.[dev,docs]'
	@touch $@

demo: $(VENV)/.core  ## install, then walk the whole way on a simulated region: butterfly_demo/
	$(BIN)/butterfly-sdm demo --out butterfly_demo

test: export OMP_NUM_THREADS := 1
test: $(VENV)/.dev  ## run the tests
	$(BIN)/python -m pytest -n 3 --dist loadfile

check: $(VENV)/.dev  ## style, types and the one direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: export OMP_NUM_THREADS := 1
slow: $(VENV)/.dev  ## the tests that take minutes: faults, fuzzing, repetitions
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow --timeout 7200

coverage: export OMP_NUM_THREADS := 1
coverage: $(VENV)/.dev  ## the daily suite, and which lines it never runs: the weakest modules last
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered

minimum: $(VENV)/.core  ## the tests of what every user touches, with the oldest dependencies that pyproject.toml allows
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-minimum
	$(BIN)/uv pip install --quiet --python .venv-minimum/bin/python --resolution lowest-direct --editable '.[dev]'
	.venv-minimum/bin/python -m pytest -n 2 --dist loadfile $(MINIMUM)

audit: $(VENV)/.dev  ## look up known vulnerabilities of what is installed; asks the network, and fails where that cannot be reached
	$(BIN)/uv pip freeze --quiet --python $(BIN)/python --exclude-editable > $(VENV)/installed.txt
	$(BIN)/uv tool run pip-audit --strict --no-deps --disable-pip --requirement $(VENV)/installed.txt

licences: $(VENV)/.dev  ## write docs/licences.md from what is installed
	$(BIN)/python .ci/licences.py > docs/licences.md

docs: $(VENV)/.dev  ## build the documentation site into docs/_build/html; the first time all notebooks run (some 8 minutes)
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

clean:  ## remove what was made here
	rm -rf $(VENV) .venv-minimum butterfly_demo docs/_build docs/_made docs/notebooks .coverage .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
